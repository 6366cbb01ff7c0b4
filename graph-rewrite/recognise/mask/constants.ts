/** Constant tensors as functions of their indices: a buffer of a triangle, of positions, of one number. */
import type { ConstantTensor } from '../../shape/constant.js';
import type { Affine } from './affine.js';
import { and, atMostZero, type Condition, choice, constant, type Element, linear } from './element.js';

/** Buffers with more elements are not looked into. */
const MOST_ELEMENTS = 2 ** 26;
const BOOL = 9;

/** Along each axis, which indices matter: the constant's own content as a formula. */
type Pattern =
  | { readonly kind: 'uniform'; readonly value: number }
  /** start + step · index. */
  | { readonly kind: 'progression'; readonly axis: number; readonly start: number; readonly step: number }
  /** `inside` where low ≤ index ≤ high, else `outside`. */
  | ({ readonly kind: 'interval'; readonly axis: number; readonly low: number; readonly high: number } & TwoValues)
  /** `inside` where low ≤ column − row ≤ high, else `outside`. */
  | ({
      readonly kind: 'band';
      readonly row: number;
      readonly column: number;
      readonly low: number;
      readonly high: number;
    } & TwoValues);

interface TwoValues {
  readonly inside: number;
  readonly outside: number;
}

const patterns = new WeakMap<ConstantTensor, Pattern | null>();

/** The element at these indices, as a function of them; undefined where the content follows no known pattern. */
export function constantElement(tensor: ConstantTensor, indices: readonly Affine[]): Element | undefined {
  const at = indices.map((i) => i.value);
  if (at.every((i) => i !== undefined)) return numberAt(tensor, at);
  let pattern = patterns.get(tensor);
  if (pattern === undefined) {
    pattern = readPattern(tensor) ?? null;
    patterns.set(tensor, pattern);
  }
  if (!pattern) return undefined;
  const index = (axis: number) => indices[axis]!;
  switch (pattern.kind) {
    case 'uniform':
      return constant(pattern.value);
    case 'progression':
      return linear(index(pattern.axis).times(pattern.step).plus(pattern.start));
    case 'interval':
      return between(index(pattern.axis), pattern);
    case 'band':
      return between(index(pattern.column).minus(index(pattern.row)), pattern);
  }
}

function numberAt(tensor: ConstantTensor, at: readonly number[]): Element | undefined {
  const numbers = tensor.numbers();
  let offset = 0;
  for (const [axis, i] of at.entries()) {
    const size = tensor.dims[axis]!;
    if (i < 0 || i >= size) return undefined;
    offset = offset * size + i;
  }
  const value = numbers?.[offset];
  return value === undefined ? undefined : constant(value);
}

function between(x: Affine, { low, high, inside, outside }: { low: number; high: number } & TwoValues): Element {
  const bounds: Condition[] = [];
  if (Number.isFinite(low)) bounds.push(atMostZero(x.times(-1).plus(low)));
  if (Number.isFinite(high)) bounds.push(atMostZero(x.minus(high)));
  return choice(and(...bounds), constant(inside), constant(outside));
}

function readPattern(tensor: ConstantTensor): Pattern | undefined {
  const count = tensor.dims.reduce((a, b) => a * b, 1);
  if (count === 0 || count > MOST_ELEMENTS) return undefined;
  const numbers = tensor.numbers();
  if (!numbers) return undefined;
  const long = [...tensor.dims.keys()].filter((axis) => tensor.dims[axis]! > 1);
  if (long.length === 0) return { kind: 'uniform', value: numbers[0]! };
  if (long.length === 1) return linePattern(numbers, long[0]!, tensor.type);
  return long.length === 2 ? bandPattern(numbers, long as [number, number], tensor.dims) : undefined;
}

function linePattern(numbers: ArrayLike<number>, axis: number, type: number): Pattern | undefined {
  const start = numbers[0]!;
  const step = numbers[1]! - start;
  const steady = (_: unknown, i: number) => numbers[i] === start + i * step;
  const isNumber = type !== BOOL && Number.isSafeInteger(start) && Number.isSafeInteger(step);
  if (isNumber && step !== 0 && Array.from(numbers).every(steady)) return { kind: 'progression', axis, start, step };
  const last = numbers.length - 1;
  const found = interval((i) => numbers[i]!, 0, last);
  return (
    found && (found.inside === found.outside ? { kind: 'uniform', value: start } : { kind: 'interval', axis, ...found })
  );
}

/** A matrix whose elements depend on column − row alone and take two values, one of them on one run of diagonals. */
function bandPattern(
  numbers: ArrayLike<number>,
  [row, column]: readonly [number, number],
  dims: readonly number[],
): Pattern | undefined {
  const [rows, columns] = [dims[row]!, dims[column]!];
  for (let r = 1; r < rows; r++)
    for (let c = 1; c < columns; c++)
      if (numbers[r * columns + c] !== numbers[(r - 1) * columns + c - 1]) return undefined;
  const diagonal = (d: number) => (d >= 0 ? numbers[d]! : numbers[-d * columns]!);
  const found = interval(diagonal, 1 - rows, columns - 1);
  if (!found) return undefined;
  const { inside, outside } = found;
  return inside === outside ? { kind: 'uniform', value: inside } : { kind: 'band', row, column, ...found };
}

/**
 * The run of positions from `first` to `last` on which a function has one value, with another value on all others. A
 * run that reaches an end has no bound there.
 */
function interval(
  at: (position: number) => number,
  first: number,
  last: number,
): ({ low: number; high: number } & TwoValues) | undefined {
  const changes: number[] = [];
  for (let p = first + 1; p <= last && changes.length < 3; p++) if (at(p) !== at(p - 1)) changes.push(p);
  const [low, end] = changes;
  const unbounded = { low: Number.NEGATIVE_INFINITY, high: Number.POSITIVE_INFINITY };
  if (low === undefined) return { ...unbounded, inside: at(first), outside: at(first) };
  if (end === undefined) return { ...unbounded, high: low - 1, inside: at(first), outside: at(low) };
  if (changes.length > 2 || at(end) !== at(first)) return undefined;
  return { low, high: end - 1, inside: at(low), outside: at(first) };
}
