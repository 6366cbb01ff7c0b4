import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import type { FlashAttention } from './flash-attention.js';
import type { PlanOptions } from './plan.js';
import { combineCandidates } from './plan-combine.js';
import { isDecode } from './plan-decode.js';
import { decodeCandidates } from './plan-decode-lanes.js';
import { matrixVariants } from './plan-matrix.js';
import { headShape } from './plan-prefill.js';
import { type RowTiles, rowCandidates } from './plan-rows.js';
import { prefillCandidates, untriedTiles } from './tiles.js';

/** What was measured to be best, by kind of problem; plain JSON, to be stored and given to `FlashAttention.create`. */
export type TuningTable = Readonly<Record<string, PlanOptions>>;

/** The kind of a problem, as far as the choice of tiles depends on it. Lengths count by their order of magnitude. */
export function tuningKey(problem: AttentionProblem, facts: AdapterFacts, allowsHalfPrecision = false): string {
  const magnitude = (n: number) => Math.ceil(Math.log2(Math.max(1, n)) / 2);
  const { type, headDimension, valueDimension, mask, queries, keys } = problem;
  const group = problem.queryHeads / problem.keyHeads;
  return [
    `${facts.vendor} ${facts.architecture}`.trim(),
    allowsHalfPrecision ? 'half' : type,
    `${headDimension}x${valueDimension}`,
    isDecode(problem) ? `decode ${group * queries}x${magnitude(problem.batch * problem.keyHeads)}` : 'prefill',
    `${magnitude(queries)}x${magnitude(keys)}`,
    mask === undefined ? 'plain' : mask.kind,
  ].join(', ');
}

/** Plans worth measuring for a problem, the planner's own choice among them. */
export function tuningCandidates(
  problem: AttentionProblem,
  facts: AdapterFacts,
  allowsHalfPrecision = false,
): PlanOptions[] {
  if (isDecode(problem)) {
    if (facts.isSoftware) return [{}, { splits: 4 }];
    return decodeChoices(problem, facts);
  }
  const takesMatrices = problem.type === 'float16' || allowsHalfPrecision;
  const matrices = takesMatrices ? matrixVariants(problem, facts) : [];
  if (matrices.length > 0) return matrices.map((matrixTiles) => ({ matrixTiles, allowsHalfPrecision }));
  const head = headShape(problem);
  const untried = facts.isSoftware ? [] : untriedTiles(head, facts);
  // Of each shape of tiles, those that stage the most, and the next smaller ones: less memory, more workgroups at a time.
  const seen = new Map<string, number>();
  const known = prefillCandidates(head, facts, problem.queries)
    .filter(({ queryTile, keyTile, rowThreads, columnThreads }) => {
      const shape = [queryTile, keyTile, rowThreads, columnThreads].join();
      seen.set(shape, (seen.get(shape) ?? 0) + 1);
      return seen.get(shape)! <= 3;
    })
    .slice(0, facts.isSoftware ? 4 : 12);
  return [
    ...(facts.isSoftware ? [] : rowChoices(problem, rowCandidates(head, facts))),
    ...[...known, ...untried].map((prefillTiles) => ({ prefillTiles })),
  ];
}

/** Both decode kernels, with few splits and many; and for the best of them other ways to combine. */
function decodeChoices(problem: AttentionProblem, facts: AdapterFacts): PlanOptions[] {
  // Two, three and four workgroups of 128 threads, or as many threads in others, on each processor of a large GPU.
  const withLanes = decodeCandidates(problem, facts).flatMap((decodeTiles) => {
    const workgroups = (128 / decodeTiles.threads / problem.batch / problem.keyHeads) * WORKGROUPS;
    const splits = new Set([1, 1.5, 2].map((share) => Math.max(1, Math.floor(share * workgroups))));
    return [...splits].map((n) => ({ decodeTiles, splits: n }));
  });
  const threads = facts.subgroupMinSize >= 4 ? [128, 256] : [64];
  const withBarriers = threads
    .filter((decodeThreads) => decodeThreads <= facts.workgroupThreads)
    .flatMap((decodeThreads) => [16, 32, 64].map((splits) => ({ kernel: 'decode' as const, splits, decodeThreads })));
  return [{}, ...withLanes, ...withBarriers, ...combineCandidates(problem).map((combineTiles) => ({ combineTiles }))];
}

/** Workgroups of 128 threads that a large GPU has room for. */
const WORKGROUPS = 264;

/** Rows in registers; with the keys split, too, where there are few queries for a large GPU. */
function rowChoices(problem: AttentionProblem, candidates: readonly RowTiles[]): PlanOptions[] {
  const rows = problem.batch * problem.queryHeads * problem.queries;
  return candidates.flatMap((rowTiles, i) => {
    const isFew = i === 0 && (rows * rowTiles.lanes) / rowTiles.rows < 128 * WORKGROUPS;
    return [{ rowTiles }, ...(isFew ? [2, 4].map((splits) => ({ rowTiles, splits })) : [])];
  });
}

/** Milliseconds of work after which a measurement counts. */
const MEASURE_MS = 25;

/**
 * Measures candidates on the device, on random data, and says which is fastest. Wall-clock time of many calls in one
 * submission, so that no timestamp feature is needed.
 */
export async function measureCandidates(
  flash: FlashAttention,
  problem: AttentionProblem,
  candidates: readonly PlanOptions[],
): Promise<PlanOptions> {
  const { device } = flash;
  const all = await Promise.allSettled(candidates.map((options) => flash.prepare(problem, options)));
  const usable = all.flatMap((p, i) =>
    p.status === 'fulfilled' ? [{ options: candidates[i]!, prepared: p.value }] : [],
  );
  if (usable.length === 0) throw (all[0] as PromiseRejectedResult).reason;
  const buffers: Record<string, { buffer: GPUBuffer }> = {};
  for (const [tensor, bytes] of Object.entries(usable[0]!.prepared.plan.tensorBytes)) {
    const size = Math.max(16, bytes);
    const buffer = device.createBuffer({
      label: `FlashAttention tuning ${tensor}`,
      size,
      usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST,
    });
    const pattern = randomWords(problem.type, Math.min(size, 1 << 20) / 4);
    const isFloat = tensor === 'Q' || tensor === 'K' || tensor === 'V' || tensor.startsWith('past');
    for (let at = 0; isFloat && at < size; at += pattern.byteLength)
      device.queue.writeBuffer(buffer, at, pattern, 0, Math.min(pattern.byteLength, size - at) / 4);
    buffers[tensor] = { buffer };
  }
  const time = async (prepared: (typeof usable)[number]['prepared'], calls: number) => {
    await device.queue.onSubmittedWorkDone();
    const start = performance.now();
    const encoder = device.createCommandEncoder({ label: 'FlashAttention tuning' });
    for (let i = 0; i < calls; i++) flash.encode(prepared, encoder, buffers);
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    return (performance.now() - start) / calls;
  };
  let best = usable[0]!.options;
  let least = Number.POSITIVE_INFINITY;
  for (const { options, prepared } of usable) {
    const once = Math.min(await time(prepared, 1), await time(prepared, 1));
    const calls = Math.max(1, Math.min(200, Math.ceil(MEASURE_MS / once)));
    const each = Math.min(await time(prepared, calls), await time(prepared, calls));
    if (each < least) [least, best] = [each, options];
  }
  for (const { buffer } of Object.values(buffers)) buffer.destroy();
  return best;
}

/** Numbers between −2 and 2: zeros would run faster than real data do. */
function randomWords(type: string, count: number): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(Math.max(4, Math.floor(count)));
  let state = 1;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state >>> 8;
  };
  if (type === 'float32') {
    const floats = new Float32Array(words.buffer);
    for (let i = 0; i < floats.length; i++) floats[i] = next() / 2 ** 22 - 2;
    return words;
  }
  // Halves with random sign and mantissa, and the exponents of 1 and 1/2.
  const half = () => (next() & 0x83ff) | (next() & 0x40 ? 0x3c00 : 0x3800);
  for (let i = 0; i < words.length; i++) words[i] = ((half() << 16) | half()) >>> 0;
  return words;
}
