/** Attention of language models that are not in the corpus. */

import {
  count,
  type Form,
  LOWEST,
  last,
  move,
  plain,
  read,
  readShared,
  slice,
  testForms,
  to,
  write,
  zero,
} from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

/** Causality as BERT's decoders write it: (b, 1, q, k), of a type. */
function seen(g: FuzzGraph, type: 'float32' | 'int64' | 'bool'): string {
  const rows = g.unsqueeze(count(g, 'q'), [0, 1, 3]);
  const columns = g.unsqueeze(count(g, 'k'), [0, 1, 2]);
  const causal = g.op('LessOrEqual', [columns, rows]);
  return type === 'bool' ? causal : to(g, causal, type);
}

/** (1 − mask) · lowest */
function extended(g: FuzzGraph, mask: string, fill = LOWEST): string {
  return g.op('Mul', [g.op('Sub', [g.float(1), mask]), g.float(fill)]);
}

/** As `_make_causal_mask` and `_expand_mask` of transformers before 4.35 have them. */
const causalFill = (g: FuzzGraph) => g.op('Where', [seen(g, 'bool'), g.float(0), g.float(LOWEST)]);

function finish(g: FuzzGraph, scores: string, v: string): void {
  write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
}

const FORMS: readonly Form[] = [
  {
    name: 'LayoutLMv3: the softmax of CogView, with two relative terms',
    self: true,
    becomes: 'additive(b,h,q,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [g.op('Div', [q, g.float(2)]), k]);
      const relative = ['rel', 'rel2d'].map((name) => g.input(name, g.type, dims('b h q k')).name);
      const terms = g.op('Div', [g.op('Add', relative), g.float(2)]);
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, g.type), [1, 2]);
      const masked = g.op('Add', [g.op('Add', [scores, terms]), extended(g, mask)]);
      const scaled = g.op('Div', [masked, g.float(32)]);
      const top = g.unsqueeze(g.op('ReduceMax', [scaled], { axes: [-1], keepdims: 0 }), [-1]);
      finish(g, g.op('Mul', [g.op('Sub', [scaled, top]), g.float(32)]), v);
    },
  },
  {
    name: 'BLIP: (1 − causal · mask) · −10⁴ of an integer mask',
    self: true,
    becomes: 'additive(b,q,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const mask = g.unsqueeze(g.input('mask', 'int64', dims('b k')).name, [1, 2]);
      const both = to(g, g.op('Mul', [seen(g, 'int64'), mask]), g.type);
      const scores = g.op('Div', [g.op('MatMul', [q, k]), g.float(2)]);
      finish(g, g.op('Add', [scores, extended(g, both, -1e4)]), v);
    },
  },
  {
    name: 'BERT’s decoders: (1 − causal · mask) · lowest of a mask in floats',
    self: true,
    becomes: 'causal additive(b,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const mask = to(g, g.unsqueeze(g.input('mask', 'int64', dims('b k')).name, [1, 2]), g.type);
      const both = g.op('Mul', [seen(g, 'float32'), mask]);
      finish(g, g.op('Add', [g.op('MatMul', [q, k]), extended(g, both)]), v);
    },
  },
  {
    name: 'BART before 4.35: the lowest number twice, from causality and from padding',
    self: true,
    build(g) {
      const [q, k, v] = plain(g);
      const mask = to(g, g.unsqueeze(g.input('mask', 'int64', dims('b k')).name, [1, 2]), g.type);
      const off = g.op('Sub', [g.float(1), mask]);
      const padding = g.op('Where', [to(g, off, 'bool'), g.float(LOWEST), off]);
      const bias = g.op('Add', [padding, causalFill(g)]);
      finish(g, g.op('Add', [g.op('MatMul', [q, k]), bias]), v);
    },
  },
  {
    name: 'XGLM and TrOCR: padding written as 1 − mask over all queries, then put into causality',
    self: true,
    becomes: 'causal boolean(b,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const mask = g.unsqueeze(g.input('mask', 'int64', dims('b k')).name, [1, 2]);
      const sizes = [
        g.unsqueeze(g.size(['b']), [0]),
        g.ints([1]),
        ...['q', 'k'].map((l) => g.unsqueeze(g.size([l]), [0])),
      ];
      const wide = g.op('Expand', [mask, g.op('Concat', sizes, { axis: 0 })]);
      const off = g.op('Sub', [g.float(1), to(g, wide, g.type)]);
      const padding = g.op('Where', [to(g, off, 'bool'), g.float(LOWEST), off]);
      const bias = g.op('Where', [to(g, padding, 'bool'), g.float(LOWEST), causalFill(g)]);
      finish(g, g.op('Add', [g.op('MatMul', [q, k]), bias]), v);
    },
  },
  {
    name: 'Falcon: ALiBi from the mask before the scale, one key head for all',
    self: true,
    becomes: 'causal additive(b,h,k) heads=2/1',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const k = readShared(g, 'K', 'b k d', 'b 1 k d');
      const v = readShared(g, 'V', 'b k e', 'b 1 k e');
      const scores = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
      const slopes = g.tensor(g.type, [1, 2, 1, 1], [0.5, 0.25]);
      const positions = g.op('CumSum', [g.input('mask', 'int64', dims('b k')).name, g.tensor('int64', [], [-1])]);
      const alibi = g.op('Mul', [slopes, g.unsqueeze(to(g, positions, g.type), [1, 2])]);
      const scaled = g.op('Mul', [g.op('Add', [scores, alibi]), g.float(0.5)]);
      finish(g, g.op('Add', [scaled, causalFill(g)]), v);
    },
  },
  {
    name: 'GPT-OSS: a sink joined, the maximum of both taken off, a causal window',
    self: true,
    becomes: 'causal left=1 boolean(b,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const rows = g.unsqueeze(count(g, 'q'), [0, 1, 3]);
      const columns = g.unsqueeze(count(g, 'k'), [0, 1, 2]);
      const near = g.op('Greater', [columns, g.op('Sub', [rows, g.tensor('int64', [], [2])])]);
      const band = g.op('And', [near, g.op('LessOrEqual', [columns, rows])]);
      const keep = g.op('And', [band, g.unsqueeze(g.input('keep', 'bool', dims('b k')).name, [1, 2])]);
      const added = g.op('Where', [keep, g.float(0), g.float(LOWEST)]);
      const scores = g.op('Add', [g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)]), added]);
      const sinks = g.op('Reshape', [g.input('sinks', g.type, dims('h')).name, g.ints([1, -1, 1, 1])]);
      const sizes = ['b', 'h', 'q'].map((l) => g.unsqueeze(g.size([l]), [0]));
      const shape = g.op('Concat', [...sizes, g.ints([1])], { axis: 0 });
      const all = g.op('Concat', [scores, g.op('Expand', [sinks, shape])], { axis: -1 });
      const less = g.op('Sub', [all, g.op('ReduceMax', [all], { axes: [-1], keepdims: 1 })]);
      const p = g.op('Slice', [last(g, less), g.ints([0]), g.ints([-1]), g.ints([3])]);
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'LongT5: blocks of keys, einsums with an ellipsis',
    sizes: { w: 2 },
    build(g) {
      const [q, k] = [g.input('Q', g.type, dims('b w q h d')).name, g.input('K', g.type, dims('b w k h d')).name];
      const v = g.input('V', g.type, dims('b w k h e')).name;
      const scores = g.op('Einsum', [q, k], { equation: '...qhd,...khd->...hqk' });
      const bias = g.input('bias', g.type, dims('1 1 h q k')).name;
      const p = last(g, g.op('Add', [scores, bias]));
      g.output(g.op('Einsum', [p, v], { equation: '...hqk,...khd->...qhd' }));
    },
  },
  {
    name: 'Llama 4: causal within chunks',
    self: true,
    becomes: 'causal boolean(q,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const chunk = (label: string, axes: number[]) =>
        g.unsqueeze(g.op('Div', [count(g, label), g.tensor('int64', [], [2])]), axes);
      const same = g.op('Equal', [chunk('q', [0, 1, 3]), chunk('k', [0, 1, 2])]);
      const keep = g.op('And', [same, seen(g, 'bool')]);
      const added = g.op('Where', [keep, g.float(0), g.float(LOWEST)]);
      finish(g, g.op('Add', [g.op('MatMul', [q, k]), added]), v);
    },
  },
  {
    name: 'Grounding DINO: one product for both directions, clamped, less its maximum',
    mayEmptyRows: true,
    becomes: 'boolean(b,k); boolean(b,k)',
    becomesApart: 'boolean(b,h,q,k); boolean(b,h,q,k)',
    build(g) {
      const clamp = (x: string) => g.op('Clip', [x, g.float0(-5e4), g.float0(5e4)]);
      const q = read(g, 'Q', 'b q hd', 'bh q d').name;
      const k = read(g, 'K', 'b k hd', 'bh d k').name;
      const raw = g.op('MatMul', [q, k]);
      const scores = clamp(g.op('Sub', [raw, g.op('ReduceMax', [raw], { keepdims: 0 })]));
      const turned = g.op('Transpose', [scores], { perm: [0, 2, 1] });
      const top = g.op('ReduceMax', [turned], { axes: [-1], keepdims: 1 });
      const other = clamp(g.op('Sub', [turned, top]));
      const side = (x: string, name: string, is: string, queries: string, value: string) => {
        const off = g.unsqueeze(g.input(name, 'bool', dims(`b ${is}`)).name, [1, 2]);
        const wide = g.op('Expand', [
          off,
          g.op(
            'Concat',
            ['b', 'h', queries, is].map((l) => g.unsqueeze(g.size([l]), [0])),
            { axis: 0 },
          ),
        ]);
        const folded = g.op('Reshape', [
          wide,
          g.op('Concat', [g.ints([-1]), g.unsqueeze(g.size([queries]), [0]), g.unsqueeze(g.size([is]), [0])], {
            axis: 0,
          }),
        ]);
        const p = last(g, g.op('Where', [folded, g.float(-Infinity), x]));
        const v = read(g, value, `b ${is} he`, `bh ${is} e`).name;
        write(g, g.op('MatMul', [p, v]), `bh ${queries} e`, `b ${queries} he`);
      };
      side(other, 'offQ', 'q', 'k', 'VQ');
      side(scores, 'offK', 'k', 'q', 'VK');
    },
  },
  {
    name: 'wav2vec2-BERT: a product with relative keys, second',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h d k').name, read(g, 'V', 'b k he', 'b h k e').name];
      const positions = g.input('R', g.type, dims('q k d')).name;
      const relative = g.op('Einsum', [q, positions], { equation: 'bhld,lrd->bhlr' });
      const scores = g.op('Div', [g.op('MatMul', [q, k]), g.float(2)]);
      finish(g, g.op('Add', [scores, g.op('Div', [relative, g.float(2)])]), v);
    },
  },
  {
    name: 'wav2vec2-BERT: a product with relative keys, first',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h d k').name, read(g, 'V', 'b k he', 'b h k e').name];
      const positions = g.input('R', g.type, dims('q k d')).name;
      const relative = g.op('Einsum', [q, positions], { equation: 'bhld,lrd->bhlr' });
      const scores = g.op('Div', [g.op('MatMul', [q, k]), g.float(2)]);
      finish(g, g.op('Add', [g.op('Div', [relative, g.float(2)]), scores]), v);
    },
  },
  {
    name: 'BERT with relative keys and queries',
    self: true,
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h k d').name, read(g, 'V', 'b k he', 'b h k e').name];
      const positions = g.input('R', g.type, dims('q k d')).name;
      const ofQueries = g.op('Einsum', [q, positions], { equation: 'bhld,lrd->bhlr' });
      const ofKeys = g.op('Einsum', [k, positions], { equation: 'bhrd,lrd->bhlr' });
      const scores = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
      const sum = g.op('Add', [g.op('Add', [scores, ofQueries]), ofKeys]);
      const mask = g.input('mask', g.type, dims('b 1 1 k')).name;
      finish(g, g.op('Add', [g.op('Div', [sum, g.float(2)]), mask]), v);
    },
  },
  {
    name: 'a decoder with a cache: keys of the encoder come as they were kept',
    build(g) {
      const q = g.op('Mul', [read(g, 'Q', 'b q hd', 'b h q d').name, g.float(0.5)]);
      const [k, v] = [
        g.input('past_key', g.type, dims('b h k d')).name,
        g.input('past_value', g.type, dims('b h k e')).name,
      ];
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, 'bool'), [1, 2]);
      const added = g.op('Where', [mask, g.float(0), g.float(LOWEST)]);
      const scores = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
      finish(g, g.op('Add', [scores, added]), v);
    },
  },
  {
    name: 'GPT-Neo: a band of a buffer of booleans, cut where the queries stand',
    past: true,
    becomes: 'causal left=2',
    becomesApart: 'boolean(q,k)',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const join = (name: string, width: string) => {
        const past = g.input(`past_${name}`, g.type, dims(`b h p ${width}`)).name;
        const joined = g.op('Concat', [past, read(g, name, `b q h${width}`, `b h q ${width}`).name], { axis: 2 });
        g.output(joined);
        return joined;
      };
      const [k, v] = [join('K', 'd'), join('V', 'e')];
      g.setHome('k', { name: k, dims: dims('b h k d') });
      const n = 16;
      const band = Array.from({ length: n * n }, (_, i) => {
        const distance = Math.floor(i / n) - (i % n);
        return distance >= 0 && distance < 3 ? 1 : 0;
      });
      const buffer = g.tensor('bool', [1, 1, n, n], band);
      const start = g.op('Sub', [g.size(['k']), g.size(['q'])]);
      const rows = slice(g, buffer, 2, start, g.size(['k']));
      const keep = slice(g, rows, 3, zero(g), g.size(['k']));
      const scores = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
      finish(g, g.op('Where', [keep, scores, g.float(LOWEST)]), v);
    },
  },
  {
    name: 'a triangle of a buffer, cut where the queries stand, twice; no dimension has a name in common',
    past: true,
    ownNames: true,
    mayEmptyRows: true,
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const join = (name: string, width: string) => {
        const past = g.input(`past_${name}`, g.type, dims(`b h p ${width}`)).name;
        return g.op('Concat', [past, read(g, name, `b q h${width}`, `b h q ${width}`).name], { axis: 2 });
      };
      const [k, v] = [join('K', 'd'), join('V', 'e')];
      g.setHome('k', { name: k, dims: dims('b h k d') });
      const n = 12;
      const triangle = Array.from({ length: n * n }, (_, i) => (i % n <= Math.floor(i / n) ? 1 : 0));
      const buffer = g.tensor('bool', [n, n], triangle);
      const rows = slice(g, buffer, 0, g.op('Sub', [g.size(['k']), g.size(['q'])]), g.size(['k']));
      const cut = g.unsqueeze(slice(g, rows, 1, zero(g), g.size(['k'])), [1]);
      const kept = g.op('Gather', [g.op('Shape', [cut]), g.ints([2])]);
      const shape = g.op('Concat', [g.ints([1, 1]), g.unsqueeze(g.size(['q']), [0]), kept], { axis: 0 });
      const keep = g.op('Reshape', [g.op('Expand', [cut, g.ints([1, 1, 1])]), shape]);
      const product = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
      const once = g.op('Add', [product, g.op('Where', [keep, g.float(0), g.float(LOWEST)])]);
      finish(g, g.op('Add', [once, causalFill(g)]), v);
    },
  },
  {
    name: 'DeBERTa before 4.47 and SEW-D: zeros put where the mask was, after the softmax',
    becomes: 'boolean(b,q,k)',
    mayEmptyRows: true,
    build(g) {
      const [q, k, v] = plain(g);
      const mask = g.input('keep', 'bool', dims('b 1 q k')).name;
      const off = to(g, g.op('Sub', [g.tensor('int64', [], [1]), to(g, mask, 'int64')]), 'bool');
      const p = last(g, g.op('Where', [off, g.float(LOWEST), g.op('MatMul', [q, k])]));
      write(g, g.op('MatMul', [g.op('Where', [off, g.float(0), p]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'NeMo and ESPnet: −10⁴ before, zeros after the softmax where the mask was',
    mayEmptyRows: true,
    becomes: 'boolean(b,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const off = g.unsqueeze(g.input('off', 'bool', dims('b k')).name, [1, 2]);
      const p = last(g, g.op('Where', [off, g.float(-1e4), g.op('MatMul', [q, k])]));
      write(g, g.op('MatMul', [g.op('Where', [off, g.float(0), p]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Flux: keys and values of text joined with those of an image',
    past: true,
    build(g) {
      const part = (name: string, label: string, width: string) =>
        g.op('Mul', [
          read(g, name, `b ${label} h${width}`, `b h ${label} ${width}`).name,
          g.input(`g${name}`, g.type, dims(width)).name,
        ]);
      const joined = (name: string, width: string) =>
        g.op('Concat', [part(`text${name}`, 'p', width), part(name, 'q', width)], { axis: 2 });
      const [q, k, v] = [joined('Q', 'd'), joined('K', 'd'), joined('V', 'e')];
      const root = g.float(Math.sqrt(0.5));
      const scores = g.op('MatMul', [
        g.op('Mul', [q, root]),
        g.op('Mul', [g.op('Transpose', [k], { perm: [0, 1, 3, 2] }), root]),
      ]);
      const y = move(g, g.op('MatMul', [last(g, scores), v]), 'b h k e', 'b k he');
      g.output(slice(g, y, 1, zero(g), g.size(['p'])));
      g.output(slice(g, y, 1, g.size(['p']), g.tensor('int64', [], [2 ** 31])));
    },
  },
  {
    name: 'Starcoder: one key head, broadcast by the product',
    self: true,
    becomes: 'causal heads=2/1',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const k = read(g, 'K', 'b k d', 'b 1 d k').name;
      const v = read(g, 'V', 'b k e', 'b 1 k e').name;
      finish(g, g.op('Add', [g.op('MatMul', [q, k]), causalFill(g)]), v);
    },
  },
  {
    name: 'XLM: the lowest number where a repeated mask is zero',
    becomes: 'boolean(b,k)',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [g.op('Div', [q, g.float(2)]), k]);
      const mask = g.input('mask', 'int64', dims('b k')).name;
      const off = g.op('Equal', [mask, zero(g)]);
      const view = g.op('Reshape', [
        off,
        g.op('Concat', [g.unsqueeze(g.size(['b']), [0]), g.ints([1, 1]), g.unsqueeze(g.size(['k']), [0])], { axis: 0 }),
      ]);
      const wide = g.op('Expand', [view, g.op('Shape', [scores])]);
      finish(g, g.op('Where', [wide, g.float(LOWEST), scores]), v);
    },
  },
  {
    name: 'CTRL: a triangle of ones times −10⁴',
    self: true,
    becomes: 'causal',
    opset: 14,
    build(g) {
      const [q, k, v] = plain(g);
      const n = g.unsqueeze(g.size(['q']), [0]);
      const shape = g.op('Concat', [n, n], { axis: 0 });
      const ones = g.op('Expand', [g.float(1), shape]);
      const triangle = g.op('Trilu', [ones, g.tensor('int64', [], [1])], { upper: 1 });
      const scores = g.op('Div', [g.op('MatMul', [q, k]), g.float(2)]);
      finish(g, g.op('Add', [scores, g.op('Mul', [triangle, g.float(-1e4)])]), v);
    },
  },
];

testForms(FORMS);
