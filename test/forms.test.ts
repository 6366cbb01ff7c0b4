/** Attention as exporters write it for architectures that are not in the corpus, each a small graph of its own. */

import { type Form, LOWEST, last, plain, read, slice, testForms, to, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

/** x[..., i, j] of a product with relative positions moved to x[..., i, j − i + q − 1], as Transformer-XL does. */
function relativeShift(g: FuzzGraph, x: string, heads: number, query: string): string {
  const pads = g.ints([0, 0, 0, 1, 0, 0, 0, 0]);
  const padded = g.op('Pad', [x, pads]);
  const one = g.tensor('int64', [], [1]);
  const rows = g.op('Add', [g.op('Gather', [g.op('Shape', [x]), g.tensor('int64', [], [3])]), one]);
  const shape = g.op('Concat', [g.ints([0, heads]), g.unsqueeze(rows, [0]), g.unsqueeze(query, [0])], { axis: 0 });
  const turned = g.op('Reshape', [padded, shape]);
  const cut = g.op('Slice', [turned, g.ints([1]), g.ints([2 ** 31]), g.ints([2])]);
  const back = g.op('Reshape', [cut, g.op('Shape', [x])]);
  return slice(g, back, 3, g.tensor('int64', [], [0]), query);
}

const FORMS: readonly Form[] = [
  {
    name: 'old GPT-2: scores times a triangle of ones, less 10⁴ outside it',
    self: true,
    ownNames: false,
    build(g) {
      const [q, k, v] = plain(g);
      const n = 8;
      const triangle = Array.from({ length: n * n }, (_, i) => (i % n <= Math.floor(i / n) ? 1 : 0));
      const buffer = g.tensor(g.type, [1, 1, n, n], triangle);
      const w = g.op('MatMul', [q, k]);
      const [nd, ns] = [2, 3].map((axis) => g.op('Gather', [g.op('Shape', [w]), g.tensor('int64', [], [axis])]));
      const start = g.op('Sub', [ns!, nd!]);
      const b = slice(g, slice(g, buffer, 2, start, ns!), 3, g.tensor('int64', [], [0]), ns!);
      const rest = g.op('Mul', [g.op('Sub', [g.float(1), b]), g.float(1e4)]);
      const masked = g.op('Sub', [g.op('Mul', [w, b]), rest]);
      write(g, g.op('MatMul', [last(g, masked), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'GPT-BigCode: queries of all heads as rows of one matrix',
    self: true,
    build(g) {
      const q = g.rearrange(g.input('Q', g.type, dims('b q hd')), dims('b qh d'));
      const k = read(g, 'K', 'b k d', 'b d k');
      const v = g.input('V', g.type, dims('b k e'));
      const scores = g.op('Mul', [g.op('MatMul', [q.name, k.name]), g.float(0.5)]);
      const wide = g.rearrange({ name: scores, dims: dims('b qh k') }, dims('b q h k'));
      const keep = g.input('keep', 'bool', dims('b q 1 k'));
      const masked = g.op('Where', [keep.name, wide.name, g.tensor(g.type, [], [LOWEST])]);
      const p = g.reshape({ name: last(g, masked), dims: dims('b q h k') }, dims('b qh k'));
      write(g, g.op('MatMul', [p.name, v.name]), 'b qh e', 'b q he');
    },
  },
  {
    name: 'XLNet: sequence first, a relative term, a mask of 65,500 at (i, j, b, n)',
    build(g) {
      const [q, r] = [g.input('Q', g.type, dims('q b h d')), g.input('R', g.type, dims('k b h d'))];
      const [k, v] = [g.input('K', g.type, dims('k b h d')), g.input('V', g.type, dims('k b h e'))];
      const ac = g.op('Einsum', [q.name, k.name], { equation: 'ibnd,jbnd->bnij' });
      const bd = g.op('Einsum', [q.name, r.name], { equation: 'ibnd,jbnd->bnij' });
      const sum = g.op('Mul', [g.op('Add', [ac, bd]), g.float(0.5)]);
      const mask = g.input('mask', g.type, dims('q k b 1'));
      const moved = g.op('Einsum', [mask.name], { equation: 'ijbn->bnij' });
      const masked = g.op('Sub', [sum, g.op('Mul', [moved, g.float(65500)])]);
      g.output(g.op('Einsum', [last(g, masked, 3), v.name], { equation: 'bnij,jbnd->ibnd' }));
    },
  },
  {
    name: 'Conformer: the sum of two products, one shifted by its row',
    self: true,
    build(g) {
      const [q, k, v] = plain(g);
      const p = read(g, 'P', 'k hd', 'h d k').name;
      const u = g.input('u', g.type, dims('h 1 d')).name;
      const w = g.input('w', g.type, dims('h 1 d')).name;
      const content = g.op('MatMul', [g.op('Add', [q, u]), k]);
      const position = relativeShift(g, g.op('MatMul', [g.op('Add', [q, w]), p]), 2, g.size(['q']));
      const scores = g.op('Div', [g.op('Add', [content, position]), g.float(2)]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'SqueezeBERT: channels before positions, in and out',
    build(g) {
      const q = read(g, 'Q', 'b hd q', 'b h q d').name;
      const k = read(g, 'K', 'b hd k', 'b h d k').name;
      const v = read(g, 'V', 'b he k', 'b h k e').name;
      const mask = g.input('mask', g.type, dims('b 1 1 k')).name;
      const scores = g.op('Add', [g.op('Div', [g.op('MatMul', [q, k]), g.float(2)]), mask]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b he q');
    },
  },
  {
    name: 'LeViT: a bias for each head, values twice as wide',
    sizes: { e: 8 },
    build(g) {
      const [q, k, v] = plain(g);
      const bias = g.input('bias', g.type, dims('h q k')).name;
      const scores = g.op('Add', [g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)]), bias]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'XCiT: attention among channels, a temperature for each head',
    build(g) {
      const unit = (x: string) => g.op('Div', [x, g.op('ReduceL2', [x], { axes: [3], keepdims: 1 })]);
      const q = unit(read(g, 'Q', 'b k hd', 'b h d k').name);
      const k = unit(read(g, 'K', 'b k he', 'b h e k').name);
      const v = read(g, 'V', 'b k he', 'b h e k').name;
      const temperature = g.input('temperature', g.type, dims('h 1 1')).name;
      const scores = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
      const p = last(g, g.op('Mul', [scores, temperature]));
      write(g, g.op('MatMul', [p, v]), 'b h d k', 'b k hd');
    },
  },
  {
    name: 'Perceiver: latent queries, one for all samples, broadcast by the product',
    build(g) {
      const q = read(g, 'Q', 'q hd', '1 h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h d k').name, read(g, 'V', 'b k he', 'b h k e').name];
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Perceiver: latent queries, expanded over the batch',
    build(g) {
      const k = read(g, 'K', 'b k hd', 'b h d k').name;
      const v = read(g, 'V', 'b k he', 'b h k e').name;
      const latents = g.widen(g.rearrange(g.input('Q', g.type, dims('q hd')), dims('1 q hd')), 0, ['b']);
      const q = g.rearrange(latents, dims('b h q d')).name;
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Mask2Former: bmm over batch × heads, a mask for each',
    mayEmptyRows: true,
    build(g) {
      g.input('X', g.type, dims('b'));
      const q = read(g, 'Q', 'q b hd', 'bh q d').name;
      const k = read(g, 'K', 'k b hd', 'bh d k').name;
      const v = read(g, 'V', 'k b he', 'bh k e').name;
      const keep = g.rearrange(g.input('keep', 'bool', dims('b h q k')), dims('bh q k')).name;
      const added = g.op('Where', [keep, g.tensor(g.type, [], [0]), g.tensor(g.type, [], [-Infinity])]);
      const scores = g.op('Add', [added, g.op('MatMul', [q, k])]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'bh q e', 'q b he');
    },
  },
  {
    name: 'JAX: a softmax spelled out, heads after positions',
    build(g) {
      const q = read(g, 'Q', 'b q h d', 'b h q d').name;
      const k = read(g, 'K', 'b k h d', 'b h d k').name;
      const v = read(g, 'V', 'b k h e', 'b h e k').name;
      const keep = g.input('keep', 'bool', dims('b 1 q k')).name;
      const scores = g.op('Where', [keep, g.op('MatMul', [q, k]), g.tensor(g.type, [], [-1e10])]);
      const top = g.op('Identity', [g.op('ReduceMax', [scores], { axes: [-1], keepdims: 1 })]);
      const e = g.op('Exp', [g.op('Sub', [scores, top])]);
      const total = g.unsqueeze(g.op('ReduceSum', [e, g.ints([-1])], { keepdims: 0 }), [-1]);
      const p = g.op('Div', [e, total]);
      const flipped = g.op('MatMul', [v, g.op('Transpose', [p], { perm: [0, 1, 3, 2] })]);
      write(g, flipped, 'b h e q', 'b q h e');
    },
  },
  {
    name: 'Keras: (1 − mask) · −10⁹ added, scale on the query',
    build(g) {
      const q = read(g, 'Q', 'b q h d', 'b h q d');
      const scaled = g.op('Mul', [q.name, g.float(0.5)]);
      const k = read(g, 'K', 'b k h d', 'b h d k').name;
      const v = read(g, 'V', 'b k h e', 'b h k e').name;
      const mask = g.input('mask', 'int64', dims('b 1 1 k')).name;
      const off = g.op('Mul', [g.op('Sub', [g.float(1), to(g, mask, g.type)]), g.float(-1e9)]);
      const p = last(g, g.op('Add', [g.op('MatMul', [scaled, k]), off]));
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q h e');
    },
  },
  {
    name: 'softmax plus one, as a column of zeros: a sink of zero',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [q, k]);
      const rows = g.op('ReduceMax', [scores], { axes: [3], keepdims: 1 });
      const zeros = g.op('ConstantOfShape', [g.op('Shape', [rows])]);
      const p = last(g, g.op('Concat', [scores, zeros], { axis: 3 }));
      const kept = g.op('Slice', [p, g.ints([0]), g.ints([-1]), g.ints([3])]);
      write(g, g.op('MatMul', [kept, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'the log of the sum of exponentials, as an output beside',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)]);
      g.output(g.op('ReduceLogSumExp', [scores], { axes: [3], keepdims: 0 }));
      write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'ONNX Runtime’s fused product: scale and transposition in FusedMatMul',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const k = read(g, 'K', 'b k hd', 'b h k d').name;
      const v = read(g, 'V', 'b k he', 'b h k e').name;
      const scores = g.op('FusedMatMul', [q, k], { alpha: { float: 0.5 }, transB: 1 }, 1, 'com.microsoft');
      write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'GPT-J in float16: queries and keys widened before their product',
    type: 'float16',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Div', [
        g.op('MatMul', [to(g, q, 'float32'), to(g, k, 'float32')]),
        g.tensor('float32', [], [2]),
      ]);
      const p = to(g, last(g, scores), 'float16');
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'T5 in float16: bias of float16, softmax in float32',
    type: 'float16',
    build(g) {
      const [q, k, v] = plain(g);
      const bias = g.input('bias', g.type, dims('1 h q k')).name;
      const scores = g.op('Add', [g.op('MatMul', [q, k]), bias]);
      const p = to(g, last(g, to(g, scores, 'float32')), 'float16');
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'DETR: one head, rank 2, no batch',
    build(g) {
      const q = g.input('Q', g.type, dims('q d')).name;
      const k = g.op('Transpose', [g.input('K', g.type, dims('k d')).name], { perm: [1, 0] });
      const v = g.input('V', g.type, dims('k e')).name;
      g.output(g.op('MatMul', [last(g, g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)])), v]));
    },
  },
  {
    name: 'JAX: grouped queries in five dimensions, from a tensor that has them',
    sizes: { g: 3 },
    build(g) {
      const turn = g.input('turn', g.type, dims('q 1 1 d')).name;
      const q = g.op('Mul', [g.input('Q', g.type, dims('b q h g d')).name, turn]);
      const [k, v] = [g.input('K', g.type, dims('b k h d')).name, g.input('V', g.type, dims('b k h e')).name];
      const scores = g.op('Einsum', [q, k], { equation: 'bqhgd,bkhd->bhgqk' });
      g.output(g.op('Einsum', [last(g, scores), v], { equation: 'bhgqk,bkhe->bqhge' }));
    },
  },
  {
    name: 'MaxViT: a grid partition in seven dimensions before, and back after',
    sizes: { y: 2, x: 2, m: 2, n: 3, Y: 2, X: 2 },
    build(g) {
      const part = (name: string, wanted: string) => read(g, name, 'b my nx hd', wanted).name;
      const q = g.op('Mul', [part('Q', 'bmn h yx d'), g.float(0.5)]);
      const scores = g.op('MatMul', [q, part('K', 'bmn h d yx')]);
      const bias = g.input('bias', g.type, dims('h yx YX')).name;
      const p = last(g, g.op('Add', [scores, bias]));
      write(g, g.op('MatMul', [p, part('V', 'bmn h yx d')]), 'bmn h yx d', 'b my nx hd');
    },
  },
  {
    name: 'weights of eight bits: DequantizeLinear before the projections',
    self: true,
    build(g) {
      const x = g.input('X', g.type, dims('b q hd')).name;
      const codes = Array.from({ length: 64 }, (_, i) => ((i * 37) % 19) - 9);
      const projected = (scale: number) => {
        const weights = [g.tensor('int8', [8, 8], codes), g.tensor(g.type, [], [scale]), g.tensor('int8', [], [0])];
        return g.op('MatMul', [x, g.op('DequantizeLinear', weights)]);
      };
      const q = g.rearrange({ name: projected(0.02), dims: dims('b q hd') }, dims('b h q d')).name;
      const k = g.rearrange({ name: projected(0.03), dims: dims('b k hd') }, dims('b h d k')).name;
      const v = g.rearrange({ name: projected(0.05), dims: dims('b k he') }, dims('b h k e')).name;
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Linformer’s other side: values multiplied before the softmax are no attention',
    refused: 'not over a product',
    build(g) {
      const [q, k, v] = plain(g);
      const soft = last(g, q);
      const context = g.op('MatMul', [k, v]);
      write(g, g.op('MatMul', [soft, context]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'ConvBERT: a kernel that a softmax normalises',
    refused: 'not over one dimension of the product',
    build(g) {
      const x = g.input('X', g.type, dims('b q hd')).name;
      const weight = g.tensor(
        g.type,
        [8, 6],
        Array.from({ length: 48 }, (_, i) => Math.sin(i)),
      );
      const kernel = g.op('Reshape', [g.op('MatMul', [x, weight]), g.ints([-1, 3, 1])]);
      const unfolded = g.input('U', g.type, [['b', 'q', 'h'], ['d'], ['t']]);
      g.output(g.op('MatMul', [unfolded.name, last(g, kernel, 1)]));
    },
  },
  {
    name: 'talking heads after the softmax',
    refused: 'not summed over the keys',
    build(g) {
      const [q, k, v] = plain(g);
      const mix = g.input('mix', g.type, dims('h g')).name;
      const p = g.op('Einsum', [last(g, g.op('MatMul', [q, k])), mix], { equation: 'bhqk,hg->bgqk' });
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
    sizes: { g: 2 },
  },
  {
    name: 'dropout that is active',
    refused: 'Dropout',
    build(g) {
      const [q, k, v] = plain(g);
      const p = last(g, g.op('MatMul', [q, k]));
      const dropped = g.op('Dropout', [p, g.tensor('float32', [], [0.5]), g.tensor('bool', [], [1])]);
      write(g, g.op('MatMul', [dropped, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'a mask of the scores’ own largest, as top-k attention has',
    refused: 'decided from the scores',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [q, k]);
      const top = g.op('ReduceMax', [scores], { axes: [3], keepdims: 1 });
      const keep = g.op('Greater', [scores, g.op('Sub', [top, g.float(1)])]);
      const masked = g.op('Where', [keep, scores, g.tensor(g.type, [], [-Infinity])]);
      write(g, g.op('MatMul', [last(g, masked), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'soft mixtures of experts: the dispatch is a linear layer with a softmax over the positions',
    refused: 'linear layer',
    build(g) {
      const x = g.input('X', g.type, dims('b q d')).name;
      const slots = g.tensor(
        g.type,
        [4, 5],
        Array.from({ length: 20 }, (_, i) => Math.cos(i)),
      );
      const p = last(g, g.op('MatMul', [x, slots]), 1);
      g.output(g.op('MatMul', [g.op('Transpose', [p], { perm: [0, 2, 1] }), x]));
    },
  },
  {
    name: 'probabilities used for two sets of values',
    refused: 'also read by',
    build(g) {
      const [q, k, v] = plain(g);
      const p = last(g, g.op('MatMul', [q, k]));
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
      g.output(g.op('MatMul', [p, read(g, 'W', 'b k he', 'b h k e').name]));
    },
  },
];

testForms(FORMS);
