/** The softmax of a site in its several spellings. */
import type { Node, Value } from '../graph/graph.js';
import type { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { mayHoldFill } from './mask/magnitude.js';
import type { UnderstoodMasks } from './mask/understand.js';
import type { MaskPlacement } from './masks.js';
import { refuse } from './refusal.js';
import { beforeExpand, type ScoreStep, type ScoreTrace } from './scores.js';
import { reducedAxis } from './view.js';

/** A logit that takes part in the sum alone. */
export interface ExtraLogit {
  readonly logit: number;
  /** Where it is added. */
  readonly value: Value;
}

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
  /** Set where a number is added to the sum of the exponentials. */
  readonly extra?: ExtraLogit;
}

/**
 * Reads a softmax that ends at this node: Softmax itself (before opset 13 it flattens its input to 2-D at `axis`), exp(x)
 * over its sum, as Div or as Mul by the sum's Reciprocal, or exp(x − log Σ exp(x)).
 */
export function readSoftmax(node: Node, inference: Inference): SoftmaxForm | undefined {
  if (node.is('Softmax')) return readOperator(node, inference);
  if (node.is('Exp')) return readLogarithm(node, inference);
  const [exponential, divisor] = node.inputs;
  if (!exponential || !divisor) return undefined;
  if (node.is('Div')) return readQuotient(node, exponential, divisor, [], inference);
  if (!node.is('Mul')) return undefined;
  const [e, reciprocal] = divisor.producer?.is('Reciprocal') ? [exponential, divisor] : [divisor, exponential];
  const sum = reciprocal.producer?.is('Reciprocal') ? reciprocal.producer.inputs[0] : undefined;
  return sum && readQuotient(node, e, sum, [reciprocal.producer!], inference);
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

/** exp(LogSoftmax(x)), or exp(x − ReduceLogSumExp(x)). */
function readLogarithm(node: Node, inference: Inference): SoftmaxForm | undefined {
  const logarithm = node.inputs[0];
  const [output] = node.outputs;
  const inner = logarithm?.producer;
  if (!inner || !output || logarithm.isOutput || logarithm.uses.length > 1) return undefined;
  if (inner.is('LogSoftmax')) {
    const form = readOperator(inner, inference);
    return form && { ...form, output, nodes: [inner, node], anchor: node };
  }
  const [input, sum] = inner.inputs;
  const reduce = sum?.producer;
  const shape = input && inference.of(input).shape;
  if (!inner.is('Sub') || !shape || !reduce?.is('ReduceLogSumExp') || reduce.inputs[0] !== input) return undefined;
  const axis = reducedAxis(reduce, shape.length, inference);
  if (axis === undefined || !keepsRow(sum!, shape, axis, inference)) return undefined;
  return { input, output, axis, nodes: [reduce, inner, node], anchor: node, isLogarithm: true };
}

/** Whether a value has this shape, with size 1 on the axis. */
function keepsRow(value: Value, shape: readonly Expression[], axis: number, inference: Inference): boolean {
  const sizes = inference.of(value).shape;
  return sizes?.length === shape.length && sizes.every((size, i) => size.equals(i === axis ? 1 : shape[i]!));
}

/** exp(x) / Σ exp(x), the sum kept as a dimension of size 1 by whatever means. */
function readQuotient(
  node: Node,
  exponential: Value,
  divisor: Value,
  between: readonly Node[],
  inference: Inference,
): SoftmaxForm | undefined {
  const kept = beforeExpand(divisor, exponential, inference);
  const moves = kept === divisor ? [] : [divisor.producer!];
  const more = addedToSum(kept, exponential, inference);
  let sums = more?.sum ?? kept;
  while (sums.producer?.is('Unsqueeze', 'Reshape', 'Expand', 'Identity') && sums.producer.inputs[0]) {
    moves.unshift(sums.producer);
    sums = sums.producer.inputs[0];
  }
  const sum = sums.producer;
  const given = exponential.producer?.is('Exp') ? exponential.producer.inputs[0] : undefined;
  const input = more?.input ?? given;
  const shape = input && inference.of(input).shape;
  const [output] = node.outputs;
  if (!sum?.is('ReduceSum') || sum.inputs[0] !== exponential || !shape || !output) return undefined;
  const axis = reducedAxis(sum, shape.length, inference);
  if (axis === undefined || exponential.isOutput) return undefined;
  const elsewhere = exponential.uses.some((u) => u.node !== node && u.node !== sum);
  if (!keepsRow(kept, shape, axis, inference) || elsewhere) return undefined;
  const nodes = [...(more?.nodes ?? []), exponential.producer!, sum, ...moves, ...between, node];
  return { input, output, axis, nodes, anchor: node, isQuotient: true, ...(more ? { extra: more.extra } : {}) };
}

/** What stands beside the sum of the exponentials, and what these are exponentials of then. */
interface AddedToSum {
  readonly sum: Value;
  readonly input: Value | undefined;
  readonly extra: ExtraLogit;
  readonly nodes: readonly Node[];
}

/** c + Σ exp(x), or exp(−m) + Σ exp(x − m), where m is the maximum of x or higher. */
function addedToSum(value: Value, exponential: Value, inference: Inference): AddedToSum | undefined {
  const add = value.producer;
  if (!add?.is('Add')) return undefined;
  for (const [sum, other] of [add.inputs, [...add.inputs].reverse()]) {
    if (!sum || !other || sum.producer?.is('Exp')) continue;
    const number = inference.scalarOf(other);
    if (number !== undefined && number > 0)
      return { sum, input: undefined, extra: { logit: Math.log(number), value }, nodes: [add] };
    const difference = exponential.producer?.inputs[0]?.producer;
    const [input, maximum] = difference?.is('Sub') ? difference.inputs : [];
    const negated = other.producer?.is('Exp') ? other.producer.inputs[0]?.producer : undefined;
    if (input && maximum && negated && isNegative(negated, maximum, inference) && isMaximum(maximum, input, inference))
      return { sum, input, extra: { logit: 0, value }, nodes: [difference!, negated, other.producer!, add] };
  }
  return undefined;
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
export function extraSteps({ extra, axis }: SoftmaxForm, { view }: ScoreTrace): ScoreStep[] {
  return extra ? [{ kind: 'sink', ...extra, first: false, axis, dimensions: view.dimensions }] : [];
}

/** −x, as Neg, 0 − x, or −1 · x. */
function isNegative(node: Node, x: Value, inference: Inference): boolean {
  const other = node.inputs.find((v) => v !== x);
  const number = other && inference.scalarOf(other);
  if (node.is('Neg')) return node.inputs[0] === x;
  return (node.is('Sub') && node.inputs[1] === x && number === 0) || (node.is('Mul') && number === -1);
}

/** Whether a value is the maximum of x, or of x and numbers; over which axis, the sum beside it says. */
function isMaximum(value: Value, x: Value, inference: Inference): boolean {
  const node = value.producer;
  const isOf = (v: Value | undefined) => v !== undefined && isMaximum(v, x, inference);
  const isNumber = (v: Value | undefined) => v !== undefined && inference.scalarOf(v) !== undefined;
  if (node?.is('Max')) return node.inputs.some(isOf) && node.inputs.every((v) => isOf(v) || isNumber(v));
  if (node?.is('Clip')) return isOf(node.inputs[0]) && !node.inputs[2] && node.float('max') === undefined;
  if (node?.is('Relu', 'Identity')) return isOf(node.inputs[0]);
  return node?.is('ReduceMax') === true && node.inputs[0] === x;
}
