import test from 'ava';
import fc from 'fast-check';
import {
  describeProblem,
  drawProblem,
  nodeOf,
  type ProblemOptions,
  runProblem,
  type TestProblem,
} from '../../test/attention-problems.js';
import { DataType, type NodeProto } from '../onnx/proto.js';
import type { Refusal } from '../report.js';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from './definition.js';
import { type Lowered, type LoweringFacts, lowerToOnnx, lowerToOrt } from './lower.js';
import { flashAttentionNode } from './node.js';
import { type ProblemInputs, resolveProblem } from './problem.js';
import { isRefusal } from './site.js';

type Lower = (node: NodeProto, facts: LoweringFacts) => Lowered | Refusal;

/** Lowers a problem's node and runs it; says what differs from the reference, or why it was refused. */
async function runLowered(drawn: TestProblem, lower: Lower) {
  const { variant, problem } = drawn;
  const isSelfAttention = problem.queries === problem.newKeys;
  const lowered = lower(nodeOf(drawn), { ...variant, provider: 'cpu', isSelfAttention });
  if (isRefusal(lowered)) return { refused: lowered.reason };
  return { operators: lowered.nodes.map((n) => n.op_type), found: await runProblem(drawn, lowered) };
}

interface Family {
  readonly name: string;
  readonly lower: Lower;
  readonly operator: string;
  readonly options: ProblemOptions;
  /** Whether what is masked has the lowest number as its score, as exporters write it, and not −∞. */
  readonly isFilled?: boolean;
}

const LOWEST = -3.4028234663852886e38;

/** The problem with the lowest number in place of every −∞. */
function filled(drawn: TestProblem): TestProblem {
  const attributes = { ...drawn.attributes, maskedValue: LOWEST };
  const mask = drawn.tensors.attn_mask;
  const data = mask?.data instanceof Float32Array ? mask.data.map((x) => Math.max(x, LOWEST)) : mask?.data;
  const tensors = mask && data ? { ...drawn.tensors, attn_mask: { ...mask, data } } : drawn.tensors;
  const problem = resolveProblem(attributes, tensors as unknown as ProblemInputs);
  return { attributes, tensors, problem, variant: { ...drawn.variant, attributes } };
}

const none = {
  alignEnd: false,
  lengths: false,
  precision: false,
  period: false,
  windows: false,
  softcap: false,
  sink: false,
  grouped: false,
  mask: false,
  slices: false,
  known: true,
} as const;
const groupQuery = { ...none, grouped: true, causal: true, self: true, sameDimension: true } as const;
const f32 = { opset: 17, type: 'float32' } as const;
const onnx = { opset: 23, type: 'float32' } as const;
const wide = { ...f32, headDimensions: [8, 16] } as const;

const FAMILIES: readonly Family[] = [
  {
    name: 'MultiHeadAttention',
    lower: lowerToOrt,
    operator: 'MultiHeadAttention',
    options: { ...f32, features: { ...none, causal: false, past: false } },
  },
  {
    name: 'causal MultiHeadAttention with past',
    lower: lowerToOrt,
    operator: 'MultiHeadAttention',
    options: { ...f32, features: { ...none, self: true, causal: true, past: true, sameDimension: true } },
  },
  {
    name: 'MultiHeadAttention with a mask',
    lower: lowerToOrt,
    operator: 'MultiHeadAttention',
    options: {
      ...f32,
      features: { ...none, causal: false, mask: true, emptyRows: false, self: true, sameDimension: true },
    },
  },
  {
    name: 'GroupQueryAttention of as many key heads',
    lower: lowerToOrt,
    operator: 'GroupQueryAttention',
    options: { ...wide, features: { ...groupQuery, grouped: false, past: false } },
  },
  {
    name: 'GroupQueryAttention',
    lower: lowerToOrt,
    operator: 'GroupQueryAttention',
    options: { ...wide, features: { ...groupQuery, past: false } },
  },
  {
    name: 'GroupQueryAttention with softcap and sink',
    lower: lowerToOrt,
    operator: 'GroupQueryAttention',
    options: { ...wide, features: { ...groupQuery, past: false, softcap: true, sink: true } },
  },
  {
    name: 'Attention',
    lower: lowerToOnnx,
    operator: 'Attention',
    options: { ...onnx, features: { ...none, self: true } },
  },
  {
    name: 'Attention with a mask and grouped heads',
    lower: lowerToOnnx,
    operator: 'Attention',
    options: { ...onnx, features: { ...none, self: true, mask: true, grouped: true, emptyRows: false, finite: false } },
  },
  {
    name: 'Attention with a mask that empties rows',
    lower: lowerToOnnx,
    operator: 'Attention',
    options: { ...onnx, features: { ...none, self: true, causal: false, mask: true, finite: false } },
  },
  {
    name: 'Attention with a mask of the lowest number',
    lower: lowerToOnnx,
    operator: 'Attention',
    options: { ...onnx, features: { ...none, mask: true, causal: false } },
    isFilled: true,
  },
  {
    name: 'Attention with causality and a mask of the lowest number',
    lower: lowerToOnnx,
    operator: 'Attention',
    options: {
      ...onnx,
      features: { known: true, lengths: false, period: false, sink: false, slices: false, mask: true, causal: true },
    },
    isFilled: true,
  },
  {
    name: 'Attention with windows of the lowest number',
    lower: lowerToOnnx,
    operator: 'Attention',
    options: {
      ...onnx,
      features: { known: true, lengths: false, period: false, sink: false, slices: false, windows: true },
    },
    isFilled: true,
  },
  {
    name: 'Attention of opset 24 with lengths',
    lower: lowerToOnnx,
    operator: 'Attention',
    options: { ...onnx, opset: 24, features: { ...none, past: false, lengths: true, finite: false } },
  },
];

/** Refusals that a drawn problem may meet by chance; any other is a failure. */
const CHANCE = [/negative scale/, /shorter than the keys/, /queries and new keys may not be as many/];

for (const { name, lower, operator, options, isFilled } of FAMILIES) {
  test.serial(`lowered to ${name}, ONNX Runtime computes what the reference does`, async (t) => {
    let ran = 0;
    await fc.assert(
      fc.asyncProperty(fc.gen(), async (pick) => {
        const plainly = drawProblem(pick, options);
        const drawn = isFilled ? filled(plainly) : plainly;
        const result = await runLowered(drawn, lower).catch((error: Error) => ({
          found: error.message,
          operators: [],
        }));
        if ('refused' in result) {
          if (CHANCE.some((reason) => reason.test(result.refused ?? ''))) return;
          throw new Error(`refused: ${result.refused}\n${describeProblem(drawn)}`);
        }
        if (result.found !== undefined) throw new Error(`${result.found}\n${describeProblem(drawn)}`);
        if (!result.operators.some((o) => o === operator)) throw new Error(`lowered to ${result.operators}`);
        ran++;
      }),
      { numRuns: Number(process.env.ORT_FLASH_PROPERTY_RUNS ?? 40), includeErrorInReport: true },
    );
    t.true(ran > Number(process.env.ORT_FLASH_PROPERTY_RUNS ?? 40) / 4, `${ran} ran`);
  });
}

const plain: LoweringFacts = {
  elementType: DataType.FLOAT,
  opset: 17,
  provider: 'cpu',
  isSelfAttention: true,
  known: { queryHeads: 4, keyHeads: 4, headDimension: 8, valueDimension: 8 },
};

function site(attributes: Partial<FlashAttentionAttributes> = {}, layout = 'BS(HD)') {
  const layouts = { queryLayout: layout, keyLayout: layout, valueLayout: layout, outputLayout: layout };
  return flashAttentionNode({
    attributes: { ...DEFAULT_ATTRIBUTES, ...layouts, ...attributes },
    inputs: { Q: 'q', K: 'k', V: 'v' },
    outputs: { Y: 'y' },
    name: 'site',
  });
}

test('tensors that lie as the operator wants them are passed as they are', (t) => {
  const operators = (lowered: Lowered | Refusal) =>
    isRefusal(lowered) ? [lowered.reason] : lowered.nodes.map((n) => n.op_type);
  t.deepEqual(operators(lowerToOrt(site(), plain)), ['MultiHeadAttention']);
  t.deepEqual(operators(lowerToOnnx(site(), { ...plain, opset: 23 })), ['Attention']);
  t.deepEqual(operators(lowerToOnnx(site({}, 'BHSD'), { ...plain, opset: 23 })), ['Attention']);
});

test('each execution provider is given what its operators take', (t) => {
  const mask = { kind: 'additive', rank: 4, mayBeShorter: false, mayEmptyRows: false } as const;
  const lowered = (attributes: Partial<FlashAttentionAttributes>, facts: Partial<LoweringFacts>) =>
    (['cpu', 'cuda'] as const).map((provider) => {
      const result = lowerToOrt(site(attributes), { ...plain, ...facts, provider });
      if (isRefusal(result)) return result.reason;
      return `${result.nodes.at(-1)!.op_type}${result.holdsScores === undefined ? '' : ', with all scores'}`;
    });
  const causal = { isCausal: true };
  const half = { elementType: DataType.FLOAT16 };
  const brain = { elementType: DataType.BFLOAT16 };
  const grouped = { queryHeads: 4, keyHeads: 2, headDimension: 8, valueDimension: 8 };
  const noFloats = 'GroupQueryAttention on CUDA takes 16-bit types only';
  t.deepEqual(lowered({}, {}), ['MultiHeadAttention', 'MultiHeadAttention']);
  t.deepEqual(lowered({}, { mask }), ['MultiHeadAttention, with all scores', 'MultiHeadAttention']);
  t.deepEqual(lowered(causal, {}), ['GroupQueryAttention', 'MultiHeadAttention']);
  t.deepEqual(lowered(causal, half), ['GroupQueryAttention, with all scores', 'GroupQueryAttention']);
  t.deepEqual(lowered(causal, { known: grouped }), ['GroupQueryAttention', noFloats]);
  t.deepEqual(lowered({}, brain)[1], 'MultiHeadAttention on CUDA takes float32 and float16 only');
  t.deepEqual(lowered(causal, brain)[1], 'GroupQueryAttention');
});

test('what operators cannot say or say differently is refused with the reason', (t) => {
  const ort = (attributes: Partial<FlashAttentionAttributes>, facts: Partial<LoweringFacts> = {}) => {
    const result = lowerToOrt(site(attributes), { ...plain, ...facts });
    return isRefusal(result) ? result.reason : 'lowered';
  };
  t.is(ort({}), 'lowered');
  t.regex(ort({ softcap: 2 }), /always causal/);
  t.regex(ort({ isCausal: true }, { isSelfAttention: false }), /as many/);
  t.regex(ort({}, { hasLengths: true }), /nonpad_kv_seqlen/);
  t.regex(ort({}, { elementType: DataType.DOUBLE }), /float64/);
  t.regex(ort({}, { known: {} }), /number of heads/);
  t.regex(ort({ keyLayout: 'BS(HD@0/64)' }, { known: { queryHeads: 4, keyHeads: 4 } }), /sliced/);
  const grouped = { queryHeads: 4, keyHeads: 2, headDimension: 8, valueDimension: 8 };
  t.regex(ort({ isCausal: true }, { known: { ...grouped, headDimension: 4, valueDimension: 4 } }), /divisible by 8/);
  t.regex(ort({ isCausal: true }, { known: grouped, hasPast: true }), /batch of one/);
  const mask = { kind: 'boolean', rank: 2, mayBeShorter: false, mayEmptyRows: true } as const;
  t.regex(ort({}, { mask }), /NaN/);
  const onnx = (attributes: Partial<FlashAttentionAttributes>, facts: Partial<LoweringFacts> = {}) => {
    const result = lowerToOnnx(site(attributes), { ...plain, opset: 23, ...facts });
    return isRefusal(result) ? result.reason : 'lowered';
  };
  t.is(onnx({ isCausal: true, maskedValue: -1e4 }), 'lowered');
  t.regex(onnx({}, { opset: 22 }), /opset 22/);
  t.regex(onnx({ leftWindow: 2 }), /opset 25/);
  t.is(onnx({ leftWindow: 2 }, { opset: 25 }), 'lowered');
  t.regex(onnx({}, { hasSink: true }), /sink/);
  t.regex(onnx({ maskedValue: -1e4 }, { mask }), /finite masked_value/);
});
