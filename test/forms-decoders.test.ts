/** Attention of decoders and of encoders as torch exports their code. */
import { makeTensor } from '../graph-rewrite/onnx/tensor.js';
import { count, type Form, last, move, plain, read, readShared, testForms, to, write } from './form.js';
import { dims, type FuzzGraph } from './fuzz/graph.js';

function finish(g: FuzzGraph, probabilities: string, v: string): void {
  write(g, g.op('MatMul', [probabilities, v]), 'b h q e', 'b q he');
}

const half = (g: FuzzGraph, x: string) => g.op('Mul', [x, g.float(0.5)]);
const top = (g: FuzzGraph, x: string) => g.op('ReduceMax', [x], { axes: [-1], keepdims: 1 });
const sum = (g: FuzzGraph, x: string) => g.op('ReduceSum', [x, g.ints([-1])], { keepdims: 1 });
/** Which keys take part, (b, 1, 1, k). */
const padding = (g: FuzzGraph) => to(g, g.unsqueeze(g.input('mask', 'int64', dims('b k')).name, [1, 2]), 'bool');
/** (h, 1, k): slopes times positions. */
const alibi = (g: FuzzGraph) =>
  g.op('Mul', [g.tensor(g.type, [2, 1, 1], [0.5, 0.25]), to(g, g.unsqueeze(count(g, 'k'), [0, 1]), g.type)]);

function logarithm(g: FuzzGraph, fill: number): void {
  const [q, k, v] = plain(g);
  const scores = g.op('Where', [padding(g), half(g, g.op('MatMul', [q, k])), g.float(fill)]);
  const total = g.op('ReduceLogSumExp', [scores], { axes: [-1], keepdims: 1 });
  finish(g, g.op('Exp', [g.op('Sub', [scores, total])]), v);
}

/** Scores of three queries and keys times constants of 1 and 0, less other constants. */
function folded(g: FuzzGraph, removed: (seen: number, at: number) => number): void {
  const [q, k, v] = plain(g);
  const seen = [1, 0, 0, 1, 1, 0, 1, 1, 1];
  const constant = (numbers: number[]) => g.tensor(g.type, [1, 1, 3, 3], numbers);
  const scores = g.op('Mul', [half(g, g.op('MatMul', [q, k])), constant(seen)]);
  finish(g, last(g, g.op('Sub', [scores, constant(seen.map(removed))])), v);
}

/** Values, and scores of up to eight queries and keys times a triangle of ones, less 10⁴ where that is 0. */
function multiplied(g: FuzzGraph): readonly [v: string, scores: string] {
  const [q, k, v] = plain(g);
  const triangle = Array.from({ length: 64 }, (_, i) => (i % 8 <= Math.floor(i / 8) ? 1 : 0));
  const size = g.unsqueeze(g.size(['q']), [0]);
  const start = g.ints([0]);
  const rows = g.op('Slice', [g.tensor(g.type, [1, 1, 8, 8], triangle), start, size, g.ints([2])]);
  const b = g.op('Slice', [rows, start, size, g.ints([3])]);
  const removed = g.op('Mul', [g.op('Sub', [g.float(1), b]), g.float(1e4)]);
  return [v, g.op('Sub', [g.op('Mul', [half(g, g.op('MatMul', [q, k])), b]), removed])];
}

const FORMS: readonly Form[] = [
  {
    name: 'ChatGLM: baddbmm with a β of 0, a finite fill, then the layer’s own scale',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Add', [half(g, g.op('MatMul', [q, k])), g.tensor(g.type, [1, 1, 1, 1], [0])]);
      const masked = g.op('Where', [padding(g), scores, g.float(-1e4)]);
      finish(g, last(g, g.op('Mul', [masked, g.float(3)])), v);
    },
    becomes: 'boolean(b,k)',
  },
  {
    name: 'BLOOM: −10⁹ in place of scores that slopes were added to',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Add', [half(g, g.op('MatMul', [q, k])), alibi(g)]);
      finish(g, last(g, g.op('Where', [padding(g), scores, g.float(-1e9)])), v);
    },
    becomes: 'additive(b,h,k)',
  },
  {
    name: 'the same where the bias may be as low as the fill',
    build(g) {
      const [q, k, v] = plain(g);
      const bias = g.input('bias', g.type, dims('h q k')).name;
      const scores = g.op('Add', [half(g, g.op('MatMul', [q, k])), bias]);
      finish(g, last(g, g.op('Where', [padding(g), scores, g.float(-1e9)])), v);
    },
    refused: 'a row that loses all keys depend on both',
  },
  {
    name: 'GPT-2 before 4.20 with a mask: rows of padding see what is neither padding nor before them',
    self: true,
    build(g) {
      const [q, k, v] = plain(g);
      const causal = g.op('LessOrEqual', [g.unsqueeze(count(g, 'k'), [0]), g.unsqueeze(count(g, 'q'), [1])]);
      const scores = g.op('Where', [causal, half(g, g.op('MatMul', [q, k])), g.float(-1e4)]);
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, g.type), [1, 2]);
      const added = g.op('Mul', [g.op('Sub', [g.float(1), mask]), g.float(-1e4)]);
      finish(g, last(g, g.op('Add', [scores, added])), v);
    },
    refused: 'a boolean mask that puts -10000 in place of scores is combined with another mask',
  },
  {
    name: 'GPT-2 before 4.0 with a mask: s · b − 10⁴ · (1 − b), less 10⁴ for padding',
    self: true,
    build(g) {
      const [v, scores] = multiplied(g);
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, g.type), [1, 2]);
      const added = g.op('Mul', [g.op('Sub', [g.float(1), mask]), g.float(-1e4)]);
      finish(g, last(g, g.op('Add', [scores, added])), v);
    },
    refused: 'masked otherwise as well: the weights of a row that loses all keys depend on both',
  },
  {
    name: 's · b − 10⁴ · (1 − b), and −10⁴ in place of padding too: a row without keys is the mean of all',
    self: true,
    build(g) {
      const [v, scores] = multiplied(g);
      finish(g, last(g, g.op('Where', [padding(g), scores, g.float(-1e4)])), v);
    },
    becomes: 'causal boolean(b,k)',
  },
  {
    name: '−10⁴ in place of scores behind the query, then −∞ in place of padding',
    self: true,
    mayEmptyRows: true,
    build(g) {
      const [q, k, v] = plain(g);
      const causal = g.op('LessOrEqual', [g.unsqueeze(count(g, 'k'), [0]), g.unsqueeze(count(g, 'q'), [1])]);
      const scores = g.op('Where', [causal, half(g, g.op('MatMul', [q, k])), g.float(-1e4)]);
      finish(g, last(g, g.op('Where', [padding(g), scores, g.float(Number.NEGATIVE_INFINITY)])), v);
    },
    becomes: 'additive(b,q,k)',
  },
  {
    name: '−10⁴ in place of padding, then −∞ in place of scores behind the query',
    self: true,
    mayEmptyRows: true,
    build(g) {
      const [q, k, v] = plain(g);
      const causal = g.op('LessOrEqual', [g.unsqueeze(count(g, 'k'), [0]), g.unsqueeze(count(g, 'q'), [1])]);
      const scores = g.op('Where', [padding(g), half(g, g.op('MatMul', [q, k])), g.float(-1e4)]);
      finish(g, last(g, g.op('Where', [causal, scores, g.float(Number.NEGATIVE_INFINITY)])), v);
    },
    becomes: 'causal additive(b,k)',
  },
  {
    name: 'a trace fixed the batch of the values',
    ownNames: false,
    build(g) {
      const [q, k, v] = plain(g);
      const p = move(g, last(g, g.op('MatMul', [q, k])), 'b h q k', 'bh q k');
      g.output(g.op('MatMul', [p, g.op('Reshape', [v, g.ints([4, -1, 4])])]));
    },
    refused: '4 meets 2·b; a batch or a length that is a number here was fixed when the model was exported',
  },
  {
    name: 'a trace fixed the length of the scores',
    ownNames: false,
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Reshape', [g.op('MatMul', [q, k]), g.ints([-1, 6, 7])]);
      g.output(g.op('MatMul', [last(g, scores), move(g, v, 'b h k e', 'bh k e')]));
    },
    refused: 'it makes (',
  },
  {
    name: 'the model zoo’s GPT-2, folded for one length: s · b − c, where c is 10⁴ · (1 − b)',
    sizes: { q: 3, k: 3 },
    build: (g) => folded(g, (seen) => 1e4 * (1 - seen)),
    becomes: 'causal',
  },
  {
    name: 'the same with a constant that is no complement',
    sizes: { q: 3, k: 3 },
    build: (g) => folded(g, (seen, i) => (i === 8 ? 1 : 1e4 * (1 - seen))),
    refused: '',
  },
  {
    name: 'QANet: scores times a mask that comes as numbers, less 10³⁰ where it is 0',
    build(g) {
      const [q, k, v] = plain(g);
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, g.type), [1, 2]);
      const kept = g.op('Mul', [half(g, g.op('MatMul', [q, k])), mask]);
      const removed = g.op('Mul', [g.op('Sub', [g.float(1), mask]), g.float(-1e30)]);
      finish(g, last(g, g.op('Add', [kept, removed])), v);
    },
    becomes: 'additive(b,k)',
  },
  {
    name: 'keys shared by groups of heads, divided by a temperature for each key and head',
    build(g) {
      const q = read(g, 'Q', 'b q hd', 'b h q d').name;
      const k = readShared(g, 'K', 'b k d', 'b 1 k d');
      const v = readShared(g, 'V', 'b k e', 'b 1 k e');
      const scores = g.op('MatMul', [q, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
      const temperature = g.op('Add', [g.op('Exp', [g.input('t', g.type, dims('h 1 k')).name]), g.float(1)]);
      finish(g, last(g, g.op('Div', [scores, temperature])), v);
    },
    becomes: '-',
  },
  {
    name: 'BERT with a head mask',
    build(g) {
      const [q, k, v] = plain(g);
      const heads = g.unsqueeze(g.input('head_mask', g.type, dims('h')).name, [0, 2, 3]);
      finish(g, g.op('Mul', [last(g, half(g, g.op('MatMul', [q, k]))), heads]), v);
    },
    becomes: '-',
  },
  {
    name: 'a mask behind the softmax as well, as numbers for each key',
    build(g) {
      const [q, k, v] = plain(g);
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b k')).name, g.type), [1, 2]);
      const scores = g.op('Add', [
        half(g, g.op('MatMul', [q, k])),
        g.op('Mul', [g.op('Sub', [g.float(1), mask]), g.float(-1e4)]),
      ]);
      finish(g, g.op('Mul', [mask, last(g, scores)]), v);
    },
    becomes: 'additive(b,k)',
  },
  {
    name: 'probabilities times a mask of queries',
    build(g) {
      const [q, k, v] = plain(g);
      const mask = g.unsqueeze(to(g, g.input('mask', 'int64', dims('b q')).name, g.type), [1, 3]);
      finish(g, g.op('Mul', [last(g, half(g, g.op('MatMul', [q, k]))), mask]), v);
    },
    refused: 'not the same for all queries',
  },
  {
    name: 'torch.arange up to opset 10: the positions of ones, and causality from them',
    opset: 10,
    self: true,
    build(g) {
      const [q, k, v] = plain(g);
      const arange = (label: string) => {
        const length = g.op('Unsqueeze', [g.size([label])], { axes: [0] });
        const ones = g.op('ConstantOfShape', [length], { value: makeTensor('', 'int64', [1], [1]) });
        return g.op('Squeeze', [g.op('Transpose', [g.op('NonZero', [ones])], { perm: [1, 0] })], { axes: [1] });
      };
      const [rows, columns] = [g.unsqueeze(arange('q'), [1]), g.unsqueeze(arange('k'), [0])];
      const later = g.op('Greater', [columns, rows]);
      const scores = half(g, g.op('MatMul', [q, k]));
      finish(g, last(g, g.op('Where', [later, g.float(-1e4), scores]), 3), v);
    },
    becomes: 'causal',
  },
  {
    name: 'the exponential of log_softmax',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Where', [padding(g), half(g, g.op('MatMul', [q, k])), g.float(-1e9)]);
      finish(g, g.op('Exp', [g.op('LogSoftmax', [scores], { axis: -1 })]), v);
    },
    becomes: 'boolean(b,k)',
  },
  {
    name: 'exp(x − logsumexp(x)), behind a mask',
    mayEmptyRows: true,
    build: (g) => logarithm(g, Number.NEGATIVE_INFINITY),
    becomes: 'boolean(b,k)',
  },
  {
    name: 'the same with a fill to which log n is nothing: rows without keys are sums of values',
    build: (g) => logarithm(g, -1e9),
    refused: 'the logarithm of their sum loses digits',
  },
  {
    name: 'softmax plus one: a column of zeros by Pad, left out again',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Pad', [half(g, g.op('MatMul', [q, k])), g.ints([0, 0, 0, 1, 0, 0, 0, 0])]);
      const kept = g.op('Slice', [last(g, scores), g.ints([1]), g.ints([2 ** 40]), g.ints([3])]);
      finish(g, kept, v);
    },
    becomes: '-',
  },
  {
    name: 'two columns by Pad are none',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Pad', [half(g, g.op('MatMul', [q, k])), g.ints([0, 0, 0, 2, 0, 0, 0, 0])]);
      finish(g, g.op('Slice', [last(g, scores), g.ints([2]), g.ints([2 ** 40]), g.ints([3])]), v);
    },
    refused: 'padded by something other than one column of a constant',
  },
  {
    name: 'softmax plus one: exp(x) over a number and their sum',
    build(g) {
      const [q, k, v] = plain(g);
      const e = g.op('Exp', [half(g, g.op('MatMul', [q, k]))]);
      finish(g, g.op('Div', [e, g.op('Add', [g.float(1), sum(g, e)])]), v);
    },
    becomes: '-',
  },
  {
    name: 'softmax plus one: exp(x − m) over exp(−m) and their sum, m the maximum or 0',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = g.op('Where', [padding(g), half(g, g.op('MatMul', [q, k])), g.float(-1e9)]);
      const m = g.op('Relu', [top(g, scores)]);
      const e = g.op('Exp', [g.op('Sub', [scores, m])]);
      finish(g, g.op('Div', [e, g.op('Add', [sum(g, e), g.op('Exp', [g.op('Neg', [m])])])]), v);
    },
    becomes: 'boolean(b,k)',
  },
  {
    name: 'a number beside the sum of exp(x − m) depends on m',
    build(g) {
      const [q, k, v] = plain(g);
      const scores = half(g, g.op('MatMul', [q, k]));
      const e = g.op('Exp', [g.op('Sub', [scores, top(g, scores)])]);
      finish(g, g.op('Div', [e, g.op('Add', [sum(g, e), g.float(1e-6)])]), v);
    },
    refused: 'is added to the sum of exponentials that are relative to the largest score',
  },
  {
    name: 'a fill of the scores’ own size and shape, as full_like is folded for one length',
    sizes: { b: 2, q: 5, k: 7 },
    build(g) {
      const [q, k, v] = plain(g);
      const fill = g.tensor(g.type, [2, 2, 5, 7], Array<number>(140).fill(-1e9));
      finish(g, last(g, g.op('Where', [padding(g), half(g, g.op('MatMul', [q, k])), fill])), v);
    },
    becomes: 'boolean(b,k)',
  },
  {
    name: 'blocks of a sequence whose number is not known, as a dimension of its own',
    build(g) {
      const [q, k, v] = [
        read(g, 'Q', 'b p q hd', 'b h p q d').name,
        read(g, 'K', 'b p k hd', 'b h p d k').name,
        read(g, 'V', 'b p k he', 'b h p k e').name,
      ];
      const out = g.op('MatMul', [last(g, half(g, g.op('MatMul', [q, k]))), v]);
      g.output(move(g, out, 'b h p q e', 'b h p q e'));
    },
    becomes: '-',
  },
];

testForms(FORMS);
