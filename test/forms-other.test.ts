/** Attention of speech, science and graph models, and of exports that a tool has changed since. */

import { type Form, last, move, plain, read, testForms, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

const finish = (g: FuzzGraph, scores: string, v: string) =>
  write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
const bias = (g: FuzzGraph) => g.input('bias', g.type, dims('1 h q k')).name;
const off = (g: FuzzGraph, name: string) => g.input(name, 'bool', dims('b 1 q k')).name;

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
