/** Slice, in every opset's form. */
import { Expression } from '../expression.js';
import { constantSizes, type Derived } from '../facts.js';
import { normalAxis, type Rule, unknownShape } from './call.js';

type Size = Expression | undefined;

const ZERO = Expression.constant(0);
/** No axis of a tensor in use is as long. */
const NO_SIZE = 2 ** 31 - 1;

interface Bounds {
  readonly start: Size;
  readonly end: Size;
  readonly step: number | undefined;
}

/**
 * Starts, ends, axes and steps by attribute (opset 1) or input (opset 10). Negative positions count from the end, all
 * are clamped to the axis.
 */
export const sliceRule: Rule = (call): Derived => {
  const { type, shape: source, uniform } = call.input(0);
  const axes = call.numbers('axes', 3);
  if (!source || (call.has(3) && !axes)) return { type, uniform, shape: unknownShape(source?.length) };
  const starts = call.integers('starts', 1);
  const ends = call.integers('ends', 2);
  const count = axes?.length ?? starts?.length ?? ends?.length ?? source.length;
  const shape: Size[] = [...source];
  let picked = gridOf(call.elements(0), constantSizes(source));
  for (let i = 0; i < count; i++) {
    const axis = normalAxis(axes?.[i] ?? i, source.length);
    if (axis === undefined) return { type, uniform, shape: unknownShape(source.length) };
    const bounds = { start: starts?.[i], end: ends?.[i], step: call.has(4) ? call.elements(4)?.[i]?.value : 1 };
    shape[axis] = slicedSize(source[axis]!, bounds);
    picked = picked && pick(picked, axis, bounds);
  }
  return { type, uniform, shape, elements: picked?.elements };
};

/** The size that is left of an axis. */
function slicedSize(size: Expression, { start, end, step }: Bounds): Size {
  if (!start || !end || !step) return undefined;
  // Backwards, the end is the last position not taken, which −1 stands for where all before it are.
  const to = position(end, size, step > 0 ? 0 : -1);
  if (step === 1 && to.equals(size)) return lengthToEnd(size, start);
  const from = position(start, size, 0);
  const most = step > 0 ? size : size.minus(1);
  const [first, last] = [Expression.minimum(from, most), Expression.minimum(to, most)];
  const distance = step > 0 ? last.minus(first) : first.minus(last);
  const stride = Math.abs(step);
  return Expression.maximum(distance.plus(stride - 1).floorDividedBy(stride), ZERO);
}

/** What is left from a position on. */
function lengthToEnd(size: Expression, start: Expression): Expression {
  const fromFront = lengthFrom(size, start);
  if (start.range.lower >= 0) return fromFront;
  if (start.value !== undefined && -start.value >= NO_SIZE) return size;
  const fromEnd = Expression.minimum(start.times(-1), size);
  if (start.range.upper < 0) return fromEnd;
  return Expression.operation('where', Expression.operation('less', start, ZERO), fromEnd, fromFront);
}

/** What is left from a position counted from the front. */
function lengthFrom(size: Expression, start: Expression): Expression {
  const atom = start.atom;
  const raised = atom?.operation === 'max' ? atom.operands.find((o) => !o.equals(0)) : undefined;
  // From max(0, size − x) on there are min(size, x), which says more than a difference of maxima.
  if (raised && atom!.operands.some((o) => o.equals(0)))
    return Expression.maximum(Expression.minimum(size, size.minus(raised)), ZERO);
  return size.minus(Expression.minimum(start, size));
}

/** A position counted from the front and not below the lowest. */
function position(at: Expression, size: Expression, lowest: number): Expression {
  // Exporters write the largest 32-bit or 64-bit integer for "to the end".
  if (at.value !== undefined && Math.abs(at.value) >= NO_SIZE) return at.value > 0 ? size : Expression.constant(lowest);
  if (at.range.lower >= 0) return at;
  const fromEnd = Expression.maximum(at.plus(size), Expression.constant(lowest));
  if (at.range.upper < 0) return fromEnd;
  return Expression.operation('where', Expression.operation('less', at, ZERO), fromEnd, at);
}

/** Elements, row-major, in a tensor of these sizes. */
interface Grid {
  readonly elements: readonly Expression[];
  readonly sizes: readonly number[];
}

function gridOf(elements: readonly Expression[] | undefined, sizes: readonly number[] | undefined): Grid | undefined {
  return elements && sizes && { elements, sizes };
}

/** Elements of a slice of one axis with constant bounds. */
function pick({ elements, sizes }: Grid, axis: number, bounds: Bounds): Grid | undefined {
  const kept = pickedIndices(sizes[axis]!, bounds);
  if (!kept) return undefined;
  const inner = sizes.slice(axis + 1).reduce((a, b) => a * b, 1);
  const outer = sizes.slice(0, axis).reduce((a, b) => a * b, 1);
  const rowAt = (o: number, i: number) =>
    elements.slice((o * sizes[axis]! + i) * inner, (o * sizes[axis]! + i + 1) * inner);
  const rows = Array.from({ length: outer }, (_, o) => kept.flatMap((i) => rowAt(o, i)));
  return { elements: rows.flat(), sizes: sizes.with(axis, kept.length) };
}

/** Positions that a slice of an axis keeps, where its bounds are constants. */
function pickedIndices(count: number, { start, end, step }: Bounds): number[] | undefined {
  const [from, to] = [start?.value, end?.value];
  if (from === undefined || to === undefined || !step) return undefined;
  const clamp = (at: number, low: number, high: number) => Math.min(Math.max(at < 0 ? at + count : at, low), high);
  const kept: number[] = [];
  if (step > 0) for (let i = clamp(from, 0, count); i < clamp(to, 0, count); i += step) kept.push(i);
  else for (let i = clamp(from, 0, count - 1); i > clamp(to, -1, count - 1); i += step) kept.push(i);
  return kept;
}
