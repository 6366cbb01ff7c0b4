/** Attention of speech, science and graph models, and of exports that a tool has changed since. */

import test, { type ExecutionContext } from 'ava';
import Long from 'long';
import { Model } from '../graph-rewrite/graph/graph.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { type DataTypeName, dataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { type ModelProto, SparseTensorProto, TensorProto, ValueInfoProto } from '../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../graph-rewrite/onnx/tensor.js';
import { readAttributes } from '../graph-rewrite/op/node.js';
import { resolveProblem, type TensorDescription } from '../graph-rewrite/op/problem.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { Inference } from '../graph-rewrite/shape/inference.js';
import { type Form, last, move, plain, read, testForms, to, write } from './form.js';
import { Choices, dims, FuzzGraph } from './fuzz/graph.js';
import { runModel } from './runtime.js';

const finish = (g: FuzzGraph, scores: string, v: string) =>
  write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
const bias = (g: FuzzGraph) => g.input('bias', g.type, dims('1 h q k')).name;
const off = (g: FuzzGraph, name: string) => g.input(name, 'bool', dims('b 1 q k')).name;

const PACKED_GROUPS: Form = {
  name: 'queries, keys and values packed with widths that have nothing in common',
  self: true,
  sizes: { w: 17, v: 5 },
  build(g) {
    const packed = g.input('packed', g.type, dims('b q w')).name;
    const first = g.op('Split', [packed, g.ints([8, 4, 5])], { axis: 2 }, 3);
    const q = move(g, first, 'b q hd', 'b h q d');
    const [k, v] = [1, 2].map((n) => g.unsqueeze(`${first}_${n}`, [1])) as [string, string];
    const scores = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
    write(g, g.op('MatMul', [last(g, scores), v]), 'b h q v', 'b q hv');
  },
};

const PACKED_WIDE: Form = {
  name: 'one head of packed queries, keys and wider values',
  self: true,
  sizes: { w: 14 },
  build(g) {
    const q = g.op('Split', [g.input('packed', g.type, dims('b q w')).name, g.ints([4, 4, 6])], { axis: 2 }, 3);
    const scores = g.op('MatMul', [q, g.op('Transpose', [`${q}_1`], { perm: [0, 2, 1] })]);
    g.output(g.op('MatMul', [last(g, scores), `${q}_2`]));
  },
};

const FORMS: readonly Form[] = [
  {
    name: 'VITS without relative values: −1e4 in place of scores that a product with positions was added to',
    self: true,
    becomes: 'additive(b,h,q,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const positions = g.op('MatMul', [q, g.input('P', g.type, dims('1 h d k')).name]);
      const scores = g.op('Add', [g.op('MatMul', [q, k]), positions]);
      finish(g, g.op('Where', [off(g, 'off'), g.float(-1e4), scores]), v);
    },
  },
  {
    name: 'the same fill twice, behind a bias that ONNX Runtime fused to a product',
    becomes: 'additive(b,h,q,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const positions = read(g, 'P', 'b k hd', 'b h k d').name;
      const relative = g.op('FusedMatMul', [q, positions], { transB: 1, alpha: { float: 0.5 } }, 1, 'com.microsoft');
      const once = g.op('Where', [off(g, 'padding'), g.float(-1e9), g.op('Add', [relative, g.op('MatMul', [q, k])])]);
      finish(g, g.op('Where', [off(g, 'future'), g.float(-1e9), once]), v);
    },
  },
  {
    name: 'two fills behind a bias: a row may have keys of the higher one left alone',
    refused: 'combined with another mask',
    build(g) {
      const [q, k, v] = plain(g);
      const once = g.op('Where', [off(g, 'padding'), g.float(-1e9), g.op('Add', [g.op('MatMul', [q, k]), bias(g)])]);
      finish(g, g.op('Where', [off(g, 'future'), g.float(-1e4), once]), v);
    },
  },
  {
    name: 'a fill that a bias is added to: rows without keys keep the bias',
    refused: 'combined with another mask',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Where', [off(g, 'off'), g.float(-1e4), g.op('MatMul', [q, k])]);
      finish(g, g.op('Add', [scores, bias(g)]), v);
    },
  },
  {
    name: 'a high fill behind a bias: scores may be lower',
    refused: 'combined with another mask',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Add', [g.op('MatMul', [q, k]), bias(g)]);
      finish(g, g.op('Where', [off(g, 'off'), g.float(-1000), scores]), v);
    },
  },
  {
    name: 'attention pooling after ONNX Runtime: a linear layer with transposed weights',
    refused: 'linear layer',
    build(g) {
      const x = g.input('X', g.type, dims('b k d')).name;
      const weight = g.tensor(g.type, [1, 4], [0.3, -0.2, 0.9, 0.5]);
      const scores = g.op('FusedMatMul', [g.op('Tanh', [x]), weight], { transB: 1 }, 1, 'com.microsoft');
      const p = last(g, move(g, scores, 'b k 1', 'b 1 k'));
      g.output(g.op('MatMul', [p, x]));
    },
  },
  {
    name: 'MSA row attention: heads in front of the sequences in the scores, behind them in memory',
    build(g) {
      const [q, k, v] = ['Q', 'K', 'V'].map((n) =>
        read(g, n, `p ${n === 'Q' ? 'q' : 'k'} b hd`, `p ${n === 'Q' ? 'q' : 'k'} b h d`),
      );
      const scores = g.op('Einsum', [q!.name, k!.name], { equation: 'rinhd,rjnhd->rhnij' });
      const y = g.op('Einsum', [last(g, scores), v!.name], { equation: 'rhnij,rjnhd->rinhd' });
      write(g, y, 'p q b h d', 'p q b hd');
    },
  },
  {
    name: 'MSA column attention: sequences, columns and heads, keys first',
    ownNames: false,
    build(g) {
      const [q, k, v] = ['Q', 'K', 'V'].map((n) =>
        read(g, n, `${n === 'Q' ? 'q' : 'k'} p b hd`, `${n === 'Q' ? 'q' : 'k'} p b h d`),
      );
      const scores = g.op('Einsum', [q!.name, k!.name], { equation: 'icnhd,jcnhd->hcnij' });
      const y = g.op('Einsum', [last(g, scores), v!.name], { equation: 'hcnij,jcnhd->icnhd' });
      write(g, y, 'q p b h d', 'q p b hd');
    },
  },
  {
    name: 'MSA row attention tied over the rows sums over two dimensions',
    refused: 'does not sum over one dimension',
    build(g) {
      const [q, k, v] = ['Q', 'K', 'V'].map((n) => g.input(n, g.type, dims(`p ${n === 'Q' ? 'q' : 'k'} b h d`)).name);
      const scores = g.op('Einsum', [q!, k!], { equation: 'rinhd,rjnhd->hnij' });
      g.output(g.op('Einsum', [last(g, scores), v!], { equation: 'hnij,rjnhd->rinhd' }));
    },
  },
  {
    name: 'interpretable attention: one head of values for all heads of queries and keys',
    build(g) {
      const [q, k] = plain(g);
      const v = g.unsqueeze(g.input('shared', g.type, dims('b k e')).name, [1]);
      g.output(g.op('ReduceMean', [g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v])], { axes: [1], keepdims: 0 }));
    },
  },
  {
    name: 'one head of keys for all heads of queries and values',
    build(g) {
      const [q, , v] = plain(g);
      const k = g.unsqueeze(g.input('shared', g.type, dims('b d k')).name, [1]);
      finish(g, g.op('MatMul', [q, k]), v);
    },
  },
  PACKED_GROUPS,
  PACKED_WIDE,
  {
    name: 'copies of the mask that zeroes the probabilities once more',
    mayEmptyRows: true,
    build(g) {
      const [q, k, v] = plain(g);
      const padding = off(g, 'off');
      const copy = () => to(g, g.op('Identity', [padding]), 'bool');
      const p = last(g, g.op('Where', [copy(), g.float(-1e9), g.op('MatMul', [q, k])]));
      write(g, g.op('MatMul', [g.op('Where', [copy(), g.float(0), p]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'a copy of the scores less the maximum of another copy',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [q, k]);
      const copy = () => to(g, g.op('Identity', [scores]), 'float32');
      const largest = to(g, g.op('ReduceMax', [copy()], { axes: [3], keepdims: 1 }), 'float32');
      finish(g, g.op('Sub', [copy(), largest]), v);
    },
  },
  {
    name: 'ONNX Runtime moved a factor on the result into the product with the values',
    build(g) {
      const [q, k, v] = plain(g);
      const p = last(g, g.op('MatMul', [q, k]));
      const y = g.op('FusedMatMul', [p, v], { alpha: { float: 0.75 } }, 1, 'com.microsoft');
      write(g, y, 'b h q e', 'b q he');
    },
  },
  {
    name: 'products of matrices as PyTorch wrote them in opset 9: Gemm with a zero to add',
    build(g) {
      const [q, k, v] = ['Q', 'K', 'V'].map((n) => g.input(n, g.type, dims(n === 'Q' ? 'q d' : 'k d')).name);
      const scores = g.op('Gemm', [q!, k!, g.tensor(g.type, [1], [0])], { transB: 1, beta: { float: 0 } });
      const p = last(g, g.op('Div', [scores, g.float(2)]));
      g.output(g.op('Gemm', [p, v!, g.tensor(g.type, [1], [0])]));
    },
  },
  {
    name: 'dead code reads the probabilities',
    build(g) {
      const [q, k, v] = plain(g);
      const p = last(g, g.op('MatMul', [q, k]));
      g.op('Relu', [g.op('MatMul', [p, v])]);
      g.op('ReduceMean', [p], { axes: [1] });
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Exp of LogSoftmax',
    build(g) {
      const [q, k, v] = plain(g);
      const logarithm = g.op('LogSoftmax', [g.op('MatMul', [q, k])], { axis: -1 });
      write(g, g.op('MatMul', [g.op('Exp', [logarithm]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'scores whose rank depends on an input are in the report',
    refused: 'the rank of the input of Softmax',
    build(g) {
      const [q, k, v] = plain(g);
      const shape = g.input('shape', 'int64', dims('n')).name;
      finish(g, g.op('Reshape', [g.op('MatMul', [q, k]), shape]), v);
    },
  },
  {
    name: 'a softmax over heads, queries and keys at once is in the report',
    opset: 11,
    refused: 'over several dimensions at once',
    build(g) {
      const [q, k, v] = plain(g);
      const p = g.op('Softmax', [g.op('MatMul', [q, k])], { axis: 1 });
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
];

testForms(FORMS);

/** Attention of learned projections, as exporters before IR version 4 wrote it: initializers are inputs. */
function projected(type: DataTypeName = 'float32'): FuzzGraph {
  const g = new FuzzGraph(11, type, new Map(Object.entries({ h: 2, d: 4 })), new Choices([]), false);
  const x = g.input('X', type, dims('b k d')).name;
  const [q, k, v] = [1, 2, 3].map((n) => {
    const weight = g.tensor(
      type,
      [4, 8],
      Array.from({ length: 32 }, (_, i) => Math.sin(i * n)),
    );
    const split = g.op('Reshape', [g.op('MatMul', [x, weight]), g.ints([0, -1, 2, 4])]);
    return g.op('Transpose', [split], { perm: n === 2 ? [0, 2, 3, 1] : [0, 2, 1, 3] });
  }) as [string, string, string];
  const scores = g.op('Div', [g.op('MatMul', [q, k]), g.float0(Math.sqrt(3))]);
  const y = g.op('Transpose', [g.op('MatMul', [g.op('Softmax', [scores], { axis: 3 }), v])], { perm: [0, 2, 1, 3] });
  g.output(g.op('Reshape', [y, g.ints([0, -1, 8])]));
  return g;
}

/** Runs a model as it is and rewritten, and compares; says how many sites were fused. */
async function compareRewritten(t: ExecutionContext, model: ModelProto, largest: number): Promise<number> {
  const type = dataTypeName(model.graph?.input[0]?.type?.tensor_type?.elem_type ?? 0) as 'float32' | 'float64';
  const numbers = Array.from({ length: 2 * 5 * 4 }, (_, i) => Math.cos(i * 0.7));
  const data = type === 'float64' ? Float64Array.from(numbers) : Float32Array.from(numbers);
  const inputs = [{ name: 'X', type, dims: [2, 5, 4], data }];
  const original = encodeModel(model);
  const rewritten = decodeModel(original);
  const { sites } = rewriteModel(rewritten);
  const [before, after] = [await runModel(original, inputs), await runModel(encodeModel(rewritten), inputs)];
  const errors = Array.from(before[0]!.numbers, (x, i) => Math.abs(x - after[0]!.numbers[i]!));
  t.true(Math.max(...errors) <= largest, `${Math.max(...errors)}`);
  return sites.filter((site) => site.fused).length;
}

test('initializers of IR version 3 are constants, though they are inputs', async (t) => {
  const model = projected().model();
  const graph = model.graph!;
  const listed = graph.initializer.map(({ name, data_type, dims: sizes }) => {
    const shape = { dim: sizes.map((size) => ({ dim_value: size })) };
    return new ValueInfoProto({ name, type: { tensor_type: { elem_type: data_type, shape } } });
  });
  graph.input.push(...listed);
  model.ir_version = Long.fromNumber(4);
  const overridable = decodeModel(encodeModel(model));
  t.is(rewriteModel(overridable).sites[0]?.attributes?.scale, 1, 'in later ones they are defaults');
  model.ir_version = Long.fromNumber(3);
  t.is(await compareRewritten(t, model, 1e-6), 1);
  t.is(rewriteModel(model).sites[0]?.attributes?.scale?.toFixed(6), (1 / Math.sqrt(3)).toFixed(6));
  t.deepEqual(
    graph.input.map(({ name }) => name),
    ['X'],
  );
});

test('weights may be sparse', async (t) => {
  const model = projected().model();
  const graph = model.graph!;
  const isWeight = ({ dims: sizes }: TensorProto) => sizes.length === 2;
  const weights = graph.initializer.filter((tensor) => isWeight(tensor as TensorProto));
  graph.initializer = graph.initializer.filter((tensor) => !weights.includes(tensor));
  graph.sparse_initializer = weights.map((tensor) => {
    const values = new TensorProto({ ...tensor, dims: [Long.fromNumber(32)] });
    const indices = makeTensor(
      '',
      'int64',
      [32],
      Array.from({ length: 32 }, (_, i) => i),
    );
    return new SparseTensorProto({ values, indices, dims: tensor.dims });
  });
  t.is(await compareRewritten(t, model, 1e-6), 1);
});

test('the scale of doubles is not rounded to the float of an attribute', async (t) => {
  t.is(await compareRewritten(t, projected('float64').model(), 1e-14), 1);
});

for (const [form, width] of [
  [PACKED_GROUPS, 5],
  [PACKED_WIDE, 6],
] as const) {
  test(`kernels read from the layouts alone: ${form.name}`, (t) => {
    const all = new Map(Object.entries({ h: 2, d: 4, b: 2, q: 5, ...form.sizes }));
    const g = new FuzzGraph(17, 'float32', all, new Choices([]), false);
    form.build(g);
    const proto = g.model();
    rewriteModel(proto);
    const model = new Model(proto);
    const inference = new Inference(model);
    const node = model.graph.nodes.find((n) => n.opType === 'FlashAttention')!;
    const describe = (value: (typeof node.inputs)[number]): TensorDescription => {
      const shape = inference.of(value!).shape!.map((size) => size.value!);
      return { type: 'float32', shape };
    };
    const [Q, K, V] = [0, 1, 2].map((i) => describe(node.inputs[i])) as [
      TensorDescription,
      TensorDescription,
      TensorDescription,
    ];
    const problem = resolveProblem(readAttributes(node.proto), { Q, K, V });
    t.deepEqual([problem.headDimension, problem.valueDimension], [4, width]);
  });
}
