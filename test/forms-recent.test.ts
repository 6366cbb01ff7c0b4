/** Attention of recent architectures that are not in the corpus. */

import { count, type Form, LOWEST, last, plain, read, slice, testForms, write, zero } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

const parts = (g: FuzzGraph, x: string, axis: number, widths: readonly number[]) => {
  const first = g.op('Split', [x, g.ints(widths)], { axis }, widths.length);
  return widths.map((_, i) => (i === 0 ? first : `${first}_${i}`));
};
const transposed = (g: FuzzGraph, x: string, ...perm: number[]) => g.op('Transpose', [x], { perm });
const finish = (g: FuzzGraph, scores: string, v: string) =>
  write(g, g.op('MatMul', [last(g, scores), v]), 'b h q e', 'b q he');
const causal = (g: FuzzGraph, start?: string) => {
  const rows = start ? g.op('Add', [count(g, 'q'), start]) : count(g, 'q');
  return g.op('LessOrEqual', [g.unsqueeze(count(g, 'k'), [0, 1, 2]), g.unsqueeze(rows, [0, 1, 3])]);
};
const fill = (g: FuzzGraph, keep: string, lowest = LOWEST) => g.op('Where', [keep, g.float(0), g.float(lowest)]);

const FORMS: readonly Form[] = [
  {
    name: 'YOLO11: channels first, queries, keys and values of their own widths packed in each head; values read twice',
    self: true,
    sizes: { e: 8, w: 16 },
    build(g) {
      const packed = g.op('Reshape', [g.input('packed', g.type, dims('b hw q')).name, g.ints([0, 2, 16, -1])]);
      const [q, k, v] = parts(g, packed, 2, [4, 4, 8]) as [string, string, string];
      const p = last(g, g.op('Mul', [g.op('MatMul', [transposed(g, q, 0, 1, 3, 2), k]), g.float(0.5)]));
      const x = g.op('Reshape', [g.op('MatMul', [v, transposed(g, p, 0, 1, 3, 2)]), g.ints([0, 16, -1])]);
      g.output(g.op('Add', [x, g.op('Reshape', [v, g.ints([0, 16, -1])])]));
    },
  },
  {
    name: 'YOLO12: areas in the batch, heads before a packed head dimension, channels first',
    sizes: { q: 6, k: 6, a: 2 },
    build(g) {
      const x = g.input('packed', g.type, [['b'], ['a', 'q'], ['h', 't', 'd']]).name;
      const areas = g.op('Reshape', [x, g.ints([-1, 6, 24])]);
      const heads = transposed(g, g.op('Reshape', [areas, g.ints([0, 0, 2, 12])]), 0, 2, 3, 1);
      const [q, k, v] = parts(g, heads, 2, [4, 4, 4]) as [string, string, string];
      const p = last(g, g.op('Mul', [g.op('MatMul', [transposed(g, q, 0, 1, 3, 2), k]), g.float(0.5)]));
      const y = transposed(g, g.op('MatMul', [v, transposed(g, p, 0, 1, 3, 2)]), 0, 3, 1, 2);
      g.output(g.op('Reshape', [y, g.ints([-1, 12, 8])]));
      g.output(g.op('Reshape', [transposed(g, v, 0, 3, 1, 2), g.ints([-1, 12, 8])]));
    },
  },
  {
    name: 'SAM 2: rotary positions on all keys but the last ones, which are object pointers',
    past: true,
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const k = g.op('Concat', [read(g, 'K', 'b q hd', 'b h q d').name, read(g, 'O', 'b p hd', 'b h p d').name], {
        axis: 2,
      });
      const v = g.op('Concat', [g.input('V', g.type, dims('b q he')).name, g.input('W', g.type, dims('b p he')).name], {
        axis: 1,
      });
      const end = g.size(['q']);
      const turned = g.op('Mul', [slice(g, k, 2, zero(g), end), g.input('cos', g.type, dims('1 1 q d')).name]);
      const keys = g.op('Concat', [turned, slice(g, k, 2, end, g.tensor('int64', [], [2 ** 31]))], { axis: -2 });
      const heads = transposed(g, g.op('Reshape', [v, g.ints([0, -1, 2, 4])]), 0, 2, 1, 3);
      finish(g, g.op('Mul', [g.op('MatMul', [q, transposed(g, keys, 0, 1, 3, 2)]), g.float(0.5)]), heads);
    },
  },
  {
    name: 'Qwen2-VL’s vision: no batch, a mask of equal segments',
    self: true,
    mayEmptyRows: true,
    build(g) {
      const [q, k, v] = ['Q', 'K', 'V'].map((n) => transposed(g, g.input(n, g.type, dims('q h d')).name, 1, 0, 2)) as [
        string,
        string,
        string,
      ];
      const segments = g.input('segments', 'int64', dims('q')).name;
      const same = g.op('Equal', [g.unsqueeze(segments, [1]), g.unsqueeze(segments, [0])]);
      const scores = g.op('Div', [g.op('MatMul', [q, transposed(g, k, 0, 2, 1)]), g.float(2)]);
      const p = last(g, g.op('Add', [scores, g.unsqueeze(fill(g, same), [0])]));
      g.output(g.op('Reshape', [transposed(g, g.op('MatMul', [p, v]), 1, 0, 2), g.ints([0, -1])]));
    },
  },
  {
    name: 'Moonshine: heads padded to a wider one, the result cut',
    self: true,
    becomes: 'causal',
    build(g) {
      const pad = (x: string) => g.op('Pad', [x, g.ints([0, 0, 0, 0, 0, 0, 0, 4]), g.float0(0)]);
      const [q, k, v] = ['Q', 'K', 'V'].map((n) =>
        pad(read(g, n, n === 'Q' ? 'b q hd' : 'b k hd', n === 'Q' ? 'b h q d' : 'b h k d').name),
      ) as [string, string, string];
      const scores = g.op('Mul', [g.op('MatMul', [q, transposed(g, k, 0, 1, 3, 2)]), g.float(0.5)]);
      const y = g.op('MatMul', [last(g, g.op('Add', [scores, fill(g, causal(g))])), v]);
      const cut = g.op('Slice', [y, g.ints([0]), g.ints([-4]), g.ints([3])]);
      write(g, cut, 'b h q d', 'b q hd');
    },
  },
  {
    name: 'BEATs: scores less their maximum times 32, then a bias gated for each query',
    build(g) {
      const q = g.op('Mul', [read(g, 'Q', 'q b hd', 'bh q d').name, g.float(0.5 / 32)]);
      const [k, v] = [read(g, 'K', 'k b hd', 'bh d k').name, read(g, 'V', 'k b he', 'bh k e').name];
      const w = g.op('MatMul', [q, k]);
      const top = g.op('ReduceMax', [w], { axes: [-1], keepdims: 1 });
      const less = g.op('Mul', [g.op('Sub', [w, top]), g.float(32)]);
      const gate = g.rearrange(g.input('gate', g.type, dims('b h q 1')), dims('bh q 1')).name;
      const bias = g.rearrange(g.widen(g.input('bias', g.type, dims('1 h q k')), 0, ['b']), dims('bh q k')).name;
      const scores = g.op('Add', [less, g.op('Mul', [gate, bias])]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'bh q e', 'q b he');
    },
  },
  {
    name: 'EfficientViT: cascaded groups, each of one head, the next fed with the last',
    self: true,
    build(g) {
      let x = g.input('X', g.type, dims('b d q')).name;
      for (const n of [0, 1]) {
        const q = g.op('Mul', [x, g.input(`w${n}`, g.type, dims('d 1')).name]);
        const bias = g.input(`bias${n}`, g.type, dims('q k')).name;
        const k = g.op('Add', [x, g.input(`u${n}`, g.type, dims('d 1')).name]);
        const scores = g.op('Add', [g.op('Mul', [g.op('MatMul', [transposed(g, q, 0, 2, 1), k]), g.float(0.5)]), bias]);
        const v = g.op('Mul', [x, g.input(`v${n}`, g.type, dims('d 1')).name]);
        x = g.op('Add', [x, g.op('MatMul', [v, transposed(g, last(g, scores), 0, 2, 1)])]);
      }
      g.output(x);
    },
  },
  {
    name: 'MobileViTv2: weights of positions times keys, summed, are no attention',
    refused: 'not over',
    build(g) {
      const p = last(g, g.input('S', g.type, dims('b 1 p k')).name);
      const context = g.op('ReduceSum', [g.op('Mul', [g.input('K', g.type, dims('b d p k')).name, p]), g.ints([-1])], {
        keepdims: 1,
      });
      g.output(g.op('Mul', [g.input('V', g.type, dims('b d p k')).name, context]));
    },
  },
  {
    name: 'Qwen3-Next: queries packed with a gate in each head, which the result is multiplied by',
    self: true,
    sizes: { g: 2, w: 8 },
    becomes: 'causal heads=4/2',
    build(g) {
      const packed = g.op('Reshape', [g.input('Q', g.type, dims('b q hgw')).name, g.ints([0, -1, 4, 8])]);
      const [query, gate] = parts(g, packed, 3, [4, 4]) as [string, string];
      const q = transposed(g, query, 0, 2, 1, 3);
      const wide = (n: string) =>
        g.rearrange(g.widen(read(g, n, 'b k hd', 'b h 1 k d'), 2, ['g']), dims('b hg k d')).name;
      const scores = g.op('Mul', [g.op('MatMul', [q, transposed(g, wide('K'), 0, 1, 3, 2)]), g.float(0.5)]);
      const p = last(g, g.op('Add', [scores, fill(g, causal(g))]));
      const y = g.op('Reshape', [transposed(g, g.op('MatMul', [p, wide('V')]), 0, 2, 1, 3), g.ints([0, 0, -1])]);
      g.output(g.op('Mul', [y, g.op('Sigmoid', [g.op('Reshape', [gate, g.ints([0, 0, -1])])])]));
    },
  },
  {
    name: 'InternLM2: grouped queries packed with their keys and values',
    self: true,
    sizes: { g: 3, w: 20 },
    becomes: 'causal heads=6/2',
    build(g) {
      const packed = g.op('Reshape', [g.input('X', g.type, dims('b k hw')).name, g.ints([0, -1, 2, 5, 4])]);
      g.setHome('q', { name: packed, dims: dims('b q') });
      const cut = (start: number, end: number) => g.op('Slice', [packed, g.ints([start]), g.ints([end]), g.ints([3])]);
      const one = (i: number) => g.op('Gather', [packed, g.tensor('int64', [], [i])], { axis: 3 });
      const q = transposed(g, g.op('Reshape', [cut(0, 3), g.ints([0, 0, 6, 4])]), 0, 2, 1, 3);
      const wide = (x: string) => {
        const t = { name: g.unsqueeze(transposed(g, x, 0, 2, 1, 3), [2]), dims: dims('b h 1 q d') };
        return g.rearrange(g.widen(t, 2, ['g']), dims('b hg q d')).name;
      };
      const [k, v] = [wide(one(-2)), wide(one(-1))];
      const scores = g.op('Div', [g.op('MatMul', [q, transposed(g, k, 0, 1, 3, 2)]), g.float(2)]);
      const p = last(g, g.op('Add', [scores, fill(g, causal(g))]));
      g.output(g.op('Reshape', [transposed(g, g.op('MatMul', [p, v]), 0, 2, 1, 3), g.ints([0, 0, -1])]));
    },
  },
  {
    name: 'LightGlue: one product for both directions',
    build(g) {
      const q = g.op('Mul', [read(g, 'Q', 'b q hd', 'b h q d').name, g.float(0.7)]);
      const k = g.op('Mul', [read(g, 'K', 'b k hd', 'b h k d').name, g.float(0.7)]);
      const [v0, v1] = [read(g, 'V0', 'b q he', 'b h q e').name, read(g, 'V1', 'b k he', 'b h k e').name];
      const sim = g.op('Einsum', [q, k], { equation: 'bhid,bhjd->bhij' });
      const other = transposed(g, last(g, transposed(g, sim, 0, 1, 3, 2)), 0, 1, 3, 2);
      write(g, g.op('Einsum', [last(g, sim), v1], { equation: 'bhij,bhjd->bhid' }), 'b h q e', 'b q he');
      write(g, g.op('Einsum', [other, v0], { equation: 'bhji,bhjd->bhid' }), 'b h k e', 'b k he');
    },
  },
  {
    name: 'SuperGlue: heads inside the head dimension, channels first',
    build(g) {
      const [q, k, v] = [
        g.rearrange(g.input('Q', g.type, dims('b dh q')), dims('b d h q')).name,
        g.rearrange(g.input('K', g.type, dims('b dh k')), dims('b d h k')).name,
        g.rearrange(g.input('V', g.type, dims('b eh k')), dims('b e h k')).name,
      ];
      const scores = g.op('Div', [g.op('Einsum', [q, k], { equation: 'bdhn,bdhm->bhnm' }), g.float(2)]);
      const y = g.op('Einsum', [last(g, scores), v], { equation: 'bhnm,bdhm->bdhn' });
      g.output(g.op('Reshape', [y, g.ints([0, 8, -1])]));
    },
  },
  {
    name: 'LoFTR: heads last, a softmax over the third of four dimensions, masks of both sides',
    mayEmptyRows: true,
    build(g) {
      const [q, k, v] = [
        g.input('Q', g.type, dims('b q h d')).name,
        g.input('K', g.type, dims('b k h d')).name,
        g.input('V', g.type, dims('b k h e')).name,
      ];
      const scores = g.op('Einsum', [q, k], { equation: 'nlhd,nshd->nlsh' });
      const keep = g.op('And', [
        g.unsqueeze(g.input('qm', 'bool', dims('b q')).name, [2, 3]),
        g.unsqueeze(g.input('km', 'bool', dims('b k')).name, [1, 3]),
      ]);
      const masked = g.op('Where', [g.op('Not', [keep]), g.float(-Infinity), scores]);
      const p = last(g, g.op('Mul', [masked, g.float(0.5)]), 2);
      g.output(g.op('Einsum', [p, v], { equation: 'nlsh,nshd->nlhd' }));
    },
  },
  {
    name: 'slot attention: a softmax over the slots, then the weights of each made one',
    refused: 'changed by',
    build(g) {
      const [q, k, v] = plain(g);
      const p = g.op('Add', [last(g, g.op('MatMul', [q, k]), 2), g.float(1e-8)]);
      const normal = g.op('Div', [p, g.op('ReduceSum', [p, g.ints([3])], { keepdims: 1 })]);
      write(g, g.op('MatMul', [normal, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'OpenFold: a bias of pairs for all rows of a sample, which would have to be as large as the scores',
    refused: 'only a part of the batch',
    build(g) {
      const q = read(g, 'Q', 'b p q hd', 'b p h q d').name;
      const [k, v] = [read(g, 'K', 'b p k hd', 'b p h d k').name, read(g, 'V', 'b p k he', 'b p h k e').name];
      const keep = g.input('keep', 'bool', dims('b p 1 1 k')).name;
      const pair = g.input('pair', g.type, dims('b 1 h q k')).name;
      const once = g.op('Add', [g.op('MatMul', [q, k]), fill(g, keep, -1e9)]);
      write(g, g.op('MatMul', [last(g, g.op('Add', [once, pair])), v]), 'b p h q e', 'b p q he');
    },
  },
  {
    name: 'DeepSeek with absorbed weights: content and rotary products added, keys that are the values',
    self: true,
    sizes: { r: 2 },
    build(g) {
      const [q, r] = [g.input('Q', g.type, dims('b q h d')).name, g.input('R', g.type, dims('b q h r')).name];
      const [kv, pe] = [g.input('KV', g.type, dims('b k d')).name, g.input('PE', g.type, dims('b k r')).name];
      const content = g.op('Einsum', [q, kv], { equation: 'bshc,btc->bsht' });
      const rotary = g.op('Einsum', [r, pe], { equation: 'bshr,btr->bsht' });
      const scores = g.op('Mul', [g.op('Add', [content, rotary]), g.float(0.5)]);
      const mask = transposed(g, fill(g, causal(g)), 0, 2, 1, 3);
      g.output(g.op('Einsum', [last(g, g.op('Add', [scores, mask])), kv], { equation: 'bsht,btc->bshc' }));
    },
  },
  {
    name: 'VOLO: weights for a window of values from a linear layer',
    refused: 'not over',
    sizes: { w: 3, x: 3 },
    build(g) {
      const x = g.input('X', g.type, dims('b q hd')).name;
      const weight = g.tensor(
        g.type,
        [8, 18],
        Array.from({ length: 144 }, (_, i) => Math.sin(i)),
      );
      const a = g.op('Reshape', [g.op('MatMul', [x, weight]), g.ints([0, -1, 2, 3, 3])]);
      const p = last(g, g.op('Mul', [transposed(g, a, 0, 2, 1, 3, 4), g.float(0.5)]));
      g.output(g.op('MatMul', [p, g.input('V', g.type, dims('b h q x e')).name]));
    },
  },
  {
    name: 'the differential transformer: probabilities less others',
    refused: 'changed by',
    build(g) {
      const [q, k, v] = plain(g);
      const other = last(
        g,
        g.op('MatMul', [read(g, 'Q2', 'b q hd', 'b h q d').name, read(g, 'K2', 'b k hd', 'b h d k').name]),
      );
      const p = g.op('Sub', [
        last(g, g.op('MatMul', [q, k])),
        g.op('Mul', [other, g.input('lambda', g.type, dims('h 1 1')).name]),
      ]);
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Longformer: one softmax over the products with global and with local keys',
    refused: 'more than one column',
    build(g) {
      const [q, k, v] = plain(g);
      const global = g.op('MatMul', [q, read(g, 'G', 'b p hd', 'b h d p').name]);
      const p = last(g, g.op('Concat', [global, g.op('MatMul', [q, k])], { axis: 3 }));
      const values = g.op('Concat', [read(g, 'W', 'b p he', 'b h p e').name, v], { axis: 2 });
      write(g, g.op('MatMul', [p, values]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'DANet: attention among channels by the largest score less each',
    build(g) {
      const x = g.input('X', g.type, dims('b d k')).name;
      const scores = g.op('MatMul', [x, transposed(g, x, 0, 2, 1)]);
      const top = g.op('Expand', [g.op('ReduceMax', [scores], { axes: [-1], keepdims: 1 }), g.op('Shape', [scores])]);
      g.output(g.op('MatMul', [last(g, g.op('Sub', [top, scores])), g.input('V', g.type, dims('b d k')).name]));
    },
  },
  {
    name: 'DANet and non-local blocks: channels first, one head, no scale',
    build(g) {
      const q = transposed(g, g.input('Q', g.type, dims('b d q')).name, 0, 2, 1);
      const p = last(g, g.op('MatMul', [q, g.input('K', g.type, dims('b d k')).name]));
      g.output(g.op('MatMul', [g.input('V', g.type, dims('b e k')).name, transposed(g, p, 0, 2, 1)]));
    },
  },
  {
    name: 'Gemma in Flax: heads after queries, grouped as one dimension where they are masked',
    self: true,
    sizes: { g: 3 },
    becomes: 'causal heads=6/2',
    build(g) {
      const q = g.op('Reshape', [
        g.input('Q', g.type, [['b'], ['q'], ['h', 'g'], ['d']]).name,
        g.ints([0, -1, 2, 3, 4]),
      ]);
      const [k, v] = [g.input('K', g.type, dims('b k h d')).name, g.input('V', g.type, dims('b k h e')).name];
      const logits = g.op('Einsum', [q, k], { equation: 'btkgh,bskh->btkgs' });
      const shape = g.op('Shape', [logits]);
      const part = (start: number, end: number) => g.op('Slice', [shape, g.ints([start]), g.ints([end])]);
      const flat = g.op('Reshape', [logits, g.op('Concat', [part(0, 2), g.ints([6]), part(4, 5)], { axis: 0 })]);
      const masked = g.op('Where', [transposed(g, causal(g), 0, 2, 1, 3), flat, g.float(-2.3819763e38)]);
      const p = g.op('Reshape', [last(g, masked), shape]);
      g.output(g.op('Einsum', [p, v], { equation: 'btkgs,bskh->btkgh' }));
    },
  },
  {
    name: 'groups of queries as a dimension that the product broadcasts keys along',
    self: true,
    sizes: { g: 3 },
    becomes: 'causal heads=6/2',
    build(g) {
      const q = read(g, 'Q', 'b q hgd', 'b h g q d').name;
      const k = g.unsqueeze(read(g, 'K', 'b k hd', 'b h d k').name, [2]);
      const v = g.unsqueeze(read(g, 'V', 'b k he', 'b h k e').name, [2]);
      const scores = g.op('Add', [g.op('MatMul', [q, k]), g.unsqueeze(fill(g, causal(g)), [2])]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'b h g q e', 'b q hge');
    },
  },
  {
    name: 'groups of queries one after another along their positions, causality tiled for them',
    self: true,
    sizes: { g: 3 },
    becomes: 'causal heads=6/2',
    build(g) {
      const q = read(g, 'Q', 'b q hgd', 'b h gq d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h d k').name, read(g, 'V', 'b k he', 'b h k e').name];
      const mask = g.op('Tile', [fill(g, causal(g)), g.ints([1, 1, 3, 1])]);
      const p = last(g, g.op('Add', [g.op('MatMul', [q, k]), mask]));
      write(g, g.op('MatMul', [p, v]), 'b h gq e', 'b q hge');
    },
  },
  {
    name: 'keys of two sources, causality tiled for both',
    sizes: { s: 2 },
    becomes: 'additive(q,k)',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b s q hd', 'b h d sq').name, read(g, 'V', 'b s q he', 'b h sq e').name];
      const seen = g.op('LessOrEqual', [g.unsqueeze(count(g, 'q'), [0, 1, 2]), g.unsqueeze(count(g, 'q'), [0, 1, 3])]);
      const mask = g.op('Tile', [fill(g, seen), g.ints([1, 1, 1, 2])]);
      finish(g, g.op('Add', [g.op('MatMul', [q, k]), mask]), v);
    },
  },
  {
    name: 'a softmax over queries and keys at once',
    refused: 'not over one dimension',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('MatMul', [q, k]);
      const p = g.op('Reshape', [last(g, g.op('Reshape', [scores, g.ints([0, 0, -1])])), g.op('Shape', [scores])]);
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'probabilities summed over the queries, which are as many as the keys',
    refused: 'not summed over the keys',
    self: true,
    build(g) {
      const [q, k, v] = plain(g);
      const p = transposed(g, last(g, g.op('MatMul', [q, k])), 0, 1, 3, 2);
      write(g, g.op('MatMul', [p, v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'DETR: object queries that attend to each other, learned and projected, repeated for the batch',
    build(g) {
      const numbers = (n: number, at: number) => Array.from({ length: n }, (_, i) => Math.sin(i * at + 1));
      g.input('image', g.type, dims('b k'));
      const shape = g.op('Concat', [g.ints([1]), g.unsqueeze(g.size(['b']), [0]), g.ints([1])], { axis: 0 });
      const x = g.op('Expand', [g.tensor(g.type, [3, 1, 8], numbers(24, 1)), shape]);
      const rows = g.unsqueeze(g.op('Mul', [g.size(['b']), g.tensor('int64', [], [2])]), [0]);
      const heads = g.op('Concat', [g.ints([3]), rows, g.ints([4])], { axis: 0 });
      const projected = (at: number) => {
        const product = g.op('MatMul', [x, g.tensor(g.type, [8, 8], numbers(64, at))]);
        const y = g.op('Add', [product, g.tensor(g.type, [8], numbers(8, at))]);
        return transposed(g, g.op('Reshape', [y, heads]), 1, 0, 2);
      };
      const q = g.op('Mul', [projected(2), g.float(0.5)]);
      const p = last(g, g.op('MatMul', [q, transposed(g, projected(3), 0, 2, 1)]));
      const y = transposed(g, g.op('MatMul', [p, projected(4)]), 1, 0, 2);
      g.output(g.op('Reshape', [y, g.ints([3, -1, 8])]));
    },
  },
];

testForms(FORMS);
