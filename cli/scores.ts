import type { SiteReport } from '../graph-rewrite/report.js';
import { fixed } from './sites.js';

/** Sizes that a model leaves open. */
export interface OpenSizes {
  /** Sequence lengths, in tokens. */
  readonly lengths: readonly number[];
  readonly batch: number;
}

/** Memory of one site's scores at one sequence length. */
export interface ScoreMemory {
  readonly length: number;
  /** Bytes of the score matrix of all heads as the model writes it; it is written and read several times. */
  readonly before: number;
  /** FlashAttention keeps a tile of scores on the chip, and none in memory. */
  readonly after: number;
}

/** Where queries or keys have a fixed number, that; else the length asked for. Empty where the heads are not known. */
export function scoreMemory(site: SiteReport, { lengths, batch }: OpenSizes): ScoreMemory[] {
  const perPair = site.scoreBytesPerPair;
  if (perPair === undefined) return [];
  return lengths.map((length) => {
    const before =
      (fixed(site.batch) ?? batch) * perPair * (fixed(site.queries) ?? length) * (fixed(site.keys) ?? length);
    return { length, before, after: site.fused ? 0 : before };
  });
}

/** Bytes of the queries, keys, values and results of one site at one length; nothing where a size is not known. */
export function tensorMemory(site: SiteReport, length: number, batch: number): number | undefined {
  const heads = fixed(site.queryHeads);
  const keyHeads = fixed(site.keyHeads) ?? heads;
  const dimension = fixed(site.headDimension);
  const valueDimension = fixed(site.valueDimension) ?? dimension;
  if (heads === undefined || keyHeads === undefined || dimension === undefined || valueDimension === undefined)
    return undefined;
  if (site.scoreBytesPerPair === undefined) return undefined;
  const queries = fixed(site.queries) ?? length;
  const keys = fixed(site.keys) ?? length;
  const elements = (dimension + valueDimension) * (heads * queries + keyHeads * keys);
  return ((fixed(site.batch) ?? batch) * elements * site.scoreBytesPerPair) / heads;
}
