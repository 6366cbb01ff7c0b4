/** Every operator's rule against ONNX Runtime: one node, inputs whose sizes the model leaves open, two sets of sizes. */
import test from 'ava';
import type { TestTensor } from '../../../models/corpus.js';
import { Model } from '../../graph/graph.js';
import { encodeModel } from '../../onnx/codec.js';
import { dataTypeName } from '../../onnx/data-type.js';
import type { TensorProto } from '../../onnx/proto.js';
import { makeTensor } from '../../onnx/tensor.js';
import { Inference } from '../inference.js';
import { contradictions, openWithAllOutputs, run } from '../testing/agreement.js';
import { type Attribute, ints, modelProto } from '../testing/build.js';

/** A graph input: its type and the sizes that it has in the first run. */
interface Open {
  readonly type: 'float32' | 'float16' | 'int64' | 'int32' | 'bool' | 'uint8' | 'int8';
  readonly dims: readonly number[];
  /** Elements are below this. */
  readonly below: number;
}

type Input = Open | TensorProto | undefined;

interface Case {
  readonly op: string;
  readonly inputs: readonly Input[];
  readonly attributes?: Readonly<Record<string, Attribute>>;
  readonly outputs?: number;
  readonly opset?: number;
  readonly domain?: string;
  /** Sizes that depend on values, and so stay unknown. */
  readonly open?: boolean;
  /** Sizes that cannot all grow by one. */
  readonly once?: boolean;
}

const f = (...dims: number[]): Open => ({ type: 'float32', dims, below: 1 });
const h = (...dims: number[]): Open => ({ type: 'float16', dims, below: 1 });
const i = (below: number, ...dims: number[]): Open => ({ type: 'int64', dims, below });
const b = (...dims: number[]): Open => ({ type: 'bool', dims, below: 2 });
const c = (...values: number[]) => ints('', values);
const scalar = (value: number) => ints('', [value], []);
const w = (...dims: number[]) =>
  makeTensor(
    '',
    'float32',
    dims,
    Array.from({ length: dims.reduce((x, y) => x * y, 1) }, (_, at) => ((at * 7) % 5) - 2),
  );
const floats = (...values: number[]) => makeTensor('', 'float32', [values.length], values);
const END = 2 ** 62;
const HUGE = makeTensor('', 'int64', [1], [2n ** 63n - 1n]);
const LOWEST = makeTensor('', 'int64', [1], [-(2n ** 63n)]);
const HUGES = makeTensor('', 'int64', [2], [2n ** 63n - 1n, 2n ** 63n - 1n]);
const GRID = ints('', [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [4, 3]);

const UNARY = 'Neg Abs Sqrt Exp Log Floor Ceil Round Sign Reciprocal Relu Sigmoid Tanh Erf Softplus Cos Sin';
const BINARY = 'Add Sub Mul Div Pow Equal Less Greater LessOrEqual GreaterOrEqual';
const REDUCTIONS = 'Sum Mean Max Min Prod L1 L2 SumSquare LogSumExp LogSum';

const CASES: readonly Case[] = [
  ...UNARY.split(' ').map((op): Case => ({ op, inputs: [f(2, 3)] })),
  ...BINARY.split(' ').flatMap((op): Case[] => [
    { op, inputs: [f(2, 3), f(3)] },
    { op, inputs: [f(2, 1, 3), f(4, 1)], once: true },
    { op, inputs: [i(9, 2, 3), makeTensor('', 'int64', [], [3])] },
  ]),
  ...'And Or Xor'.split(' ').map((op): Case => ({ op, inputs: [b(2, 3), b(3)] })),
  { op: 'Not', inputs: [b(2, 3)] },
  { op: 'IsNaN', inputs: [f(2, 3)] },
  { op: 'Mod', inputs: [i(9, 2, 3), makeTensor('', 'int64', [], [-4])] },
  { op: 'Max', inputs: [f(2, 3), f(3), f(1)], once: true },
  { op: 'Min', inputs: [i(9, 2, 3), i(9, 3)] },
  { op: 'Where', inputs: [b(2, 1), f(1, 3), makeTensor('', 'float32', [], [2])], once: true },
  { op: 'Where', inputs: [b(2, 3), makeTensor('', 'float32', [], [2]), makeTensor('', 'float32', [], [2])] },
  { op: 'Clip', inputs: [f(2, 3), makeTensor('', 'float32', [], [0]), makeTensor('', 'float32', [], [1])] },
  { op: 'Clip', inputs: [i(9, 2), scalar(2), scalar(4)] },
  { op: 'Cast', inputs: [f(2, 3)], attributes: { to: 7 } },
  { op: 'Cast', inputs: [i(3, 2, 3)], attributes: { to: 9 } },
  { op: 'CastLike', inputs: [f(2, 3), i(3, 1)] },
  { op: 'Gelu', inputs: [f(2, 3)], opset: 20 },
  { op: 'HardSwish', inputs: [f(2, 3)] },
  { op: 'PRelu', inputs: [f(2, 3), f(3)] },

  { op: 'Shape', inputs: [f(2, 3, 4)] },
  { op: 'Shape', inputs: [f(2, 3, 4)], attributes: { start: 1 } },
  { op: 'Shape', inputs: [f(2, 3, 4)], attributes: { start: -2, end: -1 } },
  { op: 'Shape', inputs: [f(2, 3, 4)], attributes: { start: 2, end: 1 } },
  { op: 'Size', inputs: [f(2, 3, 4)] },
  { op: 'Reshape', inputs: [f(2, 3, 4), c(0, -1)] },
  { op: 'Reshape', inputs: [f(2, 3, 4), c(-1)] },
  { op: 'Reshape', inputs: [f(2, 12), c(0, 3, 4)], once: true },
  { op: 'Reshape', inputs: [f(0, 4), c(2, 0, 3)], attributes: { allowzero: 1 }, once: true },
  { op: 'Transpose', inputs: [f(2, 3, 4)] },
  { op: 'Transpose', inputs: [f(2, 3, 4)], attributes: { perm: [1, 2, 0] } },
  { op: 'Transpose', inputs: [ints('', [1, 2, 3, 4, 5, 6], [2, 3])] },
  { op: 'Unsqueeze', inputs: [f(2, 3)], attributes: { axes: [0, 3] }, opset: 11 },
  { op: 'Unsqueeze', inputs: [f(2, 3), c(-1, 1)] },
  { op: 'Squeeze', inputs: [f(1, 3, 1)], attributes: { axes: [0, -1] }, opset: 11, once: true },
  { op: 'Squeeze', inputs: [f(1, 3, 1), c(2)], once: true },
  { op: 'Squeeze', inputs: [w(1, 3, 1)] },
  { op: 'Flatten', inputs: [f(2, 3, 4)], attributes: { axis: 2 } },
  { op: 'Flatten', inputs: [f(2, 3, 4)], attributes: { axis: 0 } },
  { op: 'Flatten', inputs: [f(2, 3, 4)], attributes: { axis: -1 } },
  { op: 'Concat', inputs: [f(2, 3), f(4, 3)], attributes: { axis: 0 } },
  { op: 'Concat', inputs: [f(2, 3), f(2, 5)], attributes: { axis: -1 } },
  { op: 'Concat', inputs: [ints('', [1, 2, 3, 4], [2, 2]), ints('', [5, 6], [2, 1])], attributes: { axis: 1 } },
  { op: 'Split', inputs: [f(2, 6)], attributes: { axis: 1 }, outputs: 3, opset: 13, once: true },
  { op: 'Split', inputs: [f(2, 6), c(1, 2, 3)], attributes: { axis: -1 }, outputs: 3, once: true },
  { op: 'Split', inputs: [f(2, 6)], attributes: { axis: 1, split: [4, 2] }, outputs: 2, opset: 11, once: true },
  { op: 'Split', inputs: [f(7, 2)], attributes: { num_outputs: 3 }, outputs: 3, opset: 18, once: true },
  { op: 'Split', inputs: [c(5, 6, 7, 8)], attributes: { num_outputs: 2 }, outputs: 2, opset: 18 },
  { op: 'Slice', inputs: [f(5, 6)], attributes: { starts: [1, -3], ends: [END, -1] }, opset: 9 },
  { op: 'Slice', inputs: [f(5, 6)], attributes: { starts: [2], ends: [9], axes: [1] }, opset: 9 },
  { op: 'Slice', inputs: [f(5, 6), c(1), HUGE] },
  { op: 'Slice', inputs: [f(5, 6), c(-2), HUGE, c(1)] },
  { op: 'Slice', inputs: [f(5, 6), c(-9), c(3), c(-1), c(2)] },
  { op: 'Slice', inputs: [f(5, 6), c(-1), LOWEST, c(0), c(-1)] },
  { op: 'Slice', inputs: [f(5, 6), HUGE, c(-9), c(1), c(-2)] },
  { op: 'Slice', inputs: [f(5, 6), c(4), c(1), c(0), c(-2)] },
  { op: 'Slice', inputs: [f(5, 6), c(7), c(9), c(0), c(1)] },
  { op: 'Slice', inputs: [f(5, 6), c(0), c(-1), c(0), c(3)] },
  { op: 'Slice', inputs: [f(5, 6), LOWEST, HUGE, c(0)] },
  { op: 'Slice', inputs: [c(1, 2, 3, 4, 5), c(-1), LOWEST, c(0), c(-2)] },
  { op: 'Slice', inputs: [c(1, 2, 3, 4, 5), c(1), c(-1)] },
  { op: 'Slice', inputs: [c(1, 2, 3, 4, 5), c(3), c(-9), c(0), c(-1)] },
  // How PyTorch turns the pairs of its padding around.
  { op: 'Slice', inputs: [GRID, c(-1), LOWEST, c(0), c(-1)] },
  { op: 'Slice', inputs: [GRID, c(1, -2), HUGES, c(1, 0), c(2, 1)] },
  { op: 'Expand', inputs: [f(2, 1, 3), c(2, 1, 4, 1)], once: true },
  { op: 'Expand', inputs: [ints('', [1, 2], [2, 1]), c(2, 3)] },
  { op: 'ConstantOfShape', inputs: [c(2, 3)], attributes: { value: makeTensor('', 'int64', [1], [7]) } },
  { op: 'ConstantOfShape', inputs: [c(2, 3)] },
  { op: 'Tile', inputs: [f(2, 3), c(2, 3)] },
  { op: 'Pad', inputs: [f(2, 3)], attributes: { pads: [0, 1, 2, 3] }, opset: 10 },
  { op: 'Pad', inputs: [f(2, 3), c(0, 1, 2, 3)] },
  { op: 'Pad', inputs: [f(2, 3), c(1, -1), undefined, c(-1)], opset: 18 },
  { op: 'DepthToSpace', inputs: [f(2, 8, 3, 4)], attributes: { blocksize: 2 }, once: true },
  { op: 'SpaceToDepth', inputs: [f(2, 3, 4, 6)], attributes: { blocksize: 2 }, once: true },
  { op: 'Identity', inputs: [f(2, 3)] },
  { op: 'Dropout', inputs: [f(2, 3)], outputs: 2 },
  { op: 'Trilu', inputs: [f(2, 3, 4)] },
  { op: 'Range', inputs: [scalar(2), scalar(9), scalar(3)] },
  { op: 'Range', inputs: [scalar(9), scalar(-2), scalar(-3)] },
  { op: 'Range', inputs: [scalar(9), scalar(2), scalar(3)] },
  { op: 'Range', inputs: [w(), makeTensor('', 'float32', [], [1]), makeTensor('', 'float32', [], [0.1])] },
  { op: 'Cast', inputs: [makeTensor('', 'int64', [1], [2n ** 40n + 5n])], attributes: { to: 6 } },
  { op: 'Cast', inputs: [makeTensor('', 'float32', [], [-2.5])], attributes: { to: 7 } },
  { op: 'Add', inputs: [makeTensor('', 'uint8', [1], [250]), makeTensor('', 'uint8', [1], [10])] },
  { op: 'Mod', inputs: [c(-7), c(3)] },
  { op: 'Mod', inputs: [c(-7), c(3)], attributes: { fmod: 1 } },
  { op: 'Div', inputs: [c(-7), c(2)] },
  { op: 'Pow', inputs: [c(7), c(2)] },
  { op: 'Xor', inputs: [makeTensor('', 'bool', [2], [1, 0]), makeTensor('', 'bool', [2], [1, 1])] },
  { op: 'Sqrt', inputs: [makeTensor('', 'float16', [], [80])] },
  { op: 'Reciprocal', inputs: [makeTensor('', 'float32', [], [7])] },
  { op: 'Round', inputs: [floats(2.5, 2.5)] },

  { op: 'Gather', inputs: [f(5, 6), i(5, 2, 3)] },
  { op: 'Gather', inputs: [f(5, 6), i(5)], attributes: { axis: -1 } },
  { op: 'Gather', inputs: [c(5, 6, 7), c(-1, 0)] },
  { op: 'Gather', inputs: [ints('', [1, 2, 3, 4, 5, 6], [2, 3]), c(2, 0)], attributes: { axis: 1 } },
  { op: 'GatherElements', inputs: [f(5, 6), i(5, 2, 3)], attributes: { axis: 1 } },
  {
    op: 'GatherND',
    inputs: [f(5, 6, 7), ints('', [0, 1, 2, 3, 4], [5, 1])],
    attributes: { batch_dims: 1 },
    once: true,
  },
  { op: 'GatherND', inputs: [f(5, 6, 7), ints('', [0, 1, 2, 3], [2, 2])] },
  { op: 'ScatterND', inputs: [f(5, 6), ints('', [0, 1], [2, 1]), f(2, 6)], once: true },
  { op: 'ScatterND', inputs: [c(5, 6, 7), ints('', [2, 0], [2, 1]), c(1, 2)] },
  { op: 'ScatterElements', inputs: [f(5, 6), i(5, 2, 3), f(2, 3)] },
  { op: 'TopK', inputs: [f(5, 6), c(3)], attributes: { axis: 0 }, outputs: 2 },
  { op: 'ArgMax', inputs: [f(5, 6)], attributes: { axis: 1, keepdims: 0 } },
  { op: 'ArgMin', inputs: [f(5, 6)], attributes: { axis: -2 } },
  { op: 'NonZero', inputs: [f(5, 6)], open: true },
  { op: 'NonZero', inputs: [c(7, 7, 7)] },
  { op: 'NonZero', inputs: [c(0, 0)] },
  { op: 'NonZero', inputs: [ints('', [2, 2, 2, 2, 2, 2], [2, 3])] },
  { op: 'OneHot', inputs: [i(3, 5), scalar(4), floats(0, 1)] },
  { op: 'OneHot', inputs: [i(3, 5), scalar(4), floats(0, 1)], attributes: { axis: 0 } },
  { op: 'Compress', inputs: [f(5, 6), makeTensor('', 'bool', [3], [1, 0, 1])], attributes: { axis: 1 }, open: true },
  { op: 'Unique', inputs: [f(5)], outputs: 4, open: true },
  { op: 'CumSum', inputs: [f(5, 6), scalar(1)] },
  { op: 'CumSum', inputs: [c(1, 2, 3), scalar(0)] },
  { op: 'CumSum', inputs: [c(1, 2, 3), scalar(0)], attributes: { exclusive: 1, reverse: 1 } },
  { op: 'CumSum', inputs: [c(1, 2, 3), scalar(0)], attributes: { exclusive: 1 } },
  { op: 'EyeLike', inputs: [f(3, 4)], attributes: { dtype: 7 } },
  ...REDUCTIONS.split(' ').flatMap((name): Case[] => [
    { op: `Reduce${name}`, inputs: [f(2, 3, 4)], attributes: { axes: [1, -1] }, opset: 11 },
    { op: `Reduce${name}`, inputs: [f(2, 3, 4), c(0)], attributes: { keepdims: 0 }, opset: 18 },
    { op: `Reduce${name}`, inputs: [f(2, 3, 4)], opset: 18 },
    { op: `Reduce${name}`, inputs: [f(2, 3, 4)], attributes: { noop_with_empty_axes: 1 }, opset: 18 },
  ]),
  { op: 'ReduceSum', inputs: [c(2, 3, 4), c(0)] },
  { op: 'ReduceProd', inputs: [c(2, 3, 4)], attributes: { keepdims: 0 } },
  { op: 'ReduceMax', inputs: [c(2, 9, 4)], attributes: { keepdims: 0 } },
  { op: 'ReduceMin', inputs: [c(2, 9, 4)] },

  { op: 'MatMul', inputs: [f(2, 3), f(3, 4)] },
  { op: 'MatMul', inputs: [f(5, 2, 3), f(3, 4)] },
  { op: 'MatMul', inputs: [f(1, 2, 3), w(7, 3, 4)], once: true },
  { op: 'MatMul', inputs: [f(3), f(3, 4)] },
  { op: 'MatMul', inputs: [f(5, 2, 3), f(3)] },
  { op: 'MatMul', inputs: [f(3), f(3)] },
  { op: 'Gemm', inputs: [f(3, 2), f(4, 3), f(4)], attributes: { transA: 1, transB: 1 } },
  { op: 'Einsum', inputs: [f(2, 3, 4), f(2, 5, 4)], attributes: { equation: 'bid,bjd->bij' } },
  { op: 'Einsum', inputs: [f(2, 3, 4), f(4, 5)], attributes: { equation: '...d, dk -> ...k' } },
  { op: 'Einsum', inputs: [f(3, 4), f(4, 5)], attributes: { equation: 'zi,ib' } },
  {
    op: 'Conv',
    inputs: [f(2, 3, 9, 10), w(4, 3, 3, 3)],
    attributes: { strides: [2, 2], pads: [1, 0, 1, 2] },
    once: true,
  },
  { op: 'Conv', inputs: [f(2, 4, 9), w(4, 2, 3)], attributes: { group: 2, dilations: [2] }, once: true },
  { op: 'Conv', inputs: [f(2, 3, 9), w(4, 3, 3)], attributes: { auto_pad: 'SAME_UPPER', strides: [2] }, once: true },
  { op: 'Conv', inputs: [f(2, 3, 9), w(4, 3, 3)], attributes: { auto_pad: 'VALID', strides: [2] }, once: true },
  {
    op: 'ConvTranspose',
    inputs: [f(2, 3, 5, 6), w(3, 4, 3, 3)],
    attributes: { strides: [2, 3], pads: [1, 0, 1, 2], output_padding: [1, 0] },
    once: true,
  },
  {
    op: 'ConvTranspose',
    inputs: [f(2, 4, 5), w(4, 3, 3)],
    attributes: { group: 2, output_shape: [9], strides: [2] },
    once: true,
  },
  { op: 'MaxPool', inputs: [f(2, 3, 9, 10)], attributes: { kernel_shape: [3, 2], strides: [2, 2] }, outputs: 2 },
  { op: 'MaxPool', inputs: [f(2, 3, 8)], attributes: { kernel_shape: [3], strides: [2], ceil_mode: 1 } },
  { op: 'MaxPool', inputs: [f(2, 3, 4)], attributes: { kernel_shape: [1], strides: [3], pads: [0, 0], ceil_mode: 1 } },
  { op: 'AveragePool', inputs: [f(2, 3, 8)], attributes: { kernel_shape: [3], strides: [2], pads: [1, 1] } },
  { op: 'GlobalAveragePool', inputs: [f(2, 3, 4, 5)] },
  { op: 'Resize', inputs: [f(2, 3, 4, 5), undefined, floats(1, 1, 2, 2)] },
  { op: 'Resize', inputs: [f(2, 3, 4, 6), undefined, floats(1, 1, 0.5, 0.5)] },
  { op: 'Resize', inputs: [f(2, 3, 4, 5), undefined, undefined, c(2, 3, 7, 9)], once: true },
  { op: 'Resize', inputs: [f(2, 3, 4, 5), floats(1, 1, 2, 2)], opset: 10 },
  { op: 'Resize', inputs: [w(1, 1, 3, 7), undefined, floats(1, 1, 1.6666666, 2.5)] },
  { op: 'GridSample', inputs: [f(2, 3, 4, 5), f(2, 6, 7, 2)], once: true },
  { op: 'HannWindow', inputs: [scalar(9)] },
  { op: 'CenterCropPad', inputs: [f(2, 3), c(5)], attributes: { axes: [-1] }, opset: 18 },
  { op: 'Det', inputs: [f(2, 3, 3)] },
  { op: 'Upsample', inputs: [f(2, 3, 4, 5), floats(1, 1, 2, 2)], opset: 9 },

  { op: 'Softmax', inputs: [f(2, 3)] },
  { op: 'LogSoftmax', inputs: [f(2, 3)], attributes: { axis: 0 } },
  { op: 'LayerNormalization', inputs: [f(2, 3, 8), w(8)], outputs: 3, once: true },
  { op: 'LayerNormalization', inputs: [f(2, 3, 8), w(3, 8)], attributes: { axis: 1 }, outputs: 3, once: true },
  { op: 'InstanceNormalization', inputs: [f(2, 3, 4), w(3), w(3)], once: true },
  { op: 'GroupNormalization', inputs: [f(2, 4, 4), w(4), w(4)], attributes: { num_groups: 2 }, opset: 21, once: true },
  { op: 'RMSNormalization', inputs: [f(2, 3, 8), w(8)], opset: 23, once: true },
  { op: 'BatchNormalization', inputs: [f(2, 3, 4), w(3), w(3), w(3), floats(1, 1, 1)], once: true },
  { op: 'LpNormalization', inputs: [f(2, 3)] },
  { op: 'QuantizeLinear', inputs: [f(2, 3), makeTensor('', 'float32', [], [0.1]), makeTensor('', 'int8', [], [1])] },
  { op: 'QuantizeLinear', inputs: [f(2, 3), makeTensor('', 'float32', [], [0.1])] },
  { op: 'DequantizeLinear', inputs: [{ type: 'uint8', dims: [2, 3], below: 9 }, makeTensor('', 'float32', [], [0.1])] },
  { op: 'DynamicQuantizeLinear', inputs: [f(2, 3)], outputs: 3 },
  {
    op: 'MatMulInteger',
    inputs: [
      { type: 'uint8', dims: [2, 3], below: 9 },
      { type: 'uint8', dims: [3, 4], below: 9 },
    ],
  },
  {
    op: 'LSTM',
    inputs: [f(5, 2, 3), w(1, 16, 3), w(1, 16, 4)],
    attributes: { hidden_size: 4 },
    outputs: 3,
    once: true,
  },

  { op: 'Attention', inputs: [f(2, 4, 3, 8), f(2, 2, 5, 8), f(2, 2, 5, 6)], opset: 23, once: true },
  {
    op: 'Attention',
    inputs: [f(2, 3, 32), f(2, 5, 16), f(2, 5, 12), undefined, f(2, 2, 4, 8), f(2, 2, 4, 6)],
    attributes: { q_num_heads: 4, kv_num_heads: 2 },
    outputs: 4,
    opset: 23,
    once: true,
  },
  { op: 'RotaryEmbedding', inputs: [f(2, 4, 3, 8), w(2, 3, 4), w(2, 3, 4)], opset: 23, once: true },

  { op: 'FastGelu', domain: 'com.microsoft', inputs: [f(2, 3)] },
  { op: 'BiasGelu', domain: 'com.microsoft', inputs: [f(2, 3), f(3)] },
  { op: 'FusedMatMul', domain: 'com.microsoft', inputs: [f(5, 3, 2), f(5, 3, 4)], attributes: { transA: 1 } },
  { op: 'FusedMatMul', domain: 'com.microsoft', inputs: [f(5, 2, 3), f(5, 4, 3)], attributes: { transB: 1 } },
  { op: 'SkipLayerNormalization', domain: 'com.microsoft', inputs: [f(2, 3, 8), f(2, 3, 8), w(8)], once: true },
  {
    op: 'Attention',
    domain: 'com.microsoft',
    inputs: [f(2, 3, 8), w(8, 24), w(24)],
    attributes: { num_heads: 2 },
    once: true,
  },
  {
    op: 'MultiHeadAttention',
    domain: 'com.microsoft',
    inputs: [f(2, 3, 8), f(2, 5, 8), f(2, 5, 12)],
    attributes: { num_heads: 2 },
    once: true,
  },
  {
    op: 'MultiHeadAttention',
    domain: 'com.microsoft',
    inputs: [f(2, 3, 8), f(2, 5, 8), f(2, 5, 8), undefined, undefined, undefined, f(2, 2, 7, 4), f(2, 2, 7, 4)],
    attributes: { num_heads: 2 },
    outputs: 3,
    once: true,
  },
  {
    op: 'RotaryEmbedding',
    domain: 'com.microsoft',
    inputs: [f(2, 3, 8), ints('', [0, 1, 2, 0, 1, 2], [2, 3]), w(6, 2), w(6, 2)],
    attributes: { num_heads: 2 },
    once: true,
  },
  { op: 'Add', inputs: [h(2, 3), h(3)], opset: 14 },
];

function filled({ type, below }: Open, dims: readonly number[], name: string): TestTensor {
  const count = dims.reduce((x, y) => x * y, 1);
  const values = Array.from({ length: count }, (_, at) => (below > 1 ? (at * 5 + 1) % below : 0.25 + (at % 3) / 4));
  const data = {
    float32: () => Float32Array.from(values),
    float16: () => Uint16Array.from(values, () => 0x3800),
    int64: () => BigInt64Array.from(values, (v) => BigInt(Math.floor(v))),
    int32: () => Int32Array.from(values),
    bool: () => Uint8Array.from(values),
    uint8: () => Uint8Array.from(values),
    int8: () => Int8Array.from(values),
  }[type]();
  return { name, type, dims, data };
}

/** The case as a model, with its open inputs in order. */
function modelOf({ op, domain, inputs, attributes, outputs = 1, opset = 17 }: Case) {
  const names = inputs.map((input, at) => (input === undefined ? '' : `x${at}`));
  const open = inputs.flatMap((input, at) => (input && 'below' in input ? [{ input, name: names[at]! }] : []));
  const constants = inputs.flatMap((input, at) => {
    if (!input || 'below' in input) return [];
    return [Object.assign(Object.create(Object.getPrototypeOf(input)), input, { name: names[at] }) as TensorProto];
  });
  const results = Array.from({ length: outputs }, (_, at) => `y${at}`);
  const node = {
    op,
    inputs: names,
    outputs: results,
    ...(attributes ? { attributes } : {}),
    ...(domain ? { domain } : {}),
  };
  const declared = open.map(({ input, name }) => [name, [input.type, input.dims.map(() => null)] as const] as const);
  const proto = modelProto({ inputs: Object.fromEntries(declared), constants, nodes: [node], outputs: results }, opset);
  return { proto, open };
}

async function check(example: Case): Promise<string[]> {
  const { proto, open } = modelOf(example);
  const model = new Model(proto);
  const inference = new Inference(model);
  const values = model.graph.outputs;
  const session = await openWithAllOutputs(encodeModel(proto), values);
  const wrong: string[] = [];
  try {
    for (const growth of example.once ? [0] : [0, 1]) {
      const bindings = new Map<string, number>();
      const feeds = open.map(({ input, name }) => {
        const dims = input.dims.map((d) => d + growth);
        for (const [axis, size] of inference.of(model.graph.value(name)!).shape!.entries())
          bindings.set(size.atom!.name, dims[axis]!);
        return filled(input, dims, name);
      });
      const known = new Set(bindings.keys());
      const results = await run(session, feeds);
      for (const value of values) {
        const facts = inference.of(value);
        if (facts.type === undefined) wrong.push(`${value.name}: type unknown`);
        if (!facts.shape) wrong.push(`${value.name}: rank unknown`);
        if (!example.open && facts.shape?.some((s) => [...s.symbols].some((name) => !known.has(name))))
          wrong.push(`${value.name}: shape (${facts.shape.join(', ')}) is not expressed in the inputs' sizes`);
        wrong.push(...contradictions(facts, results[value.name]!, bindings).map((text) => `${value.name}: ${text}`));
      }
    }
  } finally {
    await session.release();
  }
  return wrong;
}

for (const [at, example] of CASES.entries()) {
  const inputs = example.inputs.map((input) =>
    !input ? '-' : 'below' in input ? `(${input.dims})` : `${dataTypeName(input.data_type)}(${input.dims})`,
  );
  test(`${at} ${example.op}-${example.opset ?? 17} of ${inputs.join(' ')}`, async (t) => {
    t.deepEqual(await check(example), []);
  });
}
