/** Factors on scores and probabilities, which are put on queries, keys or values; and what must be the same for all keys. */
import { type Expression, product } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, type Dimension, leavesOf } from './atoms.js';
import type { Factor, Shift } from './combine.js';
import { ownSize } from './masks.js';
import type { Alignment, Candidate } from './operands.js';
import { refuse } from './refusal.js';

/** A factor in a shape that broadcasts to an operand as its product reads it. */
export interface PlacedFactor extends Factor {
  /** Sizes, one a dimension of the operand; undefined where the factor broadcasts as it is. */
  readonly reshape: readonly Expression[] | undefined;
}

/** The scores' leaves that each dimension of a tensor combined with them varies along. */
function leavesPerDimension({ value, dimensions }: Shift, inference: Inference): (readonly Atom[])[] {
  const shape = inference.of(value).shape ?? refuse('the rank of what is combined with the scores is not known', value);
  const added = dimensions.length - shape.length;
  return shape.map((size, i) => (size.equals(1) || i + added < 0 ? [] : leavesOf(dimensions[i + added]!)));
}

/** Whether a tensor combined with the scores varies along these of their leaves. */
function variesAlong(term: Shift, own: readonly Atom[], inference: Inference): boolean {
  return leavesPerDimension(term, inference).some((leaves) => leaves.some((leaf) => own.includes(leaf)));
}

/** Whether a tensor combined with the scores has one number for each of their rows along an axis. */
export function isPerRow(term: Shift, dimensions: readonly Dimension[], axis: number, inference: Inference): boolean {
  const own = leavesPerDimension(term, inference).flat();
  return dimensions.every((dimension, i) => leavesOf(dimension).every((leaf) => own.includes(leaf) === (i !== axis)));
}

/** Refuses what varies along the keys. */
export function requireSameForAllKeys(terms: readonly Shift[], keys: Dimension, inference: Inference): void {
  for (const term of terms) {
    if (variesAlong(term, leavesOf(keys), inference))
      refuse('what is combined with the scores is not the same for all keys', term.value);
  }
}

/** Factors by the operand that they are put on. */
export type Factors<F = Factor> = Readonly<Record<'query' | 'key' | 'value', readonly F[]>>;

/**
 * Says where factors go. One on the scores is on the queries where it is the same for all keys, and on the keys where it is
 * the same for all queries; one on the probabilities is on the values then.
 */
export function assignFactors(
  scores: readonly Factor[],
  probabilities: readonly Factor[],
  { queries, keys }: { readonly queries: readonly Atom[]; readonly keys: readonly Atom[] },
  inference: Inference,
): Factors {
  const isOfKeys = (factor: Factor) => variesAlong(factor, keys, inference);
  const isOfQueries = (factor: Factor) => variesAlong(factor, queries, inference);
  const both = scores.find((factor) => isOfKeys(factor) && isOfQueries(factor));
  if (both)
    refuse(
      'the scores are multiplied by a tensor that is the same neither for all keys nor for all queries',
      both.value,
    );
  const shifted = scores.find((factor) => factor.shifted && isOfKeys(factor));
  if (shifted)
    refuse('scores that something was added to are multiplied by a tensor that varies along the keys', shifted.value);
  const weight = probabilities.find(isOfQueries);
  if (weight) refuse('the probabilities are multiplied by a tensor that is not the same for all queries', weight.value);
  return {
    query: scores.filter((factor) => !isOfKeys(factor)),
    key: scores.filter(isOfKeys),
    value: probabilities,
  };
}

/** Fits a factor to an operand's dimensions; a reason where it does not. */
export function placeFactor(
  factor: Factor,
  operand: { readonly candidate: Candidate; readonly alignment: Alignment },
  inference: Inference,
): PlacedFactor | string {
  const own = leavesPerDimension(factor, inference);
  const flat = own.flat();
  const dimensions = operand.candidate.view.dimensions.map((d) =>
    leavesOf(d).map((leaf) => operand.alignment.partner.get(leaf)),
  );
  const order = dimensions.flat();
  const places = flat.map((leaf) => order.indexOf(leaf));
  if (places.some((at, i) => at < 0 || (i > 0 && at < places[i - 1]!)))
    return 'a factor has its dimensions in another order than the tensor that it is put on';
  const covered = dimensions.map((leaves) => leaves.filter((leaf) => leaf && flat.includes(leaf)));
  if (covered.some((leaves, i) => leaves.length > 0 && leaves.length < dimensions[i]!.length))
    return 'a factor covers only a part of a dimension of the tensor that it is put on';
  const direct =
    own.length <= dimensions.length &&
    own.every((leaves, i) => {
      const there = covered[i + dimensions.length - own.length]!;
      return there.length === leaves.length && leaves.every((leaf, n) => leaf === there[n]);
    });
  const shape = inference.of(factor.value).shape!;
  const sizes = covered.map((leaves) => ownSize(leaves as Atom[], own, shape) ?? product(leaves.map((l) => l!.size)));
  return { ...factor, reshape: direct ? undefined : sizes };
}
