import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import type { PlannedTensors } from './coverage.js';
import { readingParameters } from './features.js';
import type { KernelChoice, PlanOptions } from './plan.js';
import { headShape } from './plan-prefill.js';
import type { HeadShape } from './tiles.js';

/** Rows (queries of all heads that share keys) up to which keys are read once or twice in all, and not tiled. */
const DECODE_ROWS = 16;
/** Workgroups that keep a large GPU busy; more splits than that only cost in combining. */
const WORKGROUPS = 256;
/** As many cores have something to do, where the GPU is a CPU. */
const SOFTWARE_WORKGROUPS = 4;

/** Whether the problem has few queries for its keys. */
export function isDecode(problem: AttentionProblem): boolean {
  return (problem.queryHeads / problem.keyHeads) * problem.queries <= DECODE_ROWS;
}

/** Splits of the keys, into multiples of `keyUnit`, with which the adapter has enough workgroups. */
export function decodeSplits(
  problem: AttentionProblem,
  facts: AdapterFacts,
  rowBlocks: number,
  keyUnit: number,
): number {
  const workgroups = facts.isSoftware ? SOFTWARE_WORKGROUPS : WORKGROUPS;
  const busy = Math.ceil(workgroups / (problem.batch * problem.keyHeads * rowBlocks));
  return Math.min(busy, Math.ceil(problem.keys / keyUnit));
}

/** Bytes of workgroup memory that the decode kernel takes. */
function decodeMemory(head: HeadShape, rows: number, threads: number, span: number): number {
  const outputs = Math.floor(threads / head.valueQuads) * head.valueQuads;
  return 16 * rows * (head.depthQuads + outputs + 1) + 4 * (rows * span + threads);
}

function threadsOf(facts: AdapterFacts, head: HeadShape, keyLanes: number, rows: number, options: PlanOptions): number {
  // A CPU's threads take turns: few of them need little workgroup memory.
  if (facts.isSoftware) return options.decodeThreads ?? (head.valueQuads > 32 ? 64 : 32);
  if (keyLanes === 1) return 64;
  return options.decodeThreads ?? (rows > 4 ? 128 : 256);
}

/** Few queries, many keys: the keys are split over workgroups, and the splits combined. On any adapter. */
export function planDecode(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): KernelChoice {
  const head = headShape(problem);
  const rows = (problem.queryHeads / problem.keyHeads) * problem.queries;
  // Threads share a key where subgroups are sure to hold them side by side.
  const keyLanes = Math.min(8, facts.subgroupMinSize >= 4 && head.depthQuads % 4 === 0 ? facts.subgroupMinSize : 1);
  const span = facts.isSoftware ? 64 : keyLanes === 1 ? 256 : 128;
  const mostRows = facts.isSoftware ? 4 : 8;
  let rowsOfWorkgroup = rows <= 1 ? 1 : rows <= 2 ? 2 : rows <= 4 ? 4 : mostRows;
  let threads = Math.min(threadsOf(facts, head, keyLanes, rowsOfWorkgroup, options), facts.workgroupThreads);
  while (decodeMemory(head, rowsOfWorkgroup, threads, span) > facts.workgroupMemory && rowsOfWorkgroup > 1) {
    if (threads > 64) threads /= 2;
    else rowsOfWorkgroup /= 2;
  }
  const rowBlocks = Math.ceil(rows / rowsOfWorkgroup);
  return {
    kernel: keyLanes > 1 ? 'decode-subgroups' : 'decode',
    parameters: {
      ...readingParameters(problem, tensors),
      THREADS: threads,
      ROWS: rowsOfWorkgroup,
      SPAN: span,
      KEY_LANES: keyLanes,
      DEPTH_QUADS: head.depthQuads,
      VALUE_QUADS: head.valueQuads,
    },
    enables: [...(problem.type === 'float16' ? ['f16'] : []), ...(keyLanes > 1 ? ['subgroups'] : [])],
    queryUnit: problem.queries,
    headUnit: problem.queryHeads / problem.keyHeads,
    keyUnit: span,
    splits: options.splits ?? decodeSplits(problem, facts, rowBlocks, span),
    grid: (coverage, actualSplits) => [
      actualSplits,
      (coverage.heads / (problem.queryHeads / problem.keyHeads)) * rowBlocks,
      coverage.batches,
    ],
  };
}
