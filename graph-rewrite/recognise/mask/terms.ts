/** A site's masks in a normal form: conditions that keys must meet, what stands in place of others, what is added. */
import { DataType } from '../../onnx/proto.js';
import { type Expression, product } from '../../shape/expression.js';
import type { Inference } from '../../shape/inference.js';
import { leavesOf } from '../atoms.js';
import { insertedAxes, type MaskPlacement, SCORE_AXES, type ScoreAxes, type ScoreAxis } from '../masks.js';
import { Affine, IndexVariable } from './affine.js';
import { type Condition, conjuncts, type Element, FALSE, not, type Source, TRUE } from './element.js';
import { Evaluator } from './evaluate.js';

/** The scores' indices: one for each part of an axis, outermost first. */
export type ScoreIndices = Readonly<Record<ScoreAxis, readonly IndexVariable[]>>;

/** Added values above this are biases, not masks. */
export const HIGHEST_ADDED_FILL = -1e4;
/** Larger numbers added to all scores are not left out: they would cost the scores digits. */
const LARGEST_SHIFT = 64;

/** A mask, or a part of one. */
export type Term =
  /** Where the conditions do not all hold, `fill` is added to the score, or put in its place. */
  | {
      readonly kind: 'mask';
      readonly mode: 'add' | 'replace';
      readonly conditions: readonly Condition[];
      readonly fill: number;
      /** TensorProto data type in which the fill is added. */
      readonly type: number;
      /** Biases that are added only where the conditions hold. */
      readonly instead?: readonly Term[];
      readonly placement: MaskPlacement;
    }
  /** Added to the score. */
  | { readonly kind: 'bias'; readonly sources: readonly Source[]; readonly placement: MaskPlacement }
  /** Scores below are raised to it. */
  | { readonly kind: 'floor'; readonly fill: number }
  /** One number added to every score, which a softmax does not see. */
  | { readonly kind: 'shift' };

/** Names the scores' indices. */
export function scoreIndices(axes: ScoreAxes): {
  readonly indices: ScoreIndices;
  readonly of: Map<unknown, IndexVariable>;
} {
  const of = new Map<unknown, IndexVariable>();
  const name = (axis: ScoreAxis) =>
    axes[axis].map((leaf) => {
      const variable = new IndexVariable(axis, leaf.size);
      of.set(leaf, variable);
      return variable;
    });
  return { indices: { B: name('B'), H: name('H'), Q: name('Q'), K: name('K') }, of };
}

/** Takes a mask apart. What cannot be taken apart is one bias, or one condition, in the tensor that it is. */
export function readTerms(
  placement: MaskPlacement,
  variables: ReadonlyMap<unknown, IndexVariable>,
  inference: Inference,
): readonly Term[] {
  const { term } = placement;
  if (term.kind === 'floor') return [{ kind: 'floor', fill: term.fill }];
  const indices = valueIndices(placement, variables, inference);
  if (!indices) return [asItIs(placement, [])];
  const source: Source = { value: term.value, indices, keepWhere: true };
  const element = new Evaluator(inference, [...variables.values()]).at(term.value, indices);
  if (term.kind === 'boolean') {
    const isNumber = inference.of(term.value).type !== DataType.BOOL;
    const read = isNumber ? truthOf(element) : element.kind === 'condition' ? element.condition : undefined;
    if (isNumber && !read) return [asItIs(placement, [])];
    const condition: Condition = read ?? { kind: 'opaque', sources: [source] };
    const conditions = conjuncts(term.keepWhere ? condition : not(condition));
    if (conditions.length === 0) return [];
    return [{ kind: 'mask', mode: 'replace', conditions, fill: term.fill, type: 0, placement }];
  }
  const parts = element.kind === 'sum' ? element.parts : [element];
  const terms: Term[] = [];
  for (const part of parts) {
    const found = additiveTerms(part, placement, inference.of(term.value).type ?? 0);
    if (!found) return [asItIs(placement, [source])];
    terms.push(...found);
  }
  return terms;
}

/** Where an element is 1; undefined where it may be anything but 0 and 1. */
function truthOf(element: Element): Condition | undefined {
  const isNumber = (side: Element, number: number) => side.kind === 'constant' && side.value === number;
  if (isNumber(element, 0) || isNumber(element, 1)) return isNumber(element, 1) ? TRUE : FALSE;
  if (element.kind === 'condition') return element.condition;
  if (element.kind !== 'choice') return undefined;
  const { condition, yes, no } = element;
  if (isNumber(yes, 1) && isNumber(no, 0)) return condition;
  return isNumber(yes, 0) && isNumber(no, 1) ? not(condition) : undefined;
}

function asItIs(placement: MaskPlacement, sources: readonly Source[]): Term {
  const { term } = placement;
  if (term.kind === 'additive') return { kind: 'bias', sources, placement };
  const condition: Condition = { kind: 'opaque', sources: sources.map((s) => ({ ...s, keepWhere: term.keepWhere })) };
  return { kind: 'mask', mode: 'replace', conditions: [condition], fill: term.fill, type: 0, placement };
}

/** 0, a bias, or a choice between one of these and a number that takes the key out; several choices one in another. */
function additiveTerms(element: Element, placement: MaskPlacement, type: number): readonly Term[] | undefined {
  const { factor } = placement.term;
  if (element.kind === 'constant') {
    const shift = Math.abs(element.value * factor);
    return shift === 0 ? [] : shift <= LARGEST_SHIFT ? [{ kind: 'shift' }] : undefined;
  }
  if (element.kind === 'opaque') return [{ kind: 'bias', sources: element.sources, placement }];
  if (element.kind === 'sum') {
    const parts = element.parts.map((p) => additiveTerms(p, placement, type));
    return parts.every((p) => p !== undefined) ? parts.flat() : undefined;
  }
  if (element.kind !== 'choice') return undefined;
  const fillOf = (side: Element) => {
    const fill = side.kind === 'constant' ? side.value * factor : 0;
    return fill <= HIGHEST_ADDED_FILL ? fill : undefined;
  };
  const { condition, yes, no } = element;
  const fill = fillOf(no) ?? fillOf(yes);
  if (fill === undefined) return undefined;
  const kept = fillOf(no) === undefined ? no : yes;
  const rest = additiveTerms(kept, placement, type);
  // Under a mask nothing else may be masked: which fill a key gets would depend on the order.
  if (!rest || rest.some((t) => t.kind !== 'bias')) return undefined;
  const conditions = conjuncts(kept === yes ? condition : not(condition));
  // s · b − c · (1 − b) is −c where b is 0, and nothing is left of the score.
  const mode = placement.term.replaces && rest.length === 0 ? 'replace' : 'add';
  return [...rest, { kind: 'mask', mode, conditions, fill, type, placement, instead: rest }];
}

/** The indices at which the scores read a mask; undefined where it covers its axes in no simple way. */
function valueIndices(
  { term }: MaskPlacement,
  variables: ReadonlyMap<unknown, IndexVariable>,
  inference: Inference,
): readonly Affine[] | undefined {
  const shape = inference.of(term.value).shape;
  const added = shape ? term.dimensions.length - shape.length : 0;
  const indices: Affine[] = [];
  for (const [axis, size] of (shape ?? []).entries()) {
    const dimension = term.dimensions[axis + added];
    if (size.equals(1) || !dimension) {
      indices.push(Affine.constant(0));
      continue;
    }
    let index = Affine.constant(0);
    const leaves = leavesOf(dimension);
    for (const leaf of leaves) {
      const variable = variables.get(leaf);
      if (!variable) return undefined;
      if (leaves.length === 1) variable.addSize(size);
      index = index.times(leaf.size).plus(Affine.variable(variable));
    }
    indices.push(index);
  }
  return shape && indices;
}

/**
 * Where a tensor stands among the scores, if it can be the operator's mask: the one that spans the fewest axes, and of
 * those the one that takes the fewest nodes to compute and to bring into shape.
 */
export function placeSource(
  sources: readonly Source[],
  placement: MaskPlacement,
  indices: ScoreIndices,
  inference: Inference,
): { readonly source: Source; readonly placement: MaskPlacement } | undefined {
  let best: { source: Source; placement: MaskPlacement; cost: number } | undefined;
  for (const [distance, source] of sources.entries()) {
    const placed = place(source, placement, indices, inference);
    if (!placed) continue;
    const shape = inference.of(source.value).shape!;
    const shaping = !placed.reshape ? 0 : insertedAxes(shape, placed.reshape) ? 2.5 : 6;
    const steps = 3 * (source.steps?.length ?? 0);
    const cost = placed.shape.filter((s) => !s.equals(1)).length * 100 + distance + shaping + steps;
    if (!best || cost < best.cost) best = { source, placement: placed, cost };
  }
  return best;
}

function place(
  source: Source,
  original: MaskPlacement,
  indices: ScoreIndices,
  inference: Inference,
): MaskPlacement | undefined {
  const { value, steps } = source;
  const term = { ...original.term, value, ...(steps ? { steps } : {}) };
  if (value === original.term.value && !steps) return { ...original, term };
  const shape = inference.of(value).shape;
  // A damaged model may contradict itself about a rank.
  if (shape?.length !== source.indices.length) return undefined;
  const order = SCORE_AXES.flatMap((axis) => indices[axis]);
  const seen: IndexVariable[] = [];
  for (const [axis, index] of source.indices.entries()) {
    if (shape[axis]!.equals(1)) continue;
    const { variable } = index;
    if (!variable?.hasSize(shape[axis]!)) return undefined;
    if (seen.length > 0 && order.indexOf(variable) <= order.indexOf(seen.at(-1)!)) return undefined;
    seen.push(variable);
  }
  const sizes: Expression[] = [];
  for (const axis of SCORE_AXES) {
    const own = indices[axis].filter((v) => seen.includes(v));
    if (own.length > 0 && own.length < indices[axis].length) return undefined;
    sizes.push(product(own.map((v) => shape[source.indices.findIndex((i) => i.variable === v)]!)));
  }
  const direct =
    shape.length <= 4 &&
    shape.every(
      (size, axis) =>
        size.equals(1) || SCORE_AXES.indexOf(source.indices[axis]!.variable!.axis) === axis + 4 - shape.length,
    );
  return { term, reshape: direct ? undefined : sizes, shape: direct ? shape : sizes, period: 0 };
}
