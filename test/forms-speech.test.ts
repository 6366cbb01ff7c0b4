/** Attention of speech models that are not in the corpus: relative positions in their several spellings. */

import { type Form, last, move, read, slice, testForms, write, zero } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

/** x[..., i, j] of a product with relative positions moved to x[..., i, j − i + q − 1] by a column in front. */
function shifted(g: FuzzGraph, x: string, heads: number): string {
  const size = (axis: number) => g.op('Gather', [g.op('Shape', [x]), g.tensor('int64', [], [axis])]);
  const [rows, columns] = [size(2), size(3)];
  const padded = g.op('Pad', [x, g.ints([0, 0, 0, 1, 0, 0, 0, 0])]);
  const shape = g.op('Concat', [g.ints([0, heads, -1]), g.unsqueeze(rows, [0])], { axis: 0 });
  const turned = g.op('Reshape', [padded, shape]);
  const cut = g.op('Slice', [turned, g.ints([1]), g.ints([2 ** 31]), g.ints([2])]);
  const sizes = g.op('Concat', [g.ints([0, heads]), g.unsqueeze(rows, [0]), g.unsqueeze(columns, [0])], { axis: 0 });
  return g.op('Reshape', [cut, sizes]);
}

const folded = (g: FuzzGraph): [string, string, string] => [
  read(g, 'Q', 'q b hd', 'bh q d').name,
  read(g, 'K', 'k b hd', 'bh d k').name,
  read(g, 'V', 'k b he', 'bh k e').name,
];

const FORMS: readonly Form[] = [
  {
    name: 'WavLM: a bias of positions, gated for each query, under baddbmm',
    build(g) {
      const [q, k, v] = folded(g);
      const gate = g.rearrange(g.input('gate', g.type, dims('b h q 1')), dims('bh q 1')).name;
      const bias = g.rearrange(g.widen(g.input('bias', g.type, dims('1 h q k')), 0, ['b']), dims('bh q k')).name;
      const gated = g.op('Mul', [gate, bias]);
      const product = g.op('MatMul', [g.op('Mul', [q, g.float(0.5)]), k]);
      const scores = g.op('Add', [g.op('Mul', [product, g.float(1)]), g.op('Mul', [gated, g.float(1)])]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'bh q e', 'q b he');
    },
  },
  {
    name: 'SpeechT5: a product of queries with positions, sequence first',
    build(g) {
      const [q, k, v] = folded(g);
      const positions = g.input('positions', g.type, dims('q k d')).name;
      const first = g.op('Transpose', [q], { perm: [1, 0, 2] });
      const relative = g.op('MatMul', [first, g.op('Transpose', [positions], { perm: [0, 2, 1] })]);
      const turned = g.op('Transpose', [relative], { perm: [1, 0, 2] });
      const scores = g.op('Add', [g.op('MatMul', [q, k]), turned]);
      const mask = g.input('mask', g.type, dims('b 1 q k')).name;
      const wide = g.op('Add', [move(g, scores, 'bh q k', 'b h q k'), mask]);
      const p = last(g, move(g, wide, 'b h q k', 'bh q k'));
      write(g, g.op('MatMul', [p, v]), 'bh q e', 'q b he');
    },
  },
  {
    name: 'Parakeet: twice as many positions, shifted and cut, −∞ where padding is, all added as one mask',
    self: true,
    mayEmptyRows: true,
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h d k').name, read(g, 'V', 'b k he', 'b h k e').name];
      const p = read(g, 'P', 'k hd', '1 h d k').name;
      const twice = g.op('Concat', [p, g.op('Slice', [p, g.ints([1]), g.ints([2 ** 31]), g.ints([3])])], { axis: 3 });
      const [u, w] = ['u', 'w'].map((name) => g.input(name, g.type, dims('h 1 d')).name) as [string, string];
      const all = shifted(g, g.op('MatMul', [g.op('Add', [q, w]), twice]), 2);
      const near = slice(g, all, 3, zero(g), g.size(['k']));
      const keep = g.input('keep', 'bool', dims('b 1 q k')).name;
      const scaled = g.op('Mul', [near, g.float(0.5)]);
      const mask = g.op('Where', [keep, scaled, g.float(Number.NEGATIVE_INFINITY)]);
      const content = g.op('Mul', [g.op('MatMul', [g.op('Add', [q, u]), k]), g.float(0.5)]);
      write(g, g.op('MatMul', [last(g, g.op('Add', [content, mask])), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'NeMo: zeros after the softmax where padding was, with a term of positions',
    self: true,
    mayEmptyRows: true,
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const [k, v] = [read(g, 'K', 'b k hd', 'b h d k').name, read(g, 'V', 'b k he', 'b h k e').name];
      const p = read(g, 'P', 'k hd', '1 h d k').name;
      const position = shifted(g, g.op('MatMul', [q, p]), 2);
      const scores = g.op('Div', [g.op('Add', [g.op('MatMul', [q, k]), position]), g.float(2)]);
      const off = g.unsqueeze(g.input('off', 'bool', dims('b q k')).name, [1]);
      const soft = last(g, g.op('Where', [off, g.float(-1e4), scores]));
      write(g, g.op('MatMul', [g.op('Where', [off, g.float(0), soft]), v]), 'b h q e', 'b q he');
    },
  },
  {
    name: 'Speech2Text with a cache: past keys come as the heads have them, in the batch',
    past: true,
    build(g) {
      const q = g.op('Mul', [read(g, 'Q', 'b q hd', 'b h q d').name, g.float(0.5)]);
      const join = (name: string, width: string) => {
        const past = g.input(`past_${name}`, g.type, dims(`b h p ${width}`)).name;
        const joined = g.op('Concat', [past, read(g, name, `b q h${width}`, `b h q ${width}`).name], { axis: 2 });
        g.output(joined);
        return joined;
      };
      const fold = (x: string) => {
        const count = g.op('Mul', [g.size(['b']), g.tensor('int64', [], [2])]);
        return g.op('Reshape', [x, g.op('Concat', [g.unsqueeze(count, [0]), g.ints([-1, 4])], { axis: 0 })]);
      };
      const [k, v] = [fold(join('K', 'd')), fold(join('V', 'e'))];
      const scores = g.op('MatMul', [fold(q), g.op('Transpose', [k], { perm: [0, 2, 1] })]);
      write(g, g.op('MatMul', [last(g, scores), v]), 'bh q e', 'b q he');
    },
  },
  {
    name: 'VITS: probabilities that also weigh relative values',
    refused: 'also read by',
    self: true,
    build(g) {
      const [q, k, v] = folded(g);
      const p = last(g, g.op('MatMul', [q, k]));
      const values = g.input('relative', g.type, dims('q k e')).name;
      const weighed = g.op('Einsum', [p, values], { equation: 'bqk,qke->bqe' });
      write(g, g.op('Add', [g.op('MatMul', [p, v]), weighed]), 'bh q e', 'q b he');
    },
  },
];

testForms(FORMS);
