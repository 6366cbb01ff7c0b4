/** The softmax of a site in its several spellings. */
import { feedsOnly, type Node, type Value } from '../graph/graph.js';
import type { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type ExponentialMask, isOfSequences, lastMasked, mayBeScores, readMasked } from './exponentials.js';
import { isPerRow } from './factors.js';
import { type LateDivision, readLateDivision } from './late.js';
import { readLogarithmOfSum } from './logarithm.js';
import { mayHoldFill } from './mask/magnitude.js';
import type { UnderstoodMasks } from './mask/understand.js';
import type { MaskPlacement } from './masks.js';
import { refuse } from './refusal.js';
import type { ScoreStep, ScoreTrace } from './scores.js';
import { type ExtraLogit, keepsOrder, readDivision, typeOf } from './sums.js';
import { reducedAxis } from './view.js';

/** A softmax, however it is spelled: its input, the axis, and the probabilities. */
export interface SoftmaxForm {
  readonly input: Value;
  readonly output: Value;
  /** Counted from the front. */
  readonly axis: number;
  /** Every node of it. */
  readonly nodes: readonly Node[];
  /** The node that names the site. */
  readonly anchor: Node;
  /** Whether it is written as a quotient of exponentials, which may be 0/0 or ∞/∞ where their softmax is a number. */
  readonly isQuotient?: boolean;
  /** Whether the logarithm of the sum is subtracted, which is rounded to the digits of the largest score. */
  readonly isLogarithm?: boolean;
  /** Set where something else needs the logarithms of the probabilities too. */
  readonly shared?: Value;
  /** What sums the exponentials, and what happens to that. */
  readonly sums?: readonly Node[];
  /** Masks that come behind the exponentials. */
  readonly masks?: readonly ExponentialMask[];
  /** Set where a number is added to the sum of the exponentials. */
  readonly extra?: ExtraLogit;
  /** Where the sum is kept from being zero, by what leaves sums of one or more as they are. */
  readonly guards?: readonly Value[];
  /** Set where `output` are the exponentials, and what divides by their sum comes behind the product with the values. */
  readonly late?: LateDivision;
}

/**
 * Reads a softmax that ends at this node: Softmax itself (before opset 13 it flattens its input to 2-D at `axis`), exp(x)
 * over its sum, as Div or as Mul by the sum's Reciprocal, or exp(x − log Σ exp(x)); or exp(x), where the product with the
 * values is divided by its sum.
 */
export function readSoftmax(node: Node, inference: Inference): SoftmaxForm | undefined {
  if (node.is('Softmax')) return readOperator(node, inference);
  if (node.is('Exp')) return readLogarithm(node, inference) ?? readExponentials(node, inference);
  return node.is('Div', 'Mul') ? readQuotient(node, inference) : undefined;
}

function readOperator(node: Node, inference: Inference): SoftmaxForm | undefined {
  const [input] = node.inputs;
  const [output] = node.outputs;
  const shape = input && inference.of(input).shape;
  if (!shape || !output) return undefined;
  const flattens = node.graph.model.opset() < 13;
  const stated = node.int('axis') ?? (flattens ? 1 : -1);
  const axis = stated < 0 ? stated + shape.length : stated;
  if (axis < 0 || axis >= shape.length) return undefined;
  if (flattens && shape.slice(axis + 1).some((size) => !size.equals(1))) return undefined;
  return { input, output, axis, nodes: [node], anchor: node };
}

/** Why a Softmax cannot be looked at. */
export function whyUnread({ inputs: [input] }: Node, inference: Inference): string {
  if (!input || !inference.of(input).shape) return 'the rank of the input of Softmax is not known';
  return 'Softmax is over several dimensions at once, as before opset 13';
}

/** exp(LogSoftmax(x)), or exp(x − log Σ exp(x)) with the logarithm as one operator or written out. */
function readLogarithm(node: Node, inference: Inference): SoftmaxForm | undefined {
  const logarithm = node.inputs[0];
  const [output] = node.outputs;
  const inner = logarithm?.producer;
  if (!inner || !output) return undefined;
  const isShared = logarithm.isOutput || logarithm.uses.length > 1;
  if (isShared && !isOfSequences(logarithm, inference)) return undefined;
  const shared = isShared ? { shared: logarithm } : {};
  if (inner.is('LogSoftmax')) {
    const form = readOperator(inner, inference);
    return form && { ...form, output, nodes: [inner, node], anchor: node, ...shared };
  }
  const [input, sum] = inner.inputs;
  const reduce = sum?.producer;
  const shape = input && inference.of(input).shape;
  if (!inner.is('Sub') || !shape || !reduce) return undefined;
  if (!reduce.is('ReduceLogSumExp') || reduce.inputs[0] !== input) {
    const written = readLogarithmOfSum(input, sum, inference);
    if (!written || !keepsRow(written.value, shape, written.axis, inference)) return undefined;
    const nodes = [...written.nodes, inner, node];
    return { input, output, axis: written.axis, nodes, anchor: node, isLogarithm: true, ...shared };
  }
  const axis = reducedAxis(reduce, shape.length, inference);
  if (axis === undefined || !keepsRow(sum!, shape, axis, inference)) return undefined;
  return { input, output, axis, nodes: [reduce, inner, node], anchor: node, isLogarithm: true, ...shared };
}

/** Whether a value has this shape, with size 1 on the axis. */
function keepsRow(value: Value, shape: readonly Expression[], axis: number, inference: Inference): boolean {
  const sizes = inference.of(value).shape;
  return sizes?.length === shape.length && sizes.every((size, i) => size.equals(i === axis ? 1 : shape[i]!));
}

/** exp(x) / Σ exp(x), the sum kept as a dimension of size 1 by whatever means. */
function readQuotient(node: Node, inference: Inference): SoftmaxForm | undefined {
  const [output] = node.outputs;
  for (const numerator of node.inputs) {
    const masked = numerator && readMasked(numerator, inference);
    const given = masked?.exponential.producer?.inputs[0];
    const divisor = masked && given && readDivision(node, numerator, [numerator], inference);
    if (!divisor || !output) continue;
    const { exponential, masks } = masked;
    const { sum, axis, nodes: moves, value, guards, more } = divisor;
    const input = more?.input ?? given;
    const shape = inference.of(numerator).shape;
    const isOfShape = (n: Node) => n.is('Shape') && feedsOnly(n, new Set([node]));
    const elsewhere = numerator.uses.some((u) => u.node !== node && u.node !== sum && !isOfShape(u.node));
    if (!shape || numerator.isOutput || elsewhere || !keepsOrder(divisor)) return undefined;
    if (inference.of(input).shape?.length !== shape.length || !keepsRow(value, shape, axis, inference))
      return undefined;
    if (masks.length > 0 && !mayBeScores(masked, inference)) return undefined;
    const before = [...(more?.nodes ?? []), exponential.producer!, ...masks.map((mask) => mask.node)];
    const extra = more ? { extra: more.extra } : {};
    const nodes = [...before, sum, ...moves, node];
    return {
      input,
      output,
      axis,
      nodes,
      anchor: node,
      isQuotient: true,
      sums: [sum, ...moves],
      masks,
      guards,
      ...extra,
    };
  }
  return undefined;
}

/** exp(x), where the product with the values is divided by Σ exp(x). */
function readExponentials(node: Node, inference: Inference): SoftmaxForm | undefined {
  const [given] = node.inputs;
  const [exponential] = node.outputs;
  const output = exponential && lastMasked(exponential, inference);
  const masks = (output && readMasked(output, inference)?.masks) ?? [];
  const late = given && output && readLateDivision(output, inference);
  if (!late) return undefined;
  const { axis, divisor } = late;
  const input = divisor?.more?.input ?? given;
  const before = [...(divisor?.more?.nodes ?? []), node, ...masks.map((mask) => mask.node)];
  const sums = [late.sum, ...(divisor?.nodes ?? [])];
  const nodes = [...before, ...sums];
  const extra = divisor?.more ? { extra: divisor.more.extra } : {};
  const guards = divisor?.guards ?? [];
  return { input, output, axis, nodes, anchor: node, isQuotient: true, sums, masks, guards, late, ...extra };
}

/** Scores from here on leave the logarithm of a sum of exponentials less than three decimals in float32. */
const COARSE_SCORE = 1e4;

/** Refuses low scores before log Σ exp(x), to which log n is nothing: rows without keys are then no means. */
export function requireDigits(
  { isLogarithm, anchor }: SoftmaxForm,
  { maskedValue, rest }: UnderstoodMasks,
  inference: Inference,
): void {
  const isLow = ({ term }: MaskPlacement) =>
    term.kind === 'additive'
      ? mayHoldFill(term.value, inference, COARSE_SCORE / Math.abs(term.factor), Number.POSITIVE_INFINITY)
      : term.fill !== Number.NEGATIVE_INFINITY;
  if (isLogarithm && (maskedValue !== Number.NEGATIVE_INFINITY || rest.some(isLow)))
    refuse('scores may be so low that the logarithm of their sum loses digits', anchor);
}

/** What a softmax does to its scores before the exponentials. */
export function extraSteps(
  { extra, axis }: SoftmaxForm,
  { view, steps }: ScoreTrace,
  inference: Inference,
): ScoreStep[] {
  if (!extra) return [];
  if (steps.some((step) => step.kind === 'shift' && step.by))
    refuse(
      `${Number(Math.exp(extra.logit).toPrecision(3))} is added to the sum of exponentials that are relative to the largest score: beside a sum of 1 that is not lost in ${typeOf(extra.value, inference)}, and it weighs as much as the largest score does`,
      extra.value,
    );
  return [{ kind: 'sink', ...extra, first: false, axis, dimensions: view.dimensions }];
}

/** Refuses sums and logarithms that something else needs too: then the exponentials have to be computed anyway. */
export function requireOwnSum({ shared, sums = [], nodes, late }: SoftmaxForm): void {
  if (shared) refuse('the logarithms of the probabilities are needed as well', shared);
  const own = new Set([...nodes, ...(late?.through ?? [])]);
  for (const { outputs } of sums) {
    const [value] = outputs;
    if (value?.isOutput) refuse('the sum of the exponentials is an output of the graph', value);
    const other = value?.uses.find(({ node }) => !feedsOnly(node, own));
    if (other) refuse(`the sum of the exponentials is also read by ${other.node.opType}`, value);
  }
}

/** Refuses what keeps the sum from zero where it may change a sum of a row that has keys, which is one or more only then. */
export function requireLargestOne(
  { guards = [], axis }: SoftmaxForm,
  { view, steps }: ScoreTrace,
  inference: Inference,
): void {
  const [guard] = guards;
  const last = steps.findLast((step) => step.kind !== 'cast');
  if (!guard || (last?.kind === 'shift' && last.by && isPerRow(last.by, view.dimensions, axis, inference))) return;
  refuse(
    'the sum of the exponentials is kept from being zero, but no maximum over the keys is taken from the masked scores: sums of rows that have keys may be as small',
    guard,
  );
}
