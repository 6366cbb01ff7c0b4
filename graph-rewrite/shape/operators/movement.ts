/** Operators that move, repeat or select elements without computing new ones: shapes, and elements of shape tensors. */
import { DataType } from '../../onnx/proto.js';
import { constantOfTensor } from '../constant.js';
import { Expression, product } from '../expression.js';
import {
  broadcastReader,
  broadcastShapes,
  ConstantFacts,
  constantSizes,
  type Derived,
  MOST_ELEMENTS,
} from '../facts.js';
import { type Call, likeFirst, normalAxis, type Rule, type RuleTable, sum, times, unknownShape } from './call.js';
import { sliceRule } from './slice.js';

type Size = Expression | undefined;

const ONE = Expression.constant(1);

const shapeRule: Rule = (call) => {
  const shape = call.boundedShape(0);
  if (!shape) return { type: DataType.INT64, shape: [undefined] };
  const clamp = (at: number) => Math.min(Math.max(at < 0 ? at + shape.length : at, 0), shape.length);
  const start = clamp(call.int('start', 0));
  const sizes = shape.slice(start, Math.max(start, clamp(call.int('end', shape.length))));
  return { type: DataType.INT64, shape: [Expression.constant(sizes.length)], elements: sizes };
};

const sizeRule: Rule = (call) => {
  const shape = call.boundedShape(0);
  return { type: DataType.INT64, shape: [], elements: [shape && product(shape)] };
};

/** The same elements in another shape. */
function reshaped(call: Call, shape: readonly Size[] | undefined): Derived {
  const { type, elements, uniform } = call.input(0);
  return { type, shape, elements, uniform };
}

/**
 * Reshape: 0 copies a size unless `allowzero`, one −1 takes what is left. A size of the target that is a dimension is
 * never taken for 0 or −1: where it is 0, source and result are empty alike.
 */
const reshapeRule: Rule = (call) => {
  const target = call.integers('shape', 1);
  const source = call.shape();
  if (!target) {
    const rank = call.size(1, 0)?.value;
    return reshaped(call, rank !== undefined && rank <= MOST_ELEMENTS ? unknownShape(rank) : undefined);
  }
  const keepZero = call.flag('allowzero');
  const sizes = target.map((size, axis): Size => {
    if (size.equals(0) && !keepZero) return source?.[axis];
    return size.range.lower >= 0 ? size : undefined;
  });
  const open = [...target.keys()].filter((axis) => target[axis]!.range.lower < 0);
  // One size that may be −1 follows from the others, whether it is or not; of two neither is known.
  if (open.length === 1) sizes[open[0]!] = remaining(source, sizes, open[0]!);
  return reshaped(call, sizes);
};

/** What a −1 in Reshape stands for: the elements of the source over the product of the other sizes. */
function remaining(source: readonly Expression[] | undefined, sizes: readonly Size[], open: number): Size {
  const others = sizes.filter((_, axis) => axis !== open);
  if (!source || others.some((s) => s === undefined)) return undefined;
  const total = product(source);
  const known = product(others as Expression[]);
  if (known.value === 0) return undefined;
  return total.floorDividedBy(known);
}

const transposeRule: Rule = (call) => {
  const source = call.shape();
  const { type, elements, uniform } = call.input(0);
  const order = call.ints('perm') ?? source?.map((_, axis) => source.length - 1 - axis);
  if (!source || !order || order.length !== source.length) return { type, shape: unknownShape(order?.length), uniform };
  const shape = order.map((axis) => source[axis]);
  return { type, shape, uniform, elements: source.length < 2 ? elements : permuted(elements, source, order) };
};

function permuted(
  elements: readonly Expression[] | undefined,
  source: readonly Expression[],
  order: readonly number[],
): Size[] | undefined {
  const sizes = constantSizes(source);
  if (!elements || !sizes) return undefined;
  const strides = sizes.map((_, axis) => sizes.slice(axis + 1).reduce((a, b) => a * b, 1));
  const result: Size[] = [];
  const walk = (axis: number, at: number): void => {
    if (axis === order.length) result.push(elements[at]);
    else for (let i = 0; i < sizes[order[axis]!]!; i++) walk(axis + 1, at + i * strides[order[axis]!]!);
  };
  walk(0, 0);
  return result;
}

const unsqueezeRule: Rule = (call) => {
  const source = call.shape();
  const axes = call.numbers('axes', 1);
  if (!source || !axes) {
    const added = axes?.length ?? call.size(1, 0)?.value;
    return reshaped(
      call,
      source && added !== undefined && added < 64 ? unknownShape(source.length + added) : undefined,
    );
  }
  const rank = source.length + axes.length;
  const at = new Set(axes.map((axis) => normalAxis(axis, rank)));
  if (at.has(undefined) || at.size !== axes.length) return reshaped(call, unknownShape(rank));
  const rest = source[Symbol.iterator]();
  return reshaped(
    call,
    Array.from({ length: rank }, (_, axis) => (at.has(axis) ? ONE : rest.next().value)),
  );
};

const squeezeRule: Rule = (call) => {
  const source = call.shape();
  if (!source) return reshaped(call, undefined);
  const axes = call.numbers('axes', 1);
  if (axes) {
    const dropped = new Set(axes.map((axis) => normalAxis(axis, source.length)));
    return reshaped(
      call,
      source.filter((_, axis) => !dropped.has(axis)),
    );
  }
  if (call.has(1)) return reshaped(call, undefined);
  // Without axes every size of 1 goes, so the rank is known only where every size is.
  const known = source.every((s) => s.value !== undefined || s.range.lower > 1);
  return reshaped(call, known ? source.filter((s) => !s.equals(1)) : undefined);
};

const flattenRule: Rule = (call) => {
  const source = call.shape();
  if (!source) return reshaped(call, [undefined, undefined]);
  const axis = call.int('axis', 1);
  const at = axis < 0 ? axis + source.length : axis;
  return reshaped(call, [product(source.slice(0, at)), product(source.slice(at))]);
};

const concatRule: Rule = (call) => {
  const parts = call.inputs.filter((i) => i !== undefined);
  const type = parts.find((p) => p.type !== undefined)?.type;
  const rank = parts.find((p) => p.shape !== undefined)?.shape?.length;
  const axis = rank === undefined ? undefined : call.axis('axis', 1, rank);
  if (rank === undefined || axis === undefined) return { type, shape: undefined };
  const shape = Array.from({ length: rank }, (_, at) => {
    if (at === axis) return sum(parts.map((p) => p.shape?.[axis]));
    const sizes = parts.map((p) => p.shape?.[at]).filter((s) => s !== undefined);
    // They are equal: the one of which most is known stands for all.
    return sizes.find((s) => s.value !== undefined) ?? sizes.find((s) => !isOpen(s)) ?? sizes[0];
  });
  const { uniform } = parts[0]!;
  const same = uniform !== undefined && parts.every((p) => p.uniform === uniform);
  return {
    type,
    shape,
    elements: joined(
      parts.map((p) => p.elements),
      parts,
      axis,
    ),
    uniform: same ? uniform : undefined,
  };
};

/** Whether a size depends on one that is not known. */
function isOpen(size: Expression): boolean {
  for (const name of size.symbols) if (name.startsWith('?')) return true;
  return false;
}

/** Elements of a concatenation: all blocks before the axis in turn, from each part its own run. */
function joined(
  elements: readonly (readonly Expression[] | undefined)[],
  parts: Call['inputs'],
  axis: number,
): Expression[] | undefined {
  const blocks = elements.map((part, i) => {
    const sizes = constantSizes(parts[i]?.shape);
    return part && sizes ? { part, run: sizes.slice(axis).reduce((a, b) => a * b, 1) } : undefined;
  });
  if (blocks.some((b) => b === undefined)) return undefined;
  const result: Expression[] = [];
  const most = Math.max(...blocks.map((b) => (b!.run > 0 ? b!.part.length / b!.run : 0)));
  for (let block = 0; block < most; block++)
    for (const b of blocks) result.push(...b!.part.slice(block * b!.run, (block + 1) * b!.run));
  return result;
}

const splitRule: Rule = (call) => {
  const source = call.shape();
  const { type, uniform, elements } = call.input(0);
  const count = call.node.outputs.length;
  const axis = source && call.axis('axis', 0, source.length);
  if (!source || axis === undefined) return call.node.outputs.map(() => ({ type, uniform }));
  const whole = source[axis]!;
  const given = call.integers('split', 1);
  // Equal parts, the last one shorter where the size does not divide (num_outputs, opset 18).
  const part = whole.dividedExactlyBy(count) ?? whole.plus(count - 1).floorDividedBy(count);
  let at: Expression = Expression.constant(0);
  return call.node.outputs.map((_, i) => {
    const size =
      call.has(1) && !given ? undefined : (given?.[i] ?? (i < count - 1 ? part : whole.minus(part.times(count - 1))));
    const start = at.value;
    const end = size && start !== undefined && size.value !== undefined ? start + size.value : undefined;
    if (size) at = at.plus(size);
    return {
      type,
      uniform,
      shape: source.map((s, a) => (a === axis ? size : s)),
      elements: source.length === 1 && end !== undefined ? elements?.slice(start, end) : undefined,
    };
  });
};

const expandRule: Rule = (call) => {
  const target = call.elements(1);
  const source = call.shape();
  const { type, uniform } = call.input(0);
  const rank = target?.length ?? call.size(1, 0)?.value;
  if (rank === undefined || rank > MOST_ELEMENTS) return { type, uniform };
  // A size of the target that may be negative is no size that can be relied on.
  const sizes = target?.map((t) => (t.range.lower >= 0 ? t : undefined)) ?? unknownShape(rank)!;
  const shape = broadcastShapes([source, sizes]);
  return { type, uniform, shape, elements: repeated(call, shape) };
};

/** Elements of an expansion that is small. */
function repeated(call: Call, shape: readonly Size[] | undefined): Size[] | undefined {
  const elements = call.elements(0);
  const own = constantSizes(call.shape());
  const sizes = shape?.every((s) => s !== undefined) ? constantSizes(shape as Expression[]) : undefined;
  const count = sizes?.reduce((product, size) => product * size, 1);
  if (!elements || !own || !sizes || count === undefined || count > MOST_ELEMENTS) return undefined;
  const read = broadcastReader(elements, own, sizes);
  return Array.from({ length: count }, (_, index) => read(index));
}

const constantOfShapeRule: Rule = (call) => {
  const attribute = call.node.attribute('value')?.t;
  const fill = attribute ? constantOfTensor(attribute) : undefined;
  const type = attribute ? (fill?.type ?? undefined) : DataType.FLOAT;
  const uniform = attribute ? fill?.scalar() : 0;
  const rank = call.size(0, 0)?.value;
  const shape = call.elements(0)?.map((e) => (e.range.lower >= 0 ? e : undefined));
  return {
    type,
    uniform,
    shape: shape ?? (rank !== undefined && rank <= MOST_ELEMENTS ? unknownShape(rank) : undefined),
  };
};

const tileRule: Rule = (call) => {
  const source = call.shape();
  const repeats = call.elements(1);
  const { type, uniform } = call.input(0);
  const rank = source?.length ?? repeats?.length;
  return {
    type,
    uniform,
    shape: source && repeats ? source.map((s, axis) => times(s, repeats[axis]!)) : unknownShape(rank),
  };
};

const padRule: Rule = (call) => {
  const source = call.shape();
  const type = call.type();
  if (!source) return { type };
  const pads = call.integers('pads', 1);
  const given = call.constants(3);
  if (!pads || (call.has(3) && !given)) return { type, shape: unknownShape(source.length) };
  const shape: Size[] = [...source];
  const axes = given ?? source.map((_, axis) => axis);
  for (const [i, axis] of axes.entries()) {
    const at = normalAxis(axis, source.length);
    const [before, after] = [pads[i], pads[i + axes.length]];
    if (at !== undefined) shape[at] = before && after && source[at]!.plus(before).plus(after);
  }
  return { type, shape };
};

/** ONNX DepthToSpace and SpaceToDepth; sign −1 divides depth and multiplies space. */
const blockRule =
  (toSpace: boolean): Rule =>
  (call) => {
    const [batch, depth, height, width] = call.shape() ?? [];
    const type = call.type();
    const block = call.int('blocksize', 1);
    if (!batch || !depth || !height || !width) return { type, shape: unknownShape(4) };
    const space = (s: Expression) => (toSpace ? s.times(block) : s.floorDividedBy(block));
    const square = block * block;
    const channels = toSpace ? depth.floorDividedBy(square) : depth.times(square);
    return { type, shape: [batch, channels, space(height), space(width)] };
  };

const identityRule: Rule = (call) => {
  const facts = call.input(0);
  return facts instanceof ConstantFacts ? { constant: facts.constant } : facts;
};

/** Training mode aside, Dropout passes its input on; the mask is bool. */
const dropoutRule: Rule = (call) => {
  const active = call.has(2) && call.input(2).uniform !== 0;
  const { type, shape } = call.input(0);
  const mask = { type: call.opset < 10 ? type : DataType.BOOL, shape };
  return [active ? { type, shape } : reshaped(call, shape), mask];
};

export const movementRules: RuleTable = {
  Shape: shapeRule,
  Size: sizeRule,
  Reshape: reshapeRule,
  Transpose: transposeRule,
  Unsqueeze: unsqueezeRule,
  Squeeze: squeezeRule,
  Flatten: flattenRule,
  Concat: concatRule,
  Split: splitRule,
  Slice: sliceRule,
  Expand: expandRule,
  ConstantOfShape: constantOfShapeRule,
  Tile: tileRule,
  Pad: padRule,
  DepthToSpace: blockRule(true),
  SpaceToDepth: blockRule(false),
  Identity: identityRule,
  Dropout: dropoutRule,
  Trilu: likeFirst,
  ReverseSequence: likeFirst,
};
