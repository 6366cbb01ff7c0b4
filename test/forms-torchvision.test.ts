/** Attention as PyTorch's TorchScript exporter writes torchvision's models, and others like them. */

import { type Form, last, plain, read, testForms, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

/** Sizes as one tensor, those that are labels read at run time. */
const shape = (g: FuzzGraph, sizes: readonly (string | number)[]) =>
  g.op(
    'Concat',
    sizes.map((size) => (typeof size === 'number' ? g.ints([size]) : g.unsqueeze(g.size([size]), [0]))),
    { axis: 0 },
  );

const summed = (g: FuzzGraph, x: string, axis: number) => g.op('ReduceSum', [x, g.ints([axis])], { keepdims: 0 });

const FORMS: readonly Form[] = [
  {
    name: 'torchvision’s Swin: dropout in training mode that drops nothing',
    build(g) {
      const [q, k, v] = plain(g);
      const p = last(g, g.op('MatMul', [q, k]));
      const dropped = g.op('Dropout', [p, g.tensor('float32', [], [0]), g.tensor('bool', [], [1])]);
      write(g, g.op('MatMul', [dropped, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'dropout in training mode whose share is left to the operator',
    refused: 'Dropout',
    build(g) {
      const [q, k, v] = plain(g);
      const p = last(g, g.op('MatMul', [q, k]));
      const dropped = g.op('Dropout', [p, '', g.tensor('bool', [], [1])]);
      write(g, g.op('MatMul', [dropped, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Twins: rows of windows as many as the image has, put apart behind the attention',
    sizes: { x: 3, P: 3 },
    ownNames: false,
    build(g) {
      const packed = g.input('packed', g.type, dims('b p x t Phd'));
      const windows = g.op('Mul', [g.size(['p']), g.tensor('int64', [], [3])]);
      const sizes = [shape(g, ['b']), g.unsqueeze(windows, [0]), g.ints([3, 3, 2, 4])];
      const split = g.op('Reshape', [packed.name, g.op('Concat', sizes, { axis: 0 })]);
      const moved = g.op('Transpose', [split], { perm: [3, 0, 1, 4, 2, 5] });
      const [q, k, v] = [0, 1, 2].map((i) => g.op('Gather', [moved, g.tensor('int64', [], [i])], { axis: 0 })) as [
        string,
        string,
        string,
      ];
      const turned = g.op('Transpose', [k], { perm: [0, 1, 2, 4, 3] });
      const scores = g.op('MatMul', [g.op('Mul', [q, g.float(0.5)]), turned]);
      const y = g.op('Transpose', [g.op('MatMul', [last(g, scores), v])], { perm: [0, 1, 3, 2, 4] });
      g.output(g.op('Reshape', [y, shape(g, ['b', 'p', 3, 3, 8])]));
    },
  },
  {
    name: 'score_sde and DDPM: images as they are, a softmax over rows and columns of the keys as one',
    sizes: { x: 3, t: 2 },
    build(g) {
      const q = g.input('Q', g.type, dims('b d x q')).name;
      const k = g.input('K', g.type, dims('b d t k')).name;
      const v = g.input('V', g.type, dims('b e t k')).name;
      const scores = g.op('Mul', [g.op('Einsum', [q, k], { equation: 'bchw,bcij->bhwij' }), g.float(0.5)]);
      const p = last(g, g.op('Reshape', [scores, g.ints([0, 0, 0, -1])]));
      const apart = g.op('Reshape', [p, shape(g, ['b', 3, 'q', 2, 'k'])]);
      g.output(g.op('Einsum', [apart, v], { equation: 'bhwij,bcij->bchw' }));
    },
  },
  {
    name: 'keys in rows and columns, the softmax over the rows alone',
    sizes: { x: 3, t: 2 },
    refused: 'not summed over the keys',
    build(g) {
      const q = g.input('Q', g.type, dims('b d x q')).name;
      const k = g.input('K', g.type, dims('b d t k')).name;
      const v = g.input('V', g.type, dims('b e t k')).name;
      const p = last(g, g.op('Einsum', [q, k], { equation: 'bchw,bcij->bhwij' }), 3);
      g.output(g.op('Einsum', [p, v], { equation: 'bhwij,bcij->bchw' }));
    },
  },
  {
    name: 'XCiT’s class attention: one query times every key, summed',
    sizes: { q: 1 },
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h k d').name, read(g, 'V', 'b k he', 'b h k e').name];
      const scores = g.op('Mul', [summed(g, g.op('Mul', [q, k]), -1), g.float(0.5)]);
      const p = g.op('Unsqueeze', [last(g, scores), g.ints([2])]);
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'XCiT’s class attention before opset 13, the sum kept as a dimension',
    opset: 11,
    sizes: { q: 1 },
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h k d').name, read(g, 'V', 'b k he', 'b h k e').name];
      const scores = g.op('ReduceSum', [g.op('Mul', [k, q])], { axes: [3], keepdims: 1 });
      const p = last(g, g.op('Transpose', [scores], { perm: [0, 1, 3, 2] }), 3);
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'neighbourhoods unfolded: products element by element, both of them summed',
    sizes: { t: 9 },
    build(g) {
      const q = g.input('Q', g.type, dims('b h d q')).name;
      const [k, v] = [g.input('K', g.type, dims('b h d t q')).name, g.input('V', g.type, dims('b h e t q')).name];
      const scores = summed(g, g.op('Mul', [g.op('Unsqueeze', [q, g.ints([3])]), k]), 2);
      const p = g.op('Unsqueeze', [last(g, g.op('Mul', [scores, g.float(0.5)]), 2), g.ints([2])]);
      g.output(summed(g, g.op('Mul', [p, v]), 3));
    },
  },
  {
    name: 'a query that is learned, its products with a sequence summed: pooling by a linear layer',
    refused: 'linear layer',
    build(g) {
      const x = g.input('X', g.type, dims('b k d')).name;
      const learned = g.tensor('float32', [4], [0.5, -0.25, 1, 0.125]);
      const p = g.op('Unsqueeze', [last(g, summed(g, g.op('Mul', [x, learned]), 2), 1), g.ints([1])]);
      g.output(g.op('MatMul', [p, x]));
    },
  },
  {
    name: 'probabilities that positions are summed with',
    refused: 'keys or values are constants',
    build(g) {
      const q = g.input('Q', g.type, dims('b q d')).name;
      const k = g.input('K', g.type, dims('b d t')).name;
      const p = last(g, g.op('MatMul', [q, k]));
      g.output(summed(g, g.op('Mul', [p, g.tensor('float32', [3], [0, 1, 2])]), 2));
    },
  },
  {
    name: 'HaloNet by unfolding: rows and columns of blocks before the attention, which its result goes back to',
    sizes: { x: 3, P: 2 },
    ownNames: false,
    build(g) {
      const apart = g.input('Q', g.type, dims('b h p x t d')).name;
      const blocks = g.unsqueeze(g.op('Mul', [g.size(['p']), g.tensor('int64', [], [3])]), [0]);
      const sizes = [shape(g, ['b', 2]), blocks, g.ints([3, 4])];
      const q = g.op('Reshape', [apart, g.op('Concat', sizes, { axis: 0 })]);
      const packed = g.input('KV', g.type, dims('b Phd k px')).name;
      const split = g.op('Reshape', [packed, g.op('Concat', [shape(g, ['b', 2, 2, 4, 'k']), blocks], { axis: 0 })]);
      const moved = g.op('Transpose', [split], { perm: [1, 0, 2, 5, 4, 3] });
      const [k, v] = [0, 1].map((i) => g.op('Gather', [moved, g.tensor('int64', [], [i])], { axis: 0 })) as [
        string,
        string,
      ];
      const scores = g.op('Einsum', [q, k], { equation: 'bhnqd,bhnkd->bhnqk' });
      const y = g.op('Einsum', [last(g, scores), v], { equation: 'bhnqk,bhnkd->bhnqd' });
      const back = g.op('Reshape', [y, shape(g, ['b', 2, 'p', 3, 3, 4])]);
      g.output(g.op('Transpose', [back], { perm: [0, 1, 5, 2, 4, 3] }));
    },
  },
];

testForms(FORMS);
