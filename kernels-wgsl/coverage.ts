import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { StridedTensor } from '../graph-rewrite/op/layout.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import type { CacheCapacities, PlanBinding, PlanTensor } from './plan.js';
import type { BindingStarts, Coverage } from './uniforms.js';

/** Which tensors the attention kernels read keys and values from, how they lie there, and how large all tensors are. */
export interface PlannedTensors {
  readonly keyTensor: PlanTensor;
  readonly valueTensor: PlanTensor;
  readonly key: StridedTensor;
  readonly value: StridedTensor;
  readonly writesLse: boolean;
  readonly bytes: Partial<Record<PlanTensor, number>>;
}

/** Elements of a strided tensor from its first to its last, counted from the start of its memory. */
function extent(tensor: StridedTensor): number {
  const { size, stride, offset } = tensor;
  if (size.B * size.H * size.S * size.D === 0) return 0;
  return (
    offset + (size.B - 1) * stride.B + (size.H - 1) * stride.H + (size.S - 1) * stride.S + (size.D - 1) * stride.D + 1
  );
}

/** A cache of (B, key heads, capacity, dimension), seen as its first `keys` positions. */
export function cacheView(problem: AttentionProblem, capacity: number, dimension: number): StridedTensor {
  const { batch, keyHeads, keys } = problem;
  return {
    size: { B: batch, H: keyHeads, S: keys, D: dimension },
    stride: { B: keyHeads * capacity * dimension, H: capacity * dimension, S: dimension, D: 1 },
    offset: 0,
  };
}

/** Bytes rounded up to whole words, as buffers are. */
export const toWords = (bytes: number) => Math.ceil(bytes / 4) * 4;

/** How past and present keys and values lie in memory. */
export interface CacheMemory {
  /** Positions that the present ones have room for. */
  readonly capacity: number;
  /** Positions that the past ones, which are copied, have room for; undefined where they are in place already. */
  readonly past: CacheCapacities | undefined;
}

export function resolveTensors(problem: AttentionProblem, writesLse: boolean, memory: CacheMemory): PlannedTensors {
  const element = problem.type === 'float16' ? 2 : 4;
  const hasCache = problem.presentKeyShape !== undefined;
  const { capacity, past } = memory;
  const key = hasCache ? cacheView(problem, capacity, problem.headDimension) : problem.key;
  const value = hasCache ? cacheView(problem, capacity, problem.valueDimension) : problem.value;
  const cache = (dimension: number, positions: number) =>
    toWords(problem.batch * problem.keyHeads * positions * dimension * element);
  return {
    keyTensor: hasCache ? 'present_key' : 'K',
    valueTensor: hasCache ? 'present_value' : 'V',
    key,
    value,
    writesLse,
    bytes: {
      Q: toWords(extent(problem.query) * element),
      K: toWords(extent(problem.key) * element),
      V: toWords(extent(problem.value) * element),
      Y: toWords(problem.outputShape.reduce((a, b) => a * b, element)),
      ...(hasCache
        ? {
            past_key: cache(problem.headDimension, past?.key ?? capacity),
            past_value: cache(problem.valueDimension, past?.value ?? capacity),
            present_key: cache(problem.headDimension, capacity),
            present_value: cache(problem.valueDimension, capacity),
          }
        : {}),
      ...(problem.mask === undefined ? {} : { attn_mask: toWords(maskExtent(problem, everything(problem)).end) }),
      ...(problem.hasLengths ? { nonpad_kv_seqlen: 8 * problem.batch } : {}),
      ...(problem.hasSink ? { sink: toWords(problem.queryHeads * element) } : {}),
      ...(writesLse ? { lse: 4 * problem.batch * problem.queryHeads * problem.queries } : {}),
    },
  };
}

/** What a kernel asks of the parts into which a problem is cut. */
export interface CoverOptions {
  /** Queries and query heads are cut at multiples of these. */
  readonly queryUnit: number;
  readonly headUnit: number;
  /** Splits of the keys, whose partial results go to scratch memory; 1 for none. */
  readonly splits: number;
}

/** Where the partial results of splits lie in scratch memory. */
export interface SplitScratch {
  readonly outputs: Range;
  readonly rows: Range;
  readonly bytes: number;
}

/** Partial outputs (splits, rows, value dimension) in float32, then maximum and sum of each row. */
export function splitScratch(problem: AttentionProblem, facts: AdapterFacts, splits: number): SplitScratch {
  const rows = problem.batch * problem.queryHeads * problem.queries * splits;
  const outputs = { start: 0, end: rows * problem.valueDimension * 4 };
  const start = Math.ceil(outputs.end / facts.bindingAlignment) * facts.bindingAlignment;
  return { outputs, rows: { start, end: start + rows * 8 }, bytes: start + rows * 8 };
}

/** One dispatch's share of the problem, and the bindings that show it. */
export interface Part {
  readonly coverage: Coverage;
  readonly bindings: readonly PlanBinding[];
  readonly starts: BindingStarts;
}

function everything(problem: AttentionProblem): Coverage {
  return {
    firstBatch: 0,
    batches: problem.batch,
    firstHead: 0,
    heads: problem.queryHeads,
    firstQuery: 0,
    queries: problem.queries,
  };
}

/**
 * Covers batches, heads and queries by as few dispatches as the adapter's binding size and grid allow: halves the
 * batches first, then the heads, then the queries.
 * @throws OrtFlashError `unsupported` where even one tile's keys exceed a binding.
 */
export function coverProblem(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: CoverOptions,
): Part[] {
  const { queryUnit, headUnit, splits } = options;
  const cover = (coverage: Coverage): Part[] => {
    const part = bind(problem, facts, tensors, coverage, splits);
    // The combining kernel has a workgroup for each query, and up to 16 for the columns of each head.
    const grid =
      splits > 1
        ? [coverage.batches, 16 * coverage.heads, coverage.queries, Math.ceil(coverage.queries / queryUnit) * splits]
        : [coverage.batches, coverage.heads, Math.ceil(coverage.queries / queryUnit)];
    const tooMany = Math.max(...grid) > facts.workgroupsPerDimension;
    if (part !== undefined && !tooMany) return [part];
    return halves(coverage, queryUnit, headUnit, problem).flatMap(cover);
  };
  return cover(everything(problem));
}

function halves(coverage: Coverage, queryUnit: number, headUnit: number, problem: AttentionProblem): Coverage[] {
  const { batches, firstBatch, heads, firstHead, queries, firstQuery } = coverage;
  if (batches > 1) {
    const first = Math.ceil(batches / 2);
    return [
      { ...coverage, batches: first },
      { ...coverage, firstBatch: firstBatch + first, batches: batches - first },
    ];
  }
  if (heads > headUnit) {
    const first = Math.ceil(heads / headUnit / 2) * headUnit;
    return [
      { ...coverage, heads: first },
      { ...coverage, firstHead: firstHead + first, heads: heads - first },
    ];
  }
  if (queries > queryUnit) {
    const first = Math.ceil(queries / queryUnit / 2) * queryUnit;
    return [
      { ...coverage, queries: first },
      { ...coverage, firstQuery: firstQuery + first, queries: queries - first },
    ];
  }
  throw new OrtFlashError(
    'unsupported',
    `FlashAttention on WebGPU: the ${problem.keys} keys of one head span more than one storage binding can show`,
    {},
    'create the device with the adapter’s maxStorageBufferBindingSize and maxBufferSize, or keep heads apart in memory',
  );
}

export interface Range {
  readonly start: number;
  readonly end: number;
}

/** Bindings that show a share of the problem; undefined where one would be larger than the adapter allows. */
function bind(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  coverage: Coverage,
  splits: number,
): Part | undefined {
  const element = problem.type === 'float16' ? 2 : 4;
  const group = problem.queryHeads / problem.keyHeads;
  const { firstBatch, batches, firstHead, heads, firstQuery, queries } = coverage;
  const batch = { first: firstBatch, count: batches };
  const head = { first: firstHead, count: heads };
  const keyHead = { first: Math.floor(firstHead / group), count: 0 };
  keyHead.count = Math.floor((firstHead + heads - 1) / group) - keyHead.first + 1;
  const query = { first: firstQuery, count: queries };
  const everyKey = { first: 0, count: problem.keys };

  let fits = true;
  const bindings: PlanBinding[] = [];
  /** Adds a binding for a range of elements and says at which element it begins. */
  const add = (
    index: number,
    tensor: PlanTensor | undefined,
    range: Range,
    bytes: number,
    writable = false,
  ): number => {
    if (tensor === undefined || range.end <= range.start) {
      bindings.push({ index, tensor: undefined, offset: 0, size: 0, writable });
      return 0;
    }
    const offset = Math.floor((range.start * bytes) / facts.bindingAlignment) * facts.bindingAlignment;
    const size = toWords(range.end * bytes) - offset;
    fits &&= size <= facts.bindingSize;
    bindings.push({ index, tensor, offset, size, writable });
    return offset / bytes;
  };
  const mask = problem.mask === undefined ? undefined : maskExtent(problem, coverage);
  const rows = problem.batch * problem.queryHeads * problem.queries;
  const starts: BindingStarts = {
    Q: add(1, 'Q', strided(problem.query, batch, head, query), element),
    K: add(2, tensors.keyTensor, strided(tensors.key, batch, keyHead, everyKey), element),
    V: add(3, tensors.valueTensor, strided(tensors.value, batch, keyHead, everyKey), element),
    mask: add(
      4,
      mask && 'attn_mask',
      mask === undefined ? { start: 0, end: 0 } : { start: mask.start / mask.bytes, end: mask.end / mask.bytes },
      mask?.bytes ?? 1,
    ),
    Y: splits > 1 ? 0 : add(7, 'Y', strided(problem.output, batch, head, query), element, true),
  };
  add(5, problem.hasLengths ? 'nonpad_kv_seqlen' : undefined, { start: 0, end: problem.batch }, 8);
  add(6, problem.hasSink ? 'sink' : undefined, { start: 0, end: problem.queryHeads }, element);
  if (splits > 1) {
    const scratch = splitScratch(problem, facts, splits);
    add(7, 'scratch', scratch.outputs, 1, true);
    add(8, 'scratch', scratch.rows, 1, true);
  } else add(8, tensors.writesLse ? 'lse' : undefined, { start: 0, end: rows }, 4, true);
  return fits ? { coverage, bindings, starts } : undefined;
}

/** Bindings of the combining kernel for the same share. */
export function bindCombine(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  coverage: Coverage,
  splits: number,
): Part {
  const element = problem.type === 'float16' ? 2 : 4;
  const scratch = splitScratch(problem, facts, splits);
  const { firstBatch, batches, firstHead, heads, firstQuery, queries } = coverage;
  const range = strided(
    problem.output,
    { first: firstBatch, count: batches },
    { first: firstHead, count: heads },
    { first: firstQuery, count: queries },
  );
  const offset = Math.floor((range.start * element) / facts.bindingAlignment) * facts.bindingAlignment;
  const view = (index: number, { start, end }: Range) =>
    ({ index, tensor: 'scratch', offset: start, size: end - start, writable: false }) as const;
  const lse = tensors.bytes.lse ?? 0;
  return {
    coverage,
    starts: { Q: 0, K: 0, V: 0, mask: 0, Y: offset / element },
    bindings: [
      view(1, scratch.outputs),
      view(2, scratch.rows),
      { index: 7, tensor: 'Y', offset, size: toWords(range.end * element) - offset, writable: true },
      { index: 8, tensor: lse > 0 ? 'lse' : undefined, offset: 0, size: lse, writable: true },
    ],
  };
}

interface Span {
  readonly first: number;
  readonly count: number;
}

/** Elements that a share of batches, heads and positions spans. */
export function strided(tensor: StridedTensor, batch: Span, head: Span, position: Span): Range {
  if (batch.count * head.count * position.count * tensor.size.D === 0) return { start: 0, end: 0 };
  const { stride, offset } = tensor;
  const start = offset + batch.first * stride.B + head.first * stride.H + position.first * stride.S;
  const last =
    (batch.count - 1) * stride.B +
    (head.count - 1) * stride.H +
    (position.count - 1) * stride.S +
    (tensor.size.D - 1) * stride.D;
  return { start, end: start + last + 1 };
}

/** Bytes of the mask that a share of the problem reads. */
function maskExtent(problem: AttentionProblem, coverage: Coverage): Range & { bytes: number } {
  const mask = problem.mask!;
  const bytes = mask.kind === 'boolean' ? 1 : problem.type === 'float16' ? 2 : 4;
  const { firstBatch, batches, firstHead, heads, firstQuery, queries } = coverage;
  // Batches that wrap around the mask's period read all of it.
  const wraps = (firstBatch % mask.batch) + batches > mask.batch;
  const batch = wraps ? { first: 0, count: mask.batch } : { first: firstBatch % mask.batch, count: batches };
  const start = batch.first * mask.stride.batch + firstHead * mask.stride.head + firstQuery * mask.stride.query;
  const last =
    (batch.count - 1) * mask.stride.batch +
    (heads - 1) * mask.stride.head +
    (queries - 1) * mask.stride.query +
    (mask.keys - 1) * mask.stride.key;
  return { start: start * bytes, end: (start + last + 1) * bytes, bytes };
}
