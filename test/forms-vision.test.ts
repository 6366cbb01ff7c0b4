/** Attention of image and video models, and of generators of images, that are not in the corpus. */

import { type Form, LOWEST, last, move, plain, read, testForms, to, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

const parts = (g: FuzzGraph, x: string, axis: number, n: number) =>
  Array.from({ length: n }, (_, i) => g.op('Gather', [x, g.tensor('int64', [], [i])], { axis }));

const FORMS: readonly Form[] = [
  {
    name: 'Hiera: heads before windows in five dimensions, packed, queries pooled',
    sizes: { w: 3, s: 2, P: 3 },
    build(g) {
      const packed = g.input('packed', g.type, dims('b qw Phd'));
      const split = g.op('Reshape', [packed.name, g.ints([0, -1, 3, 3, 2, 4])]);
      const moved = g.op('Transpose', [split], { perm: [3, 0, 4, 2, 1, 5] });
      const [q, k, v] = parts(g, moved, 0, 3) as [string, string, string];
      g.setHome('k', { name: q, dims: dims('b h w k d') });
      const scores = g.op('MatMul', [
        g.op('Mul', [q, g.float(0.5)]),
        g.op('Transpose', [k], { perm: [0, 1, 2, 4, 3] }),
      ]);
      const y = g.op('Transpose', [g.op('MatMul', [last(g, scores), v])], { perm: [0, 3, 2, 1, 4] });
      g.output(g.op('Reshape', [y, g.ints([0, -1, 8])]));
    },
  },
  {
    name: 'NesT: blocks after heads in five dimensions, packed',
    sizes: { w: 3, P: 3 },
    build(g) {
      const packed = g.input('packed', g.type, dims('b w q Phd'));
      const split = g.op('Reshape', [packed.name, g.ints([0, 0, 0, 3, 2, 4])]);
      const moved = g.op('Transpose', [split], { perm: [3, 0, 4, 1, 2, 5] });
      const [q, k, v] = parts(g, moved, 0, 3) as [string, string, string];
      const scores = g.op('Mul', [
        g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 2, 4, 3] })]),
        g.float(0.5),
      ]);
      const y = g.op('Transpose', [g.op('MatMul', [last(g, scores), v])], { perm: [0, 2, 3, 4, 1] });
      g.output(g.op('Reshape', [y, g.ints([0, 0, 0, 8])]));
    },
  },
  {
    name: 'Twins: windows before heads in six dimensions, packed',
    sizes: { w: 2, x: 3, P: 3 },
    build(g) {
      const packed = g.input('packed', g.type, dims('b w x q Phd'));
      const split = g.op('Reshape', [packed.name, g.ints([0, 6, -1, 3, 2, 4])]);
      const moved = g.op('Transpose', [split], { perm: [3, 0, 1, 4, 2, 5] });
      const [q, k, v] = parts(g, moved, 0, 3) as [string, string, string];
      const scores = g.op('Mul', [
        g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 2, 4, 3] })]),
        g.float(0.5),
      ]);
      const y = g.op('Transpose', [g.op('MatMul', [last(g, scores), v])], { perm: [0, 1, 3, 2, 4] });
      g.output(g.op('Reshape', [y, g.ints([0, 6, -1, 8])]));
    },
  },
  {
    name: 'CoAtNet in timm: channels first, packed inside each head, values times transposed probabilities',
    self: true,
    sizes: { P: 3 },
    build(g) {
      const packed = g.input('packed', g.type, dims('b hPd q'));
      const split = g.op('Reshape', [packed.name, g.ints([0, 2, 12, -1])]);
      const [q, k, v] = g.splitEvenly(split, 2, 3, 4, 0) as [string, string, string];
      const scores = g.op('Mul', [g.op('MatMul', [g.op('Transpose', [q], { perm: [0, 1, 3, 2] }), k]), g.float(0.5)]);
      const bias = g.input('bias', g.type, dims('1 h q k')).name;
      const p = last(g, g.op('Add', [scores, bias]));
      const y = g.op('MatMul', [v, g.op('Transpose', [p], { perm: [0, 1, 3, 2] })]);
      g.output(g.op('Reshape', [y, g.ints([0, 8, -1])]));
    },
  },
  {
    name: 'CvT: einsums over four dimensions',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h k d').name, read(g, 'V', 'b k he', 'b h k e').name];
      const scores = g.op('Mul', [g.op('Einsum', [q, k], { equation: 'bhlk,bhtk->bhlt' }), g.float(0.5)]);
      const y = g.op('Einsum', [last(g, scores), v], { equation: 'bhlt,bhtv->bhlv' });
      write(g, y, 'b h q e', 'b q he');
    },
  },
  {
    name: 'DaViT: attention among channels, a scale from the number of positions',
    sizes: { d: 4 },
    build(g) {
      const own = read(g, 'Q', 'b k hd', 'b h k d').name;
      const n = to(g, g.size(['k']), g.type);
      const q = g.op('Mul', [own, g.op('Pow', [n, g.float0(-0.5)])]);
      const [k, v] = [read(g, 'K', 'b k hd', 'b h k d').name, read(g, 'V', 'b k he', 'b h k e').name];
      const scores = g.op('MatMul', [g.op('Transpose', [q], { perm: [0, 1, 3, 2] }), k]);
      const y = g.op('MatMul', [last(g, scores), g.op('Transpose', [v], { perm: [0, 1, 3, 2] })]);
      g.output(move(g, g.op('Transpose', [y], { perm: [0, 1, 3, 2] }), 'b h k d', 'b k hd'));
    },
  },
  {
    name: 'SigLIP: one learned query for the whole batch, keys and values packed',
    sizes: { P: 2, u: 1 },
    build(g) {
      const probe = g.input('probe', g.type, dims('1 1 hd')).name;
      const wide = g.op('Expand', [
        probe,
        g.op('Concat', [g.unsqueeze(g.size(['b'], { name: 'X', dims: dims('b k Phd') }), [0]), g.ints([1, 1])], {
          axis: 0,
        }),
      ]);
      const x = g.input('X', g.type, dims('b k Phd')).name;
      const q = g.op('Transpose', [g.op('Mul', [wide, g.op('ReduceMean', [x], { axes: [1, 2], keepdims: 1 })])], {
        perm: [1, 0, 2],
      });
      const kv = g.op('Transpose', [x], { perm: [1, 0, 2] });
      const split = g.op('Unsqueeze', [g.op('Reshape', [kv, g.ints([0, 0, 2, 8])]), g.ints([0])]);
      const moved = g.op('Squeeze', [g.op('Transpose', [split], { perm: [3, 1, 2, 0, 4] }), g.ints([3])]);
      const [k, v] = parts(g, moved, 0, 2) as [string, string];
      const count = g.op('Mul', [g.size(['b'], { name: 'X', dims: dims('b k Phd') }), g.tensor('int64', [], [2])]);
      const fold = (t: string, rows: string) =>
        g.op(
          'Transpose',
          [g.op('Reshape', [t, g.op('Concat', [rows, g.unsqueeze(count, [0]), g.ints([4])], { axis: 0 })])],
          { perm: [1, 0, 2] },
        );
      const keys = g.unsqueeze(g.size(['k']), [0]);
      const scores = g.op('MatMul', [
        g.op('Mul', [fold(q, g.ints([1])), g.float(0.5)]),
        g.op('Transpose', [fold(k, keys)], { perm: [0, 2, 1] }),
      ]);
      const y = g.op('Transpose', [g.op('MatMul', [last(g, scores), fold(v, keys)])], { perm: [1, 0, 2] });
      g.output(g.op('Reshape', [y, g.op('Concat', [g.unsqueeze(g.size(['b']), [0]), g.ints([8])], { axis: 0 })]));
    },
  },
  {
    name: 'one query of each sample, heads folded into the batch',
    sizes: { q: 1 },
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'bh q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'bh d k').name, read(g, 'V', 'b k he', 'bh k e').name];
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'bh q e', 'b q he');
    },
  },
  {
    name: 'one query of each sample, keys repeated for groups, heads folded into the batch',
    sizes: { q: 1, g: 2 },
    build(g) {
      const q = read(g, 'Q', 'b q hgd', 'bhg q d').name;
      const wide = (name: string, width: string, wanted: string) => {
        const x = read(g, name, `b k h${width}`, `b h 1 k ${width}`);
        const repeated = g.widen(x, 2, ['g']);
        return g.rearrange(repeated, dims(wanted)).name;
      };
      const [k, v] = [wide('K', 'd', 'bhg d k'), wide('V', 'e', 'bhg k e')];
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [q, k])), v]), 'bhg q e', 'b q hge');
    },
  },
  {
    name: 'one static query: keys repeated for groups, values folded with the queries',
    sizes: { q: 1, g: 2 },
    build(g) {
      const q = read(g, 'Q', 'b q hgd', 'b hg q d').name;
      const k = g.rearrange(g.widen(read(g, 'K', 'b k hd', 'b h 1 k d'), 2, ['g']), dims('b hg d k')).name;
      const v = read(g, 'V', 'b k he', 'b h k e').name;
      const p = move(g, last(g, g.op('MatMul', [q, k])), 'b hg q k', 'b h gq k');
      write(g, g.op('MatMul', [p, v]), 'b h gq e', 'b q hge');
    },
  },
  {
    name: 'one static query: values repeated for groups, keys folded with the queries',
    sizes: { q: 1, g: 2 },
    build(g) {
      const q = read(g, 'Q', 'b q hgd', 'b h gq d').name;
      const k = read(g, 'K', 'b k hd', 'b h d k').name;
      const v = g.rearrange(g.widen(read(g, 'V', 'b k he', 'b h 1 k e'), 2, ['g']), dims('b hg k e')).name;
      const p = move(g, last(g, g.op('MatMul', [q, k])), 'b h gq k', 'b hg q k');
      write(g, g.op('MatMul', [p, v]), 'b hg q e', 'b q hge');
    },
  },
  {
    name: 'GC ViT: queries of the whole image repeated for its windows',
    sizes: { w: 3 },
    build(g) {
      const q = read(g, 'Q', 'b h q d', 'b h q d');
      const [k, v] = [read(g, 'K', 'b w k hd', 'bw h d k').name, read(g, 'V', 'b w k he', 'bw h k e').name];
      const tiled = g.op('Tile', [q.name, g.ints([3, 1, 1, 1])]);
      const wide = g.op('Mul', [tiled, g.float(0.5)]);
      write(g, g.op('MatMul', [last(g, g.op('MatMul', [wide, k])), v]), 'bw h q e', 'bw q he');
    },
  },
  {
    name: 'Conditional DETR: content and position joined in each head, keys wider than values',
    sizes: { d: 6 },
    build(g) {
      const join = (name: string, label: string, wanted: string) => {
        const half = (n: string) =>
          g.rearrange(g.input(`${name}${n}`, g.type, [[label], ['b'], ['h'], ['t']]), [[label], ['b'], ['h'], ['t']])
            .name;
        const both = g.op('Concat', [half('content'), half('position')], { axis: 3 });
        return move(g, both, `${label} b h d`, wanted);
      };
      const q = g.op('Mul', [join('Q', 'q', 'bh q d'), g.float(0.4)]);
      const k = join('K', 'k', 'bh d k');
      const v = read(g, 'V', 'k b he', 'bh k e').name;
      const scores = g.op('MatMul', [q, k]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'bh q e', 'q b he');
    },
  },
  {
    name: 'DETR: a mask of floats, repeated for all queries, on scores unfolded for it',
    becomes: 'boolean(b,k)',
    build(g) {
      const [q, k] = [read(g, 'Q', 'b q hd', 'bh q d').name, read(g, 'K', 'b k hd', 'bh d k').name];
      const v = read(g, 'V', 'b k he', 'bh k e').name;
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, g.type), [1, 2]);
      const shape = ['b', '1', 'q', 'k'].map((l) => (l === '1' ? g.ints([1]) : g.unsqueeze(g.size([l]), [0])));
      const wide = g.op('Expand', [mask, g.op('Concat', shape, { axis: 0 })]);
      const off = g.op('Sub', [g.float(1), wide]);
      const fill = g.op('Where', [to(g, off, 'bool'), g.float(LOWEST), off]);
      const scores = move(g, g.op('MatMul', [q, k]), 'bh q k', 'b h q k');
      const p = last(g, move(g, g.op('Add', [scores, fill]), 'b h q k', 'bh q k'));
      write(g, g.op('MatMul', [p, v]), 'bh q e', 'b q he');
    },
  },
  {
    name: 'MViT: relative terms added to a part of the scores, past the class token',
    refused: 'ScatterND',
    sizes: { q: 5, k: 5, y: 2, x: 2, b: 2 },
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [q, k]);
      const cut = (x: string) => g.op('Slice', [x, g.ints([1, 1]), g.ints([2 ** 31, 2 ** 31]), g.ints([2, 3])]);
      const bias = g.input('bias', g.type, [['b'], ['h'], ['y', 'x'], ['y', 'x']]).name;
      const part = g.op('Add', [cut(scores), bias]);
      const indices: number[] = [];
      for (let b = 0; b < 2; b++)
        for (let h = 0; h < 2; h++) for (let i = 1; i < 5; i++) for (let j = 1; j < 5; j++) indices.push(b, h, i, j);
      const updated = g.op('ScatterND', [scores, g.tensor('int64', [2, 2, 4, 4, 4], indices), part]);
      write(g, g.op('MatMul', [last(g, updated), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'torchvision’s MaxViT: einsums with spaces over five dimensions, a scale on the keys',
    sizes: { w: 3 },
    build(g) {
      const q = read(g, 'Q', 'b w q hd', 'b w h q d').name;
      const k = g.op('Mul', [read(g, 'K', 'b w k hd', 'b w h k d').name, g.float(0.5)]);
      const v = read(g, 'V', 'b w k he', 'b w h k e').name;
      const bias = g.input('bias', g.type, dims('1 h q k')).name;
      const scores = g.op('Einsum', [q, k], { equation: 'BGHID,BGHJD->BGHIJ' });
      const y = g.op('Einsum', [last(g, g.op('Add', [scores, bias])), v], { equation: 'BGHIJ,BGHJD->BGHID' });
      write(g, y, 'b w h q e', 'b w q he');
    },
  },
  {
    name: 'MobileNetV4: one key head, queries of all heads against it by einsum',
    build(g) {
      const q = g.input('Q', g.type, dims('b h q d')).name;
      const [k, v] = [g.input('K', g.type, dims('b k d')).name, g.input('V', g.type, dims('b k e')).name];
      const scores = g.op('Einsum', [q, k], { equation: 'bnhk,bmk->bnhm' });
      g.output(g.op('Einsum', [last(g, scores), v], { equation: 'bnhm,bmv->bnhv' }));
    },
  },
  {
    name: 'HaloNet: blocks of queries in the batch, a bias of its own rank',
    sizes: { w: 4 },
    build(g) {
      const q = read(g, 'Q', 'b hd w q', 'bh w q d').name;
      const k = read(g, 'K', 'b hd w k', 'bh w d k').name;
      const v = read(g, 'V', 'b he w k', 'bh w k e').name;
      const scores = g.op('Mul', [g.op('MatMul', [q, k]), g.float(0.5)]);
      const bias = g.rearrange(g.input('bias', g.type, dims('b h w q k')), dims('bh w q k')).name;
      const p = last(g, g.op('Add', [scores, bias]));
      write(g, g.op('MatMul', [p, v]), 'bh w q e', 'b he w q');
    },
  },
  {
    name: 'linear attention of one head: a softmax over the positions of a linear layer',
    refused: 'linear layer',
    build(g) {
      const x = g.input('X', g.type, dims('b k d')).name;
      const weights = (n: number) =>
        g.tensor(
          g.type,
          [4, 4],
          Array.from({ length: 16 }, (_, i) => Math.sin(i * n)),
        );
      const k = last(g, g.op('MatMul', [x, weights(1)]), 1);
      const v = g.op('MatMul', [x, weights(2)]);
      g.output(g.op('MatMul', [g.op('Transpose', [k], { perm: [0, 2, 1] }), v]));
    },
  },
  {
    name: 'Q-Former: learned tokens attend to each other in the first layer',
    sizes: { u: 5 },
    build(g) {
      const x = g.input('X', g.type, dims('b k hd'));
      const numbers = (count: number, seed: number) =>
        Array.from({ length: count }, (_, i) => Math.sin(seed + i * 1.7));
      const learned = { name: g.tensor(g.type, [1, 5, 8], numbers(40, 1)), dims: dims('1 u hd') };
      const tokens = g.widen(learned, 0, ['b']).name;
      const normal = g.op('LayerNormalization', [tokens, g.tensor(g.type, [8], numbers(8, 2))], { axis: -1 });
      const project = (seed: number, wanted: string) => {
        const name = g.op('MatMul', [normal, g.tensor(g.type, [8, 8], numbers(64, seed))]);
        return g.rearrange({ name, dims: dims('b u hd') }, dims(wanted)).name;
      };
      const scores = g.op('MatMul', [project(3, 'b h u d'), project(4, 'b h d u')]);
      const y = g.op('MatMul', [last(g, scores), project(5, 'b h u d')]);
      const merged = g.rearrange({ name: y, dims: dims('b h u d') }, dims('b u hd')).name;
      g.output(g.op('Add', [merged, g.op('ReduceMean', [x.name], { axes: [1], keepdims: 1 })]));
    },
  },
];

testForms(FORMS);
