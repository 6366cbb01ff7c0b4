import type { Node, Value } from '../graph/graph.js';
import { constantOfNode, constantOfTensor } from '../shape/constant.js';
import { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { Atom, type Dimension, freshDimension, leavesOf, regroup, sizeOf } from './atoms.js';

/** One dimension of the tensor in memory that a view looks at. */
export interface RootDimension {
  /** Every atom of the dimension, outermost first, also those that the view has fixed to one index. */
  readonly atoms: Dimension;
  readonly slice?: { readonly start: number; readonly width: number };
}

/** A tensor seen through Reshape, Transpose, Expand, Slice and the like: where its elements come from in another. */
export interface View {
  readonly root: readonly RootDimension[];
  /** Packed atoms of the root that the view shows one part of. */
  readonly fixed: ReadonlyMap<Atom, number>;
  readonly dimensions: readonly Dimension[];
}

/** A tensor seen as itself. */
export function identityView(shape: readonly Expression[]): View {
  const dimensions = shape.map((size) => freshDimension(size));
  return { root: dimensions.map((atoms) => ({ atoms })), fixed: new Map(), dimensions };
}

/** Data input of an operator that only moves data, and undefined for any other. */
export function viewSource(node: Node): Value | undefined {
  if (node.domain !== '') return undefined;
  switch (node.opType) {
    case 'Identity':
    case 'Reshape':
    case 'Transpose':
    case 'Unsqueeze':
    case 'Squeeze':
    case 'Flatten':
    case 'Expand':
    case 'Tile':
    case 'Slice':
    case 'Split':
    case 'Gather':
      return node.inputs[0];
    case 'Dropout':
      return isIdleDropout(node) ? node.inputs[0] : undefined;
    case 'Concat':
      return node.inputs.every((input) => input === node.inputs[0]) ? node.inputs[0] : undefined;
    default:
      return undefined;
  }
}

/** Dropout that passes its input through: the mask not asked for, and training mode absent or off, or nothing dropped. */
export function isIdleDropout(node: Node): boolean {
  const [, ratio, training] = node.inputs;
  if (training && constantNumber(training) !== 0 && constantNumber(ratio) !== 0) return false;
  return (node.outputs[1]?.uses.length ?? 0) === 0 && !node.outputs[1]?.isOutput;
}

function constantNumber(value: Value | undefined): number | undefined {
  if (value?.initializer) return value.isInput ? undefined : constantOfTensor(value.initializer)?.scalar();
  return value?.producer && constantOfNode(value.producer)?.scalar();
}

/**
 * What a view shows after one more operator.
 * @param output the operator's output that is followed.
 * @returns undefined where the operator cannot be followed.
 */
export function stepView(view: View, node: Node, output: Value, inference: Inference): View | undefined {
  const shape = inference.of(output).shape;
  switch (node.opType) {
    case 'Identity':
    case 'Dropout':
      return view;
    case 'Transpose': {
      const perm = node.ints('perm') ?? [...view.dimensions.keys()].reverse();
      const dimensions = perm.map((axis) => view.dimensions[axis]);
      const isPermutation = new Set(perm).size === view.dimensions.length && perm.length === view.dimensions.length;
      return isPermutation && dimensions.every((d) => d !== undefined) ? { ...view, dimensions } : undefined;
    }
    case 'Reshape':
    case 'Unsqueeze':
    case 'Squeeze':
    case 'Flatten': {
      const dimensions = shape && regroup(view.dimensions.flat(), inTermsOf(view, shape, node, inference));
      return dimensions && { ...view, dimensions };
    }
    case 'Expand':
      return shape && expand(view, shape);
    case 'Tile':
    case 'Concat':
      return shape && repeat(view, shape);
    case 'Gather':
      return repeatEach(view, node, inference) ?? select(view, node, output, inference);
    case 'Slice':
    case 'Split':
      return select(view, node, output, inference);
    default:
      return undefined;
  }
}

/**
 * A shape with the sizes of the node's input, where they are whole dimensions of it, as the view has them: a mask that
 * was added may have given them another name.
 */
function inTermsOf(view: View, shape: readonly Expression[], node: Node, inference: Inference): readonly Expression[] {
  const source = node.inputs[0] && inference.of(node.inputs[0]).shape;
  if (source?.length !== view.dimensions.length) return shape;
  return shape.map((size) => {
    const at = size.value === undefined ? source.findIndex((s) => s.equals(size)) : -1;
    return at < 0 ? size : sizeOf(view.dimensions[at]!);
  });
}

/** Tile, and Concat of a tensor with itself: the whole of a dimension again and again. */
function repeat(view: View, shape: readonly Expression[]): View | undefined {
  const dimensions: Dimension[] = [];
  for (const [axis, size] of shape.entries()) {
    const old = view.dimensions[axis];
    const times = old && size.dividedExactlyBy(sizeOf(old));
    if (!times) return undefined;
    dimensions.push([...freshDimension(times, true), ...old]);
  }
  return { ...view, dimensions };
}

/** Gather by a constant list that takes every index of an axis in order, each as many times as the others. */
function repeatEach(view: View, node: Node, inference: Inference): View | undefined {
  const indices = node.inputs[1] && inference.of(node.inputs[1]);
  const stated = node.int('axis') ?? 0;
  const axis = stated < 0 ? stated + view.dimensions.length : stated;
  const old = view.dimensions[axis];
  const size = old && sizeOf(old).value;
  const list = indices?.shape?.length === 1 ? indices.elements?.map((e) => e.value) : undefined;
  if (!list || !size || list.length % size !== 0) return undefined;
  const times = list.length / size;
  if (list.some((index, i) => index !== Math.floor(i / times))) return undefined;
  const repeated = [...old, ...freshDimension(Expression.constant(times), true)];
  return { ...view, dimensions: view.dimensions.map((d, i) => (i === axis ? repeated : d)) };
}

/** Expand: sizes that grow do so from 1. */
function expand(view: View, shape: readonly Expression[]): View | undefined {
  const added = shape.length - view.dimensions.length;
  const dimensions: Dimension[] = [];
  for (const [axis, size] of shape.entries()) {
    const old = axis < added ? [] : view.dimensions[axis - added]!;
    const before = sizeOf(old);
    if (before.equals(size)) dimensions.push(old);
    else if (before.equals(1)) dimensions.push(freshDimension(size, true));
    else return undefined;
  }
  return { ...view, dimensions };
}

/** The range of one axis that Slice, Split or Gather picks. */
export interface Selection {
  readonly axis: number;
  readonly start: number;
  readonly length: Expression;
  /** Whether the axis goes away (Gather by a scalar index). */
  readonly drops: boolean;
}

function select(view: View, node: Node, output: Value, inference: Inference): View | undefined {
  const selection = readSelection(node, output, view.dimensions.map(sizeOf), inference);
  if (!selection) return undefined;
  const { axis, start, drops } = selection;
  if (view.dimensions[axis] === undefined) return undefined;
  const dimension = view.dimensions[axis]!;
  const replaceAxis = (atoms: Dimension) =>
    view.dimensions.flatMap((d, i) => (i !== axis ? [d] : drops ? [] : [atoms]));
  if (start === 0 && selection.length.equals(sizeOf(dimension))) return { ...view, dimensions: replaceAxis(dimension) };
  const leaves = leavesOf(dimension);
  const total = sizeOf(dimension).value;
  const length = selection.length.value;
  if (total === undefined || length === undefined || leaves.some((a) => a.repeated)) return undefined;
  // One part of a packed axis: the range is one of several equal parts.
  if (length > 0 && total % length === 0 && start % length === 0) {
    const sizes = [total / length, length].map((n) => Expression.constant(n));
    const parts = regroup(dimension, sizes);
    const packed = parts && leavesOf(parts[0]!);
    if (packed?.length === 1) {
      const fixed = new Map([...view.fixed, [packed[0]!, start / length] as const]);
      return { ...view, fixed, dimensions: replaceAxis(parts![1]!) };
    }
  }
  return sliceRoot(view, dimension, { start, length }, replaceAxis);
}

/** A range of a whole dimension of the root that is no equal part of it (queries of a grouped packed projection). */
function sliceRoot(
  view: View,
  dimension: Dimension,
  { start, length }: { readonly start: number; readonly length: number },
  replaceAxis: (atoms: Dimension) => Dimension[],
): View | undefined {
  const leaves = leavesOf(dimension);
  const index = view.root.findIndex(({ atoms, slice }) => {
    const own = leavesOf(atoms);
    return !slice && own.length === leaves.length && own.every((a, i) => a === leaves[i]);
  });
  const width = sizeOf(dimension).value;
  if (index < 0 || width === undefined) return undefined;
  const atoms = [new Atom(Expression.constant(length))];
  const root = view.root.map((d, i) => (i === index ? { atoms, slice: { start, width } } : d));
  return { ...view, root, dimensions: replaceAxis(atoms) };
}

/**
 * Reads Slice, Split or Gather as a range of one axis.
 * @param sizes of the input's dimensions
 * @returns undefined where more than one axis is cut, or not by constants.
 */
export function readSelection(
  node: Node,
  output: Value,
  sizes: readonly Expression[],
  inference: Inference,
): Selection | undefined {
  const shape = inference.of(output).shape;
  const normalise = (axis: number) => (axis < 0 ? axis + sizes.length : axis);
  const fromFront = (at: number, axis: number): number | undefined => {
    const size = sizes[axis]?.value;
    return at >= 0 ? at : size === undefined ? undefined : Math.max(at + size, 0);
  };
  if (node.opType === 'Gather') {
    const indices = node.inputs[1] && inference.of(node.inputs[1]);
    const axis = normalise(node.int('axis') ?? 0);
    const index = indices?.elements?.[0]?.value;
    const start = index === undefined ? undefined : fromFront(index, axis);
    if (indices?.shape?.length !== 0 || start === undefined) return undefined;
    return { axis, start, length: Expression.constant(1), drops: true };
  }
  if (node.opType === 'Split') {
    const axis = normalise(node.int('axis') ?? 0);
    const length = shape?.[axis];
    const before = node.outputs.slice(0, output.outputIndex).map((o) => o && inference.of(o).shape?.[axis]?.value);
    if (!length || before.some((s) => s === undefined)) return undefined;
    return { axis, start: before.reduce<number>((a, b) => a + b!, 0), length, drops: false };
  }
  if (node.opType !== 'Slice') return undefined;
  const starts = constantInts(node, 1, 'starts', inference);
  const axes = constantInts(node, 3, 'axes', inference) ?? starts?.map((_, i) => i);
  const steps = node.inputs[4] ? constantInts(node, 4, 'steps', inference) : [1];
  const axis = normalise(axes?.[0] ?? 0);
  const start = starts?.length === 1 ? fromFront(starts[0]!, axis) : undefined;
  const length = shape?.[axis];
  if (start === undefined || axes?.length !== 1 || steps?.length !== 1 || steps[0] !== 1 || !length) return undefined;
  return { axis, start, length, drops: false };
}

/** The one axis that a node reduces, counted from the front; undefined where it is not one that is known. */
export function reducedAxis(node: Node, rank: number, inference: Inference): number | undefined {
  const [axis, ...more] = constantInts(node, 1, 'axes', inference) ?? [];
  if (axis === undefined || more.length > 0) return undefined;
  return axis < 0 ? axis + rank : axis;
}

/** Integers given as an attribute or as a constant input. */
export function constantInts(node: Node, index: number, attribute: string, inference: Inference): number[] | undefined {
  const fromAttribute = node.ints(attribute);
  if (fromAttribute) return fromAttribute;
  const value = node.inputs[index];
  const elements = value && inference.of(value).elements?.map((e) => e.value);
  return elements?.every((e) => e !== undefined) ? elements : undefined;
}
