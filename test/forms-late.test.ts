/** Attention whose softmax is written out, and most of all that which divides after the product with the values. */
import { count, type Form, LOWEST, move, plain, read, testForms, to, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

const sum = (g: FuzzGraph, e: string, axis = 3, keepdims = 1) => g.op('ReduceSum', [e, g.ints([axis])], { keepdims });
const largest = (g: FuzzGraph, s: string, axis = 3) => g.op('ReduceMax', [s], { axes: [axis], keepdims: 1 });
const relative = (g: FuzzGraph, s: string, m = largest(g, s)) => g.op('Exp', [g.op('Sub', [s, m])]);
const scored = (g: FuzzGraph) => {
  const [q, k, v] = plain(g);
  return { s: g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)]), v };
};
const masked = (g: FuzzGraph, s: string, fill: number) =>
  g.op('Where', [g.input('keep', 'bool', dims('b 1 1 k')).name, s, g.float(fill)]);
const future = (g: FuzzGraph, s: string, fill: number) => {
  const seen = g.op('LessOrEqual', [count(g, 'q'), g.unsqueeze(count(g, 'q'), [1])]);
  return g.op('Where', [seen, s, g.float(fill)]);
};
const finish = (g: FuzzGraph, y: string) => write(g, y, 'b h q e', 'b q he');
const late = (g: FuzzGraph, e: string, v: string, divisor = sum(g, e)) =>
  finish(g, g.op('Div', [g.op('MatMul', [e, v]), divisor]));

const FORMS: readonly Form[] = [
  {
    name: 'late: the product of exponentials with the values is divided by their sum',
    build(g) {
      const { s, v } = scored(g);
      late(g, relative(g, s), v);
    },
  },
  {
    name: 'late: plain exponentials, multiplied by the reciprocal of a sum that keeps no dimension',
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Exp', [s]);
      const inverse = g.op('Mul', [g.op('Reciprocal', [g.unsqueeze(sum(g, e, -1, 0), [3])]), g.float0(1)]);
      finish(g, g.op('Mul', [inverse, g.op('MatMul', [e, v])]));
    },
  },
  {
    name: 'late: behind the transposition of the heads, as einsum leaves it',
    build(g) {
      const [q, k, v] = ['Q', 'K', 'V'].map((n) => {
        const l = n === 'Q' ? 'q' : 'k';
        return read(g, n, `b ${l} hd`, `b ${l} h d`).name;
      });
      const e = relative(g, g.op('Einsum', [q!, k!], { equation: 'bqhd,bkhd->bhqk' }));
      const y = g.op('Einsum', [e, v!], { equation: 'bhqk,bkhd->bqhd' });
      const total = g.op('Transpose', [sum(g, e)], { perm: [0, 2, 1, 3] });
      write(g, g.op('Div', [y, total]), 'b q h d', 'b q hd');
    },
  },
  {
    name: 'late: the sum as a product with ones, repeated for what it divides',
    sizes: { k: 5, one: 1 },
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      const y = g.op('MatMul', [e, v]);
      const total = g.op('MatMul', [e, g.tensor(g.type, [5, 1], [1, 1, 1, 1, 1])]);
      finish(g, g.op('Div', [y, g.op('Expand', [total, g.op('Shape', [y])])]));
    },
  },
  {
    name: 'late: batch and heads in one dimension at the product, apart at the division',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      const flat = (x: string, is: string, wanted: string) => move(g, x, is, wanted);
      const y = g.op('MatMul', [flat(e, 'b h q k', 'bh q k'), flat(v, 'b h k e', 'bh k e')]);
      finish(g, g.op('Div', [flat(y, 'bh q e', 'b h q e'), sum(g, e)]));
    },
  },
  {
    name: 'late: under causality, with a padding mask of the lowest number',
    self: true,
    build(g) {
      const { s, v } = scored(g);
      late(g, relative(g, masked(g, future(g, s, LOWEST), LOWEST)), v);
    },
  },
  {
    name: 'late: rows without keys, kept from 0/0 by a maximum of 0 in place of −∞ and a divisor of 1 in place of 0',
    build(g) {
      const { s, v } = scored(g);
      const out = masked(g, s, Number.NEGATIVE_INFINITY);
      const m = largest(g, out);
      const safe = g.op('Where', [g.op('Equal', [m, g.float0(Number.NEGATIVE_INFINITY)]), g.float0(0), m]);
      const e = relative(g, out, safe);
      const total = sum(g, e);
      const divisor = g.op('Where', [g.op('Equal', [total, g.float0(0)]), g.float0(1), total]);
      late(g, e, v, divisor);
    },
  },
  {
    name: 'late: the sum is kept above a small number',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, masked(g, s, -1e9));
      late(g, e, v, g.op('Max', [sum(g, e), g.float0(1e-6)]));
    },
  },
  {
    name: 'late: an epsilon that a sum of one or more is the same with and without',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, masked(g, s, -1e9));
      late(g, e, v, g.op('Add', [sum(g, e), g.float0(1e-8)]));
    },
  },
  {
    name: 'late: an epsilon that is not lost in a sum of one',
    refused: '0.00001 is added to the sum of exponentials that are relative to the largest score',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      late(g, e, v, g.op('Add', [sum(g, e), g.float0(1e-5)]));
    },
  },
  {
    name: 'late: an epsilon beside plain exponentials is a sink',
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Exp', [s]);
      late(g, e, v, g.op('Add', [g.float0(1e-6), sum(g, e)]));
    },
  },
  {
    name: 'late: plain exponentials whose sum is kept above a small number',
    refused: 'no maximum over the keys is taken',
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Exp', [s]);
      late(g, e, v, g.op('Clip', [sum(g, e), g.float0(1e-6)]));
    },
  },
  {
    name: 'late: the maximum is taken before a mask, and the sum kept above a small number',
    refused: 'no maximum over the keys is taken',
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Exp', [masked(g, g.op('Sub', [s, largest(g, s)]), Number.NEGATIVE_INFINITY)]);
      late(g, e, v, g.op('Clip', [sum(g, e), g.float0(1e-6)]));
    },
  },
  {
    name: 'late: a weight for each key, behind the sum',
    ownNames: false,
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      const total = sum(g, e);
      late(g, g.op('Mul', [e, g.input('weight', g.type, dims('b 1 1 k')).name]), v, total);
    },
  },
  {
    name: 'late: softmax plus one',
    build(g) {
      const { s, v } = scored(g);
      const m = g.op('Relu', [largest(g, s)]);
      const e = relative(g, s, m);
      late(g, e, v, g.op('Add', [sum(g, e), g.op('Exp', [g.op('Neg', [m])])]));
    },
  },
  {
    name: 'late: nothing divides by the sum',
    refused: 'nothing divides their product with the values',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      g.output(g.op('Log', [sum(g, e)]));
      finish(g, g.op('MatMul', [e, v]));
    },
  },
  {
    name: 'late: the sum of all rows',
    refused: 'nothing divides',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      late(g, e, v, g.op('ReduceSum', [sum(g, e), g.ints([2])], { keepdims: 1 }));
    },
  },
  {
    name: 'late: the sum over the queries',
    sizes: { q: 4, k: 4, e: 4 },
    refused: 'not summed over the keys',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      late(g, e, v, sum(g, e, 2));
    },
  },
  {
    name: 'late: the sums of other rows',
    sizes: { h: 4, q: 4 },
    refused: 'not the sum of its own row',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      late(g, e, v, g.op('Transpose', [sum(g, e)], { perm: [0, 2, 1, 3] }));
    },
  },
  {
    name: 'late: the exponentials are weighed before they are summed',
    refused: 'not proven to hold zeros and ones alone',
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Mul', [relative(g, s), g.input('weight', g.type, dims('b 1 1 k')).name]);
      late(g, e, v);
    },
  },
  {
    name: 'late: the product is read undivided as well',
    refused: 'also read before',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      const y = g.op('MatMul', [e, v]);
      g.output(y);
      finish(g, g.op('Div', [y, sum(g, e)]));
    },
  },
  {
    name: 'linear attention of exponentials: keys are features, summed over the sequence',
    refused: 'no site',
    build(g) {
      const [q, k, v] = ['Q', 'K', 'V'].map((n) => {
        const l = n === 'Q' ? 'q' : 'k';
        return read(g, n, `b ${l} hd`, `b h ${l} d`).name;
      });
      const [phiQ, phiK] = [g.op('Exp', [q!]), g.op('Exp', [k!])];
      const context = g.op('MatMul', [g.op('Transpose', [phiK], { perm: [0, 1, 3, 2] }), v!]);
      const total = g.op('Transpose', [sum(g, phiK, 2)], { perm: [0, 1, 3, 2] });
      finish(g, g.op('Div', [g.op('MatMul', [phiQ, context]), g.op('MatMul', [phiQ, total])]));
    },
  },
  {
    name: 'a quotient whose sum is kept from zero, with the maximum taken off in float32',
    mayEmptyRows: true,
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, masked(g, to(g, s, 'float32'), Number.NEGATIVE_INFINITY));
      finish(g, g.op('MatMul', [g.op('Div', [e, g.op('Add', [sum(g, e), g.float0(1e-9)])]), v]));
    },
  },
  {
    name: 'late: sums by an einsum of one tensor, in the order of the values',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      const y = g.op('Einsum', [e, v], { equation: 'bhij,bhjd->bihd' });
      const total = g.unsqueeze(g.op('Einsum', [e], { equation: 'bhij->bih' }), [3]);
      write(g, g.op('Div', [y, total]), 'b q h e', 'b q he');
    },
  },
  {
    name: 'late: the sum as a product with as many ones as there are values',
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Exp', [s]);
      const ones = g.op('Expand', [g.float0(1), g.op('Shape', [v])]);
      late(g, e, v, g.op('MatMul', [e, ones]));
    },
  },
  {
    name: 'exponentials divided by their norm of order one, as torch.nn.functional.normalize has it',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      const norm = g.op('Clip', [g.op('ReduceL1', [e], { axes: [-1], keepdims: 1 }), g.float0(1e-12)]);
      finish(g, g.op('MatMul', [g.op('Div', [e, g.op('Expand', [norm, g.op('Shape', [e])])]), v]));
    },
  },
  {
    name: 'exp(x − log Σ exp(x)), the logarithm written out',
    build(g) {
      const { s, v } = scored(g);
      const x = g.op('Sub', [s, largest(g, s)]);
      const total = g.op('Log', [sum(g, g.op('Exp', [x]))]);
      finish(g, g.op('MatMul', [g.op('Exp', [g.op('Sub', [x, total])]), v]));
    },
  },
  {
    name: 'exp(x − log Σ exp(x)), with the maximum taken off for the sum alone',
    build(g) {
      const { s, v } = scored(g);
      const m = g.op('ReduceMax', [s], { axes: [3], keepdims: 0 });
      const e = g.op('Exp', [g.op('Sub', [s, g.unsqueeze(m, [3])])]);
      const total = g.op('Add', [m, g.op('Log', [sum(g, e, 3, 0)])]);
      finish(g, g.op('MatMul', [g.op('Exp', [g.op('Sub', [s, g.unsqueeze(total, [3])])]), v]));
    },
  },
  {
    name: 'exp(x − log Σ exp(x)) of the sum over the queries',
    sizes: { q: 4, k: 4 },
    refused: 'not summed over the keys',
    build(g) {
      const { s, v } = scored(g);
      const total = g.op('Log', [sum(g, g.op('Exp', [s]), 2)]);
      finish(g, g.op('MatMul', [g.op('Exp', [g.op('Sub', [s, total])]), v]));
    },
  },
  {
    name: 'exp(x − log Σ exp(x)) with another maximum added than was taken off',
    refused: 'no site',
    build(g) {
      const { s, v } = scored(g);
      const total = g.op('Add', [largest(g, s, 2), g.op('Log', [sum(g, relative(g, s))])]);
      finish(g, g.op('MatMul', [g.op('Exp', [g.op('Sub', [s, total])]), v]));
    },
  },
  {
    name: 'late: exponentials times a triangle of ones',
    self: true,
    becomes: 'causal',
    build(g) {
      const { s, v } = scored(g);
      const seen = g.op('LessOrEqual', [count(g, 'q'), g.unsqueeze(count(g, 'q'), [1])]);
      late(g, g.op('Mul', [relative(g, s), to(g, seen, g.type)]), v);
    },
  },
  {
    name: 'late: exponentials times a padding mask that became numbers before its dimensions',
    mayEmptyRows: true,
    becomes: 'boolean(b,k)',
    build(g) {
      const { s, v } = scored(g);
      const numbers = to(g, g.input('keep', 'bool', dims('b k')).name, g.type);
      late(g, g.op('Mul', [g.unsqueeze(numbers, [1, 2]), relative(g, s)]), v);
    },
  },
  {
    name: 'exponentials under two masks, divided by their sum before the product',
    mayEmptyRows: true,
    becomes: 'boolean(b,q,k)',
    build(g) {
      const { s, v } = scored(g);
      const some = g.op('Where', [g.input('keep', 'bool', dims('b 1 1 k')).name, relative(g, s), g.float(0)]);
      const off = g.input('off', 'bool', dims('q k')).name;
      const e = g.op('Mul', [some, g.op('Sub', [g.float(1), to(g, off, g.type)])]);
      finish(g, g.op('MatMul', [g.op('Div', [e, sum(g, e)]), v]));
    },
  },
  {
    name: 'late: plain exponentials under a mask, and an epsilon: a sink',
    mayEmptyRows: true,
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Mul', [g.op('Exp', [s]), to(g, g.input('keep', 'bool', dims('b 1 1 k')).name, g.type)]);
      late(g, e, v, g.op('Add', [sum(g, e), g.float0(1e-3)]));
    },
  },
  {
    name: 'late: the largest score may be of a key that a mask takes out, so that an epsilon counts',
    refused: 'no maximum over the keys is taken from the masked scores',
    build(g) {
      const { s, v } = scored(g);
      const e = g.op('Mul', [relative(g, s), to(g, g.input('keep', 'bool', dims('b 1 1 k')).name, g.type)]);
      late(g, e, v, g.op('Add', [sum(g, e), g.float0(1e-9)]));
    },
  },
  {
    name: 'late: exponentials of the larger scores alone',
    refused: 'decided from the scores',
    build(g) {
      const { s, v } = scored(g);
      const middle = g.op('ReduceMean', [s], { axes: [3], keepdims: 1 });
      late(g, g.op('Where', [g.op('Less', [middle, s]), relative(g, s), g.float(0)]), v);
    },
  },
  {
    name: 'late: exponentials times zeros and ones in no order that attributes have',
    sizes: { q: 3, k: 3 },
    becomes: 'boolean(q,k)',
    build(g) {
      const { s, v } = scored(g);
      late(g, g.op('Mul', [relative(g, s), g.tensor(g.type, [3, 3], [1, 0, 1, 1, 1, 0, 0, 1, 1])]), v);
    },
  },
  {
    name: 'exponentials of features, weighed and normalised, are no site',
    refused: 'no site',
    build(g) {
      const x = g.input('X', g.type, dims('b k d')).name;
      const e = g.op('Mul', [g.op('Exp', [x]), g.input('weight', g.type, dims('b k d')).name]);
      g.output(g.op('Div', [e, sum(g, e, 2)]));
    },
  },
  {
    name: 'late: the product is rounded to integers before it is divided',
    refused: 'nothing divides',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      const whole = to(g, to(g, g.op('MatMul', [e, v]), 'int64'), g.type);
      finish(g, g.op('Div', [whole, sum(g, e)]));
    },
  },
  {
    name: 'late: the sum is rounded to an integer',
    refused: 'nothing divides',
    build(g) {
      const { s, v } = scored(g);
      const e = relative(g, s);
      late(g, e, v, to(g, to(g, sum(g, e), 'int64'), g.type));
    },
  },
  {
    name: 'late: the logarithm of the sum is an output, for results to be merged by it',
    refused: 'the sum of the exponentials is also read by Log',
    build(g) {
      const { s, v } = scored(g);
      const m = largest(g, s);
      const e = relative(g, s, m);
      const total = sum(g, e);
      g.output(g.op('Add', [m, g.op('Log', [total])]));
      late(g, e, v, total);
    },
  },
  {
    name: 'exp(LogSoftmax(x)), where LogSoftmax(x) is an output as well',
    refused: 'the logarithms of the probabilities are needed as well',
    build(g) {
      const { s, v } = scored(g);
      const logarithms = g.op('LogSoftmax', [s], { axis: 3 });
      g.output(g.op('Neg', [logarithms]));
      finish(g, g.op('MatMul', [g.op('Exp', [logarithms]), v]));
    },
  },
  {
    name: 'graph attention: the scores are sums, though a mask puts a tensor of one number in their place',
    refused: 'LeakyRelu between',
    build(g) {
      const [a, c, v] = [
        read(g, 'A', 'b q h', 'b h q 1'),
        read(g, 'C', 'b k h', 'b h 1 k'),
        read(g, 'V', 'b k he', 'b h k e'),
      ];
      const s = g.op('LeakyRelu', [g.op('Add', [a.name, c.name])]);
      const fill = g.op('Expand', [g.float0(-9e15), g.op('Shape', [s])]);
      const p = g.op('Softmax', [g.op('Where', [g.input('edge', 'bool', dims('b 1 q k')).name, s, fill])], { axis: 3 });
      finish(g, g.op('MatMul', [p, v.name]));
    },
  },
  {
    name: 'landmarks: probabilities that another attention has for its values',
    sizes: { q: 3, k: 4, l: 2 },
    ownNames: false,
    becomes: '-; refused: the probabilities are themselves an operand of another attention',
    build(g) {
      const [q, k, v] = plain(g);
      const landmarks = read(g, 'L', 'b l hd', 'b h l d').name;
      const turned = g.op('Transpose', [landmarks], { perm: [0, 1, 3, 2] });
      const outer = g.op('Softmax', [g.op('MatMul', [q, turned])], { axis: 3 });
      const inner = g.op('Softmax', [g.op('MatMul', [landmarks, k])], { axis: 3 });
      finish(g, g.op('MatMul', [g.op('MatMul', [outer, inner]), v]));
    },
  },
];

testForms(FORMS);
