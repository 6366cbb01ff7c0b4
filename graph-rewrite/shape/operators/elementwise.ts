/** Element-wise operators: types, broadcast shapes, and integer arithmetic on shape tensors. */
import { DataType } from '../../onnx/proto.js';
import { Expression, sortedByKey } from '../expression.js';
import {
  broadcastReader,
  broadcastShapes,
  constantCount,
  constantSizes,
  type Derived,
  isFollowed,
  MOST_ELEMENTS,
  type ValueFacts,
} from '../facts.js';
import { isFloat, roundTo } from '../rounding.js';
import { type Call, likeFirst, type Rule, type RuleTable } from './call.js';

type Value = Expression | undefined;
type Integer = (...operands: Expression[]) => Value;
type Float = (...operands: number[]) => number;

/** How an operator computes elements, where it is followed: on integers symbolically, on known numbers in double. */
interface Arithmetic {
  readonly integer?: Integer;
  readonly float?: Float;
}

/** Of variadic operators with more operands (Max, Min, Sum), elements are not followed. */
const MOST_OPERANDS = 16;
const ONE = Expression.constant(1);
const ZERO = Expression.constant(0);
const not = (a: Expression) => ONE.minus(a);
const and = (a: Expression, b: Expression) => (a.equals(b) ? a : a.times(b));
const or = (a: Expression, b: Expression) => not(and(not(a), not(b)));

function equal(a: Expression, b: Expression): Expression {
  const { lower, upper } = a.minus(b).range;
  if (lower > 0 || upper < 0) return ZERO;
  return lower === 0 && upper === 0 ? ONE : Expression.operation('equal', ...sortedByKey(a, b));
}

function less(a: Expression, b: Expression): Expression {
  const { lower, upper } = a.minus(b).range;
  if (upper < 0) return ONE;
  return lower >= 0 ? ZERO : Expression.operation('less', a, b);
}

function where(condition: Expression, yes: Expression, no: Expression): Expression {
  if (condition.value !== undefined) return condition.value !== 0 ? yes : no;
  return yes.equals(no) ? yes : Expression.operation('where', condition, yes, no);
}

function divide(a: Expression, b: Expression): Value {
  if (b.value === 0) return undefined;
  const exact = a.dividedExactlyBy(b);
  if (exact) return exact;
  // A divisor that is a size is positive wherever the division is defined.
  if (a.range.lower >= 0 && b.range.lower >= 0) return a.floorDividedBy(b);
  if (a.value !== undefined && b.value !== undefined) return Expression.constant(Math.trunc(a.value / b.value));
  return Expression.operation('truncated-div', a, b);
}

function modulo(a: Expression, b: Expression, truncated: boolean): Value {
  if (b.value === 0) return undefined;
  if (b.range.lower < 0 || (truncated && a.range.lower < 0)) {
    if (a.value === undefined || b.value === undefined) return undefined;
    const rest = a.value % b.value;
    return Expression.constant(!truncated && rest !== 0 && rest < 0 !== b.value < 0 ? rest + b.value : rest);
  }
  return a.modulo(b);
}

function power(a: Expression, b: Expression): Value {
  const exponent = b.value;
  if (exponent === undefined) return Expression.operation('power', a, b);
  if (exponent < 0 || !Number.isInteger(exponent) || exponent > 8) return undefined;
  let result = ONE;
  for (let i = 0; i < exponent; i++) result = result.times(a);
  return result;
}

function absolute(a: Expression): Expression {
  if (a.range.lower >= 0) return a;
  return a.range.upper <= 0 ? a.times(-1) : Expression.operation('abs', a);
}

const fold =
  (combine: (a: Expression, b: Expression) => Expression) =>
  (first: Expression, ...rest: Expression[]) =>
    rest.reduce(combine, first);

/** Operators whose result has the type of their (last) operand. */
const ARITHMETIC: Readonly<Record<string, Arithmetic>> = {
  Add: { integer: (a, b) => a!.plus(b!), float: (a, b) => a! + b! },
  Sub: { integer: (a, b) => a!.minus(b!), float: (a, b) => a! - b! },
  Mul: { integer: (a, b) => a!.times(b!), float: (a, b) => a! * b! },
  Div: { integer: (a, b) => divide(a!, b!), float: (a, b) => a! / b! },
  Max: { integer: fold(Expression.maximum), float: Math.max },
  Min: { integer: fold(Expression.minimum), float: Math.min },
  Sum: { integer: fold((a, b) => a.plus(b)) },
  Mean: {},
  Neg: { integer: (a) => a!.times(-1), float: (a) => -a! },
  Abs: { integer: (a) => absolute(a!), float: (a) => Math.abs(a!) },
  Sign: { integer: (a) => sign(a!), float: (a) => Math.sign(a!) },
  Sqrt: { float: (a) => Math.sqrt(a!) },
  Reciprocal: { float: (a) => 1 / a! },
  Exp: { float: (a) => Math.exp(a!) },
  Log: { float: (a) => Math.log(a!) },
  Floor: { float: (a) => Math.floor(a!) },
  Ceil: { float: (a) => Math.ceil(a!) },
  Round: { float: (a) => roundHalfToEven(a!) },
};

/** Operators whose result is bool. */
const COMPARISONS: Readonly<Record<string, Arithmetic>> = {
  Equal: { integer: (a, b) => equal(a!, b!), float: (a, b) => Number(a === b) },
  Less: { integer: (a, b) => less(a!, b!), float: (a, b) => Number(a! < b!) },
  Greater: { integer: (a, b) => less(b!, a!), float: (a, b) => Number(a! > b!) },
  LessOrEqual: { integer: (a, b) => not(less(b!, a!)), float: (a, b) => Number(a! <= b!) },
  GreaterOrEqual: { integer: (a, b) => not(less(a!, b!)), float: (a, b) => Number(a! >= b!) },
  And: { integer: (a, b) => and(a!, b!) },
  Or: { integer: (a, b) => or(a!, b!) },
  Xor: { integer: (a, b) => not(equal(a!, b!)) },
  Not: { integer: (a) => not(a!) },
  IsNaN: { float: (a) => Number(Number.isNaN(a!)) },
  IsInf: {},
};

/** Functions of one float tensor, or of several that broadcast, of whose values nothing is followed. */
const UNFOLLOWED =
  'Acos Acosh Asin Asinh Atan Atanh Cos Cosh Sin Sinh Tan Tanh Erf Relu LeakyRelu PRelu Elu Celu Selu Sigmoid ' +
  'HardSigmoid HardSwish Swish Softplus Softsign ThresholdedRelu Gelu Mish BitwiseAnd BitwiseOr BitwiseXor BitwiseNot ' +
  'BitShift Shrink';

function sign(a: Expression): Expression {
  const { lower, upper } = a.range;
  if (lower > 0) return ONE;
  return upper < 0 ? Expression.constant(-1) : Expression.operation('sign', a);
}

function roundHalfToEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** The result of an element-wise operator on these operands, as far as its values can be followed. */
function apply(operands: readonly ValueFacts[], type: number | undefined, arithmetic: Arithmetic): Derived {
  const shape = broadcastShapes(operands.map((o) => o.shape));
  const { integer, float } = arithmetic;
  const onIntegers = operands.every((o) => isFollowed(o.type));
  const elements =
    integer && onIntegers && operands.length <= MOST_OPERANDS && isFollowed(type)
      ? elementwise(operands, shape, integer)
      : undefined;
  return {
    type,
    shape,
    elements,
    uniform: elements ? undefined : uniform(operands, type, onIntegers, arithmetic, float),
  };
}

function uniform(
  operands: readonly ValueFacts[],
  type: number | undefined,
  onIntegers: boolean,
  { integer }: Arithmetic,
  float: Float | undefined,
): number | undefined {
  const values: number[] = [];
  for (const { uniform } of operands) {
    if (uniform === undefined) return undefined;
    values.push(uniform);
  }
  if (onIntegers)
    return exactOnly(
      integer,
      values.map((v) => Expression.constant(v)),
    )?.value;
  const result = float?.(...values);
  return result === undefined || type === undefined ? undefined : roundTo(type, result);
}

/** Elements of the broadcast result, row-major, where it is small. */
function elementwise(
  operands: readonly ValueFacts[],
  shape: readonly Value[] | undefined,
  operation: Integer,
): Value[] | undefined {
  const sizes = constantSizes(shape?.every((s) => s !== undefined) ? (shape as Expression[]) : undefined);
  const count = sizes?.reduce((product, size) => product * size, 1);
  if (sizes === undefined || count === undefined || count > MOST_ELEMENTS) return undefined;
  const readers: ((index: number) => Value)[] = [];
  for (const operand of operands) {
    const own = constantSizes(operand.shape);
    if (own === undefined || operand.elements === undefined) return undefined;
    readers.push(broadcastReader(operand.elements, own, sizes));
  }
  return Array.from({ length: count }, (_, index) => {
    const values = readers.map((read) => read(index));
    return values.every((v) => v !== undefined) ? exactOnly(operation, values as Expression[]) : undefined;
  });
}

/** The result where operands and result are exact: coefficients past 2⁵³ prove nothing. */
function exactOnly(operation: Integer | undefined, operands: readonly Expression[]): Value {
  if (!operands.every((o) => o.exact)) return undefined;
  const result = operation?.(...operands);
  return result?.exact ? result : undefined;
}

const present = (call: Call) => call.inputs.filter((i) => i !== undefined);
const commonType = (call: Call) => present(call).find((i) => i.type !== undefined)?.type;

const arithmeticRule =
  (arithmetic: Arithmetic): Rule =>
  (call) =>
    apply(present(call), commonType(call), arithmetic);

const comparisonRule =
  (arithmetic: Arithmetic): Rule =>
  (call) =>
    apply(present(call), DataType.BOOL, arithmetic);

const whereRule: Rule = (call) => {
  const [condition, yes, no] = [call.input(0), call.input(1), call.input(2)];
  const type = yes.type ?? no.type;
  // Of floats only the known number can be followed; a condition known everywhere picks one side.
  const picked = condition.uniform === undefined ? undefined : condition.uniform !== 0 ? yes : no;
  const float = picked?.uniform ?? (yes.uniform !== undefined && yes.uniform === no.uniform ? yes.uniform : undefined);
  const derived = apply([condition, yes, no], type, { integer: (c, a, b) => where(c!, a!, b!) });
  return { ...derived, uniform: derived.uniform ?? (isFloat(type) || !derived.elements ? float : undefined) };
};

/** Converts known numbers; elements stay what they are, where the new type can hold them. */
export function castTo(from: ValueFacts, type: number | undefined): Derived {
  const { shape } = from;
  if (type === from.type) return { type, shape, elements: from.elements, uniform: from.uniform };
  const number = from.uniform === undefined || type === undefined ? undefined : roundTo(type, from.uniform);
  if (!isFollowed(type) || from.elements === undefined) return { type, shape, uniform: number };
  if (type === DataType.BOOL) return { type, shape, elements: from.elements.map((e) => not(equal(e, ZERO))) };
  // A number that the narrower type does not hold wraps around; a size always fits.
  const fits = (e: Expression) => e.value === undefined || roundTo(type!, e.value) === e.value;
  return { type, shape, elements: from.elements.map((e) => (fits(e) ? e : undefined)) };
}

const modRule: Rule = (call) =>
  apply(present(call), commonType(call), {
    integer: (a, b) => modulo(a!, b!, call.flag('fmod')),
  });

const powRule: Rule = (call) => {
  const [base, exponent] = [call.input(0), call.input(1)];
  const followed = isFollowed(base.type) && isFollowed(exponent.type);
  const derived = apply([base, exponent], base.type, followed ? { integer: (a, b) => power(a!, b!) } : {});
  if (followed || base.uniform === undefined || exponent.uniform === undefined || base.type === undefined)
    return derived;
  return { ...derived, uniform: roundTo(base.type, base.uniform ** exponent.uniform) };
};

const clipRule: Rule = (call) => {
  const bounds = [call.input(1), call.input(2)];
  const x = call.input(0);
  const known = { type: x.type, shape: x.shape };
  if (!x.elements) return known;
  const [low, high] = bounds.map((b) => b.elements?.[0]);
  if ((call.has(1) && !low) || (call.has(2) && !high)) return known;
  const clamp = (e: Expression) => {
    const raised = low ? Expression.maximum(e, low) : e;
    return high ? Expression.minimum(raised, high) : raised;
  };
  return { ...known, elements: x.elements.map((e) => exactOnly(clamp, [e])) };
};

/** Range: its length, and its elements where there are few. */
const rangeRule: Rule = (call) => {
  const [start, limit, delta] = [call.input(0), call.input(1), call.input(2)];
  const type = commonType(call);
  const [from, to, step] = [start.elements?.[0], limit.elements?.[0], delta.elements?.[0]];
  if (!isFollowed(type) || !from?.exact || !to?.exact || !step?.value || !step.exact) {
    const [a, b, c] = [start.uniform, limit.uniform, delta.uniform];
    const count = a === undefined || b === undefined || !c ? undefined : rangeCount(type, a, b, c);
    return {
      type,
      shape: [count !== undefined && Number.isSafeInteger(count) ? Expression.constant(count) : undefined],
    };
  }
  const length = rangeLength(from, to, step.value);
  const count = constantCount([length]);
  const elements =
    count !== undefined && count <= MOST_ELEMENTS
      ? Array.from({ length: count }, (_, i) => from.plus(step.times(i)))
      : undefined;
  return { type, shape: [length], elements };
};

function rangeCount(type: number | undefined, from: number, to: number, step: number): number | undefined {
  const distance = type === undefined ? undefined : roundTo(type, to - from);
  return distance === undefined ? undefined : Math.max(0, Math.ceil(distance / step));
}

/** Number of steps from a start (included) to a limit (excluded). */
function rangeLength(from: Expression, to: Expression, step: number): Expression {
  const distance = step > 0 ? to.minus(from) : from.minus(to);
  const size = Math.abs(step);
  return Expression.maximum(distance.plus(size - 1).floorDividedBy(size), ZERO);
}

export const elementwiseRules: RuleTable = {
  ...Object.fromEntries(Object.entries(ARITHMETIC).map(([name, a]) => [name, arithmeticRule(a)])),
  ...Object.fromEntries(Object.entries(COMPARISONS).map(([name, a]) => [name, comparisonRule(a)])),
  ...Object.fromEntries(UNFOLLOWED.split(' ').map((name) => [name, arithmeticRule({})])),
  PRelu: likeFirst,
  Mod: modRule,
  Pow: powRule,
  Clip: clipRule,
  Where: whereRule,
  Range: rangeRule,
  Cast: (call) => castTo(call.input(0), call.int('to', 0) || undefined),
  CastLike: (call) => castTo(call.input(0), call.type(1)),
  BitCast: (call) => ({ type: call.int('to', 0) || undefined, shape: call.shape() }),
};
