/** Factors on the scores that are the same for all keys, and so may be put on the queries; and what else must be. */
import { type Expression, product } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, type Dimension, leavesOf } from './atoms.js';
import type { QueryFactor, Shift } from './combine.js';
import type { Alignment, Candidate } from './operands.js';
import { refuse } from './refusal.js';

/** A factor in a shape that broadcasts to the queries as their product with the keys reads them. */
export interface PlacedFactor extends QueryFactor {
  /** Sizes, one a dimension of the queries; undefined where the factor broadcasts as it is. */
  readonly reshape: readonly Expression[] | undefined;
}

/** The scores' leaves that each dimension of a tensor combined with them varies along. */
function leavesPerDimension({ value, dimensions }: Shift, inference: Inference): (readonly Atom[])[] {
  const shape = inference.of(value).shape ?? refuse('the rank of what is combined with the scores is not known', value);
  const added = dimensions.length - shape.length;
  return shape.map((size, i) => (size.equals(1) || i + added < 0 ? [] : leavesOf(dimensions[i + added]!)));
}

/** Refuses what varies along the keys. */
export function requireSameForAllKeys(terms: readonly Shift[], keys: Dimension, inference: Inference): void {
  const own = new Set(leavesOf(keys));
  for (const term of terms) {
    if (leavesPerDimension(term, inference).some((leaves) => leaves.some((leaf) => own.has(leaf))))
      refuse('what is combined with the scores is not the same for all keys', term.value);
  }
}

/** Fits a factor to the queries' dimensions; a reason where it does not. */
export function placeFactor(
  factor: QueryFactor,
  query: { readonly candidate: Candidate; readonly alignment: Alignment },
  inference: Inference,
): PlacedFactor | string {
  const own = leavesPerDimension(factor, inference);
  const flat = own.flat();
  const dimensions = query.candidate.view.dimensions.map((d) =>
    leavesOf(d).map((leaf) => query.alignment.partner.get(leaf)),
  );
  const order = dimensions.flat();
  const places = flat.map((leaf) => order.indexOf(leaf));
  if (places.some((at, i) => at < 0 || (i > 0 && at < places[i - 1]!)))
    return 'a factor has its dimensions in another order than the queries';
  const covered = dimensions.map((leaves) => leaves.filter((leaf) => leaf && flat.includes(leaf)));
  if (covered.some((leaves, i) => leaves.length > 0 && leaves.length < dimensions[i]!.length))
    return 'a factor covers only a part of a dimension of the queries';
  const direct =
    own.length <= dimensions.length &&
    own.every((leaves, i) => {
      const there = covered[i + dimensions.length - own.length]!;
      return there.length === leaves.length && leaves.every((leaf, n) => leaf === there[n]);
    });
  return { ...factor, reshape: direct ? undefined : covered.map((leaves) => product(leaves.map((l) => l!.size))) };
}
