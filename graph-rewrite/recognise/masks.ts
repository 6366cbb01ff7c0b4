import type { Value } from '../graph/graph.js';
import { Expression, product } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, align, leavesOf } from './atoms.js';
import type { MaskTerm, SinkTerm } from './combine.js';
import { candidates } from './operands.js';
import { uniformValue } from './scores.js';

/** Axes of the scores. */
export type ScoreAxis = 'B' | 'H' | 'Q' | 'K';
export const SCORE_AXES: readonly ScoreAxis[] = ['B', 'H', 'Q', 'K'];

/** The scores' leaves on each axis, outermost first. */
export type ScoreAxes = Readonly<Record<ScoreAxis, readonly Atom[]>>;

/** How a mask is brought to a shape that broadcasts to (batch, heads, queries, keys). */
export interface MaskPlacement {
  readonly term: MaskTerm;
  /** Set where its dimensions have to be put in the order of the scores' axes first. */
  readonly transpose?: readonly number[];
  /**
   * Set where the mask covers only a part of some axis: sizes with one dimension for each part of each axis, those that
   * the mask lacks 1, and what these are to be repeated to.
   */
  readonly expand?: { readonly split: readonly Expression[]; readonly counts: readonly number[] };
  /** Sizes in rank 4; undefined where the tensor broadcasts as it is. */
  readonly reshape: readonly Expression[] | undefined;
  /** Shape that broadcasts to the scores. */
  readonly shape: readonly Expression[];
  /** Where above 0, the batch is this many masks, repeated. */
  readonly period: number;
}

/**
 * Fits a mask to the scores' axes.
 * @returns a reason where it does not.
 */
export function placeMask(term: MaskTerm, axes: ScoreAxes, inference: Inference): MaskPlacement | string {
  const shape = inference.of(term.value).shape;
  if (!shape) return 'the rank of a mask is not known';
  const added = term.dimensions.length - shape.length;
  const given = shape.map((size, i) => (size.equals(1) || i + added < 0 ? [] : leavesOf(term.dimensions[i + added]!)));
  const axisOf = (leaf: Atom) => SCORE_AXES.findIndex((axis) => axes[axis].includes(leaf));
  const transpose = sorting(
    given,
    SCORE_AXES.flatMap((axis) => axes[axis]),
  );
  const leaves = transpose.map((i) => given[i]!);
  const ordered = transpose.map((i) => shape[i]!);
  const moved = transpose.some((from, to) => from !== to) ? { transpose } : {};
  const flat = leaves.flat();
  if (flat.some((leaf) => axisOf(leaf) < 0 && !leaf.size.equals(1)))
    return 'a mask has a dimension that is none of the scores';
  if (flat.some((leaf, i) => i > 0 && axisOf(leaf) < axisOf(flat[i - 1]!)))
    return 'a mask has its dimensions in another order than the scores';
  let period = 0;
  const sizes: Expression[] = [];
  for (const [at, axis] of SCORE_AXES.entries()) {
    const own = flat.filter((leaf) => axisOf(leaf) === at);
    const whole = axes[axis];
    const inner = whole.slice(whole.length - own.length);
    const size = ownSize(own, leaves, ordered) ?? product(own.map((l) => l.size));
    if (own.length > 0 && own.length < whole.length) {
      if (axis === 'B' && size.value !== undefined && own.every((leaf, i) => leaf === inner[i])) period = size.value;
      else
        return (
          expandedMask(term, { leaves: flat, ...moved }, axes) ??
          `a mask covers only a part of the ${NAMES[axis]}, and would have to be repeated for all of it`
        );
    } else if (own.some((leaf, i) => leaf !== inner[i])) return `a mask has the ${NAMES[axis]} in another order`;
    sizes.push(size);
  }
  const aligned =
    shape.length <= 4 && leaves.every((own, i) => own.every((leaf) => axisOf(leaf) === i + 4 - shape.length));
  return { term, ...moved, reshape: aligned ? undefined : sizes, shape: aligned ? ordered : sizes, period };
}

/** The size of these leaves as a tensor has it, where they are whole dimensions of it: by other names, maybe. */
export function ownSize(
  wanted: readonly Atom[],
  dimensions: readonly (readonly Atom[])[],
  sizes: readonly Expression[],
): Expression | undefined {
  const touched = dimensions.filter((leaves) => leaves.some((leaf) => wanted.includes(leaf)));
  const isWhole = touched.length > 0 && touched.every((leaves) => leaves.every((leaf) => wanted.includes(leaf)));
  return isWhole ? product(sizes.filter((_, i) => touched.includes(dimensions[i]!))) : undefined;
}

/** TensorProto data type of what a mask is. */
export function termType({ value, steps }: MaskTerm, inference: Inference): number | undefined {
  return steps?.at(-1)?.to ?? inference.of(value).type;
}

/** A mask that has to be repeated along parts of an axis; undefined where it is not known how often. */
function expandedMask(
  term: MaskTerm,
  { leaves, ...moved }: { readonly leaves: readonly Atom[]; readonly transpose?: readonly number[] },
  axes: ScoreAxes,
): MaskPlacement | undefined {
  const own = new Set(leaves);
  const covered = SCORE_AXES.filter((axis) => axes[axis].some((leaf) => own.has(leaf)));
  const parts = covered.flatMap((axis) => axes[axis]);
  if (parts.filter((leaf) => own.has(leaf)).some((leaf, i) => leaf !== leaves[i])) return undefined;
  const counts = parts.map((leaf) => (own.has(leaf) ? 1 : leaf.size.value));
  if (counts.some((count) => count === undefined)) return undefined;
  const split = parts.map((leaf) => (own.has(leaf) ? leaf.size : Expression.constant(1)));
  const sizes = SCORE_AXES.map((axis) => product(covered.includes(axis) ? axes[axis].map((l) => l.size) : []));
  return { term, ...moved, expand: { split, counts: counts as number[] }, reshape: sizes, shape: sizes, period: 0 };
}

/** The order of dimensions in which their leaves stand as in `order`; those without leaves stay behind the one before. */
function sorting(dimensions: readonly (readonly Atom[])[], order: readonly Atom[]): number[] {
  let last = -1;
  const keys = dimensions.map((leaves) => {
    if (leaves.length > 0) last = order.indexOf(leaves[0]!);
    return last;
  });
  return [...dimensions.keys()].sort((a, b) => keys[a]! - keys[b]! || a - b);
}

/** Axes at which a shape needs sizes of 1 inserted to become another; undefined where that is not what it takes. */
export function insertedAxes(shape: readonly Expression[], wanted: readonly Expression[]): number[] | undefined {
  const inserted: number[] = [];
  let next = 0;
  for (const [axis, size] of wanted.entries()) {
    if (next < shape.length && size.equals(shape[next]!)) next++;
    else if (size.equals(1)) inserted.push(axis);
    else return undefined;
  }
  return next === shape.length ? inserted : undefined;
}

const NAMES: Record<ScoreAxis, string> = { B: 'batch', H: 'heads', Q: 'queries', K: 'keys' };

/** One logit a head: the tensor that holds them, to be read as a vector. */
export interface SinkPlacement {
  readonly value: Value;
  readonly isVector: boolean;
  /** Set where the sink is one constant for all heads, which has to be made a vector of this size. */
  readonly uniform?: { readonly value: number; readonly heads: number };
}

/** Finds the vector of one logit a head behind a sink's column; a reason where there is none. */
export function placeSink(term: SinkTerm, axes: ScoreAxes, inference: Inference): SinkPlacement | string {
  const heads = product(axes.H.map((leaf) => leaf.size)).value;
  const uniform = (value: number | undefined): SinkPlacement | undefined =>
    value !== undefined && Number.isFinite(value) && heads !== undefined
      ? { value: term.value, isVector: false, uniform: { value, heads } }
      : undefined;
  if (term.logit !== undefined) return uniform(term.logit) ?? 'the number of heads is not a constant';
  for (const { root, view, factor } of candidates(term.value, inference).reverse()) {
    if (factor !== 1 || view.fixed.size > 0 || view.root.some((d) => d.slice)) continue;
    const partner = new Map<Atom, Atom>();
    const fits = view.dimensions.every((dimension, i) => {
      const pairs = dimension.length === 0 || i === term.axis ? [] : align(dimension, term.dimensions[i]!);
      for (const [mine, theirs] of pairs ?? []) partner.set(mine, theirs);
      return pairs !== undefined;
    });
    const stored = view.root.flatMap((d) => leavesOf(d.atoms));
    const own = leavesOf(axes.H);
    const perHead = stored.length === own.length && stored.every((leaf, i) => partner.get(leaf) === own[i]);
    if (fits && perHead) return { value: root, isVector: view.root.length === 1 };
  }
  // A column of zeros is "softmax plus one".
  return uniform(uniformValue(term.value, inference)) ?? 'a sink is not one logit a head';
}
