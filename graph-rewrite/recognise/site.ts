import type { Node, Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { combineSteps, type MaskTerm, type ScoreFormula } from './combine.js';
import { cuts, storedOrder } from './cuts.js';
import { requireIndependent } from './dependence.js';
import { withMasks } from './exponentials.js';
import { assignFactors, requireSameForAllKeys } from './factors.js';
import { type Joint, readJoint } from './joint.js';
import { NO_BAND } from './mask/bands.js';
import { mayBeUndefined, mayHoldFill } from './mask/magnitude.js';
import { type UnderstoodMasks, understandMasks } from './mask/understand.js';
import { type MaskPlacement, termType } from './masks.js';
import { type Plan, plan, saving } from './plan.js';
import { DEPENDS_ON_BOTH, RefusalSignal, refuse, refuseProduct } from './refusal.js';
import { HIGHEST_FLOOR, type ScoreTrace, scorePaths, traceScores } from './scores.js';
import { extraSteps, requireDigits, requireLargestOne, requireOwnSum, type SoftmaxForm } from './softmax.js';
import { withZeroed } from './zeroed.js';

/** A place that computes attention, understood well enough to be replaced. */
export interface Site extends Omit<Plan, 'masks' | 'axes' | 'factor'> {
  readonly softmax: SoftmaxForm;
  readonly formula: ScoreFormula;
  readonly scale: number;
  /** Factor on the product of probabilities and values. */
  readonly valueFactor: number;
  readonly masks: UnderstoodMasks;
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
function matchTrace(scores: ScoreTrace, softmax: SoftmaxForm, inference: Inference): Site {
  const trace = withMasks(scores, softmax.masks ?? [], inference);
  const written = combineSteps([...trace.steps, ...extraSteps(softmax, trace, inference)]);
  requireLargestOne(softmax, trace, inference);
  const joint = readJoint(trace, softmax, inference);
  requireOwnSum(softmax);
  const formula = withZeroed(written, joint.zeroed, inference);
  requireSameForAllKeys(formula.shifts, joint.keys, inference);
  const factors = assignFactors(formula.factors, joint.probabilityFactors, joint, inference);
  requireRounding(formula, inference);
  requireGuarded(formula, joint, inference);
  const tensors = [
    ...formula.masks.map((m) => m.value),
    ...Object.values(factors).flatMap((all) => all.map((f) => f.value)),
  ];
  requireIndependent(tensors, trace, softmax.nodes);
  const plans = cuts(joint, storedOrder(joint)).map((axes) => plan(joint, formula, { axes, factors }, inference));
  const usable = plans.filter((p): p is Plan => typeof p !== 'string');
  if (usable.length === 0)
    return refuseProduct(plans.find((p) => typeof p === 'string') ?? 'no batch and heads', trace.product.output);
  // The plan that leaves the least to execute; among equals the first, which is the usual reading of the dimensions.
  const best = usable.reduce((a, b) => (saving(b) > saving(a) ? b : a));
  const { type: inputType, valueType } = commonTypes(joint, best, inference);
  const masked = maskedType(formula, inputType);
  const scored = { type: masked, isWidened: masked !== inputType, hasSink: best.sink !== undefined };
  const found = understandMasks(best.masks, best.axes, scored, inference);
  const given = best.masks.map((mask) => asTruths(mask, inference));
  const rest = widenBiases(given, masked, inference);
  const masks = found ?? { ...NO_BAND, maskedValue: Number.NEGATIVE_INFINITY, rest };
  requireDigits(softmax, masks, inference);
  requireFloors(masks.rest);
  const wide = found || rest === given ? masked : FLOAT;
  const type = tensorTypes({ ...best, masks: masks.rest }, inference).includes(wide) ? wide : inputType;
  checkCasts(joint.probabilityCasts, valueType, best.query.value);
  checkTypes(formula.casts, type, { ...best, masks: masks.rest }, inference);
  const unread = masks.rest.find(({ term }) => term.kind === 'additive' && term.replaces);
  if (unread) refuse(whyUnread(masks.rest.length), unread.term.value);
  const nodes = [trace.nodes, softmax.nodes, joint.probabilityNodes, [joint.second.node]].flat();
  const absorbed = [best.query, best.key, best.value, best.output].flatMap((c) => c.absorbed);
  return {
    softmax,
    ...best,
    masks,
    formula,
    scale: formula.scale * best.factor,
    valueFactor: joint.second.factor,
    type,
    inputType,
    valueType,
    nodes: [...nodes, ...absorbed],
    form: `${trace.product.node.opType} · ${softmax.nodes.map((n) => n.opType).join(' ')} · ${joint.second.node.opType}`,
  };
}

/** Why masks stay that scores are multiplied by. */
function whyUnread(count: number): string {
  if (count === 1) return 'the scores are multiplied by a mask that is not understood';
  return `scores that are multiplied by a mask of zeros and ones, and lowered by a number where it is 0, are masked otherwise as well: ${DEPENDS_ON_BOTH}`;
}

/** Fills from here on leave scores few digits, and those from the end on none. */
const COARSE_FILL = 1e6;
const COARSE_FILL_END = 1e30;
/** Numbers from here on are fills, and no biases. */
const LEAST_FILL = 1e4;

/** Refuses fills beside which scores are rounded to what depends on a constant that was added to all of them. */
function requireRounding({ masks }: ScoreFormula, inference: Inference): void {
  const isCoarse = ({ value, factor, shifted }: MaskTerm) =>
    shifted === true &&
    mayHoldFill(value, inference, COARSE_FILL / Math.abs(factor), COARSE_FILL_END / Math.abs(factor));
  const coarse = masks.find(isCoarse);
  if (coarse) refuse('a mask that rounds scores is added after a number was added to all of them', coarse.value);
  // What is left where one mask raises scores that another lowers is rounded as the model's order has it.
  const isHigh = ({ kind, value, factor }: MaskTerm) =>
    kind === 'additive' && mayHoldFill(value, inference, LEAST_FILL / Math.abs(factor));
  const raised = masks.find((mask) => mask.scaledBy < 0 && isHigh(mask));
  const lowers = (mask: MaskTerm) => mask.scaledBy > 0 && (mask.kind !== 'additive' || isHigh(mask));
  if (raised && masks.some(lowers)) refuse('masked scores are negated, and masked again', raised.value);
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

const FLOAT = 1;
const BOOL = 9;
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

/** A mask of zeros and ones as one of truth values. */
function asTruths(mask: MaskPlacement, inference: Inference): MaskPlacement {
  const { term } = mask;
  const from = termType(term, inference);
  if (term.kind !== 'boolean' || from === undefined || from === BOOL) return mask;
  return { ...mask, term: { ...term, steps: [...(term.steps ?? []), { opType: 'Cast', from, to: BOOL }] } };
}

/**
 * Biases of float16 as float32, where a fill is put in place of the scores that they were added to: float16 has no number
 * that a score and a bias leave no trace in, and so the site is computed in float32 then.
 */
function widenBiases(masks: Plan['masks'], type: number, inference: Inference): Plan['masks'] {
  const isFill = ({ term }: MaskPlacement) => term.kind === 'boolean' && Number.isFinite(term.fill);
  const last = masks.at(-1);
  if (type !== FLOAT16 || !last || !isFill(last) || masks.every(isFill)) return masks;
  return masks.map((mask) => {
    const { term } = mask;
    if (term.kind !== 'additive' || termType(term, inference) !== FLOAT16) return mask;
    return { ...mask, term: { ...term, steps: [...(term.steps ?? []), { opType: 'Cast', from: FLOAT16, to: FLOAT }] } };
  });
}

/** Refuses masked scores that are raised to a number that a score may leave a trace in. */
function requireFloors(masks: Plan['masks']): void {
  const floor = masks.find(({ term }) => term.kind === 'floor' && term.fill > HIGHEST_FLOOR);
  if (floor)
    refuse(
      `masked scores are raised to ${floor.term.fill}, the lowest number of float16, and no row is proven to keep a key: in a row without keys, which scores are raised depends on what they were`,
      floor.term.value,
    );
}

/** Data types of what is combined with the scores as numbers. */
function tensorTypes({ masks, factors, sink }: Plan, inference: Inference): (number | undefined)[] {
  const added = masks.filter(({ term }) => term.kind === 'additive').map(({ term }) => termType(term, inference));
  const others = [...factors.query, ...factors.key, ...(sink && !sink.uniform ? [sink] : [])];
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
  for (const { value } of [...plan.factors.query, ...plan.factors.key])
    if (inference.of(value).type !== type) refuse('a factor has another data type than the queries', value);
  for (const { value } of plan.factors.value)
    if (inference.of(value).type !== inference.of(plan.value.value).type)
      refuse('a factor has another data type than the values', value);
  if (plan.sink && !plan.sink.uniform && inference.of(plan.sink.value).type !== type)
    refuse('the sink has another data type than the queries', plan.sink.value);
  for (const { term } of plan.masks) {
    const maskType = termType(term, inference);
    if (term.kind === 'additive' && maskType !== type)
      refuse('the mask has another data type than the queries', term.value);
  }
}
