import { type Atom, type Dimension, leavesOf } from './atoms.js';
import type { Joint } from './joint.js';
import type { ScoreAxes } from './masks.js';

/** The scores' dimensions by what they are to the operands. */
export interface ScoreDimensions {
  /** Neither queries nor keys, outermost first. */
  readonly batch: readonly Dimension[];
  readonly queries: readonly Atom[];
  readonly keys: readonly Atom[];
}

/**
 * Ways to read the scores' dimensions as (batch, heads, queries, keys), the usual one first: the last batch dimension is
 * the heads. Where heads share their keys, exporters also fold these heads, or groups of them, into the queries. An einsum
 * may have put batch and heads of its result in another order than they are stored in.
 */
export function cuts({ batch, queries, keys: K }: ScoreDimensions, stored: readonly Atom[] = []): ScoreAxes[] {
  const leaves = batch.flatMap((d) => leavesOf(d));
  const last = batch.length > 1 ? leaves.length - leavesOf(batch.at(-1)!).length : leaves.length;
  const positions = [last, ...Array.from({ length: leaves.length + 1 }, (_, i) => leaves.length - i)];
  const usual = [...new Set(positions)].map((at) => ({ B: leaves.slice(0, at), H: leaves.slice(at), Q: queries, K }));
  const folded = queries.slice(1).flatMap((_, i) =>
    [...new Set([leaves.length, ...positions])].flatMap((at) => [
      { B: leaves.slice(0, at), H: [...leaves.slice(at), ...queries.slice(i + 1)], Q: queries.slice(0, i + 1), K },
      { B: leaves.slice(0, at), H: [...leaves.slice(at), ...queries.slice(0, i + 1)], Q: queries.slice(i + 1), K },
    ]),
  );
  const others = stored.map((_, at) => ({ B: stored.slice(0, at), H: stored.slice(at), Q: queries, K }));
  return [...usual, ...folded, ...others];
}

/** The scores' batch leaves as the queries have them in memory; none where that is the scores' own order. */
export function storedOrder({ batch, query }: Joint): readonly Atom[] {
  const leaves = batch.flatMap((d) => leavesOf(d));
  const { candidate, alignment } = query.options.at(-1)!;
  const partners = candidate.view.root.flatMap((d) => leavesOf(d.atoms).map((leaf) => alignment.partner.get(leaf)));
  const stored = partners.filter((leaf) => leaf !== undefined && leaves.includes(leaf)) as Atom[];
  const isOther = stored.length === leaves.length && stored.some((leaf, i) => leaf !== leaves[i]);
  return isOther ? stored : [];
}
