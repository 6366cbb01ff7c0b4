/** Operators that move elements: at which indices of their input an element of their output stands. */
import type { Node, Value } from '../../graph/graph.js';
import { Expression, product } from '../../shape/expression.js';
import type { Inference } from '../../shape/inference.js';
import { Affine, isNeverPositive } from './affine.js';

export type Indices = readonly Affine[];

const ZERO = Affine.constant(0);

/** Indices of an operand of an element-wise operator (or of Expand) that is broadcast to an output. */
export function broadcastIndices(shape: readonly Expression[], output: Indices): Indices | undefined {
  const added = output.length - shape.length;
  if (added < 0) return undefined;
  return shape.map((size, axis) => {
    const index = output[axis + added]!;
    if (size.equals(1)) return ZERO;
    // Whatever is read at an index of the scores has as many elements as the scores there: sizes that differ by name
    // and meet in one operator are equal in a model that runs, since exporters give no name to a size of 1.
    if (size.value === undefined || index.variable?.sizes.every((s) => s.value === undefined))
      index.variable?.addSize(size);
    return index;
  });
}

/**
 * Indices of the data input at which an output's element stands.
 * @returns undefined for an operator that does more, or whose parameters are not known.
 */
export function movedIndices(node: Node, output: Value, indices: Indices, inference: Inference): Indices | undefined {
  const [data] = node.inputs;
  const source = data && inference.of(data).shape;
  const shape = inference.of(output).shape;
  if (!source || !shape || shape.length !== indices.length) return undefined;
  switch (node.opType) {
    case 'Identity':
      return indices;
    case 'Expand':
      return broadcastIndices(source, indices);
    case 'Tile':
      return tiled(source, shape, indices);
    case 'Transpose': {
      const order = node.ints('perm') ?? [...source.keys()].reverse();
      return source.map((_, axis) => indices[order.indexOf(axis)]!);
    }
    case 'Unsqueeze':
      return unsqueezed(node, indices, inference);
    case 'Squeeze':
    case 'Reshape':
    case 'Flatten':
      return regrouped(indices, shape, source);
    case 'Slice':
      return sliced(node, indices, source, inference);
    case 'Split':
      return split(node, output, indices, inference);
    default:
      return undefined;
  }
}

/** The whole of an axis again and again. */
function tiled(source: readonly Expression[], shape: readonly Expression[], indices: Indices): Indices | undefined {
  const isTiled = (axis: number) => !source[axis]!.equals(1) && !source[axis]!.equals(shape[axis]!);
  const once = source.map((size, axis) => (isTiled(axis) ? shape[axis]! : size));
  const whole = broadcastIndices(once, indices);
  const found = source.map((size, axis) => (isTiled(axis) ? whole?.[axis]?.divide(size)?.remainder : whole?.[axis]));
  return found.every((index) => index !== undefined) ? found : undefined;
}

function unsqueezed(node: Node, indices: Indices, inference: Inference): Indices | undefined {
  const axes = numbers(node, 'axes', 1, inference)?.map((a) => (a < 0 ? a + indices.length : a));
  return axes && indices.filter((_, axis) => !axes.includes(axis));
}

/** Row-major order is kept: the position among all elements, taken apart by the other sizes. */
function regrouped(indices: Indices, shape: readonly Expression[], source: readonly Expression[]): Indices | undefined {
  const long = (sizes: readonly Expression[]) => [...sizes.keys()].filter((axis) => !sizes[axis]!.equals(1));
  const from = long(shape);
  const to = long(source);
  if (from.length === to.length && from.every((axis, i) => shape[axis]!.equals(source[to[i]!]!)))
    return source.map((_, axis) => (to.includes(axis) ? indices[from[to.indexOf(axis)]!]! : ZERO));
  let position = ZERO;
  for (const axis of from) position = position.plus(indices[axis]!.times(product(shape.slice(axis + 1))));
  const result: Affine[] = source.map(() => ZERO);
  for (const axis of to.slice(1).reverse()) {
    const parts = position.divide(source[axis]!);
    if (!parts) return undefined;
    result[axis] = parts.remainder;
    position = parts.quotient;
  }
  if (to.length > 0) result[to[0]!] = position;
  return result;
}

/**
 * A start past the axis's end leaves nothing, so where there is an element the start is what it says; an end only says
 * how many there are.
 */
function sliced(
  node: Node,
  indices: Indices,
  source: readonly Expression[],
  inference: Inference,
): Indices | undefined {
  const starts = expressions(node, 'starts', 1, inference);
  const axes = numbers(node, 'axes', 3, inference) ?? starts?.map((_, i) => i);
  const steps = node.inputs[4] ? numbers(node, 'steps', 4, inference) : starts?.map(() => 1);
  if (!starts || !axes || !steps || axes.length !== starts.length || steps.length !== starts.length) return undefined;
  const result = [...indices];
  for (const [i, stated] of axes.entries()) {
    const axis = stated < 0 ? stated + source.length : stated;
    const size = source[axis];
    const start = starts[i]!;
    if (steps[i] !== 1 || !size || !result[axis]) return undefined;
    const from = start.range.lower >= 0 ? start : start.range.upper < 0 ? start.plus(size) : undefined;
    if (!from || from.range.lower < 0) return undefined;
    result[axis] = result[axis].plus(from);
  }
  return result;
}

function split(node: Node, output: Value, indices: Indices, inference: Inference): Indices | undefined {
  const stated = node.int('axis') ?? 0;
  const axis = stated < 0 ? stated + indices.length : stated;
  let start = Expression.constant(0);
  for (const before of node.outputs.slice(0, output.outputIndex)) {
    const size = before && inference.of(before).shape?.[axis];
    if (!size) return undefined;
    start = start.plus(size);
  }
  return indices.map((index, i) => (i === axis ? index.plus(start) : index));
}

/** An index as Gather takes it, which counts a negative one from the end. */
export function gatheredIndex(index: Affine, size: Expression): Affine | undefined {
  if (isNeverPositive(index.times(-1))) return index;
  return isNeverPositive(index.plus(1)) ? index.plus(size) : undefined;
}

/** Integers from an attribute (older opsets) or an input. */
export function expressions(
  node: Node,
  attribute: string,
  input: number,
  inference: Inference,
): readonly Expression[] | undefined {
  const stated = node.ints(attribute);
  if (stated) return stated.map((n) => Expression.constant(n));
  const value = node.inputs[input];
  return value && inference.of(value).elements;
}

export function numbers(node: Node, attribute: string, input: number, inference: Inference): number[] | undefined {
  const found = expressions(node, attribute, input, inference)?.map((e) => e.value);
  return found?.every((n) => n !== undefined) ? (found as number[]) : undefined;
}
