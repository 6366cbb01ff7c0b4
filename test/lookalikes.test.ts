/** What the fuzzer found fused wrongly once: each must be left alone, or come out the same. */
import test from 'ava';
import { dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import { Choices, dims, FuzzGraph } from './fuzz/graph.js';
import { judge } from './fuzz/run.js';

interface Lookalike {
  readonly name: string;
  /** The scores (b, h, q, k) before the softmax. */
  readonly scores?: (g: FuzzGraph, s: string) => string;
  /** The probabilities (b, h, q, k) after it; with a sink before, the ones to be used. */
  readonly probabilities?: (g: FuzzGraph, p: string) => string;
  /** In place of the operator. */
  readonly softmax?: (g: FuzzGraph, s: string) => string;
  readonly product?: (g: FuzzGraph, p: string, v: string) => string;
  readonly mayEmptyRows?: boolean;
  /** Part of the reason; where it is left out the graph is attention, and must be fused. */
  readonly refused?: string;
}

const LOWEST = -3.4028234663852886e38;
const cast = (g: FuzzGraph, x: string, type: 'float32' | 'float64' | 'int64' | 'bool') =>
  g.op('Cast', [x], { to: dataTypeOf(type) });
const maximum = (g: FuzzGraph, x: string, axis: number) => g.op('ReduceMax', [x], { axes: [axis], keepdims: 1 });
const masked = (g: FuzzGraph, s: string, fill: number, name = 'keep') => {
  const keep = g.input(name, 'bool', dims('b 1 1 k')).name;
  return g.op('Add', [s, g.op('Where', [keep, g.float(0), g.float(fill)])]);
};
const column = (g: FuzzGraph, s: string) => {
  const sink = g.input('sink', g.type, dims('1 h 1 1')).name;
  const rows = g.op('Shape', [maximum(g, s, 3)]);
  return g.op('Concat', [s, g.op('Expand', [sink, rows])], { axis: 3 });
};
const withoutColumn = (g: FuzzGraph, p: string) => g.op('Slice', [p, g.ints([0]), g.ints([-1]), g.ints([3])]);

const LOOKALIKES: readonly Lookalike[] = [
  {
    name: 'a factor for each query, which goes onto the queries',
    scores: (g, s) => g.op('Mul', [s, g.input('f', g.type, dims('h q 1')).name]),
  },
  {
    name: 'a factor for each key, as many as the head dimension has elements',
    scores: (g, s) => g.op('Mul', [s, g.input('f', g.type, dims('1 k')).name]),
  },
  {
    name: 'a factor for each query and key',
    scores: (g, s) => g.op('Mul', [s, g.input('f', g.type, dims('q k')).name]),
    refused: 'the same neither for all keys nor for all queries',
  },
  {
    name: 'a factor for each key behind the maximum over the keys',
    scores: (g, s) => g.op('Mul', [g.op('Sub', [s, maximum(g, s, 3)]), g.input('f', g.type, dims('1 k')).name]),
    refused: 'multiplied by a tensor that varies along the keys',
  },
  {
    name: 'a factor for each key behind a number',
    scores: (g, s) => g.op('Mul', [g.op('Add', [s, g.float(1.5)]), g.input('f', g.type, dims('1 k')).name]),
    refused: 'multiplied by a tensor that varies along the keys',
  },
  { name: 'the maximum over the keys taken off', scores: (g, s) => g.op('Sub', [s, maximum(g, s, 3)]) },
  {
    name: 'the maximum over the queries taken off',
    scores: (g, s) => g.op('Sub', [s, maximum(g, s, 2)]),
    refused: 'not the same for all keys',
  },
  {
    name: 'the maximum over the queries taken off, repeated for all of them first',
    scores: (g, s) => g.op('Sub', [s, g.op('Expand', [maximum(g, s, 2), g.op('Shape', [s])])]),
    refused: 'not the same for all keys',
  },
  {
    name: 'the maximum over the keys taken off, repeated for all of them first',
    scores: (g, s) => g.op('Sub', [s, g.op('Expand', [maximum(g, s, 3), g.op('Shape', [s])])]),
  },
  { name: 'scores that are negated', scores: (g, s) => g.op('Neg', [s]) },
  {
    name: 'what scores are subtracted from is not the same for all keys',
    scores: (g, s) => g.op('Sub', [g.input('bias', g.type, dims('h q k')).name, s]),
  },
  {
    name: 'masked scores that are subtracted from something',
    scores(g, s) {
      const keep = g.input('keep', 'bool', dims('b 1 1 k')).name;
      return g.op('Sub', [g.float(1), g.op('Where', [keep, s, g.float(1e9)])]);
    },
    refused: 'scaled by a negative number',
  },
  {
    name: 'masked scores that are negated, and masked again: nothing is left of a score that both masks take out',
    scores: (g, s) => masked(g, g.op('Neg', [masked(g, s, LOWEST)]), LOWEST, 'other'),
    refused: 'negated, and masked again',
  },
  {
    name: 'a bias that is negated with the scores, before a mask',
    scores(g, s) {
      const bias = g.op('Tanh', [g.input('bias', g.type, dims('h q k')).name]);
      return masked(g, g.op('Neg', [g.op('Add', [s, bias])]), LOWEST);
    },
  },
  {
    name: 'a mask decided from the scores',
    scores(g, s) {
      const middle = g.op('ReduceMean', [s], { axes: [3], keepdims: 1 });
      return g.op('Where', [g.op('Less', [middle, s]), s, g.float(LOWEST)]);
    },
    refused: 'decided from the scores',
  },
  {
    name: 'a number added before a soft cap',
    scores: (g, s) => g.op('Tanh', [g.op('Add', [s, g.float(1)])]),
    refused: 'tanh is applied to scores that a number was added to',
  },
  {
    name: 'a number added before a sink is joined',
    scores: (g, s) => column(g, g.op('Add', [s, g.float(3)])),
    probabilities: withoutColumn,
    refused: 'a sink is joined to scores that a number was added to',
  },
  {
    name: 'the maximum taken off after a sink was joined',
    scores: (g, s) => {
      const all = column(g, s);
      return g.op('Sub', [all, maximum(g, all, 3)]);
    },
    probabilities: withoutColumn,
  },
  {
    name: 'a second mask after the maximum of masked scores was taken off',
    scores(g, s) {
      const once = masked(g, s, LOWEST);
      return masked(g, g.op('Sub', [once, maximum(g, once, 3)]), LOWEST, 'other');
    },
    refused: 'their maximum was taken from',
  },
  {
    name: 'a fill whose sign a negative scale turns',
    scores(g, s) {
      const keep = g.input('keep', 'bool', dims('b 1 1 k')).name;
      return g.op('Mul', [g.op('Where', [keep, s, g.float(1e9)]), g.float(-1)]);
    },
    refused: 'scaled by a negative number',
  },
  {
    name: 'scores that were doubles for a moment, before a mask in whose type its fill takes in every score',
    scores: (g, s) => masked(g, cast(g, cast(g, s, 'float64'), 'float32'), LOWEST),
  },
  {
    name: 'probabilities cast to integers and back',
    probabilities: (g, p) => cast(g, cast(g, p, 'int64'), 'float32'),
    refused: 'narrower type',
  },
  {
    name: 'a guard that puts ones where there is no number',
    probabilities: (g, p) => g.op('Where', [g.op('IsNaN', [p]), g.float(1), p]),
    refused: 'by Where',
  },
  {
    name: 'a number added before a mask of −10⁹, beside which a score is rounded to a multiple of 64',
    scores: (g, s) => masked(g, g.op('Add', [s, g.float(40)]), -1e9),
    refused: 'a mask that rounds scores',
  },
  {
    name: 'a number added before a mask of the lowest number',
    scores: (g, s) => masked(g, g.op('Add', [s, g.float(40)]), LOWEST),
  },
  {
    name: 'a guard against NaN that a bias brings',
    scores: (g, s) => g.op('Add', [s, g.op('Sqrt', [g.input('bias', g.type, dims('h q k')).name])]),
    probabilities: (g, p) => g.op('Where', [g.op('IsNaN', [p]), g.float(0), p]),
    refused: 'a guard against NaN',
  },
  {
    name: 'a guard against NaN that 0 · −∞ brings for keys that a mask keeps',
    scores(g, s) {
      const keep = cast(g, g.input('keep', 'bool', dims('b 1 1 k')).name, 'float32');
      return g.op('Add', [s, g.op('Mul', [g.op('Sub', [g.float(1), keep]), g.float(Number.NEGATIVE_INFINITY)])]);
    },
    probabilities: (g, p) => g.op('Where', [g.op('IsNaN', [p]), g.float(0), p]),
    refused: 'a guard against NaN',
  },
  {
    name: 'a guard of a quotient whose maximum was taken off before a mask: rows without keys are 0/0',
    scores: (g, s) => masked(g, g.op('Sub', [s, maximum(g, s, 3)]), LOWEST),
    softmax(g, s) {
      const e = g.op('Exp', [s]);
      const p = g.op('Div', [e, g.op('ReduceSum', [e, g.ints([3])], { keepdims: 1 })]);
      return g.op('Where', [g.op('IsNaN', [p]), g.float(0), p]);
    },
    refused: 'by Where',
  },
  {
    name: 'a guard that puts zeros where there is a number',
    probabilities: (g, p) => g.op('Where', [g.op('IsNaN', [p]), p, g.float(0)]),
    refused: 'by Where',
  },
  {
    name: 'a guard spelled as x = x',
    scores: (g, s) => masked(g, s, Number.NEGATIVE_INFINITY),
    probabilities: (g, p) => g.op('Where', [g.op('Equal', [p, p]), p, g.float(0)]),
    mayEmptyRows: true,
  },
  {
    name: 'zeros in place of probabilities below one half',
    probabilities: (g, p) => g.op('Where', [g.op('Less', [p, g.float(0.5)]), g.float(0), p]),
    refused: 'by Where',
  },
  {
    name: 'a guard whose test is an output too',
    probabilities(g, p) {
      const test = g.op('IsNaN', [p]);
      g.output(test);
      return g.op('Where', [test, g.float(0), p]);
    },
    refused: 'by Where',
  },
  {
    name: 'zeros where all scores of a key are −∞',
    scores: (g, s) => masked(g, s, Number.NEGATIVE_INFINITY),
    softmax(g, s) {
      const out = g.op('Equal', [s, g.float0(Number.NEGATIVE_INFINITY)]);
      const all = cast(g, g.op('ReduceMin', [cast(g, out, 'int64')], { axes: [2], keepdims: 1 }), 'bool');
      return g.op('Where', [all, g.float(0), g.op('Softmax', [s], { axis: -1 })]);
    },
    refused: 'changed by Where',
  },
  {
    name: 'a guard against what is no number elsewhere',
    probabilities: (g, p) =>
      g.op('Where', [g.op('IsNaN', [g.input('doubt', g.type, dims('1 k')).name]), g.float(0), p]),
    refused: 'changed by Where',
  },
  {
    name: 'a result that is scaled in the product itself',
    product: (g, p, v) => g.op('FusedMatMul', [p, v], { alpha: { float: 0.5 } }, 1, 'com.microsoft'),
  },
];

for (const { name, scores, softmax, probabilities, product, mayEmptyRows = false, refused } of LOOKALIKES) {
  test(name, async (t) => {
    const sizes = new Map(Object.entries({ h: 2, d: 5, e: 4 }));
    const g = new FuzzGraph(17, 'float32', sizes, new Choices([]), false);
    const read = (input: string, stored: string, wanted: string) =>
      g.rearrange(g.input(input, g.type, dims(stored)), dims(wanted)).name;
    const raw = g.op('MatMul', [read('Q', 'b q hd', 'b h q d'), read('K', 'b k hd', 'b h d k')]);
    const s = scores?.(g, raw) ?? raw;
    const normalised = softmax?.(g, s) ?? g.op('Softmax', [s], { axis: -1 });
    const p = probabilities?.(g, normalised) ?? normalised;
    const v = read('V', 'b k he', 'b h k e');
    g.output(product?.(g, p, v) ?? g.op('MatMul', [p, v]));
    const rest = { lengths: 'cross', oddities: [], mayEmptyRows, isCoarse: false, keepsAll: false } as const;
    const outcome = await judge({ model: g.model(), inputs: g.inputs, sizes, ...rest });
    if (refused === undefined) t.deepEqual(outcome, { kind: 'fused', runs: 3 });
    else t.true(outcome.kind === 'refused' && outcome.reason.includes(refused), JSON.stringify(outcome));
  });
}
