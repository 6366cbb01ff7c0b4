/** Products of matrices, convolutions, pooling and resampling. */
import { DataType } from '../../onnx/proto.js';
import { Expression } from '../expression.js';
import { broadcastShapes, broadcastSize, type Derived } from '../facts.js';
import { type Call, type Rule, type RuleTable, times, unknownShape } from './call.js';

type Size = Expression | undefined;
type Shape = readonly Size[] | undefined;

/** Shape of a matrix product in NumPy's sense, vectors included. */
export function matrixProductShape(a: Shape, b: Shape): Shape {
  if (!a || !b || a.length === 0 || b.length === 0) return undefined;
  const rows = a.length > 1 ? [a[a.length - 2]] : [];
  const columns = b.length > 1 ? [b[b.length - 1]] : [];
  return [...broadcastShapes([a.slice(0, -2), b.slice(0, -2)])!, ...rows, ...columns];
}

const matMulRule: Rule = (call) => ({
  type: call.type() ?? call.type(1),
  shape: matrixProductShape(call.shape(0), call.shape(1)),
});

const matMulIntegerRule: Rule = (call) => ({
  type: DataType.INT32,
  shape: matrixProductShape(call.shape(0), call.shape(1)),
});

const qLinearMatMulRule: Rule = (call) => ({
  type: call.type(7),
  shape: matrixProductShape(call.shape(0), call.shape(3)),
});

const gemmRule: Rule = (call) => ({
  type: call.type(),
  shape: [call.size(0, call.flag('transA') ? 1 : 0), call.size(1, call.flag('transB') ? 0 : 1)],
});

/** Einsum: sizes by letter; an ellipsis stands for axes that broadcast. */
const einsumRule: Rule = (call) => {
  const type = call.inputs.find((i) => i?.type !== undefined)?.type;
  const [left, right] = (call.node.string('equation') ?? '').replaceAll(' ', '').split('->');
  const terms = left!.split(',');
  const sizes = new Map<string, Expression>();
  let ellipsis: Shape = [];
  for (const [i, term] of terms.entries()) {
    const shape = call.shape(i);
    if (!shape) return { type };
    const [before, after] = term.includes('...') ? term.split('...') : [term, undefined];
    const tail = after ?? '';
    for (const [axis, letter] of [...before!].entries()) note(sizes, letter, shape[axis]);
    for (const [axis, letter] of [...tail].entries()) note(sizes, letter, shape[shape.length - tail.length + axis]);
    if (after !== undefined)
      ellipsis = broadcastShapes([ellipsis, shape.slice(before!.length, shape.length - tail.length)]);
  }
  const output = right ?? implicitOutput(terms);
  return {
    type,
    shape: output
      .split('...')
      .flatMap((part, i) => [...(i > 0 ? (ellipsis ?? []) : []), ...[...part].map((letter) => sizes.get(letter))]),
  };
};

function note(sizes: Map<string, Expression>, letter: string, size: Size): void {
  const known = sizes.get(letter);
  if (size) sizes.set(letter, known ? broadcastSize(known, size) : size);
}

function implicitOutput(terms: readonly string[]): string {
  const letters = [...terms.join('').replaceAll('.', '')];
  const once = letters.filter((l) => letters.indexOf(l) === letters.lastIndexOf(l)).sort();
  return (terms.some((t) => t.includes('...')) ? '...' : '') + once.join('');
}

interface Window {
  readonly kernel: readonly Size[];
  readonly strides: readonly number[];
  readonly dilations: readonly number[];
  readonly pads: readonly number[];
  readonly autoPad: string;
}

function windowOf(call: Call, kernel: readonly Size[]): Window {
  const rank = kernel.length;
  const filled = (name: string, value: number, count = rank) =>
    call.ints(name) ?? Array.from({ length: count }, () => value);
  return {
    kernel,
    strides: filled('strides', 1),
    dilations: filled('dilations', 1),
    pads: filled('pads', 0, 2 * rank),
    autoPad: call.node.string('auto_pad') ?? 'NOTSET',
  };
}

/** Spatial sizes that a sliding window leaves; the runtime refuses a window that does not fit at least once. */
function slidSizes(call: Call, sizes: readonly Size[], window: Window, roundUp: boolean): Size[] {
  return windowCounts(sizes, window, roundUp).map((size) => call.atLeast(size, 1));
}

function windowCounts(sizes: readonly Size[], window: Window, roundUp: boolean): Size[] {
  return sizes.map((size, axis) => {
    const stride = window.strides[axis] ?? 1;
    if (size === undefined) return undefined;
    if (window.autoPad.startsWith('SAME')) return size.plus(stride - 1).floorDividedBy(stride);
    const extent = window.kernel[axis]
      ?.minus(1)
      .times(window.dilations[axis] ?? 1)
      .plus(1);
    if (extent === undefined) return undefined;
    const pads = window.autoPad === 'VALID' ? 0 : paddingOf(window, axis);
    const room = size.plus(pads).minus(extent);
    const steps = room
      .plus(roundUp ? stride - 1 : 0)
      .floorDividedBy(stride)
      .plus(1);
    if (!roundUp) return steps;
    // A last window that would begin in the padding at the end is left out.
    const before = window.autoPad === 'VALID' ? 0 : (window.pads[axis] ?? 0);
    return Expression.minimum(
      steps,
      size
        .plus(before - 1)
        .floorDividedBy(stride)
        .plus(1),
    );
  });
}

function paddingOf({ pads }: Window, axis: number): number {
  return (pads[axis] ?? 0) + (pads[axis + pads.length / 2] ?? 0);
}

function convShape(call: Call, source: Shape, weight: Shape): Shape {
  if (!source || !weight) return unknownShape(source?.length ?? weight?.length);
  const kernel = call.ints('kernel_shape')?.map((k) => Expression.constant(k)) ?? weight.slice(2);
  return [source[0], weight[0], ...slidSizes(call, source.slice(2), windowOf(call, kernel), false)];
}

const convRule: Rule = (call) => ({ type: call.type(), shape: convShape(call, call.shape(0), call.shape(1)) });

const convIntegerRule: Rule = (call) => ({
  type: DataType.INT32,
  shape: convShape(call, call.shape(0), call.shape(1)),
});

const qLinearConvRule: Rule = (call) => ({ type: call.type(7), shape: convShape(call, call.shape(0), call.shape(3)) });

const convTransposeRule: Rule = (call) => {
  const type = call.type();
  const [source, weight] = [call.shape(0), call.shape(1)];
  if (!source || !weight) return { type, shape: unknownShape(source?.length ?? weight?.length) };
  const kernel = call.ints('kernel_shape')?.map((k) => Expression.constant(k)) ?? weight.slice(2);
  const window = windowOf(call, kernel);
  const given = call.ints('output_shape');
  const extra = call.ints('output_padding');
  const sizes = source.slice(2).map((size, axis) => {
    if (given) return Expression.constant(given[axis + given.length - kernel.length]!);
    const stride = window.strides[axis] ?? 1;
    if (window.autoPad.startsWith('SAME')) return size.times(stride);
    const extent = kernel[axis]
      ?.minus(1)
      .times(window.dilations[axis] ?? 1)
      .plus(1);
    const pads = window.autoPad === 'VALID' ? 0 : paddingOf(window, axis);
    return (
      extent &&
      size
        .minus(1)
        .times(stride)
        .plus(extent)
        .plus((extra?.[axis] ?? 0) - pads)
    );
  });
  return { type, shape: [source[0], times(weight[1], call.int('group', 1)), ...sizes] };
};

const poolRule: Rule = (call) => {
  const { type, shape: source } = call.input(0);
  const kernel = call.ints('kernel_shape')?.map((k) => Expression.constant(k));
  if (!source || !kernel) return { type, shape: unknownShape(source?.length) };
  const sizes = slidSizes(call, source.slice(2), windowOf(call, kernel), call.flag('ceil_mode'));
  const shape = [source[0], source[1], ...sizes];
  return [
    { type, shape },
    { type: DataType.INT64, shape },
  ];
};

const globalPoolRule: Rule = (call) => ({
  type: call.type(),
  shape: call.shape()?.map((s, axis) => (axis < 2 ? s : Expression.constant(1))),
});

/** Resize (and Upsample): by sizes, or by constant scales. */
const resizeRule: Rule = (call): Derived => {
  const { type, shape: source } = call.input(0);
  if (!source) return { type };
  const [scalesAt, sizesAt] = call.node.opType === 'Upsample' || call.opset < 11 ? [1, 3] : [2, 3];
  const axes = call.ints('axes')?.map((a) => (a < 0 ? a + source.length : a)) ?? [...source.keys()];
  const sizes = call.elements(sizesAt);
  const scales = call.node.attribute('scales')?.floats ?? call.constants(scalesAt);
  // Cropping scales only a part of the axis.
  const crops = call.node.string('coordinate_transformation_mode') === 'tf_crop_and_resize' && !sizes?.length;
  const stretched = call.node.attribute('keep_aspect_ratio_policy') !== undefined;
  if (crops) return { type, shape: unknownShape(source.length) };
  if (stretched && (call.node.string('keep_aspect_ratio_policy') ?? 'stretch') !== 'stretch')
    return { type, shape: unknownShape(source.length) };
  const shape: Size[] = [...source];
  for (const [i, axis] of axes.entries())
    shape[axis] = sizes && sizes.length > 0 ? sizes[i] : scaled(source[axis]!, scales?.[i]);
  return { type, shape };
};

/** ⌊size · scale⌋ where that is an integer expression. */
function scaled(size: Expression, scale: number | undefined): Size {
  if (scale === undefined) return undefined;
  if (Number.isInteger(scale)) return size.times(scale);
  if (size.value !== undefined) return Expression.constant(Math.floor(Math.fround(size.value * scale)));
  return Number.isInteger(1 / scale) ? size.floorDividedBy(1 / scale) : undefined;
}

/** Values of an image at the points of a grid of shape (batch, …, coordinates). */
const gridSampleRule: Rule = (call) => {
  const grid = call.shape(1);
  return { type: call.type(), shape: grid && [call.size(0, 0), call.size(0, 1), ...grid.slice(1, -1)] };
};

const roiAlignRule: Rule = (call) => ({
  type: call.type(),
  shape: [
    call.size(1, 0),
    call.size(0, 1),
    Expression.constant(call.int('output_height', 1)),
    Expression.constant(call.int('output_width', 1)),
  ],
});

export const contractionRules: RuleTable = {
  MatMul: matMulRule,
  MatMulInteger: matMulIntegerRule,
  QLinearMatMul: qLinearMatMulRule,
  Gemm: gemmRule,
  Einsum: einsumRule,
  Conv: convRule,
  ConvInteger: convIntegerRule,
  QLinearConv: qLinearConvRule,
  ConvTranspose: convTransposeRule,
  MaxPool: poolRule,
  AveragePool: poolRule,
  LpPool: poolRule,
  GlobalAveragePool: globalPoolRule,
  GlobalMaxPool: globalPoolRule,
  GlobalLpPool: globalPoolRule,
  GridSample: gridSampleRule,
  RoiAlign: roiAlignRule,
  Resize: resizeRule,
  Upsample: resizeRule,
};
