import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import type { PlannedTensors } from './coverage.js';
import { isVector, readingParameters } from './features.js';
import type { KernelChoice, PlanOptions } from './plan.js';
import { decodeSplits } from './plan-decode.js';
import { headShape } from './plan-prefill.js';
import type { HeadShape } from './tiles.js';

/** Sizes of the decode kernel without barriers, all powers of two; see the top of shaders/decode-lanes.wesl. */
export interface DecodeTiles {
  readonly threads: number;
  /** Rows (queries of all heads that share keys) of a workgroup, at most as many as lanes. */
  readonly rows: number;
  /** Neighbouring threads that share a key, at most as many as the adapter's least subgroup. */
  readonly lanes: number;
  /** Keys that each group of lanes has in flight. */
  readonly keys: number;
  /** Where memory allows it, a thread reads 16 bytes of float16 at once, and not 8; by default it does. */
  readonly readsWide?: boolean;
}

/** Quads of queries that a thread holds at most; of outputs likewise: 32 registers each. */
const HELD_QUADS = 8;
/** Rows of a workgroup at most. */
const MOST_ROWS = 8;

const powerOfTwo = (atLeast: number) => 2 ** Math.ceil(Math.log2(atLeast));

/** Bytes of workgroup memory that the kernel takes. */
function lanesMemory({ threads, rows, lanes }: DecodeTiles, head: HeadShape): number {
  return (threads / lanes) * rows * (16 * head.valueQuads + 8);
}

function canRunLanes(tiles: DecodeTiles, head: HeadShape, facts: AdapterFacts): boolean {
  const { threads, rows, lanes } = tiles;
  return (
    rows <= lanes &&
    lanes <= Math.min(threads, facts.subgroupMinSize) &&
    threads <= facts.workgroupThreads &&
    lanesMemory(tiles, head) <= facts.workgroupMemory
  );
}

/**
 * Tiles for a problem, best first; none where subgroups are too small to hold its rows in registers, and on a CPU that
 * plays GPU, to which the exchanges between lanes cost more than barriers.
 */
export function decodeCandidates(problem: AttentionProblem, facts: AdapterFacts): DecodeTiles[] {
  if (facts.isSoftware) return [];
  const head = headShape(problem);
  const quads = Math.max(head.depthQuads, head.valueQuads);
  const rows = Math.min(MOST_ROWS, powerOfTwo((problem.queryHeads / problem.keyHeads) * problem.queries));
  const lanes = Math.max(8, rows, powerOfTwo((rows * quads) / HELD_QUADS));
  // Of keys as much in flight as of queries and outputs is held.
  const keys = Math.max(1, powerOfTwo(HELD_QUADS / Math.ceil(quads / lanes)));
  return [
    { threads: 128, rows, lanes, keys: Math.min(4, keys) },
    { threads: 128, rows, lanes, keys: Math.min(4, keys), readsWide: false },
    { threads: 128, rows, lanes, keys: Math.min(8, 2 * keys) },
    { threads: 128, rows, lanes, keys: Math.min(2, keys) },
    { threads: 256, rows, lanes, keys: Math.min(2, keys) },
    { threads: 64, rows, lanes, keys: Math.min(4, keys) },
    { threads: 64, rows, lanes, keys: Math.min(8, 2 * keys) },
  ].filter((tiles) => canRunLanes(tiles, head, facts));
}

/** Eight halves. */
const WORDS = 'vec4<u32>';

/** Whether each lane has as many pairs of neighbouring quads as the others, and all keys and values begin at 16 bytes. */
function canReadWide(
  { lanes, readsWide = true }: DecodeTiles,
  head: HeadShape,
  problem: AttentionProblem,
  { key, value }: PlannedTensors,
): boolean {
  const isEven = head.depthQuads % (2 * lanes) === 0 && head.valueQuads % (2 * lanes) === 0;
  return readsWide && isEven && problem.type === 'float16' && isVector(key, 8) && isVector(value, 8);
}

/** Few queries, many keys, where threads of a subgroup share each key; undefined where that is not to be chosen. */
export function planDecodeLanes(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): KernelChoice | undefined {
  const head = headShape(problem);
  const tiles = options.decodeTiles ?? decodeCandidates(problem, facts)[0];
  if (tiles === undefined) return undefined;
  if (!canRunLanes(tiles, head, facts))
    throw new OrtFlashError(
      'unsupported',
      `FlashAttention on WebGPU: decoding over ${tiles.lanes} lanes needs subgroups of ${tiles.lanes}, this adapter has ${facts.subgroupMinSize}`,
    );
  const rowBlocks = Math.ceil(((problem.queryHeads / problem.keyHeads) * problem.queries) / tiles.rows);
  return {
    kernel: 'decode-lanes',
    parameters: {
      ...readingParameters(problem, tensors),
      THREADS: tiles.threads,
      ROWS: tiles.rows,
      ROW_BLOCKS: rowBlocks,
      IS_ONE_QUERY: problem.queries === 1,
      LANES: tiles.lanes,
      KEYS: tiles.keys,
      ...(canReadWide(tiles, head, problem, tensors) && {
        ITEM_QUADS: 2,
        Item: WORDS,
        KeyItem: WORDS,
        ValueItem: WORDS,
      }),
      DEPTH_QUADS: head.depthQuads,
      VALUE_QUADS: head.valueQuads,
    },
    enables: [...(problem.type === 'float16' ? ['f16'] : []), 'subgroups'],
    queryUnit: problem.queries,
    headUnit: problem.queryHeads / problem.keyHeads,
    keyUnit: tiles.keys,
    splits: options.splits ?? decodeSplits(problem, facts, rowBlocks, (tiles.threads / tiles.lanes) * tiles.keys),
    grid: (coverage, splits) => [
      splits,
      (coverage.heads / (problem.queryHeads / problem.keyHeads)) * rowBlocks,
      coverage.batches,
    ],
  };
}
