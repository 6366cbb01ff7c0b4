import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts, SubgroupMatrixShape } from './adapter.js';
import type { PlannedTensors } from './coverage.js';
import { readingParameters } from './features.js';
import type { KernelChoice, PlanOptions } from './plan.js';
import { SUBGROUP_MATRIX } from './specialize.js';

/** Tile sizes of the subgroup-matrix kernel; see the top of shaders/prefill-matrix.wesl. */
export interface MatrixTiles {
  readonly subgroups: number;
  /** Queries of one subgroup. */
  readonly rows: number;
  readonly keyTile: number;
  /** Begin with the query tiles that see most keys, in all heads; by default where they see unlike numbers of keys. */
  readonly longestFirst?: boolean;
}

/** Best first, as measured on an H100 (NOTES.md) for head dimensions to 64; above, the second was best. */
const TILES: readonly MatrixTiles[] = [
  { subgroups: 4, rows: 32, keyTile: 16 },
  { subgroups: 8, rows: 32, keyTile: 16 },
  { subgroups: 8, rows: 16, keyTile: 16 },
  { subgroups: 8, rows: 16, keyTile: 32 },
  { subgroups: 16, rows: 16, keyTile: 16 },
  { subgroups: 4, rows: 16, keyTile: 16 },
  { subgroups: 4, rows: 16, keyTile: 32 },
  { subgroups: 2, rows: 16, keyTile: 16 },
  { subgroups: 1, rows: 16, keyTile: 16 },
];

/** Registers of 32 bits that a thread's matrices may take. */
const REGISTER_BUDGET = 210;

/** Head dimensions padded to whole matrices. */
function padded(problem: AttentionProblem, shape: SubgroupMatrixShape) {
  return {
    depth: Math.ceil(problem.headDimension / shape.K) * shape.K,
    value: Math.ceil(problem.valueDimension / shape.N) * shape.N,
  };
}

/** Bytes of workgroup memory that the kernel takes. */
export function matrixMemory(problem: AttentionProblem, shape: SubgroupMatrixShape, tiles: MatrixTiles): number {
  const { depth, value } = padded(problem, shape);
  const queries = tiles.subgroups * tiles.rows;
  const staged = 2 * tiles.keyTile * (depth + 8 + value + 8);
  return staged + queries * (4 * (tiles.keyTile + 8) + 2 * (tiles.keyTile + 8)) + 64;
}

/** Tiles that the adapter can run, best guess first; none where it has no matrices, or subgroups of no fixed size. */
function matrixCandidates(problem: AttentionProblem, facts: AdapterFacts): MatrixTiles[] {
  const size = facts.subgroupMinSize;
  const shape = matrixShape(facts);
  if (shape === undefined || size < 8 || size !== facts.subgroupMaxSize || !facts.halfFloats) return [];
  const { depth, value } = padded(problem, shape);
  const ordered = depth <= 64 ? TILES : [TILES[1]!, TILES[0]!, ...TILES.slice(2)];
  return ordered.filter((tiles) => {
    const lanes = lanesOf(tiles, size);
    const shares = lanes <= 8 && (tiles.rows * lanes) % size === 0 && tiles.rows % shape.M === 0;
    const blocks = tiles.keyTile % (4 * lanes) === 0 && tiles.keyTile % shape.N === 0 && tiles.keyTile % shape.K === 0;
    return (
      shares &&
      blocks &&
      (tiles.rows / size) * (depth / 2 + value + shape.N) <= REGISTER_BUDGET &&
      tiles.subgroups * size <= facts.workgroupThreads &&
      matrixMemory(problem, shape, tiles) <= facts.workgroupMemory
    );
  });
}

/** Tiles worth measuring: the planner's own choice in every form, and all others. */
export function matrixVariants(problem: AttentionProblem, facts: AdapterFacts): MatrixTiles[] {
  const candidates = matrixCandidates(problem, facts);
  const best = bestTiles(problem, candidates);
  if (best === undefined) return [];
  const otherOrder = isUneven(problem) ? [{ ...best, longestFirst: false }] : [];
  return [best, ...otherOrder, ...candidates.filter((tiles) => tiles !== best)];
}

/** Neighbouring threads that share a row of scores: two, or as many as it takes for every thread to have a row. */
function lanesOf(tiles: MatrixTiles, size: number): number {
  return Math.max(2, size / tiles.rows);
}

/** The largest shape of the adapter's. */
export function matrixShape(facts: AdapterFacts): SubgroupMatrixShape | undefined {
  return [...facts.subgroupMatrices].sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K)[0];
}

/** Workgroups that keep a large GPU busy: one for each of an H100's processors, about. */
const BUSY_WORKGROUPS = 128;

/** The first of the candidates that keeps the GPU busy; where none does, the one with most workgroups. */
function bestTiles(problem: AttentionProblem, candidates: readonly MatrixTiles[]): MatrixTiles | undefined {
  const queryTile = (tiles: MatrixTiles) => tiles.subgroups * tiles.rows;
  const heads = problem.batch * problem.queryHeads;
  // Fewer than 64 queries a workgroup bring keys too often: slower by half and more.
  const large = candidates.filter((tiles) => queryTile(tiles) >= 64);
  const sensible = large.length > 0 ? large : candidates;
  const busy = sensible.find((tiles) => heads * Math.ceil(problem.queries / queryTile(tiles)) >= BUSY_WORKGROUPS);
  return busy ?? [...sensible].sort((a, b) => queryTile(a) - queryTile(b))[0];
}

/** The subgroup-matrix kernel; undefined where it cannot do the problem here. */
export function planMatrix(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): KernelChoice | undefined {
  const tiles = options.matrixTiles ?? bestTiles(problem, matrixCandidates(problem, facts));
  const shape = matrixShape(facts);
  if (tiles === undefined || shape === undefined) return undefined;
  const queryTile = tiles.subgroups * tiles.rows;
  const { depth, value } = padded(problem, shape);
  const { longestFirst = isUneven(problem) } = tiles;
  return {
    kernel: 'prefill-matrix',
    parameters: {
      ...readingParameters(problem, tensors),
      SUBGROUP_SIZE: facts.subgroupMinSize,
      SUBGROUPS: tiles.subgroups,
      ROWS: tiles.rows,
      LANES: lanesOf(tiles, facts.subgroupMinSize),
      KEY_TILE: tiles.keyTile,
      LONGEST_FIRST: longestFirst,
      ...shape,
      DEPTH_QUADS: Math.ceil(problem.headDimension / 4),
      VALUE_QUADS: Math.ceil(problem.valueDimension / 4),
      DEPTH_BLOCKS: depth / shape.K,
      VALUE_BLOCKS: value / shape.N,
    },
    enables: ['f16', 'subgroups', SUBGROUP_MATRIX],
    queryUnit: queryTile,
    headUnit: 1,
    keyUnit: tiles.keyTile,
    splits: options.splits ?? 1,
    grid: ({ queries, heads, batches }, splits) => {
      const queryTiles = Math.ceil(queries / queryTile) * splits;
      return longestFirst ? [heads, batches, queryTiles] : [queryTiles, heads, batches];
    },
  };
}

/** Whether later queries see more keys than earlier ones. */
function isUneven({ isCausal, rightWindow, leftWindow }: AttentionProblem): boolean {
  return (isCausal || rightWindow >= 0) && leftWindow < 0;
}
