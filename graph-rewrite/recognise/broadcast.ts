/** Queries that are the same for the whole batch, as those of learned latents: the product with the keys repeats them. */
import { type Layout, parseLayout } from '../op/layout.js';

/** How queries without a batch are brought to that of the keys. */
export interface BatchExpansion {
  /** Layout of the expanded queries. */
  readonly layout: string;
  /** The dimension of the expanded queries that is the batch, and how many there are. */
  readonly axis: number;
  readonly rank: number;
  /** The dimension of the keys whose size the batch has. */
  readonly keyAxis: number;
}

/** @returns undefined where the batch's size cannot be read off the keys. */
export function expandBatch(queryLayout: string, keyLayout: string): BatchExpansion | undefined {
  const alone = (layout: Layout) =>
    layout.findIndex(({ factors, slice }) => !slice && factors.length === 1 && factors[0] === 'B');
  const keyAxis = alone(parseLayout(keyLayout));
  if (keyAxis < 0) return undefined;
  const query = parseLayout(queryLayout);
  const axis = alone(query);
  if (axis >= 0) return { layout: queryLayout, axis, rank: query.length, keyAxis };
  if (query.some((d) => d.factors.includes('B'))) return undefined;
  return { layout: `B${queryLayout}`, axis: 0, rank: query.length + 1, keyAxis };
}
