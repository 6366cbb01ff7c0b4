import type { AdapterFacts } from './adapter.js';

/** Tile sizes of the portable prefill kernel; see the top of shaders/prefill.wesl. A quad is four elements. */
export interface PrefillTiles {
  readonly queryTile: number;
  readonly keyTile: number;
  /** Threads along the queries, and along keys or value columns. */
  readonly rowThreads: number;
  readonly columnThreads: number;
  /** Quads of the head dimension staged at a time. */
  readonly depthChunk: number;
  /** Values staged at a time: those of so many of every `columnThreads` keys; divides columnThreads. */
  readonly valueSteps: number;
  /** Whether the queries' whole head dimension stays in workgroup memory. */
  readonly queriesStay: boolean;
  /**
   * Quads of each thread's keys whose weights are in workgroup memory at a time, a divisor of keyTile / columnThreads / 4;
   * all by default.
   */
  readonly weightQuads?: number;
  /** Weights lie there as float16; for float16 values. */
  readonly halfWeights?: boolean;
  /** False: nothing is fetched ahead of its use, and short loops stay loops: small code, for what is no GPU. */
  readonly prefetches?: boolean;
}

/** Sizes of one head that tiles must fit. */
export interface HeadShape {
  readonly depthQuads: number;
  readonly valueQuads: number;
  readonly elementBytes: number;
}

/** Bytes of workgroup memory that the prefill kernel takes with these tiles. */
export function prefillMemory(tiles: PrefillTiles, head: HeadShape): number {
  const chunks = Math.ceil(head.depthQuads / tiles.depthChunk);
  const queryQuads = tiles.queriesStay ? tiles.depthChunk * chunks : tiles.depthChunk;
  const columnQuads = Math.ceil(head.valueQuads / tiles.columnThreads);
  const quad = 4 * head.elementBytes;
  const query = tiles.queryTile * queryQuads * quad;
  const stage = tiles.keyTile * Math.max(tiles.depthChunk, tiles.valueSteps * columnQuads) * quad;
  const keyQuads = tiles.keyTile / tiles.columnThreads / 4;
  const weightQuads = tiles.weightQuads ?? keyQuads;
  const weights = (tiles.queryTile * tiles.keyTile * (tiles.halfWeights ? 2 : 4) * weightQuads) / keyQuads;
  const partial = tiles.queryTile * tiles.columnThreads * 4;
  return query + stage + weights + partial + 16;
}

/** Accumulators that each thread holds, in 32-bit registers. */
function registers(tiles: PrefillTiles, head: HeadShape): number {
  const rows = tiles.queryTile / tiles.rowThreads;
  return rows * (tiles.keyTile / tiles.columnThreads + 4 * Math.ceil(head.valueQuads / tiles.columnThreads) + 2);
}

const REGISTER_BUDGET = 170;

/** Query tile, key tile, row threads, column threads; from many threads with much to do each, down to what always fits. */
const SHAPES: readonly (readonly [number, number, number, number])[] = [
  [64, 64, 16, 8],
  [64, 32, 16, 8],
  [64, 64, 16, 16],
  [64, 64, 8, 16],
  [64, 64, 8, 8],
  [32, 32, 8, 8],
  [32, 32, 4, 8],
  [16, 32, 8, 8],
  [16, 16, 8, 4],
  [8, 16, 8, 4],
];

/** Every choice of tiles that the adapter can run for this head, best guess first. */
export function prefillCandidates(head: HeadShape, facts: AdapterFacts, queries: number): PrefillTiles[] {
  const measured = facts.isSoftware ? softwareTiles(head, queries) : measuredTiles(head);
  const candidates: PrefillTiles[] = measured.filter((tiles) => canRun(tiles, head, facts));
  for (const [queryTile, keyTile, rowThreads, columnThreads] of SHAPES) {
    for (const depthChunk of chunksOf(head.depthQuads)) {
      // Values share the memory of the keys' chunk: as many as fit there.
      let valueSteps = columnThreads;
      while (valueSteps > 1 && valueSteps * Math.ceil(head.valueQuads / columnThreads) > depthChunk) valueSteps /= 2;
      for (const queriesStay of depthChunk >= head.depthQuads ? [true] : [true, false]) {
        const tiles = { queryTile, keyTile, rowThreads, columnThreads, depthChunk, valueSteps, queriesStay };
        if (canRun(tiles, head, facts)) candidates.push(tiles);
      }
    }
  }
  // No larger tile than there are queries, as long as there is a choice.
  const small = candidates.filter((t) => t.queryTile / 2 < queries || t.queryTile <= 16);
  return small.length > 0 ? small : candidates;
}

/**
 * Tiles that are right and not yet measured: weights in halves or a part at a time, so that two or three workgroups share
 * a processor that has 64 KiB for them. For autotuning; none is a default.
 */
export function untriedTiles(head: HeadShape, facts: AdapterFacts): PrefillTiles[] {
  const isHalf = head.elementBytes === 2;
  const isWide = Math.max(head.depthQuads, head.valueQuads) > 16;
  const tile = (
    [queryTile, keyTile, rowThreads, columnThreads]: readonly [number, number, number, number],
    depthChunk: number,
    valueSteps: number,
    queriesStay: boolean,
    rest: Pick<PrefillTiles, 'weightQuads' | 'halfWeights'>,
  ): PrefillTiles => ({
    queryTile,
    keyTile,
    rowThreads,
    columnThreads,
    depthChunk: Math.min(depthChunk, head.depthQuads),
    valueSteps,
    queriesStay,
    ...rest,
  });
  const inParts = { weightQuads: 1 };
  const halves = { halfWeights: true };
  const tiles = isHalf
    ? [
        tile([64, 64, 16, 8], 8, isWide ? 2 : 4, true, halves),
        tile([64, 64, 16, 8], 8, isWide ? 2 : 4, true, { ...inParts, ...halves }),
        tile([64, 64, 16, 16], 8, 4, true, halves),
        tile([128, 64, 16, 8], 8, isWide ? 2 : 4, false, { ...inParts, ...halves }),
        tile([64, 32, 16, 8], 8, 4, true, halves),
      ]
    : [
        tile([64, 64, 16, 8], 4, isWide ? 1 : 2, !isWide, inParts),
        tile([64, 64, 16, 8], 8, isWide ? 2 : 4, false, inParts),
        tile([64, 64, 8, 8], 4, isWide ? 1 : 2, !isWide, inParts),
        tile([128, 64, 16, 8], 4, isWide ? 1 : 2, false, inParts),
      ];
  return tiles.filter((t) => canRun(t, head, facts));
}

function canRun(tiles: PrefillTiles, head: HeadShape, facts: AdapterFacts): boolean {
  return (
    prefillMemory(tiles, head) <= facts.workgroupMemory &&
    tiles.rowThreads * tiles.columnThreads <= facts.workgroupThreads &&
    registers(tiles, head) <= REGISTER_BUDGET
  );
}

/** What was fastest on an H100 (NOTES.md): head dimensions to 64 and to 128, in float32 and float16. */
function measuredTiles({ depthQuads, valueQuads, elementBytes }: HeadShape): PrefillTiles[] {
  const quads = Math.max(depthQuads, valueQuads);
  if (quads < 8 || quads > 32) return [];
  const tiles = (
    [queryTile, keyTile, rowThreads, columnThreads]: readonly [number, number, number, number],
    valueSteps: number,
    queriesStay: boolean,
    rest: Partial<PrefillTiles> = {},
  ) => [{ queryTile, keyTile, rowThreads, columnThreads, depthChunk: 8, valueSteps, queriesStay, ...rest }];
  if (quads <= 16) return tiles([64, 64, 16, 8], 4, true, elementBytes === 2 ? { halfWeights: true } : {});
  if (elementBytes === 2) return tiles([64, 64, 16, 16], 4, true);
  return tiles([64, 64, 16, 8], 1, false, { depthChunk: 4, weightQuads: 1 });
}

/**
 * For SwiftShader, which spends 0.2 s of compilation on every KiB of workgroup memory (it clears it word by word) and on
 * every twenty lines that are not in a loop, and for which a load costs as much as eight multiply-adds of four.
 */
function softwareTiles({ depthQuads, valueQuads }: HeadShape, queries: number): PrefillTiles[] {
  const tile = (queryTile: number, rowThreads: number, columnThreads: number): PrefillTiles => ({
    queryTile,
    keyTile: 4 * columnThreads,
    rowThreads,
    columnThreads,
    depthChunk: Math.min(4, depthQuads),
    valueSteps: 1,
    queriesStay: false,
    prefetches: false,
  });
  if (valueQuads > 32) return [tile(16, 8, 8)];
  // More rows a thread pay off in long runs.
  return queries < 256 || valueQuads > 16 ? [tile(16, 8, 4)] : [tile(16, 4, 4)];
}

/** At most eight quads at a time: more take registers to fetch. Then ever shorter chunks. */
function chunksOf(depthQuads: number): number[] {
  return [Math.min(8, depthQuads), ...[4, 2, 1].filter((chunk) => chunk < depthQuads)];
}
