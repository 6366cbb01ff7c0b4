/** Element-wise operators on elements that are functions of the scores' indices. */
import { DataType } from '../../onnx/proto.js';
import { Expression } from '../../shape/expression.js';
import { roundTo } from '../../shape/rounding.js';
import { Affine } from './affine.js';
import { derivedElement } from './derived.js';
import {
  and,
  atMostZero,
  type Condition,
  choice,
  conditional,
  constant,
  type Element,
  FALSE,
  linear,
  not,
  or,
  TRUE,
} from './element.js';

/** The result of an operator, undefined where it is not a known function of the indices. */
export type Known = Element | undefined;

/** Applies an operator to both sides of every choice among its operands. */
function distribute(operands: readonly Element[], apply: (operands: readonly Element[]) => Known): Known {
  const at = operands.findIndex((o) => o.kind === 'choice');
  if (at < 0) return apply(operands);
  const chosen = operands[at] as Element & { kind: 'choice' };
  const side = (element: Element) =>
    distribute(
      operands.map((o, i) => (i === at ? element : o)),
      apply,
    );
  const yes = side(chosen.yes);
  const no = yes && side(chosen.no);
  return yes && no && choice(chosen.condition, yes, no);
}

/** A number as a linear expression, where it is an integer. */
function asAffine(element: Element): Affine | undefined {
  if (element.kind === 'linear') return element.affine;
  return element.kind === 'constant' && Number.isSafeInteger(element.value)
    ? Affine.constant(element.value)
    : undefined;
}

type Comparison = 'Less' | 'LessOrEqual' | 'Greater' | 'GreaterOrEqual' | 'Equal';

/** A comparison of numbers, or Equal of conditions. */
export function compare(operation: Comparison, left: Element, right: Element, type?: number): Condition | undefined {
  const [x, y] = [addedUp(left), addedUp(right)];
  const result =
    x &&
    y &&
    distribute([x, y], ([a, b]) => {
      const condition = compareSimple(operation, a!, b!);
      return condition ? conditional(condition) : derivedElement(operation, [a!, b!], type, DataType.BOOL);
    });
  if (result?.kind === 'condition') return result.condition;
  return undefined;
}

function compareSimple(operation: Comparison, a: Element, b: Element): Condition | undefined {
  switch (operation) {
    case 'LessOrEqual':
      return isAtMost(a, b);
    case 'GreaterOrEqual':
      return isAtMost(b, a);
    case 'Less':
      return negated(isAtMost(b, a), a, b);
    case 'Greater':
      return negated(isAtMost(a, b), a, b);
    case 'Equal': {
      if (a.kind === 'condition' && b.kind === 'condition') return not(exclusive(a.condition, b.condition));
      const below = isAtMost(a, b);
      const above = below && isAtMost(b, a);
      return above && and(below, above);
    }
  }
}

/** The negation, which for NaN would not be the opposite comparison. */
function negated(condition: Condition | undefined, ...operands: Element[]): Condition | undefined {
  const unordered = operands.some((o) => o.kind === 'constant' && Number.isNaN(o.value));
  return unordered || !condition ? undefined : not(condition);
}

export function exclusive(a: Condition, b: Condition): Condition {
  return or(and(a, not(b)), and(not(a), b));
}

/** a ≤ b. */
function isAtMost(a: Element, b: Element): Condition | undefined {
  if (a.kind === 'maximum') return every(a.parts.map((p) => isAtMost(p, b)));
  if (b.kind === 'minimum') return every(b.parts.map((p) => isAtMost(a, p)));
  if (a.kind === 'minimum') return some(a.parts.map((p) => isAtMost(p, b)));
  if (b.kind === 'maximum') return some(b.parts.map((p) => isAtMost(a, p)));
  if (a.kind === 'constant' && b.kind === 'constant') return a.value <= b.value ? TRUE : FALSE;
  const x = a.kind === 'constant' ? boundary(a.value, Math.ceil) : asAffine(a);
  const y = b.kind === 'constant' ? boundary(b.value, Math.floor) : asAffine(b);
  if (x instanceof Affine && y instanceof Affine) return atMostZero(x.minus(y));
  if (typeof x === 'number' && y instanceof Affine) return x < 0 ? TRUE : FALSE;
  if (typeof y === 'number' && x instanceof Affine) return y > 0 ? TRUE : FALSE;
  return undefined;
}

/** A constant that integers are compared with, rounded; or itself where it is infinite or far past all indices. */
function boundary(value: number, round: (x: number) => number): Affine | number | undefined {
  if (Number.isNaN(value)) return undefined;
  const whole = round(value);
  return Math.abs(whole) < 2 ** 52 ? Affine.constant(whole) : whole;
}

function every(conditions: readonly (Condition | undefined)[]): Condition | undefined {
  return conditions.every((c) => c !== undefined) ? and(...conditions) : undefined;
}

function some(conditions: readonly (Condition | undefined)[]): Condition | undefined {
  return conditions.every((c) => c !== undefined) ? or(...conditions) : undefined;
}

/**
 * Operators of numbers; the result's data type rounds what is computed from constants. What masks add up to is left
 * open as long as nothing asks for it.
 */
export function arithmetic(opType: string, operands: readonly Element[], type: number | undefined): Known {
  const isMask = (e: Element) => e.kind === 'choice' || e.kind === 'sum';
  if (opType === 'Add' && operands.every(isMask)) return sumOf(operands, type);
  const known = operands.map(addedUp);
  return known.every((e) => e !== undefined) ? evaluate(opType, known, type) : undefined;
}

/** A sum that keeps its parts. */
export function sumOf(operands: readonly Element[], type: number | undefined): Element {
  return { kind: 'sum', parts: operands.flatMap((o) => (o.kind === 'sum' ? o.parts : [o])), type };
}

/** What a sum's parts add up to. */
export function addedUp(element: Element): Known {
  if (element.kind !== 'sum') return element;
  const { parts, type } = element;
  return parts.reduce<Known>((a, b) => a && evaluate('Add', [a, b], type), constant(0));
}

function evaluate(opType: string, operands: readonly Element[], type: number | undefined): Known {
  return distribute(operands, (simple) => {
    const [a, b] = simple;
    const same = unchanged(opType, a!, b) ?? derivedElement(opType, simple, type, type);
    if (same) return same;
    switch (opType) {
      case 'Add':
        return fold(simple, type, (x, y) => x + y) ?? linearSum(a!, b!, 1);
      case 'Sub':
        return fold(simple, type, (x, y) => x - y) ?? linearSum(a!, b!, -1);
      case 'Mul':
        return fold(simple, type, (x, y) => x * y) ?? scaled(a!, b!) ?? scaled(b!, a!);
      case 'Div':
        return quotient(a!, b!, type);
      case 'Neg':
        return fold(simple, type, (x) => -x) ?? scaled(a!, constant(-1));
      case 'Abs':
        return fold(simple, type, Math.abs) ?? extreme('maximum', [a!, scaled(a!, constant(-1))]);
      case 'Max':
        return fold(simple, type, Math.max) ?? extreme('maximum', simple);
      case 'Min':
        return fold(simple, type, Math.min) ?? extreme('minimum', simple);
      default:
        return undefined;
    }
  });
}

/** x + 0, x − 0, x · 1, x / 1 and their like, whatever x is. */
function unchanged(opType: string, a: Element, b: Element | undefined): Known {
  const is = (e: Element | undefined, value: number) => e?.kind === 'constant' && e.value === value;
  if (opType === 'Add') return is(b, 0) ? a : is(a, 0) ? b : undefined;
  if (opType === 'Mul') return is(b, 1) ? a : is(a, 1) ? b : undefined;
  return (opType === 'Sub' && is(b, 0)) || (opType === 'Div' && is(b, 1)) ? a : undefined;
}

function fold(operands: readonly Element[], type: number | undefined, apply: (...x: number[]) => number): Known {
  if (!operands.every((o) => o.kind === 'constant') || type === undefined) return undefined;
  const result = roundTo(type, apply(...operands.map((o) => o.value)));
  return result === undefined ? undefined : constant(result);
}

function linearSum(a: Element, b: Element, sign: 1 | -1): Known {
  const left = asAffine(a);
  const right = asAffine(b);
  if (left && right) return linear(left.plus(right.times(sign)));
  // max(a, b) + c is max(a + c, b + c).
  if ((a.kind === 'maximum' || a.kind === 'minimum') && right)
    return extreme(
      a.kind,
      a.parts.map((p) => linearSum(p, b, sign)),
    );
  if ((b.kind === 'maximum' || b.kind === 'minimum') && left && sign === 1) return linearSum(b, a, 1);
  return undefined;
}

function scaled(a: Element, b: Element): Known {
  if (b.kind !== 'constant' && !(b.kind === 'linear' && b.affine.terms.size === 0)) return undefined;
  const factor = b.kind === 'constant' ? b.value : b.affine.rest;
  if (typeof factor === 'number' && !Number.isSafeInteger(factor)) return undefined;
  const affine = asAffine(a);
  if (affine) return linear(affine.times(factor));
  if ((a.kind !== 'maximum' && a.kind !== 'minimum') || typeof factor !== 'number') return undefined;
  const flipped = a.kind === 'maximum' ? 'minimum' : 'maximum';
  return extreme(
    factor >= 0 ? a.kind : flipped,
    a.parts.map((p) => scaled(p, b)),
  );
}

/** Integers are divided with rounding towards zero, so only constants and exact quotients are followed. */
function quotient(a: Element, b: Element, type: number | undefined): Known {
  if (a.kind === 'constant' && b.kind === 'constant')
    return b.value === 0 && isInteger(type) ? undefined : fold([a, b], type, (x, y) => x / y);
  const affine = asAffine(a);
  const divisor = b.kind === 'constant' ? b.value : undefined;
  if (!affine || divisor === undefined || !Number.isSafeInteger(divisor) || divisor === 0) return undefined;
  const by = Expression.constant(divisor);
  const rest = affine.rest.dividedExactlyBy(by);
  if (!rest) return undefined;
  let result = Affine.constant(rest);
  for (const [variable, coefficient] of affine.terms) {
    const part = coefficient.dividedExactlyBy(by);
    if (!part) return undefined;
    result = result.plus(Affine.variable(variable).times(part));
  }
  return linear(result);
}

function isInteger(type: number | undefined): boolean {
  return type !== undefined && ![1, 10, 11, 16].includes(type);
}

function extreme(kind: 'maximum' | 'minimum', parts: readonly Known[]): Known {
  const flat: Element[] = [];
  for (const part of parts) {
    if (!part) return undefined;
    if (part.kind === kind) flat.push(...part.parts);
    else if (asAffine(part) || part.kind === 'maximum' || part.kind === 'minimum') flat.push(part);
    else return undefined;
  }
  return flat.length === 1 ? flat[0] : { kind, parts: flat };
}
