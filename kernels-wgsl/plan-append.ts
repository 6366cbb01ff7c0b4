import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { StridedTensor } from '../graph-rewrite/op/layout.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import { type CacheMemory, cacheView, type PlannedTensors, type Range, strided, toWords } from './coverage.js';
import { elementBytes, isVector } from './features.js';
import type { PlanBinding, PlanDispatch, PlanOptions, PlanTensor } from './plan.js';

const THREADS = 256;

/** One cache: new elements, where they come from, and where they go. */
interface Cache {
  readonly past: PlanTensor;
  readonly added: PlanTensor;
  readonly present: PlanTensor;
  readonly source: StridedTensor;
  readonly dimension: number;
  /** Positions that the past's memory has room for; undefined where it is the present's. */
  readonly pastCapacity: number | undefined;
}

/**
 * How a cache lies in memory, as the caller has it.
 * @throws OrtFlashError `invalid-argument` where it is too small
 */
export function resolveCache(problem: AttentionProblem, options: PlanOptions): CacheMemory {
  const { keys, pastKeys } = problem;
  const { cacheCapacity = keys, pastCapacity } = options;
  const copied = options.cacheCapacity === undefined ? { key: pastKeys, value: pastKeys } : undefined;
  const memory = { capacity: cacheCapacity, past: pastCapacity ?? copied };
  const refuse = (capacity: number, needed: number): never => {
    throw new OrtFlashError(
      'invalid-argument',
      `FlashAttention: a cache of ${capacity} positions cannot hold ${needed} keys`,
    );
  };
  if (problem.presentKeyShape === undefined) return memory;
  if (memory.capacity < keys) refuse(memory.capacity, keys);
  for (const capacity of Object.values(memory.past ?? {})) if (capacity < pastKeys) refuse(capacity, pastKeys);
  return memory;
}

/**
 * Dispatches that bring the present keys and values about: past ones copied, new ones put behind them; or, where the
 * cache grows in place, only the new ones written.
 */
export function planAppend(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  memory: CacheMemory,
): PlanDispatch[] {
  if (problem.presentKeyShape === undefined) return [];
  const caches: Cache[] = [
    {
      past: 'past_key',
      added: 'K',
      present: 'present_key',
      source: problem.key,
      dimension: problem.headDimension,
      pastCapacity: memory.past?.key,
    },
    {
      past: 'past_value',
      added: 'V',
      present: 'present_value',
      source: problem.value,
      dimension: problem.valueDimension,
      pastCapacity: memory.past?.value,
    },
  ];
  return caches.flatMap((cache) =>
    share(problem.batch, problem.keyHeads, (part) => append(problem, facts, tensors, cache, part)),
  );
}

interface Part {
  readonly firstBatch: number;
  readonly batches: number;
  readonly firstHead: number;
  readonly heads: number;
}

/** Halves batches, then heads, until each part can be dispatched. */
function share(batches: number, heads: number, plan: (part: Part) => PlanDispatch | undefined): PlanDispatch[] {
  const cover = (part: Part): PlanDispatch[] => {
    const dispatch = plan(part);
    if (dispatch !== undefined) return [dispatch];
    const axis = part.batches > 1 ? 'batches' : 'heads';
    const first = Math.ceil(part[axis] / 2);
    if (part[axis] <= 1)
      throw new OrtFlashError(
        'unsupported',
        'FlashAttention on WebGPU: one head of the cache exceeds a storage binding',
      );
    const rest = part[axis] - first;
    const second =
      axis === 'batches'
        ? { ...part, firstBatch: part.firstBatch + first, batches: rest }
        : { ...part, firstHead: part.firstHead + first, heads: rest };
    return [...cover({ ...part, [axis]: first }), ...cover(second)];
  };
  return cover({ firstBatch: 0, batches, firstHead: 0, heads });
}

function append(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  cache: Cache,
  part: Part,
): PlanDispatch | undefined {
  const { pastKeys, newKeys, keys } = problem;
  const bytes = elementBytes(problem);
  const { pastCapacity } = cache;
  const copiesPast = pastCapacity !== undefined && pastKeys > 0;
  const first = copiesPast ? 0 : pastKeys;
  const present = cache.present === 'present_key' ? tensors.key : tensors.value;
  const past = cacheView({ ...problem, keys: pastKeys }, pastCapacity ?? 0, cache.dimension);
  const vector = cache.dimension % 4 === 0 && isVector(cache.source);
  const lanes = vector ? 4 : 1;

  let fits = true;
  const bindings: PlanBinding[] = [];
  const add = (index: number, tensor: PlanTensor | undefined, range: Range, writable = false): number => {
    const offset = Math.floor((range.start * bytes) / facts.bindingAlignment) * facts.bindingAlignment;
    const size = toWords(range.end * bytes) - offset;
    const isEmpty = tensor === undefined || range.end <= range.start;
    if (!isEmpty) fits &&= size <= facts.bindingSize;
    bindings.push({ index, tensor: isEmpty ? undefined : tensor, offset, size, writable });
    return isEmpty ? 0 : offset / bytes;
  };
  const batch = { first: part.firstBatch, count: part.batches };
  const head = { first: part.firstHead, count: part.heads };
  const range = (tensor: StridedTensor, from: number, count: number) =>
    strided(tensor, batch, head, { first: from, count });
  const pastStart = add(1, copiesPast ? cache.past : undefined, range(past, 0, pastKeys));
  const newStart = add(2, cache.added, range(cache.source, 0, newKeys));
  const presentStart = add(7, cache.present, range(present, first, keys - first), true);

  const count = keys - first;
  const width = cache.dimension / lanes;
  const groups = Math.ceil((count * width) / THREADS);
  fits &&= Math.max(groups, part.heads, part.batches) <= facts.workgroupsPerDimension;
  if (!fits) return undefined;
  const { stride } = cache.source;
  const element = problem.type === 'float16' ? 'f16' : 'f32';
  const words = [
    ...[part.firstBatch, part.firstHead, first, count, pastKeys, width],
    ...[past.stride.B / lanes, past.stride.H / lanes, -pastStart / lanes],
    ...[stride.B / lanes, stride.H / lanes, stride.S / lanes, stride.D, (cache.source.offset - newStart) / lanes],
    ...[present.stride.B / lanes, present.stride.H / lanes, -presentStart / lanes],
  ];
  return {
    kernel: 'append',
    label: `FlashAttention append to ${cache.present}`,
    parameters: {
      IS_VECTOR: vector,
      COPIES_PAST: copiesPast,
      Item: vector ? `vec4<${element}>` : element,
    },
    enables: problem.type === 'float16' ? ['f16'] : [],
    uniform: Uint32Array.from({ length: Math.ceil(words.length / 4) * 4 }, (_, i) => words[i] ?? 0),
    bindings,
    workgroups: [groups, part.heads, part.batches],
  };
}
