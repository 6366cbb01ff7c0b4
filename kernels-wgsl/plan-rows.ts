import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import type { PlannedTensors } from './coverage.js';
import { readingParameters } from './features.js';
import type { KernelChoice, PlanOptions } from './plan.js';
import { headShape } from './plan-prefill.js';
import type { HeadShape } from './tiles.js';

/** Sizes of the prefill kernel that keeps its rows in registers; see the top of shaders/prefill-rows.wesl. */
export interface RowTiles {
  readonly threads: number;
  /** Queries of one group of lanes, and the lanes that share their head dimension: powers of two. */
  readonly rows: number;
  readonly lanes: number;
  /** Threads from one lane of a group to the next, a power of two; lanes · laneDistance threads are of one subgroup. */
  readonly laneDistance: number;
  /** Keys whose scores are in registers at a time. */
  readonly keyBatch: number;
  /** Keys in workgroup memory at a time, a multiple of keyBatch. */
  readonly keyTile: number;
}

/** Bytes of workgroup memory that the kernel takes. */
export function rowMemory({ lanes, keyTile }: RowTiles, head: HeadShape): number {
  const quads = Math.ceil(head.depthQuads / lanes) + Math.ceil(head.valueQuads / lanes);
  return 16 * keyTile * quads * lanes + 16;
}

/** Registers of 32 bits that a thread's queries, outputs, scores and fetched quads take; about 40 more hold the rest. */
function registers(tiles: RowTiles, head: HeadShape): number {
  const { rows, lanes, keyBatch, keyTile, threads } = tiles;
  const held = 4 * rows * (Math.ceil(head.depthQuads / lanes) + Math.ceil(head.valueQuads / lanes));
  const fetched = Math.ceil((keyTile * (head.depthQuads + head.valueQuads)) / threads);
  return held + rows * keyBatch + fetched * head.elementBytes;
}

const REGISTER_BUDGET = 200;

function canRunRows(tiles: RowTiles, head: HeadShape, facts: AdapterFacts): boolean {
  const { threads, lanes, laneDistance } = tiles;
  return (
    threads <= facts.workgroupThreads &&
    (lanes === 1 || lanes * laneDistance <= facts.subgroupMinSize) &&
    rowMemory(tiles, head) <= facts.workgroupMemory &&
    registers(tiles, head) <= REGISTER_BUDGET
  );
}

/**
 * Tiles of so many keys at head dimensions to 64, fewer above: 8 KiB are 16 keys. Lanes such that 16 quads of queries are a
 * thread's, and as far apart as the subgroup allows: neighbouring threads then read the same address, which was 2 to 4 %
 * faster on an H100 than lanes side by side.
 */
function tilesOf(
  head: HeadShape,
  facts: AdapterFacts,
  [rows, keyBatch, keys]: readonly [number, number, number],
): RowTiles {
  const quads = 2 ** Math.ceil(Math.log2(Math.max(head.depthQuads, head.valueQuads)));
  const lanes = Math.max(1, (rows * quads) / 16);
  const laneDistance = lanes > 1 ? Math.max(1, facts.subgroupMinSize / lanes) : 1;
  const keyTile = keyBatch * Math.max(1, Math.floor((keys * 16) / Math.max(16, quads) / keyBatch));
  return { threads: 128, rows, lanes, laneDistance, keyBatch, keyTile };
}

/** Tiles worth measuring, what was fastest on an H100 (NOTES.md) first. */
export function rowCandidates(head: HeadShape, facts: AdapterFacts): RowTiles[] {
  const candidates = [
    tilesOf(head, facts, [2, 8, 32]),
    tilesOf(head, facts, [4, 4, 32]),
    tilesOf(head, facts, [4, 8, 32]),
    tilesOf(head, facts, [2, 8, 16]),
    tilesOf(head, facts, [1, 8, 32]),
    tilesOf(head, facts, [1, 8, 16]),
  ];
  return candidates.filter((t) => canRunRows(t, head, facts));
}

/** Workgroups with which a large GPU is busy: two for each of an H100's processors. With fewer, nothing is measured. */
const BUSY_WORKGROUPS = 264;

/**
 * What was faster than every tile of the other portable kernel: on an H100, long calls at head dimensions of 64, 128 and
 * 256. Taken from 32 up.
 */
function measuredRows(problem: AttentionProblem, head: HeadShape, facts: AdapterFacts): RowTiles | undefined {
  if (facts.vendor !== 'nvidia' || Math.max(head.depthQuads, head.valueQuads) < 8) return undefined;
  const [best] = rowCandidates(head, facts);
  if (best === undefined) return undefined;
  const workgroups = problem.batch * problem.queryHeads * Math.ceil(problem.queries / queryTileOf(best));
  return workgroups >= BUSY_WORKGROUPS ? best : undefined;
}

const queryTileOf = ({ threads, lanes, rows }: RowTiles) => (threads / lanes) * rows;

/** The kernel that keeps rows in registers; undefined where another is better, or no tile fits this adapter. */
export function planRows(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): KernelChoice | undefined {
  const head = headShape(problem);
  const isWanted = options.kernel === 'prefill-rows' || options.kernel === 'prefill-rows-subgroups';
  const tiles =
    options.rowTiles ?? measuredRows(problem, head, facts) ?? (isWanted ? rowCandidates(head, facts)[0] : undefined);
  if (tiles === undefined) return undefined;
  if (tiles.lanes > 1 && tiles.lanes * tiles.laneDistance > facts.subgroupMinSize)
    throw new OrtFlashError(
      'unsupported',
      `FlashAttention on WebGPU: ${tiles.lanes} lanes ${tiles.laneDistance} apart need subgroups of ` +
        `${tiles.lanes * tiles.laneDistance}, this adapter's are of ${facts.subgroupMinSize}`,
    );
  const queryTile = queryTileOf(tiles);
  const scattered = Math.min(tiles.lanes, tiles.rows);
  return {
    kernel: tiles.lanes > 1 ? 'prefill-rows-subgroups' : 'prefill-rows',
    parameters: {
      ...readingParameters(problem, tensors),
      THREADS: tiles.threads,
      OWN_ROWS: tiles.rows / scattered,
      SCATTER_STEPS: Math.log2(scattered),
      LANE_STEPS: Math.log2(tiles.lanes),
      LANE_DISTANCE: tiles.laneDistance,
      KEY_BATCH: tiles.keyBatch,
      KEY_BATCHES: tiles.keyTile / tiles.keyBatch,
      DEPTH_QUADS: head.depthQuads,
      VALUE_QUADS: head.valueQuads,
    },
    enables: [...(problem.type === 'float16' ? ['f16'] : []), ...(tiles.lanes > 1 ? ['subgroups'] : [])],
    queryUnit: queryTile,
    headUnit: 1,
    keyUnit: tiles.keyTile,
    splits: options.splits ?? 1,
    grid: (coverage, splits) => [Math.ceil(coverage.queries / queryTile) * splits, coverage.heads, coverage.batches],
  };
}
