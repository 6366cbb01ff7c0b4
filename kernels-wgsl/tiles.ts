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
  /** Values staged at a time: those of (keyTile / columnThreads / 4) · valueSteps of every `columnThreads` keys. */
  readonly valueSteps: number;
  /** Whether the queries' whole head dimension stays in workgroup memory. */
  readonly queriesStay: boolean;
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
  const weights = tiles.queryTile * tiles.columnThreads * 16;
  const partial = tiles.queryTile * tiles.columnThreads * 4;
  return query + stage + weights + partial + 16;
}

/** Accumulators that each thread holds, in 32-bit registers. */
function registers(tiles: PrefillTiles, head: HeadShape): number {
  const rows = tiles.queryTile / tiles.rowThreads;
  return rows * (tiles.keyTile / tiles.columnThreads + 4 * Math.ceil(head.valueQuads / tiles.columnThreads) + 2);
}

const REGISTER_BUDGET = 170;

/** Query tile, key tile, row threads, column threads: best first, for GPUs with much workgroup memory and many registers. */
const SHAPES: readonly (readonly [number, number, number, number])[] = [
  [64, 64, 8, 8],
  [64, 64, 8, 16],
  [64, 32, 16, 8],
  [32, 32, 8, 8],
  [32, 32, 4, 8],
  [16, 32, 8, 8],
  [16, 16, 8, 4],
  [8, 16, 8, 4],
];

/** Every choice of tiles that the adapter can run for this head, best guess first. */
export function prefillCandidates(head: HeadShape, facts: AdapterFacts, queries: number): PrefillTiles[] {
  const candidates: PrefillTiles[] = [];
  for (const [queryTile, keyTile, rowThreads, columnThreads] of SHAPES) {
    for (const depthChunk of chunksOf(head.depthQuads)) {
      // Values share the memory of the keys' chunk: as many as fit there.
      let valueSteps = (4 * columnThreads * columnThreads) / keyTile;
      while (valueSteps > 1 && valueSteps * Math.ceil(head.valueQuads / columnThreads) > depthChunk) valueSteps /= 2;
      for (const queriesStay of depthChunk >= head.depthQuads ? [true] : [true, false]) {
        const tiles = { queryTile, keyTile, rowThreads, columnThreads, depthChunk, valueSteps, queriesStay };
        const fits =
          prefillMemory(tiles, head) <= facts.workgroupMemory &&
          rowThreads * columnThreads <= facts.workgroupThreads &&
          registers(tiles, head) <= REGISTER_BUDGET;
        if (fits) candidates.push(tiles);
      }
    }
  }
  // No larger tile than there are queries, as long as there is a choice.
  const small = candidates.filter((t) => t.queryTile / 2 < queries || t.queryTile <= 16);
  return small.length > 0 ? small : candidates;
}

/** The whole head dimension, then ever shorter chunks of it. */
function chunksOf(depthQuads: number): number[] {
  const chunks = [depthQuads];
  for (const chunk of [32, 16, 8, 4]) if (chunk < depthQuads) chunks.push(chunk);
  return chunks;
}
