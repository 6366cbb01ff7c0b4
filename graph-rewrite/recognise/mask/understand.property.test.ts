import test from 'ava';
import fc from 'fast-check';
import type { Tensor } from 'onnxruntime-node';
import {
  type GraphWriter,
  HEADS,
  type Lengths,
  LOWEST,
  makeFeeds,
  maskedSite,
  runAll,
  type Sizes,
} from '../../../test/mask-graphs.js';
import { decodeModel, encodeModel } from '../../onnx/codec.js';
import type { ModelProto } from '../../onnx/proto.js';
import type { FlashAttentionAttributes } from '../../op/definition.js';
import { isFlashAttention, readAttributes, readInputs } from '../../op/node.js';
import { type ProblemType, resolveProblem } from '../../op/problem.js';
import { type ReferenceInputs, referenceAttention } from '../../op/reference.js';
import { rewriteModel } from '../../rewrite.js';

/** A condition on (sample, query, key), as a recipe that a failing test can print. */
type Keep =
  | { readonly op: 'causal'; readonly spelling: number; readonly fromEnd: boolean }
  | { readonly op: 'window'; readonly size: number; readonly symmetric: boolean }
  | { readonly op: 'triangle'; readonly diagonal: number; readonly upper: boolean }
  | { readonly op: 'padding' | 'always' | 'strict' }
  | { readonly op: 'prefix' | 'blocks'; readonly size: number }
  | { readonly op: 'And' | 'Or' | 'Xor'; readonly a: Keep; readonly b: Keep }
  | { readonly op: 'Not'; readonly a: Keep }
  | { readonly op: 'Where'; readonly a: Keep; readonly b: Keep; readonly c: Keep };

/** A tensor that is added to the scores. */
type Added =
  | { readonly op: 'where' | 'product' | 'biased'; readonly keep: Keep; readonly fill: number }
  | { readonly op: 'bias' | 'shift' }
  | { readonly op: 'sum'; readonly a: Added; readonly b: Added }
  | { readonly op: 'clip'; readonly a: Added };

type Step =
  | { readonly op: 'add'; readonly mask: Added }
  | { readonly op: 'select'; readonly keep: Keep; readonly fill: number; readonly inverted: boolean }
  | { readonly op: 'floor' }
  | { readonly op: 'scale' };

/**
 * What exporters fill with, but for −10009 in place of −10⁴. Twice −10⁴ is half a float32's step at −10⁹: with both, the
 * sign of a score would decide between keys of a row that has none, in the model and differently in any other order.
 */
const FILLS = [LOWEST, Number.NEGATIVE_INFINITY, -10009, -1e9];

/** What attributes and small tensors can say. */
const common: fc.Arbitrary<Keep> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ op: fc.constant('causal' as const), spelling: fc.nat(3), fromEnd: fc.boolean() }),
  },
  { weight: 3, arbitrary: fc.record({ op: fc.constantFrom('padding' as const, 'always' as const) }) },
  fc.record({ op: fc.constant('window' as const), size: fc.integer({ min: 1, max: 4 }), symmetric: fc.boolean() }),
  fc.record({ op: fc.constant('triangle' as const), diagonal: fc.nat(2), upper: fc.constant(false) }),
);

/** What they cannot. */
const odd: fc.Arbitrary<Keep> = fc.oneof(
  fc.record({ op: fc.constant('triangle' as const), diagonal: fc.integer({ min: -2, max: 2 }), upper: fc.boolean() }),
  fc.record({ op: fc.constant('strict' as const) }),
  fc.record({ op: fc.constantFrom('prefix' as const, 'blocks' as const), size: fc.integer({ min: 1, max: 4 }) }),
);

const { any } = fc.letrec<{ any: Keep }>((tie) => ({
  any: fc.oneof(
    { maxDepth: 3, withCrossShrink: true },
    { weight: 3, arbitrary: common },
    { weight: 2, arbitrary: odd },
    { weight: 3, arbitrary: fc.record({ op: fc.constant('And' as const), a: tie('any'), b: tie('any') }) },
    fc.record({ op: fc.constantFrom('Or' as const, 'Xor' as const), a: tie('any'), b: tie('any') }),
    fc.record({ op: fc.constant('Not' as const), a: tie('any') }),
    fc.record({ op: fc.constant('Where' as const), a: tie('any'), b: tie('any'), c: tie('any') }),
  ),
}));

/** Mostly conjunctions of what can be expressed, some spelled as the negation of what takes keys out. */
const conjunction = fc.tuple(fc.array(common, { minLength: 1, maxLength: 3 }), fc.boolean()).map(([parts, negated]) => {
  const not = (a: Keep): Keep => ({ op: 'Not', a });
  if (!negated) return parts.reduce((a, b): Keep => ({ op: 'And', a, b }));
  return not(parts.map(not).reduce((a, b): Keep => ({ op: 'Or', a, b })));
});
const keep = fc.oneof({ weight: 3, arbitrary: conjunction }, any);

const fill = fc.constantFrom(...FILLS);
const { added } = fc.letrec<{ added: Added }>((tie) => ({
  added: fc.oneof(
    { maxDepth: 2, withCrossShrink: true },
    { weight: 4, arbitrary: fc.record({ op: fc.constant('where' as const), keep, fill }) },
    fc.record({ op: fc.constant('biased' as const), keep, fill }),
    // 0 · −∞ is no mask.
    fc.record({ op: fc.constant('product' as const), keep, fill: fc.constantFrom(LOWEST, -10009, -1e9) }),
    fc.record({ op: fc.constantFrom('bias' as const, 'shift' as const) }),
    fc.record({ op: fc.constant('sum' as const), a: tie('added'), b: tie('added') }),
    fc.record({ op: fc.constant('clip' as const), a: tie('added') }),
  ),
}));

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ op: fc.constant('add' as const), mask: added }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('select' as const), keep, fill, inverted: fc.boolean() }) },
  fc.constant({ op: 'floor' as const }),
  fc.constant({ op: 'scale' as const }),
);

function writeKeep(g: GraphWriter, recipe: Keep): string {
  const [rows, columns] = [g.rows(), g.columns()];
  switch (recipe.op) {
    case 'causal': {
      const i = recipe.fromEnd ? g.rows(g.op('Sub', [g.keys, g.queries])) : rows;
      if (recipe.spelling === 0) return g.op('LessOrEqual', [columns, i]);
      if (recipe.spelling === 1) return g.op('Not', [g.op('Less', [i, columns])]);
      if (recipe.spelling === 2) return g.op('GreaterOrEqual', [g.op('Sub', [i, columns]), g.int(0)]);
      return g.op('Less', [g.cast(columns, 'float32'), g.op('Add', [g.cast(i, 'float32'), g.float(0.5)])]);
    }
    case 'window': {
      const distance = g.op('Sub', [rows, columns]);
      return g.op('LessOrEqual', [recipe.symmetric ? g.op('Abs', [distance]) : distance, g.int(recipe.size)]);
    }
    case 'triangle': {
      const ones = g.filled([g.queries, g.keys], 'float32', 1);
      const part = g.op('Trilu', [ones, g.int(recipe.diagonal)], { upper: recipe.upper ? 1 : 0 });
      return g.op('Equal', [part, g.float(recipe.upper ? 0 : 1)]);
    }
    case 'padding':
      return g.cast(g.unsqueeze('attention_mask', 1, 2), 'bool');
    case 'always':
      return g.op('GreaterOrEqual', [rows, g.int(0)]);
    case 'strict':
      return g.op('Less', [columns, rows]);
    case 'prefix':
      return g.op('Less', [columns, g.int(recipe.size)]);
    case 'blocks': {
      const block = (x: string) => g.op('Div', [x, g.int(recipe.size)]);
      return g.op('Equal', [block(rows), block(columns)]);
    }
    case 'And':
    case 'Or':
    case 'Xor':
      return g.op(recipe.op, [writeKeep(g, recipe.a), writeKeep(g, recipe.b)]);
    case 'Not':
      return g.op('Not', [writeKeep(g, recipe.a)]);
    case 'Where': {
      // ONNX Runtime chooses between integers, not between booleans.
      const number = (k: Keep) => g.cast(writeKeep(g, k), 'int64');
      return g.cast(g.op('Where', [writeKeep(g, recipe.a), number(recipe.b), number(recipe.c)]), 'bool');
    }
  }
}

function writeAdded(g: GraphWriter, recipe: Added): string {
  const bias = () => g.op('Mul', [g.cast(g.columns(), 'float32'), g.tensor('float32', [HEADS, 1, 1], [-0.5, -0.25])]);
  switch (recipe.op) {
    case 'where':
      return g.op('Where', [writeKeep(g, recipe.keep), g.float(0), g.float(recipe.fill)]);
    case 'biased':
      return g.op('Where', [writeKeep(g, recipe.keep), bias(), g.float(recipe.fill)]);
    case 'product': {
      const flags = g.cast(writeKeep(g, recipe.keep), 'float32');
      return g.op('Mul', [g.op('Sub', [g.float(1), flags]), g.float(recipe.fill)]);
    }
    case 'bias':
      return bias();
    case 'shift':
      return g.op('Add', [bias(), g.float(1)]);
    case 'sum':
      return g.op('Add', [writeAdded(g, recipe.a), writeAdded(g, recipe.b)]);
    case 'clip':
      return g.op('Max', [writeAdded(g, recipe.a), g.float(LOWEST)]);
  }
}

function writeSteps(steps: readonly Step[]) {
  return (g: GraphWriter, scores: string) =>
    steps.reduce((s, recipe) => {
      if (recipe.op === 'add') return g.op('Add', [s, writeAdded(g, recipe.mask)]);
      if (recipe.op === 'floor') return g.op('Max', [s, g.float(LOWEST)]);
      if (recipe.op === 'scale') return g.op('Mul', [s, g.float(0.375)]);
      const condition = writeKeep(g, recipe.keep);
      const filler = g.float(recipe.fill);
      return g.op('Where', recipe.inverted ? [condition, filler, s] : [condition, s, filler]);
    }, scores);
}

const SIZES: Readonly<Record<Lengths, readonly Sizes[]>> = {
  self: [1, 2, 7].map((n) => ({ batch: 2, queries: n, keys: n })),
  cross: [
    { batch: 2, queries: 3, keys: 8 },
    { batch: 2, queries: 8, keys: 3 },
    { batch: 1, queries: 1, keys: 4 },
  ],
  past: [
    { batch: 2, queries: 3, keys: 8 },
    { batch: 1, queries: 1, keys: 6 },
    { batch: 2, queries: 2, keys: 2 },
  ],
};

/** Numbers in [0, 1), the same for the same seed. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Holes everywhere, and in one sample no key at all. */
const samplesOf = (lengths: Lengths, seed: number) =>
  SIZES[lengths].map((sizes, n) => {
    const random = generator(seed + n);
    return makeFeeds(lengths, sizes, random, (b) => (n + b) % 3 !== 1 && random() < 0.7);
  });

/** A row of NaN in the model, which has no key, is zeros in the operator. */
function largestDifference(expected: ArrayLike<number>, actual: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Number.isNaN(expected[i]!) ? Math.abs(actual[i]!) : Math.abs(expected[i]! - actual[i]!);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

/** The node of a rewritten model by the operator's definition; its mask is computed by ONNX Runtime. */
async function byDefinition(rewritten: ModelProto, feeds: readonly Record<string, Tensor>[]): Promise<Float64Array[]> {
  const node = rewritten.graph!.node.find(isFlashAttention)!;
  const names = readInputs(node);
  const masks = names.attn_mask === undefined ? [] : await runAll(maskModel(rewritten, names.attn_mask), feeds);
  return feeds.map((feed, n) => reference(readAttributes(node), names, feed, masks[n]));
}

/** The model up to the operator's mask. */
function maskModel(rewritten: ModelProto, mask: string): ModelProto {
  const model = decodeModel(encodeModel(rewritten));
  const graph = model.graph!;
  graph.node.splice(graph.node.findIndex(isFlashAttention), 1);
  graph.output[0]!.name = mask;
  graph.output[0]!.type = null;
  model.functions = [];
  return model;
}

function reference(
  attributes: FlashAttentionAttributes,
  names: Partial<Record<string, string>>,
  feed: Record<string, Tensor>,
  mask: Tensor | undefined,
): Float64Array {
  const tensors: Record<string, Tensor> = mask ? { attn_mask: mask } : {};
  for (const [input, name] of Object.entries(names)) {
    if (input !== 'attn_mask' && name !== undefined && feed[name]) tensors[input] = feed[name];
  }
  const describe = ({ type, dims }: Tensor) => ({ type: type as ProblemType, shape: dims });
  const described = Object.fromEntries(Object.entries(tensors).map(([k, v]) => [k, describe(v)]));
  const problem = resolveProblem(attributes, described as unknown as Parameters<typeof resolveProblem>[1]);
  const data = Object.fromEntries(Object.entries(tensors).map(([k, v]) => [k, v.data]));
  return referenceAttention(problem, data as unknown as ReferenceInputs).Y;
}

test('random masks: the rewritten model gives what the model gave, and so does the operator by its definition', async (t) => {
  let expressed = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 1, maxLength: 3, size: 'xsmall' }),
      fc.constantFrom<Lengths>('self', 'cross', 'past'),
      fc.nat(1000),
      async (steps, lengths, seed) => {
        const model = maskedSite(writeSteps(steps), { lengths });
        const rewritten = maskedSite(writeSteps(steps), { lengths });
        const [site] = rewriteModel(rewritten).sites;
        if (!site?.fused) {
          if (site?.refusal?.reason.includes('is combined with another mask')) return;
          throw new Error(`refused: ${site?.refusal?.reason}`);
        }
        const { isCausal, leftWindow, rightWindow } = site.attributes!;
        if (isCausal || leftWindow >= 0 || rightWindow >= 0) expressed++;
        const feeds = samplesOf(lengths, seed);
        const expected = await runAll(model, feeds);
        const actual = await runAll(rewritten, feeds);
        // A score plus −10009 is rounded to a multiple of 2⁻¹⁰ in float32.
        const tolerance = /-10009\b/.test(JSON.stringify(steps)) ? 4e-3 : 2e-5;
        for (const [n, want] of expected.entries()) {
          const difference = largestDifference(want.data as Float32Array, actual[n]!.data as Float32Array);
          if (difference > tolerance) throw new Error(`${difference} apart with ${JSON.stringify(SIZES[lengths][n])}`);
        }
        // In double precision, a score plus −10009 or −10⁹ is not what it is in the model.
        if (/-10009|-1000000000/.test(JSON.stringify(steps))) return;
        const { K } = readInputs(rewritten.graph!.node.find(isFlashAttention)!);
        // Where the model itself joins past and new keys, they are no inputs of it.
        if (K !== 'K') return;
        for (const [n, want] of (await byDefinition(rewritten, feeds)).entries()) {
          const difference = largestDifference(expected[n]!.data as Float32Array, want);
          if (difference > 1e-4)
            throw new Error(`${difference} apart from the definition with ${JSON.stringify(SIZES[lengths][n])}`);
        }
      },
    ),
    { numRuns: Number(process.env.MASK_RUNS ?? 150), includeErrorInReport: true },
  );
  t.log(`${expressed} with attributes`);
  t.true(expressed > 15);
});
