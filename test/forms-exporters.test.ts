/** Attention as other exporters than the corpus has write it: caches, guards, quantisation, float16, other frameworks. */

import { count, type Form, LOWEST, last, move, plain, read, testForms, to, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

const _parts = (g: FuzzGraph, x: string, axis: number, widths: readonly number[]) => {
  const first = g.op('Split', [x, g.ints(widths)], { axis }, widths.length);
  return widths.map((_, i) => (i === 0 ? first : `${first}_${i}`));
};
const transposed = (g: FuzzGraph, x: string, ...perm: number[]) => g.op('Transpose', [x], { perm });
const finish = (g: FuzzGraph, scores: string, v: string) =>
  write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
const _causal = (g: FuzzGraph, start?: string) => {
  const rows = start ? g.op('Add', [count(g, 'q'), start]) : count(g, 'q');
  return g.op('LessOrEqual', [g.unsqueeze(count(g, 'k'), [0, 1, 2]), g.unsqueeze(rows, [0, 1, 3])]);
};
const fill = (g: FuzzGraph, keep: string, lowest = LOWEST) => g.op('Where', [keep, g.float(0), g.float(lowest)]);

const FORMS: readonly Form[] = [
  {
    name: 'a static cache written by ScatterND, causality where the positions are',
    sizes: { k: 6, q: 2, g: 2 },
    becomes: 'additive(q,k) heads=4/2',
    build(g) {
      const q = read(g, 'Q', 'b q hgd', 'b hg q d').name;
      const position = g.input('position', 'int64', dims('q')).name;
      const update = (n: string) => {
        const first = transposed(g, g.input(`cache_${n}`, g.type, dims('b h k d')).name, 2, 1, 0, 3);
        const fresh = read(g, n, 'b q hd', 'q h b d').name;
        const all = transposed(g, g.op('ScatterND', [first, g.unsqueeze(position, [-1]), fresh]), 2, 1, 0, 3);
        g.output(all);
        const t = { name: g.unsqueeze(all, [2]), dims: dims('b h 1 k d') };
        return g.rearrange(g.widen(t, 2, ['g']), dims('b hg k d')).name;
      };
      const [k, v] = [update('K'), update('V')];
      const off = g.op('Greater', [count(g, 'k'), g.op('Reshape', [position, g.ints([-1, 1])])]);
      const lowest = g.op('Expand', [g.float(LOWEST), g.ints([2, 6])]);
      const mask = g.unsqueeze(g.op('Mul', [lowest, to(g, off, g.type)]), [0, 1]);
      const scores = g.op('Mul', [g.op('MatMul', [q, transposed(g, k, 0, 1, 3, 2)]), g.float(0.5)]);
      write(g, g.op('MatMul', [last(g, g.op('Add', [scores, mask])), v]), 'b hg q d', 'b q hgd');
    },
  },
  {
    name: 'a static cache written by Where, one query',
    sizes: { k: 6, q: 1 },
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const position = g.input('position', 'int64', dims('q')).name;
      const here = g.op('Equal', [g.op('Reshape', [count(g, 'k'), g.ints([1, 1, -1, 1])]), position]);
      const update = (n: string) => {
        const all = g.op('Where', [
          here,
          read(g, n, 'b q hd', 'b h q d').name,
          g.input(`cache_${n}`, g.type, dims('b h k d')).name,
        ]);
        g.output(all);
        return all;
      };
      const [k, v] = [update('K'), update('V')];
      const keep = g.op('LessOrEqual', [g.op('Reshape', [count(g, 'k'), g.ints([1, 1, 1, -1])]), position]);
      const scores = g.op('Mul', [g.op('MatMul', [q, transposed(g, k, 0, 1, 3, 2)]), g.float(0.5)]);
      write(g, g.op('MatMul', [last(g, g.op('Where', [keep, scores, g.float(LOWEST)])), v]), 'b h q d', 'b q hd');
    },
  },
  {
    name: 'a cache of the last keys only: joined, then cut to a window',
    sizes: { w: 4 },
    past: true,
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const join = (n: string) => {
        const all = g.op(
          'Concat',
          [g.input(`past_${n}`, g.type, dims('b h p d')).name, read(g, n, 'b q hd', 'b h q d').name],
          { axis: 2 },
        );
        const cut = g.op('Slice', [all, g.ints([-4]), g.ints([2 ** 31]), g.ints([2])]);
        g.output(cut);
        return cut;
      };
      const [k, v] = [join('K'), join('V')];
      finish(g, g.op('Mul', [g.op('MatMul', [q, transposed(g, k, 0, 1, 3, 2)]), g.float(0.5)]), v);
    },
  },
  {
    name: 'torch’s _safe_softmax: zeros where all scores of a row are −∞',
    mayEmptyRows: true,
    becomes: 'additive(b,q,k)',
    opset: 18,
    build(g) {
      const [q, k, v] = plain(g);
      const keep = g.input('keep', 'bool', dims('b 1 q k')).name;
      const scores = g.op('Add', [
        g.op('MatMul', [g.op('Mul', [q, g.float(0.7)]), g.op('Mul', [k, g.float(0.7)])]),
        fill(g, keep, -Infinity),
      ]);
      const p = last(g, scores);
      const some = g.op('Not', [g.op('Equal', [scores, g.float0(-Infinity)])]);
      const any = to(g, g.op('ReduceMax', [to(g, some, 'int64'), g.ints([-1])], { keepdims: 1 }), 'bool');
      const zeros = g.op('Expand', [g.float(0), g.op('Shape', [p])]);
      write(g, g.op('MatMul', [g.op('Where', [g.op('Not', [any]), zeros, p]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'a guard on rows that have a score of −∞ somewhere, not everywhere',
    mayEmptyRows: true,
    refused: 'Where',
    opset: 18,
    build(g) {
      const [q, k, v] = plain(g);
      const keep = g.input('keep', 'bool', dims('b 1 q k')).name;
      const scores = g.op('Add', [g.op('MatMul', [q, k]), fill(g, keep, -Infinity)]);
      const p = last(g, scores);
      const masked = g.op('Equal', [scores, g.float0(-Infinity)]);
      const any = to(g, g.op('ReduceMax', [to(g, masked, 'int64'), g.ints([-1])], { keepdims: 1 }), 'bool');
      write(g, g.op('MatMul', [g.op('Where', [any, g.float(0), p]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'nan_to_num after the softmax: NaN, ∞ and −∞ in turn',
    mayEmptyRows: true,
    build(g) {
      const [q, k, v] = plain(g);
      const keep = g.input('keep', 'bool', dims('b 1 1 k')).name;
      const p = last(g, g.op('Where', [keep, g.op('MatMul', [q, k]), g.float(-Infinity)]));
      const number = g.op('Where', [g.op('IsNaN', [p]), g.float(0), p]);
      const infinite = g.op('IsInf', [number]);
      const positive = g.op('And', [infinite, g.op('Greater', [number, g.float(0)])]);
      const below = g.op('Where', [positive, g.float(-LOWEST), number]);
      const negative = g.op('And', [g.op('IsInf', [below]), g.op('Less', [below, g.float(0)])]);
      write(g, g.op('MatMul', [g.op('Where', [negative, g.float(LOWEST), below]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'TensorFlow’s BERT: rows of all samples in one matrix, a mask made by a product',
    self: true,
    becomes: 'additive(b,k)',
    build(g) {
      const bias = g.tensor(g.type, [8], [1, 2, 1, 1, 0.5, 1, 1, 1]);
      const fold = (n: string) => {
        const rows = g.op('Reshape', [g.input(n, g.type, dims('b q hd')).name, g.ints([-1, 8])]);
        const sizes = ['b', 'q'].map((label) => g.unsqueeze(g.size([label]), [0]));
        const shape = g.op('Concat', [...sizes, g.ints([2, 4])], { axis: 0 });
        return transposed(g, g.op('Reshape', [g.op('Add', [rows, bias]), shape]), 0, 2, 1, 3);
      };
      const [q, k, v] = ['Q', 'K', 'V'].map(fold) as [string, string, string];
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, g.type), [1]);
      const shape = g.op('Concat', [g.unsqueeze(g.size(['b']), [0]), g.unsqueeze(g.size(['q']), [0]), g.ints([1])], {
        axis: 0,
      });
      const ones = g.op('ConstantOfShape', [shape]);
      const wide = g.op('Mul', [g.op('Add', [ones, g.float(1)]), mask]);
      const adder = g.op('Mul', [g.op('Sub', [g.float(1), g.unsqueeze(wide, [1])]), g.float(-1e4)]);
      const scores = g.op('Add', [
        g.op('Mul', [g.op('MatMul', [q, transposed(g, k, 0, 1, 3, 2)]), g.float(0.5)]),
        adder,
      ]);
      const y = transposed(g, g.op('MatMul', [last(g, scores), v]), 0, 2, 1, 3);
      g.output(g.op('Reshape', [y, g.ints([-1, 8])]));
    },
  },
  {
    name: 'Keras: einsums in the order of EinsumDense, a mask of −10⁹',
    build(g) {
      const q = g.op('Mul', [g.input('Q', g.type, dims('b q h d')).name, g.float(0.5)]);
      const [k, v] = [g.input('K', g.type, dims('b k h d')).name, g.input('V', g.type, dims('b k h e')).name];
      const scores = g.op('Einsum', [k, q], { equation: 'aecd,abcd->acbe' });
      const keep = to(g, g.input('keep', 'bool', dims('b 1 q k')).name, g.type);
      const added = g.op('Mul', [g.op('Sub', [g.float(1), keep]), g.float(-1e9)]);
      g.output(g.op('Einsum', [last(g, g.op('Add', [scores, added])), v], { equation: 'acbe,aecd->abcd' }));
    },
  },
  {
    name: 'jax2tf: the maximum and the sum broadcast before they are used',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [q, k]);
      const wide = (x: string) => g.op('Expand', [g.unsqueeze(x, [3]), g.op('Shape', [scores])]);
      const top = g.op('Max', [g.float(-Infinity), g.op('ReduceMax', [scores], { axes: [3], keepdims: 0 })]);
      const e = g.op('Exp', [g.op('Sub', [scores, wide(top)])]);
      const p = g.op('Div', [e, wide(g.op('ReduceSum', [e, g.ints([3])], { keepdims: 0 }))]);
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Paddle before opset 13: scale and offset of the keys’ transposed product, the softmax between transpositions',
    opset: 11,
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Add', [g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)]), g.float(0)]);
      const turned = transposed(g, scores, 0, 1, 3, 2);
      const back = transposed(g, last(g, transposed(g, turned, 0, 1, 3, 2), 3), 0, 1, 3, 2);
      write(g, g.op('MatMul', [transposed(g, back, 0, 1, 3, 2), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'ChatGLM: the layer’s number behind a mask of −10⁴, softmax in float32',
    type: 'float16',
    self: true,
    mayEmptyRows: true,
    build(g) {
      const q = g.op('Div', [read(g, 'Q', 'q b hd', 'bh q d').name, g.float(2 * 3)]);
      const [k, v] = [read(g, 'K', 'k b hd', 'bh d k').name, read(g, 'V', 'k b he', 'bh k e').name];
      const scores = move(g, g.op('MatMul', [q, k]), 'bh q k', 'b h q k');
      const off = g.input('off', 'bool', dims('b 1 q k')).name;
      const masked = to(g, g.op('Where', [off, g.float(-1e4), scores]), 'float32');
      const p = to(g, last(g, g.op('Mul', [masked, g.tensor('float32', [], [3])])), 'float16');
      write(g, g.op('MatMul', [move(g, p, 'b h q k', 'bh q k'), v]), 'bh q e', 'q b he');
    },
  },
  {
    name: 'float16: scores widened, a mask of float32, probabilities narrowed',
    type: 'float16',
    build(g) {
      const [q, k, v] = plain(g);
      const mask = g.input('mask', 'float32', dims('b 1 q k')).name;
      const wide = to(g, g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)]), 'float32');
      const p = to(g, last(g, g.op('Add', [wide, mask])), 'float16');
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'float16: scores widened, a mask of float32 that holds nothing but 0 and the lowest number',
    type: 'float16',
    mayEmptyRows: true,
    becomes: 'boolean(b,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const keep = g.input('keep', 'bool', dims('b 1 1 k')).name;
      const added = g.op('Where', [keep, g.tensor('float32', [], [0]), g.tensor('float32', [], [LOWEST])]);
      const p = to(g, last(g, g.op('Add', [to(g, g.op('MatMul', [q, k]), 'float32'), added])), 'float16');
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'float16: the mask added before the scores are widened, another one after',
    type: 'float16',
    refused: 'another data type',
    build(g) {
      const [q, k, v] = plain(g);
      const [first, second] = (['float16', 'float32'] as const).map(
        (type) => g.input(type, type, dims('b 1 q k')).name,
      );
      const wide = to(g, g.op('Add', [g.op('MatMul', [q, k]), first!]), 'float32');
      const p = to(g, last(g, g.op('Add', [wide, second!])), 'float16');
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'ONNX Runtime’s optimiser: sequences before the batch in FusedMatMul',
    build(g) {
      const q = g.rearrange(g.input('Q', g.type, dims('q b hd')), dims('q bh d')).name;
      const k = g.rearrange(g.input('K', g.type, dims('k b hd')), dims('k bh d')).name;
      const v = read(g, 'V', 'k b he', 'bh k e').name;
      const scores = g.op(
        'FusedMatMul',
        [q, k],
        { alpha: { float: 0.5 }, transBatchA: 1, transBatchB: 1, transB: 1 },
        1,
        'com.microsoft',
      );
      write(g, g.op('MatMul', [last(g, scores), v]), 'bh q e', 'q b he');
    },
  },
  {
    name: 'ONNX Runtime’s optimiser: sequences before the batch of the values in FusedMatMul',
    build(g) {
      const q = read(g, 'Q', 'q b hd', 'bh q d').name;
      const k = read(g, 'K', 'k b hd', 'bh d k').name;
      const v = g.rearrange(g.input('V', g.type, dims('k b he')), dims('k bh e')).name;
      const p = last(g, g.op('MatMul', [q, k]));
      write(g, g.op('FusedMatMul', [p, v], { transBatchB: 1 }, 1, 'com.microsoft'), 'bh q e', 'q b he');
    },
  },
  {
    name: 'dynamically quantised projections, as transformers.js ships them',
    self: true,
    build(g) {
      const x = g.input('X', g.type, dims('b q hd')).name;
      const codes = Array.from({ length: 64 }, (_, i) => ((i * 37) % 19) + 118);
      const first = g.op('DynamicQuantizeLinear', [x], {}, 3);
      const projected = (scale: number) => {
        const product = g.op('MatMulInteger', [
          first,
          g.tensor('uint8', [8, 8], codes),
          `${first}_2`,
          g.tensor('uint8', [], [128]),
        ]);
        const factor = g.op('Mul', [`${first}_1`, g.float0(scale)]);
        const bias = g.tensor(g.type, [8], [1, 0, 0, -1, 0, 0.5, 0, 0]);
        return { name: g.op('Add', [g.op('Mul', [to(g, product, g.type), factor]), bias]), dims: dims('b q hd') };
      };
      const q = g.rearrange(projected(0.02), dims('b h q d')).name;
      const k = g.rearrange(projected(0.03), dims('b h d q')).name;
      const v = g.rearrange(projected(0.05), dims('b h q d')).name;
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'b h q d', 'b q hd');
    },
  },
  {
    name: 'weights of four bits: MatMulNBits before',
    self: true,
    build(g) {
      const x = g.input('X', g.type, [['b'], ['q'], ['w']]).name;
      const codes = Array.from({ length: 8 * 16 }, (_, i) => (i * 37) % 256);
      const projected = (scale: number) => {
        const scales = g.tensor(g.type, [8], Array(8).fill(scale));
        const attributes = { K: 32, N: 8, bits: 4, block_size: 32 };
        const name = g.op(
          'MatMulNBits',
          [x, g.tensor('uint8', [8, 1, 16], codes), scales],
          attributes,
          1,
          'com.microsoft',
        );
        return { name, dims: dims('b q hd') };
      };
      const q = g.rearrange(projected(0.02), dims('b h q d')).name;
      const k = g.rearrange(projected(0.03), dims('b h d q')).name;
      const v = g.rearrange(projected(0.05), dims('b h q d')).name;
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'b h q d', 'b q hd');
    },
    sizes: { w: 32 },
  },
  {
    name: 'a quantised product of queries and keys',
    refused: 'DynamicQuantizeLinear',
    build(g) {
      const [q, k, v] = plain(g);
      const [a, b] = [q, k].map((x) => g.op('DynamicQuantizeLinear', [x], {}, 3)) as [string, string];
      const product = to(g, g.op('MatMulInteger', [a, b, `${a}_2`, `${b}_2`]), g.type);
      const scores = g.op('Mul', [product, g.op('Mul', [`${a}_1`, `${b}_1`])]);
      finish(g, scores, v);
    },
  },
  {
    name: 'scores rounded to eight bits and back',
    refused: 'DequantizeLinear',
    build(g) {
      const [q, k, v] = plain(g);
      const scale = [g.float0(0.05), g.tensor('uint8', [], [128])];
      const codes = g.op('QuantizeLinear', [g.op('MatMul', [q, k]), ...scale]);
      finish(g, g.op('DequantizeLinear', [codes, ...scale]), v);
    },
  },
  {
    name: 'probabilities rounded to eight bits and back',
    refused: 'QuantizeLinear',
    build(g) {
      const [q, k, v] = plain(g);
      const scale = [g.float0(1 / 255), g.tensor('uint8', [], [0])];
      const codes = g.op('QuantizeLinear', [last(g, g.op('MatMul', [q, k])), ...scale]);
      write(g, g.op('MatMul', [g.op('DequantizeLinear', [codes, ...scale]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'queries, keys and values rounded to eight bits and back',
    build(g) {
      const rounded = plain(g).map((x) => {
        const scale = [g.float0(0.02), g.tensor('uint8', [], [128])];
        return g.op('DequantizeLinear', [g.op('QuantizeLinear', [x, ...scale]), ...scale]);
      }) as [string, string, string];
      finish(g, g.op('MatMul', [rounded[0], rounded[1]]), rounded[2]);
    },
  },
  {
    name: 'linear attention whose weights have eight bits',
    refused: 'linear layer',
    build(g) {
      const x = g.input('X', g.type, dims('b k d')).name;
      const codes = Array.from({ length: 16 }, (_, i) => ((i * 7) % 19) - 9);
      const weight = g.op('DequantizeLinear', [
        g.tensor('int8', [4, 4], codes),
        g.float0(0.1),
        g.tensor('int8', [], [0]),
      ]);
      const k = last(g, g.op('MatMul', [x, weight]), 1);
      g.output(g.op('MatMul', [transposed(g, k, 0, 2, 1), g.input('V', g.type, dims('b k e')).name]));
    },
  },
  {
    name: 'external attention: keys and values that are weights of sixteen bits',
    refused: 'constants of the model',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const weight = (n: number) =>
        to(
          g,
          g.tensor(
            'float16',
            [4, 4],
            Array.from({ length: 16 }, (_, i) => Math.sin(i * n)),
          ),
          'float32',
        );
      finish(g, g.op('MatMul', [q, weight(1)]), weight(2));
    },
  },
  {
    name: 'MXNet: queries, keys and values interleaved in each head, sequence first',
    self: true,
    sizes: { P: 3 },
    build(g) {
      const x = g.op('Reshape', [g.input('X', g.type, dims('q b hPd')).name, g.ints([0, 0, 2, 3, 4])]);
      const size = (label: string) => g.unsqueeze(g.size([label]), [0]);
      const part = (i: number) => {
        const one = transposed(g, g.op('Gather', [x, g.tensor('int64', [], [i])], { axis: 3 }), 1, 2, 0, 3);
        return g.op('Reshape', [one, g.op('Concat', [g.ints([-1]), size('q'), g.ints([4])], { axis: 0 })]);
      };
      const p = last(g, g.op('MatMul', [g.op('Div', [part(0), g.float(2)]), transposed(g, part(1), 0, 2, 1)]));
      const heads = g.op('Concat', [g.ints([-1, 2]), size('q'), g.ints([4])], { axis: 0 });
      const y = transposed(g, g.op('Reshape', [g.op('MatMul', [p, part(2)]), heads]), 2, 0, 1, 3);
      g.output(g.op('Reshape', [y, g.ints([0, 0, 8])]));
    },
  },
  {
    name: 'ONNX Runtime’s optimiser: projections in DynamicQuantizeMatMul',
    self: true,
    build(g) {
      const x = g.input('X', g.type, dims('b q hd')).name;
      const codes = Array.from({ length: 64 }, (_, i) => ((i * 37) % 19) + 118);
      const projected = (scale: number) => {
        const weights = [
          g.tensor('uint8', [8, 8], codes),
          g.tensor(g.type, [1], [scale]),
          g.tensor('uint8', [1], [128]),
        ];
        const name = g.op('DynamicQuantizeMatMul', [x, ...weights], {}, 1, 'com.microsoft');
        return { name, dims: dims('b q hd') };
      };
      const q = g.rearrange(projected(0.02), dims('b h q d')).name;
      const k = g.rearrange(projected(0.03), dims('b h d q')).name;
      const v = g.rearrange(projected(0.05), dims('b h q d')).name;
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'b h q d', 'b q hd');
    },
  },
  {
    name: 'ONNX Runtime’s optimiser: the scale and the transposition of two matrices in Gemm',
    build(g) {
      const [q, k] = [g.input('Q', g.type, dims('q d')).name, g.input('K', g.type, dims('k d')).name];
      const p = last(g, g.op('Gemm', [q, k], { transB: 1, alpha: { float: 0.5 } }));
      g.output(g.op('MatMul', [p, g.input('V', g.type, dims('k e')).name]));
    },
  },
  {
    name: 'Keras: learned queries, projected where they are used, second in their einsum',
    build(g) {
      const numbers = (n: number) => Array.from({ length: n }, (_, i) => Math.sin(i + n));
      const latents = g.op('MatMul', [g.tensor(g.type, [3, 8], numbers(24)), g.tensor(g.type, [8, 8], numbers(64))]);
      const [k, v] = [g.input('K', g.type, dims('b k h d')).name, g.input('V', g.type, dims('b k h e')).name];
      const shape = g.op('Concat', [g.unsqueeze(g.size(['b']), [0]), g.ints([1, 1, 1])], { axis: 0 });
      const q = g.op('Expand', [g.op('Reshape', [latents, g.ints([1, 3, 2, 4])]), shape]);
      const scores = g.op('Einsum', [k, g.op('Mul', [q, g.float(0.5)])], { equation: 'aecd,abcd->acbe' });
      g.output(g.op('Einsum', [last(g, scores), v], { equation: 'acbe,aecd->abcd' }));
    },
  },
  {
    name: 'a router whose weights an einsum reads',
    refused: 'linear layer',
    build(g) {
      const x = g.input('X', g.type, dims('b k d')).name;
      const weight = to(g, g.tensor('float16', [4, 3], [1, 2, 3, 1, 0, 1, -1, 2, 0, 0.5, 1, 2]), 'float32');
      const p = last(g, g.op('Einsum', [x, weight], { equation: 'bkd,dn->bkn' }), 1);
      g.output(g.op('Einsum', [p, x], { equation: 'bkn,bkd->bnd' }));
    },
  },
];

testForms(FORMS);
