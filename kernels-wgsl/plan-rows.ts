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
  /** Tiles in workgroup memory, 1 or 2. */
  readonly stages: number;
  /** False: a tile is not fetched to registers while the one before it is computed with. */
  readonly prefetches?: boolean;
}

/** How a candidate's lanes are laid out: quads of queries that each holds, and whether they are as far apart as can be. */
interface Layout {
  readonly quadsOfLane?: number;
  readonly isFar?: boolean;
}

/** Bytes of workgroup memory that the kernel takes. */
export function rowMemory({ lanes, keyTile, stages }: RowTiles, head: HeadShape): number {
  const quads = Math.ceil(head.depthQuads / lanes) + Math.ceil(head.valueQuads / lanes);
  return 16 * stages * keyTile * quads * lanes + 16;
}

/** Registers of 32 bits that a thread's queries, outputs, scores and fetched quads take; about 40 more hold the rest. */
function registers(tiles: RowTiles, head: HeadShape): number {
  const { rows, lanes, keyBatch, keyTile, threads } = tiles;
  const held = 4 * rows * (Math.ceil(head.depthQuads / lanes) + Math.ceil(head.valueQuads / lanes));
  const fetched = Math.ceil((keyTile * (head.depthQuads + head.valueQuads)) / threads);
  return held + rows * keyBatch + fetched * head.elementBytes;
}

const REGISTER_BUDGET = 200;

export function canRunRows(tiles: RowTiles, head: HeadShape, facts: AdapterFacts): boolean {
  const { threads, lanes, laneDistance } = tiles;
  return (
    threads <= facts.workgroupThreads &&
    (lanes === 1 || lanes * laneDistance <= facts.subgroupMinSize) &&
    rowMemory(tiles, head) <= facts.workgroupMemory &&
    registers(tiles, head) <= REGISTER_BUDGET
  );
}

/** What was faster than every tile of the other portable kernel, where anything was; so far nothing is measured. */
function measuredRows(_head: HeadShape, _facts: AdapterFacts): RowTiles | undefined {
  return undefined;
}

/**
 * Tiles worth measuring, for any head: lanes such that 16 quads of queries are a thread's, which with as much of the
 * outputs leaves registers for two or three workgroups of 128 threads on a processor; 8 KiB of keys and values a tile.
 */
export function rowCandidates(head: HeadShape, facts: AdapterFacts): RowTiles[] {
  const quads = 2 ** Math.ceil(Math.log2(Math.max(head.depthQuads, head.valueQuads)));
  const largest = Math.max(1, facts.subgroupMinSize);
  const tiles = (
    rows: number,
    keyBatch: number,
    keys: number,
    stages: number,
    { quadsOfLane = 16, isFar = true, ...rest }: Partial<RowTiles> & Layout = {},
  ): RowTiles => {
    const lanes = Math.max(1, (rows * quads) / quadsOfLane);
    const laneDistance = isFar && lanes > 1 ? Math.max(1, largest / lanes) : 1;
    const keyTile = Math.max(keyBatch, keys / Math.max(1, quads / 16));
    return { threads: 128, rows, lanes, laneDistance, keyBatch, keyTile, stages, ...rest };
  };
  const candidates = [
    tiles(4, 4, 16, 2),
    tiles(4, 4, 16, 2, { isFar: false }),
    tiles(4, 2, 16, 2),
    tiles(4, 4, 32, 1),
    tiles(4, 2, 16, 1, { prefetches: false }),
    tiles(4, 4, 16, 2, { threads: 64 }),
    tiles(4, 2, 32, 1, { threads: 256 }),
    tiles(4, 4, 16, 2, { quadsOfLane: 8 }),
    tiles(2, 4, 16, 2),
    tiles(8, 2, 16, 2),
    tiles(1, 4, 16, 2),
  ];
  return candidates.filter((t) => canRunRows(t, head, facts));
}

/** The kernel that keeps rows in registers; undefined where another is better, or no tile fits this adapter. */
export function planRows(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): KernelChoice | undefined {
  const head = headShape(problem);
  const isWanted = options.kernel === 'prefill-rows' || options.kernel === 'prefill-rows-subgroups';
  const tiles = options.rowTiles ?? measuredRows(head, facts) ?? (isWanted ? rowCandidates(head, facts)[0] : undefined);
  if (tiles === undefined) return undefined;
  if (tiles.lanes > 1 && tiles.lanes * tiles.laneDistance > facts.subgroupMinSize)
    throw new OrtFlashError(
      'unsupported',
      `FlashAttention on WebGPU: ${tiles.lanes} lanes ${tiles.laneDistance} apart need subgroups of ` +
        `${tiles.lanes * tiles.laneDistance}, this adapter's are of ${facts.subgroupMinSize}`,
    );
  const queryTile = (tiles.threads / tiles.lanes) * tiles.rows;
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
      STAGES: tiles.stages,
      PREFETCHES: tiles.prefetches ?? true,
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
