/** Sums of exponentials that something is divided by, and what keeps them from being zero. */
import type { Node, Value } from '../graph/graph.js';
import { dataTypeName } from '../onnx/data-type.js';
import { DataType } from '../onnx/proto.js';
import type { Inference } from '../shape/inference.js';
import { contractedLabels, readContraction } from './contraction.js';
import { readMasked } from './exponentials.js';
import { isSameValue } from './same.js';
import { beforeExpand, lessMaximum, uniformValue } from './scores.js';
import { reducedAxis } from './view.js';

/** A logit that takes part in the sum alone. */
export interface ExtraLogit {
  readonly logit: number;
  /** Where it is added. */
  readonly value: Value;
}

/** What stands beside the sum of the exponentials, and what these are exponentials of then. */
export interface AddedToSum {
  readonly sum: Value;
  readonly input: Value | undefined;
  readonly extra: ExtraLogit;
  readonly nodes: readonly Node[];
}

/** A divisor that is the sum of exponentials over one axis. */
export interface Divisor {
  /** ReduceSum, Einsum of one tensor, or the product with ones. */
  readonly sum: Node;
  /** The value that is summed. */
  readonly summed: Value;
  /** Counted from the front, in the summed value. */
  readonly axis: number;
  /** What happens to the sum, in order. */
  readonly path: readonly Node[];
  /** The same, and what repeats the divisor for what is divided. */
  readonly nodes: readonly Node[];
  /** The divisor itself, before it is repeated for what is divided. */
  readonly value: Value;
  /** Where the sum is kept from being zero, by what leaves a sum of one or more as it is. */
  readonly guards: readonly Value[];
  readonly more: AddedToSum | undefined;
}

const MOVES = ['Unsqueeze', 'Squeeze', 'Reshape', 'Transpose', 'Expand', 'Identity'];
const LONGEST_PATH = 16;

/**
 * Reads numerator / Σ e, as Div or as Mul by the sum's Reciprocal.
 * @param summable what may be summed: the exponentials
 */
export function readDivision(
  node: Node,
  numerator: Value,
  summable: readonly Value[],
  inference: Inference,
): Divisor | undefined {
  const [a, b] = node.inputs;
  if (!a || !b || a === b || !node.is('Div', 'Mul')) return undefined;
  if (node.is('Div')) return a === numerator ? readDivisor(b, false, numerator, summable, inference) : undefined;
  const other = a === numerator ? b : b === numerator ? a : undefined;
  return other && readDivisor(other, true, numerator, summable, inference);
}

/**
 * Reads a value as Σ e, or (`isInverse`) as 1 / Σ e.
 * @param numerator what the sum may be repeated for
 */
export function readDivisor(
  divisor: Value,
  isInverse: boolean,
  numerator: Value,
  summable: readonly Value[],
  inference: Inference,
): Divisor | undefined {
  const start = beforeExpand(divisor, numerator, inference);
  const path: Node[] = [];
  const repeated = start === divisor ? [] : [divisor.producer!];
  const guards: Value[] = [];
  let more: AddedToSum | undefined;
  let inverse = isInverse;
  let value = start;
  while (path.length <= LONGEST_PATH) {
    const node = value.producer;
    if (!node) return undefined;
    const summed = node.inputs.find((v) => v !== undefined && summable.includes(v));
    const axis = summed && summedAxis(node, summed, inference);
    if (axis !== undefined)
      return inverse
        ? undefined
        : { sum: node, summed: summed!, axis, path, nodes: [...path, ...repeated], value: start, guards, more };
    path.unshift(node);
    const inverted = inverse ? invertedBy(node, inference) : undefined;
    const guarded = inverse ? undefined : guardedBy(node, summable[0]!, inference);
    const isIdle = node.is(...MOVES) || keepsDigits(node, numerator, inference);
    const one = inverse && node.is('Mul') ? node.inputs.findIndex((v) => v && inference.scalarOf(v) === 1) : -1;
    if (isIdle) value = node.inputs[0]!;
    else if (one >= 0) value = node.inputs[1 - one]!;
    else if (inverted) {
      inverse = false;
      value = inverted;
    } else if (guarded) {
      guards.push(value);
      value = guarded;
    } else {
      more ??= inverse ? undefined : addedToSum(value, summable[0]!, inference);
      if (!more || more.extra.value !== value) return undefined;
      value = more.sum;
    }
  }
  return undefined;
}

/** Whether a Cast leaves numbers as they are, or makes them as narrow as what they are to divide. */
function keepsDigits(node: Node, numerator: Value, inference: Inference): boolean {
  const isNarrowed = node.is('Cast') && isFloat(node.int('to')) && node.int('to') === inference.of(numerator).type;
  return isWidening(node, inference) || isNarrowed;
}

/** Whether a node is a Cast of floating-point numbers to their own type or a wider one. */
export function isWidening(node: Node, inference: Inference): boolean {
  const [from, to] = [node.inputs[0] && inference.of(node.inputs[0]).type, node.int('to')];
  if (!node.is('Cast') || !isFloat(from) || !isFloat(to)) return false;
  return from === to || WIDTHS.get(to)! > WIDTHS.get(from)!;
}

const isFloat = (type: number | undefined): type is number => type !== undefined && WIDTHS.has(type);
const WIDTHS: ReadonlyMap<number, number> = new Map([
  [DataType.FLOAT16, 1],
  [DataType.BFLOAT16, 1],
  [DataType.FLOAT, 2],
  [DataType.DOUBLE, 3],
]);

/** 1 / x, as Reciprocal or Div. */
function invertedBy(node: Node, inference: Inference): Value | undefined {
  if (node.is('Reciprocal')) return node.inputs[0];
  const [one, x] = node.inputs;
  return node.is('Div') && one && inference.scalarOf(one) === 1 ? x : undefined;
}

/** The axis of a value that a node sums over: ReduceSum, or the product with nothing but ones. */
export function summedAxis(node: Node, value: Value, inference: Inference): number | undefined {
  const shape = inference.of(value).shape;
  if (!shape || node.domain !== '') return undefined;
  // Exponentials are their own magnitudes.
  if (node.is('ReduceSum', 'ReduceL1')) {
    const axis = node.inputs[0] === value ? reducedAxis(node, shape.length, inference) : undefined;
    return axis !== undefined && axis >= 0 && axis < shape.length ? axis : undefined;
  }
  const alone = node.is('Einsum') && node.inputs.length === 1 ? reducedByEinsum(node) : undefined;
  if (alone !== undefined) return alone;
  const product = node.is('MatMul', 'Einsum', 'Gemm') ? readContraction(node, inference) : undefined;
  const side = product?.operands.findIndex((operand) => operand.value === value) ?? -1;
  if (!product || side < 0 || product.factor !== 1) return undefined;
  const { value: ones, labels } = product.operands[1 - side]!;
  const summed = contractedLabels(product);
  const sizes = inference.of(ones).shape;
  const axis = product.operands[side]!.labels.indexOf(summed[0] ?? '');
  if (summed.length !== 1 || !sizes || uniformValue(ones, inference) !== 1) return undefined;
  // MatMul's operands agree on the size that is summed; those of Einsum may have one element.
  const isWhole = !node.is('Einsum') || sizes[labels.indexOf(summed[0]!)]?.equals(shape[axis] ?? -1);
  return isWhole ? axis : undefined;
}

/** The labels of an Einsum of one tensor, and of its result. */
export function labelsOfSum(node: Node): readonly [from: string, to: string] {
  const [from = '', to = ''] = (node.string('equation') ?? '').replaceAll(' ', '').split('->');
  return [from, to];
}

/** The one axis that an Einsum of a single tensor sums over. */
function reducedByEinsum(node: Node): number | undefined {
  const [from, to] = labelsOfSum(node);
  const summed = [...from].filter((label) => !to.includes(label));
  const isPlain = /^[a-zA-Z]+$/.test(from) && new Set(from).size === from.length && new Set(to).size === to.length;
  return isPlain && summed.length === 1 && to.length === from.length - 1 ? from.indexOf(summed[0]!) : undefined;
}

/** Whether nothing between the exponentials and a divisor changes the order of dimensions. */
export function keepsOrder({ sum, path }: Divisor): boolean {
  const [from, to] = labelsOfSum(sum);
  const isOrdered = [...from].filter((label) => to.includes(label)).join('') === to;
  return !path.some((node) => node.is('Transpose')) && (sum.inputs.length > 1 || !sum.is('Einsum') || isOrdered);
}

/** x + ε, max(x, ε) or Where(x = 0, c, x): the sum x where that is 1 or more, and another number where it is 0. */
function guardedBy(node: Node, exponential: Value, inference: Inference): Value | undefined {
  const [a, b, c] = node.inputs;
  // Beside others, ε is a sink.
  if (node.is('Add') && !isRelative(exponential, inference)) return undefined;
  const number = (v: Value | undefined) => (v ? inference.scalarOf(v) : undefined);
  const isLow = (limit: number | undefined) => limit !== undefined && limit > 0 && limit <= 1;
  if (node.is('Add', 'Max') && a && b && !c) {
    const [x, added] = number(a) === undefined ? [a, number(b)] : [b, number(a)];
    const isLost = added !== undefined && added > 0 && added <= negligibleBeside1(inference.of(x).type);
    return (node.is('Add') ? isLost : isLow(added)) ? x : undefined;
  }
  if (node.is('Clip') && a) {
    const isBounded = c !== undefined || node.float('max') !== undefined;
    return !isBounded && isLow(b ? number(b) : node.float('min')) ? a : undefined;
  }
  if (!node.is('Where') || !a?.producer || !b || !c) return undefined;
  const isNegated = a.producer.is('Not');
  const test = isNegated ? a.producer.inputs[0]?.producer : a.producer;
  const [x, limit] = [test?.inputs[0], number(test?.inputs[1])];
  if (!test || !x || limit === undefined) return undefined;
  const takesZero = test.is('Equal') ? limit === 0 : test.is('Less') ? isLow(limit) : false;
  const leavesZero = test.is('Greater') && limit >= 0 && limit < 1;
  if (takesZero === leavesZero) return undefined;
  const [kept, other] = takesZero !== isNegated ? [c, b] : [b, c];
  const replacement = uniformValue(other, inference);
  return replacement !== undefined && replacement > 0 && isSameValue(kept, x, inference) ? kept : undefined;
}

/** What 1 and larger numbers are the same with and without. */
function negligibleBeside1(type: number | undefined): number {
  if (type === DataType.DOUBLE) return 2 ** -54;
  if (type === DataType.FLOAT16) return 2 ** -12;
  return type === DataType.BFLOAT16 ? 2 ** -9 : 2 ** -25;
}

/** How a type is called, for messages. */
export function typeOf(value: Value, inference: Inference): string {
  const type = inference.of(value).type;
  return type === undefined ? 'its type' : dataTypeName(type);
}

/** c + Σ exp(x), or exp(−m) + Σ exp(x − m), where m is the maximum of x or higher. */
function addedToSum(value: Value, exponential: Value, inference: Inference): AddedToSum | undefined {
  const add = value.producer;
  if (!add?.is('Add')) return undefined;
  for (const [sum, other] of [add.inputs, [...add.inputs].reverse()]) {
    if (!sum || !other || sum.producer?.is('Exp')) continue;
    const number = inference.scalarOf(other);
    if (number !== undefined && number > 0)
      return { sum, input: undefined, extra: { logit: Math.log(number), value }, nodes: [] };
    const difference = readMasked(exponential, inference)?.exponential.producer?.inputs[0]?.producer;
    const [input, maximum] = difference?.is('Sub') ? difference.inputs : [];
    const negated = other.producer?.is('Exp') ? other.producer.inputs[0]?.producer : undefined;
    if (input && maximum && negated && isNegative(negated, maximum, inference) && isMaximum(maximum, input, inference))
      return { sum, input, extra: { logit: 0, value }, nodes: [difference!, negated, other.producer!] };
  }
  return undefined;
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

/** Whether an exponential is one of x − max(x). */
function isRelative(exponential: Value, inference: Inference): boolean {
  const difference = readMasked(exponential, inference)?.exponential.producer?.inputs[0]?.producer;
  const [x, subtracted] = difference?.is('Sub') ? difference.inputs : [];
  return x !== undefined && subtracted !== undefined && lessMaximum(subtracted, x, [], inference) !== undefined;
}
