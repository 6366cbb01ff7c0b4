import type { Node, Value } from '../graph/graph.js';
import { formatLayout, isMerged, parseLayout } from '../op/layout.js';
import { type Expression, product } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, type Dimension, leavesOf, sizeOf } from './atoms.js';
import { type BatchExpansion, expandBatch } from './broadcast.js';
import { combineSteps, type MaskTerm, type ScoreFormula } from './combine.js';
import { type Contraction, contractedLabels } from './contraction.js';
import { cuts, type ScoreDimensions } from './cuts.js';
import { requireIndependent } from './dependence.js';
import { type PlacedFactor, placeFactor, requireSameForAllKeys } from './factors.js';
import { NO_BAND } from './mask/bands.js';
import { mayBeUndefined, mayHoldFill } from './mask/magnitude.js';
import { type UnderstoodMasks, understandMasks } from './mask/understand.js';
import {
  type MaskPlacement,
  placeMask,
  placeSink,
  type ScoreAxes,
  type ScoreAxis,
  type SinkPlacement,
  termType,
} from './masks.js';
import {
  type Alignment,
  alignOperand,
  type Candidate,
  candidates,
  type LabelledDimensions,
  mergeDimensions,
  type OperandAxes,
  placeOperand,
} from './operands.js';
import { outputCandidates } from './output.js';
import { type ProbabilityTrace, traceProbabilities } from './probabilities.js';
import { RefusalSignal, refuse, refuseProduct } from './refusal.js';
import { type ScoreTrace, scorePaths, traceScores } from './scores.js';
import { extraSteps, requireDigits, type SoftmaxForm } from './softmax.js';
import { isLinearLayer, isWeight } from './weights.js';
import { withZeroed } from './zeroed.js';

/** One tensor of the operator: the value to connect, its layout, and the nodes that the layout makes unnecessary. */
export interface Connection {
  readonly value: Value;
  readonly layout: string;
  readonly absorbed: readonly Node[];
  /** Set where the layout is that of the tensor reshaped to these sizes: parts of one axis in dimensions of their own. */
  readonly merged?: readonly Expression[];
}

/** A place that computes attention, understood well enough to be replaced. */
export interface Site {
  readonly softmax: SoftmaxForm;
  readonly query: Connection;
  /** Set where the queries have no batch and are to be expanded. */
  readonly expansion: BatchExpansion | undefined;
  readonly key: Connection;
  readonly value: Connection;
  readonly output: Connection;
  readonly formula: ScoreFormula;
  readonly scale: number;
  /** Factors on the query, in order. */
  readonly factors: readonly PlacedFactor[];
  readonly masks: UnderstoodMasks;
  readonly sink: SinkPlacement | undefined;
  readonly sizes: Readonly<Record<ScoreAxis, Expression>>;
  readonly keyHeads: Expression;
  readonly headDimension: Expression;
  readonly valueDimension: Expression;
  /** TensorProto data type in which the site is computed. */
  readonly type: number;
  /** That of query and key, which may be narrower. */
  readonly inputType: number;
  /** That of value and output, which may be narrower. */
  readonly valueType: number;
  /** Every node that the operator replaces; those that nothing else needs go away. */
  readonly nodes: readonly Node[];
  readonly form: string;
}

/** Understands the site of one softmax. Throws a refusal with the reason where it cannot. */
export function matchSite(softmax: SoftmaxForm, inference: Inference): Site {
  let first: RefusalSignal | undefined;
  for (const path of scorePaths(softmax.input, inference)) {
    try {
      return matchTrace(traceScores(path, inference), softmax, inference);
    } catch (error) {
      if (!(error instanceof RefusalSignal)) throw error;
      first ??= error;
      if (!error.isOfProduct) throw first;
    }
  }
  throw first ?? new RefusalSignal('the softmax is not over a product of queries and keys', softmax.input);
}

/** The site, if its scores are this product. */
function matchTrace(trace: ScoreTrace, softmax: SoftmaxForm, inference: Inference): Site {
  const written = combineSteps([...trace.steps, ...extraSteps(softmax, trace)]);
  const joint = readJoint(trace, softmax, inference);
  const formula = withZeroed(written, joint.zeroed, inference);
  requireSameForAllKeys([...formula.shifts, ...formula.factors], joint.keys, inference);
  requireRounding(formula, inference);
  requireGuarded(formula, joint, inference);
  const tensors = [...formula.masks.map((m) => m.value), ...formula.factors.map((f) => f.value)];
  requireIndependent(tensors, trace, softmax.nodes);
  const plans = cuts(joint).map((axes) => plan(joint, formula, axes, inference));
  const usable = plans.filter((p): p is Plan => typeof p !== 'string');
  if (usable.length === 0)
    return refuseProduct(plans.find((p) => typeof p === 'string') ?? 'no batch and heads', trace.product.output);
  // The plan that leaves the least to execute; among equals the first, which is the usual reading of the dimensions.
  const best = usable.reduce((a, b) => (saving(b) > saving(a) ? b : a));
  const { type: inputType, valueType } = commonTypes(joint, best, inference);
  const masked = maskedType(formula, inputType);
  const scored = { type: masked, isWidened: masked !== inputType, hasSink: best.sink !== undefined };
  const found = understandMasks(best.masks, best.axes, scored, inference);
  const masks = found ?? { ...NO_BAND, maskedValue: Number.NEGATIVE_INFINITY, rest: best.masks };
  requireDigits(softmax, masks, inference);
  const type = tensorTypes({ ...best, masks: masks.rest }, inference).includes(masked) ? masked : inputType;
  checkCasts(joint.probabilityCasts, valueType, best.query.value);
  checkTypes(formula.casts, type, { ...best, masks: masks.rest }, inference);
  const unread = masks.rest.find(({ term }) => term.kind === 'additive' && term.replaces);
  if (unread) refuse('the scores are multiplied by a mask that is not understood', unread.term.value);
  const nodes = [trace.nodes, softmax.nodes, joint.probabilityNodes, [joint.second.node]].flat();
  const absorbed = [best.query, best.key, best.value, best.output].flatMap((c) => c.absorbed);
  return {
    softmax,
    ...best,
    masks,
    formula,
    scale: formula.scale * best.factor,
    type,
    inputType,
    valueType,
    nodes: [...nodes, ...absorbed],
    form: `${trace.product.node.opType} · ${softmax.nodes.map((n) => n.opType).join(' ')} · ${joint.second.node.opType}`,
  };
}

/** Fills from here on leave scores few digits, and those from the end on none. */
const COARSE_FILL = 1e6;
const COARSE_FILL_END = 1e30;

/** Refuses fills beside which scores are rounded to what depends on a constant that was added to all of them. */
function requireRounding({ masks }: ScoreFormula, inference: Inference): void {
  const isCoarse = ({ value, factor, shifted }: MaskTerm) =>
    shifted === true &&
    mayHoldFill(value, inference, COARSE_FILL / Math.abs(factor), COARSE_FILL_END / Math.abs(factor));
  const coarse = masks.find(isCoarse);
  if (coarse) refuse('a mask that rounds scores is added after a number was added to all of them', coarse.value);
}

/** A guard against NaN is passed, as the operator's rows without keys are zeros: no mask may bring NaN by itself. */
function requireGuarded({ masks }: ScoreFormula, joint: Joint, inference: Inference): void {
  if (!joint.guarded) return;
  const added = masks.filter((m) => m.kind === 'additive');
  const undefinable = added.find((m) => mayBeUndefined(m.value, inference));
  if (undefinable) refuse('a guard against NaN follows what may add NaN to the scores', undefinable.value);
  const infinite = added.find((m) => m.factor < 0 && mayHoldFill(m.value, inference, Number.POSITIVE_INFINITY));
  if (infinite) refuse('a guard against NaN follows a mask that is negated, whose −∞ are ∞ then', infinite.value);
}

/** The two products of a site and the scores' dimensions that join them. */
interface Joint extends ScoreDimensions {
  readonly query: Side;
  readonly key: Side;
  readonly value: Side;
  readonly output: Side;
  readonly second: Contraction;
  readonly probabilityNodes: readonly Node[];
  readonly probabilityCasts: readonly number[];
  readonly guarded: boolean;
  readonly zeroed: ProbabilityTrace['zeroed'];
}

/** An operand of one of the products, every tensor it could be read from, and how each lies against the scores. */
interface Side {
  readonly operand: Value;
  readonly options: readonly { readonly candidate: Candidate; readonly alignment: Alignment }[];
}

function readJoint(trace: ScoreTrace, softmax: SoftmaxForm, inference: Inference): Joint {
  const first = trace.product;
  const base: LabelledDimensions = new Map(first.outputLabels.map((label, i) => [label, trace.base[i]!]));
  const probabilities = traceProbabilities(softmax, trace, inference);
  const second = probabilities.product;
  const normalised = leavesOf(trace.view.dimensions[softmax.axis] ?? []);
  // A single key leaves no atom to know its dimension by; then nothing may have moved dimensions.
  const unmoved = trace.view.dimensions.every((d, i) => d === trace.base[i]);
  const single = unmoved ? first.outputLabels[softmax.axis] : undefined;
  const keyLabels = normalised.length > 0 ? labelsOf(normalised, base) : single === undefined ? undefined : [single];
  const keySide = first.operands.findIndex((o) => keyLabels?.every((label) => o.labels.includes(label)));
  if (keyLabels === undefined || keySide < 0)
    return refuseProduct('the softmax is not over one dimension of the product of queries and keys', softmax.input);
  const isKey = (label: string) => keyLabels.includes(label);
  if (first.operands[1 - keySide]!.labels.some(isKey))
    return refuseProduct('the softmax is over a batch dimension of the scores', softmax.input);
  const queryOperand = first.operands[1 - keySide]!;
  const keyOperand = first.operands[keySide]!;
  if (isLinearLayer(first, queryOperand.value, inference))
    return refuseProduct(
      'the scores are a linear layer of one tensor, not a product of queries and keys',
      first.output,
    );
  const onlyQuery = (label: string) =>
    label === 'row' || label === 'column' || (!label.startsWith('batch') && !keyOperand.labels.includes(label));
  const queryLabels = first.outputLabels.filter((l) => !isKey(l) && onlyQuery(l));
  const batchLabels = first.outputLabels.filter((l) => !isKey(l) && !onlyQuery(l));

  const valueOperand = second.operands[1 - probabilities.side]!;
  const probabilityLabels = second.operands[probabilities.side]!.labels;
  const summed = contractedLabels(second);
  if (probabilityLabels.length !== probabilities.view.dimensions.length)
    return refuse('the rank of the probabilities does not fit their product with the values', second.output);
  const scores: LabelledDimensions = new Map(
    probabilityLabels.map((label, i) => [label, probabilities.view.dimensions[i]!]),
  );
  const summedLeaves = new Set(summed.flatMap((label) => leavesOf(scores.get(label)!)));
  if (summed.length === 0 || summedLeaves.size !== normalised.length || normalised.some((l) => !summedLeaves.has(l)))
    return refuse('the probabilities are not summed over the keys', second.output);
  if (isWeight(keyOperand.value, inference) || isWeight(valueOperand.value, inference))
    return refuseProduct('keys or values are constants of the model, not a sequence', second.output);

  const outputLabels: LabelledDimensions = new Map([...scores].filter(([label]) => !summed.includes(label)));
  const sides = () => ({
    query: side(queryOperand.value, queryOperand.labels, base, inference),
    key: side(keyOperand.value, keyOperand.labels, base, inference),
    value: side(valueOperand.value, valueOperand.labels, scores, inference),
    output: outputSide(second, outputLabels, inference),
  });
  // Aligning one operand may split the scores' atoms, so that earlier ones have to be aligned again.
  let aligned = sides();
  aligned = realign(
    aligned,
    [queryOperand.labels, keyOperand.labels, valueOperand.labels, second.outputLabels],
    [base, base, scores, outputLabels],
  );
  return {
    ...aligned,
    second,
    probabilityNodes: probabilities.nodes,
    probabilityCasts: probabilities.casts,
    guarded: probabilities.guarded,
    zeroed: probabilities.zeroed,
    batch: batchLabels.map((l) => base.get(l)!),
    queries: queryLabels.flatMap((l) => leavesOf(base.get(l)!)),
    keys: keyLabels.flatMap((label) => leavesOf(base.get(label)!)),
  };
}

type Sides = Pick<Joint, 'query' | 'key' | 'value' | 'output'>;

function side(operand: Value, labels: readonly string[], scores: LabelledDimensions, inference: Inference): Side {
  return alignAll(operand, candidates(operand, inference), labels, scores);
}

function outputSide(second: Contraction, scores: LabelledDimensions, inference: Inference): Side {
  return alignAll(second.output, outputCandidates(second.output, inference), second.outputLabels, scores, true);
}

function alignAll(
  operand: Value,
  found: readonly Candidate[],
  labels: readonly string[],
  scores: LabelledDimensions,
  asResult = false,
): Side {
  const options = found.flatMap((candidate) => {
    const { view } = candidate;
    // The result of the second product is seen from its own dimensions; what follows moves them elsewhere.
    const dimensions = asResult ? view.root.map((r) => r.atoms) : view.dimensions;
    const alignment = alignOperand({ ...view, dimensions }, labels, scores);
    return alignment ? [{ candidate, alignment }] : [];
  });
  if (options.length === 0)
    refuseProduct('the sizes of an operand cannot be matched with those of the scores', operand);
  return { operand, options };
}

function realign(sides: Sides, labels: readonly (readonly string[])[], scores: readonly LabelledDimensions[]): Sides {
  const again = (s: Side, i: number) =>
    alignAll(
      s.operand,
      s.options.map((o) => o.candidate),
      labels[i]!,
      scores[i]!,
      i === 3,
    );
  return {
    query: again(sides.query, 0),
    key: again(sides.key, 1),
    value: again(sides.value, 2),
    output: again(sides.output, 3),
  };
}

/** The labels whose dimensions these leaves are, in the same order; undefined where they are a part of one. */
function labelsOf(leaves: readonly Atom[], base: LabelledDimensions): string[] | undefined {
  const isPart = (dimension: Dimension) => leavesOf(dimension).some((leaf) => leaves.includes(leaf));
  const found = [...base].filter(([, dimension]) => isPart(dimension));
  found.sort(([, a], [, b]) => leaves.indexOf(leavesOf(a)[0]!) - leaves.indexOf(leavesOf(b)[0]!));
  const all = found.flatMap(([, dimension]) => leavesOf(dimension));
  return sameLeaves(all, leaves) ? found.map(([label]) => label) : undefined;
}

function sameLeaves(a: readonly Atom[], b: readonly Atom[]): boolean {
  return a.length === b.length && a.every((leaf, i) => leaf === b[i]);
}

/** A choice of layouts for all four tensors and the masks. */
interface Plan
  extends Pick<
    Site,
    | 'query'
    | 'expansion'
    | 'key'
    | 'value'
    | 'output'
    | 'factors'
    | 'sink'
    | 'sizes'
    | 'keyHeads'
    | 'headDimension'
    | 'valueDimension'
  > {
  readonly masks: readonly MaskPlacement[];
  readonly axes: ScoreAxes;
  /** Product of the scalar factors on query and key. */
  readonly factor: number;
}

function saving(plan: Plan): number {
  const absorbed = [plan.query, plan.key, plan.value, plan.output].reduce((n, c) => n + c.absorbed.length, 0);
  return absorbed - 2 * plan.masks.filter((m) => m.reshape).length;
}

function plan(joint: Joint, formula: ScoreFormula, axes: ScoreAxes, inference: Inference): Plan | string {
  const queryAxes: OperandAxes = { B: axes.B, H: axes.H, S: axes.Q };
  const keyAxes: OperandAxes = { B: axes.B, H: axes.H, S: axes.K };
  const heads = product(axes.H.map((a) => a.size));
  const masks: MaskPlacement[] = [];
  for (const term of formula.masks) {
    const placed = placeMask(term, axes, inference);
    if (typeof placed === 'string') return placed;
    masks.push(placed);
  }
  const sink = formula.sink && placeSink(formula.sink, axes, inference);
  if (typeof sink === 'string') return sink;
  const factors: PlacedFactor[] = [];
  for (const factor of formula.factors) {
    const placed = placeFactor(factor, joint.query.options[0]!, inference);
    if (typeof placed === 'string') return placed;
    factors.push(placed);
  }
  const ofAllHeads = (p: Placed) => p.heads.equals(heads);
  const batched = placements(joint.query, queryAxes, factors.length > 0).find(ofAllHeads);
  const query = batched ?? placements(joint.query, { ...queryAxes, B: [] }).find(ofAllHeads);
  if (!query || (!batched && (factors.length > 0 || query.merged)) || (factors.length > 0 && query.merged))
    return 'the queries are repeated along the batch or the heads';
  const keys = placements(joint.key, keyAxes);
  const values = placements(joint.value, keyAxes).filter((p) => p.factor === 1);
  const pair = keys.flatMap((k) => values.filter((v) => v.heads.equals(k.heads)).map((v) => [k, v] as const))[0];
  if (!pair) return 'keys or values are repeated other than for groups of heads';
  const output = outputPlacement(joint.output, queryAxes, heads);
  if (!output) return 'the output has its dimensions in an order that no layout says';
  const [key, value] = pair;
  const expansion = batched ? undefined : expandBatch(query.layout, key.layout);
  if (!batched && !expansion) return 'the queries are repeated along the batch';
  const fixedHeads = [query, key, value, output].every((c) => !isMerged(parseLayout(c.layout), 'H'));
  if (heads.value === undefined && !fixedHeads) return 'the number of heads is not a constant';
  const own = (s: Side) => product(s.options[0]!.alignment.own.map((a) => a.size));
  return {
    query: expansion ? { ...query, layout: expansion.layout } : query,
    expansion,
    key,
    value,
    output,
    masks,
    axes,
    factors,
    sink,
    factor: query.factor * key.factor,
    sizes: {
      B: product(axes.B.map((a) => a.size)),
      H: heads,
      Q: product(axes.Q.map((a) => a.size)),
      K: product(axes.K.map((a) => a.size)),
    },
    keyHeads: key.heads,
    headDimension: own(joint.query),
    valueDimension: own(joint.value),
  };
}

type Placed = Connection & { readonly heads: Expression; readonly factor: number };

/** Every candidate that has a layout, the one that absorbs the most first; those that need a Reshape last. */
function placements(s: Side, axes: OperandAxes, nearest = false): Placed[] {
  const found: Placed[] = [];
  const reshaped: Placed[] = [];
  for (const { candidate, alignment } of s.options) {
    if (nearest && candidate.absorbed.length > 0) continue;
    const merged = mergeDimensions(candidate, alignment, axes);
    const { root: value, absorbed, factor } = candidate;
    const add = (list: Placed[], from: Candidate, more: Partial<Placed>) => {
      const placed = placeOperand(from, alignment, axes);
      if (placed)
        list.push({ value, absorbed, factor, layout: formatLayout(placed.layout), heads: placed.heads, ...more });
    };
    add(found, candidate, {});
    if (merged) add(reshaped, merged, { merged: merged.view.root.map((d) => sizeOf(d.atoms)) });
  }
  return [...found.reverse(), ...reshaped.reverse()];
}

/** The result, where its dimensions have moved the furthest that a layout can say. */
function outputPlacement(s: Side, axes: OperandAxes, heads: Expression): Connection | undefined {
  const furthest = [...s.options].reverse();
  for (const merges of [false, true]) {
    for (const { candidate, alignment } of furthest) {
      const { root: value, absorbed, view } = candidate;
      // Here what is in memory are the dimensions that the view ends with.
      const whole = { ...candidate, view: { ...view, root: view.dimensions.map((atoms) => ({ atoms })) } };
      const written = merges ? mergeDimensions(whole, alignment, axes) : whole;
      const placement = written && placeOperand(written, alignment, axes);
      if (!placement?.heads.equals(heads)) continue;
      const more = merges ? { merged: written!.view.root.map((d) => sizeOf(d.atoms)) } : {};
      return { value, absorbed, layout: formatLayout(placement.layout), ...more };
    }
  }
  return undefined;
}

const FLOAT = 1;
const FLOAT16 = 10;
const DOUBLE = 11;
const BFLOAT16 = 16;

interface Types {
  readonly type: number;
  readonly valueType: number;
}

function commonTypes(joint: Joint, plan: Plan, inference: Inference): Types {
  const type = inference.of(plan.query.value).type;
  if (type === undefined) return refuse('the data type of the queries is not known', joint.query.operand);
  if (![FLOAT, FLOAT16, DOUBLE, BFLOAT16].includes(type))
    return refuse('the queries have no floating-point type', joint.query.operand);
  if (inference.of(plan.key.value).type !== type)
    return refuse('queries and keys have different data types', plan.key.value);
  const valueType = inference.of(plan.value.value).type;
  // Queries and keys that were widened for their product: what follows is then computed as wide, and rounded once.
  const widened = type === FLOAT && (valueType === FLOAT16 || valueType === BFLOAT16);
  if (valueType === undefined || (valueType !== type && !widened) || inference.of(plan.output.value).type !== valueType)
    return refuse('queries, keys, values and output have different data types', plan.value.value);
  return { type, valueType };
}

/** Scores of 16 bits that are widened first are masked in float32, in which lower fills take keys out. */
function maskedType({ masks }: ScoreFormula, type: number): number {
  const isHalf = type === FLOAT16 || type === BFLOAT16;
  return isHalf && masks.length > 0 && masks.every((m) => m.scoreType === FLOAT) ? FLOAT : type;
}

/** Data types of what is combined with the scores as numbers. */
function tensorTypes({ masks, factors, sink }: Plan, inference: Inference): (number | undefined)[] {
  const added = masks.filter(({ term }) => term.kind === 'additive').map(({ term }) => termType(term, inference));
  const others = [...factors, ...(sink && !sink.uniform ? [sink] : [])];
  return [...added, ...others.map(({ value }) => inference.of(value).type)];
}

/** Casts may only add precision. */
function checkCasts(casts: readonly number[], type: number, at: Value): void {
  const width = (t: number) => (t === DOUBLE ? 3 : t === FLOAT ? 2 : t === FLOAT16 || t === BFLOAT16 ? 1 : 0);
  for (const cast of casts)
    if (width(cast) < width(type) || (width(cast) === 1 && cast !== type))
      refuse('the scores or the probabilities are cast to a narrower type', at);
}

function checkTypes(casts: readonly number[], type: number, plan: Plan, inference: Inference): void {
  checkCasts(casts, type, plan.query.value);
  for (const { value } of plan.factors)
    if (inference.of(value).type !== type) refuse('a factor has another data type than the queries', value);
  if (plan.sink && !plan.sink.uniform && inference.of(plan.sink.value).type !== type)
    refuse('the sink has another data type than the queries', plan.sink.value);
  for (const { term } of plan.masks) {
    const maskType = termType(term, inference);
    if (term.kind === 'additive' && maskType !== type)
      refuse('the mask has another data type than the queries', term.value);
  }
}
