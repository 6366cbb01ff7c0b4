/** Attention in float16, whose lowest number is no lower than scores may be. */
import { count, type Form, last, plain, testForms, to, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

const HALF_LOWEST = -65504;
const finish = (g: FuzzGraph, scores: string, v: string) =>
  write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
const off = (g: FuzzGraph, name = 'off') => g.input(name, 'bool', dims('b 1 q k')).name;
/** Terms of relative positions, which are a product. */
const positions = (g: FuzzGraph, q: string) => g.op('MatMul', [q, g.input('P', g.type, dims('1 h d k')).name]);
/** 0 for keys up to the query, and a fill for those behind. */
const future = (g: FuzzGraph, fill: number) =>
  g.op('Where', [g.op('LessOrEqual', [count(g, 'q'), g.unsqueeze(count(g, 'q'), [1])]), g.float0(0), g.float0(fill)]);
const padding = (g: FuzzGraph, fill: number) =>
  g.op('Where', [g.input('keep', 'bool', dims('b 1 1 k')).name, g.float0(0), g.float0(fill)]);

const FORMS: readonly Form[] = [
  {
    name: 'float16: the lowest number in place of scores that terms of positions were added to',
    becomes: 'additive(b,h,q,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Add', [g.op('MatMul', [q, k]), positions(g, q)]);
      finish(g, g.op('Where', [off(g), g.float(HALF_LOWEST), scores]), v);
    },
  },
  {
    name: 'float16: the same with the softmax in float32',
    becomes: 'additive(b,h,q,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Add', [g.op('MatMul', [q, k]), positions(g, q)]);
      const masked = g.op('Where', [off(g), g.float(HALF_LOWEST), scores]);
      const p = to(g, last(g, to(g, masked, 'float32')), 'float16');
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'float16: a bias that is added to the lowest number decides rows without keys',
    refused: 'combined with another mask',
    build(g) {
      const [q, k, v] = plain(g);
      const masked = g.op('Where', [off(g), g.float(HALF_LOWEST), g.op('MatMul', [q, k])]);
      finish(g, g.op('Add', [masked, positions(g, q)]), v);
    },
  },
  {
    name: 'float16: a padding mask of the lowest number beside one in place of scores',
    refused: 'combined with another mask',
    build(g) {
      const [q, k, v] = plain(g);
      const masked = g.op('Where', [off(g), g.float(HALF_LOWEST), g.op('MatMul', [q, k])]);
      finish(g, g.op('Add', [masked, padding(g, HALF_LOWEST)]), v);
    },
  },
  {
    name: 'float16: scores under a causal mask, raised to the lowest number',
    self: true,
    becomes: 'causal',
    build(g) {
      const [q, k, v] = plain(g);
      const masked = g.op('Add', [g.op('MatMul', [q, k]), future(g, HALF_LOWEST)]);
      finish(g, g.op('Max', [masked, g.float0(HALF_LOWEST)]), v);
    },
  },
  {
    name: 'float16: scores under a padding mask, raised to the lowest number: rows without keys are what their scores are',
    refused: 'raised to -65504',
    build(g) {
      const [q, k, v] = plain(g);
      const masked = g.op('Add', [g.op('MatMul', [q, k]), padding(g, HALF_LOWEST)]);
      finish(g, g.op('Max', [masked, g.float0(HALF_LOWEST)]), v);
    },
  },
  {
    name: 'float16: divided after the product with the values, exponentials and sum in float32',
    build(g) {
      const [q, k, v] = plain(g);
      const s = to(g, g.op('MatMul', [q, k]), 'float32');
      const e = g.op('Exp', [g.op('Sub', [s, g.op('ReduceMax', [s], { axes: [3], keepdims: 1 })])]);
      const total = g.op('ReduceSum', [e, g.ints([3])], { keepdims: 1 });
      const y = g.op('Div', [to(g, g.op('MatMul', [to(g, e, 'float16'), v]), 'float32'), total]);
      write(g, to(g, y, 'float16'), 'b h q e', 'b q he');
    },
  },
  {
    name: 'float16: divided after the product with the values by a sum that is rounded',
    build(g) {
      const [q, k, v] = plain(g);
      const s = to(g, g.op('MatMul', [q, k]), 'float32');
      const e = g.op('Exp', [g.op('Sub', [s, g.op('ReduceMax', [s], { axes: [3], keepdims: 1 })])]);
      const total = to(g, g.op('ReduceSum', [e, g.ints([3])], { keepdims: 1 }), 'float16');
      write(g, g.op('Div', [g.op('MatMul', [to(g, e, 'float16'), v]), total]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'float16: values are widened, and so is the result',
    refused: 'different data types',
    build(g) {
      const [q, k, v] = plain(g);
      const s = to(g, g.op('MatMul', [q, k]), 'float32');
      const e = g.op('Exp', [s]);
      const total = g.op('ReduceSum', [e, g.ints([3])], { keepdims: 1 });
      g.output(g.op('Div', [to(g, g.op('MatMul', [to(g, e, 'float16'), v]), 'float32'), total]));
    },
  },
  {
    name: 'scores that are compared with −65504 in float32',
    refused: 'raised to -65504',
    build(g) {
      const [q, k, v] = plain(g);
      finish(g, g.op('Max', [g.op('MatMul', [q, k]), g.float0(HALF_LOWEST)]), v);
    },
  },
];

testForms(FORMS.map((form) => (form.name.startsWith('float16') ? { ...form, type: 'float16' } : form)));
