import fc from 'fast-check';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from '../../graph-rewrite/op/definition.js';
import { encodeHalf } from '../../graph-rewrite/op/half.js';
import { layoutShape, parseLayout } from '../../graph-rewrite/op/layout.js';
import { type AttentionProblem, type ProblemInputs, resolveProblem } from '../../graph-rewrite/op/problem.js';
import type { ReferenceData, ReferenceInputs } from '../../graph-rewrite/op/reference.js';
import type { CallData } from './run.js';

/** A call with its data, as the GPU takes it and as the reference takes it. */
export interface RandomCall {
  readonly problem: AttentionProblem;
  readonly gpu: CallData;
  readonly reference: ReferenceInputs;
}

/** Sizes and options of a call, from which `makeCall` makes one; what fast-check shrinks and prints. */
export interface CallSpec {
  readonly type?: 'float32' | 'float16';
  readonly batch: number;
  readonly keyHeads: number;
  readonly group: number;
  readonly queries: number;
  readonly newKeys: number;
  /** −1 for no past. */
  readonly pastKeys: number;
  readonly headDimension: number;
  readonly valueDimension: number;
  readonly layouts: readonly [string, string, string, string];
  readonly mask: { readonly type: 'none' | 'bool' | 'additive'; readonly broadcast: number; readonly keys: number };
  readonly attributes: Partial<FlashAttentionAttributes>;
  readonly lengths: boolean;
  readonly sink: boolean;
  readonly seed: number;
}

const QUERY_LAYOUTS = ['BHSD', 'BSHD', 'BS(HD)', 'SB(HD)', 'BHDS', '(BH)SD', 'BS([1/3]HD)', '[2/3]BHSD'];
const OUTPUT_LAYOUTS = ['BHSD', 'BSHD', 'BS(HD)', 'SB(HD)', 'BHDS', '(BH)SD'];

/** Small calls of every kind that the operator has. */
export const callSpecs: fc.Arbitrary<CallSpec> = fc.record({
  batch: fc.integer({ min: 1, max: 3 }),
  keyHeads: fc.integer({ min: 1, max: 2 }),
  group: fc.constantFrom(1, 1, 2, 3),
  queries: fc.oneof(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 5, max: 40 })),
  newKeys: fc.integer({ min: 1, max: 70 }),
  pastKeys: fc.oneof(fc.constant(-1), fc.integer({ min: 0, max: 20 })),
  headDimension: fc.constantFrom(1, 3, 4, 8, 12),
  valueDimension: fc.constantFrom(1, 4, 6, 8),
  layouts: fc.tuple(
    fc.constantFrom(...QUERY_LAYOUTS),
    fc.constantFrom(...QUERY_LAYOUTS),
    fc.constantFrom(...QUERY_LAYOUTS),
    fc.constantFrom(...OUTPUT_LAYOUTS),
  ),
  mask: fc.record({
    type: fc.constantFrom('none', 'bool', 'additive'),
    /** Bits: batch, head, query and key are broadcast. */
    broadcast: fc.integer({ min: 0, max: 15 }),
    /** Keys that the mask leaves out at the end. */
    keys: fc.constantFrom(0, 0, 0, 2),
  }),
  attributes: fc.record({
    isCausal: fc.boolean(),
    alignEnd: fc.boolean(),
    softcap: fc.constantFrom(0, 0, 2.5),
    scale: fc.constantFrom(0, 0.3),
    leftWindow: fc.constantFrom(-1, -1, 0, 9),
    rightWindow: fc.constantFrom(-1, -1, 5),
    maskedValue: fc.constantFrom(Number.NEGATIVE_INFINITY, -3.4028234663852886e38, -10000, -4),
    maskPeriod: fc.constantFrom(0, 0, 1),
  }),
  lengths: fc.boolean(),
  sink: fc.boolean(),
  seed: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
});

/** A small, fast generator of 32-bit numbers (Marsaglia, Xorshift RNGs, 2003). */
export function randomNumbers(seed: number): () => number {
  let state = seed | 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

export function makeCall(spec: CallSpec): RandomCall {
  const random = randomNumbers(spec.seed);
  const type = spec.type ?? 'float32';
  const { batch, keyHeads, headDimension, valueDimension } = spec;
  const queryHeads = keyHeads * spec.group;
  const keys = spec.newKeys + Math.max(0, spec.pastKeys);
  const shape = (layout: string, H: number, S: number, D: number) => ({
    type,
    shape: layoutShape(parseLayout(layout), { B: batch, H, S, D }),
  });
  const [queryLayout, keyLayout, valueLayout, outputLayout] = spec.layouts;
  const inputs: Record<string, { type: string; shape: readonly number[] }> = {
    Q: shape(queryLayout, queryHeads, spec.queries, headDimension),
    K: shape(keyLayout, keyHeads, spec.newKeys, headDimension),
    V: shape(valueLayout, keyHeads, spec.newKeys, valueDimension),
  };
  if (spec.pastKeys >= 0) {
    inputs.past_key = { type, shape: [batch, keyHeads, spec.pastKeys, headDimension] };
    inputs.past_value = { type, shape: [batch, keyHeads, spec.pastKeys, valueDimension] };
  }
  const maskPeriod = spec.attributes.maskPeriod ?? 0;
  if (spec.mask.type !== 'none') {
    const isBroadcast = (bit: number) => (spec.mask.broadcast & bit) !== 0;
    inputs.attn_mask = {
      type: spec.mask.type === 'bool' ? 'bool' : type,
      shape: [
        maskPeriod > 0 ? maskPeriod : isBroadcast(1) ? 1 : batch,
        isBroadcast(2) ? 1 : queryHeads,
        isBroadcast(4) ? 1 : spec.queries,
        isBroadcast(8) ? 1 : Math.max(1, keys - spec.mask.keys),
      ],
    };
  }
  if (spec.lengths) inputs.nonpad_kv_seqlen = { type: 'int64', shape: [batch] };
  if (spec.sink) inputs.sink = { type, shape: [queryHeads] };

  const attributes = {
    ...DEFAULT_ATTRIBUTES,
    ...spec.attributes,
    queryLayout,
    keyLayout,
    valueLayout,
    outputLayout,
    queryHeads,
    keyHeads,
    maskPeriod: spec.mask.type === 'none' ? 0 : maskPeriod,
  };
  const problem = resolveProblem(attributes, inputs as unknown as ProblemInputs);
  const gpu: Record<string, Float32Array | Uint16Array | Uint8Array | BigInt64Array> = {};
  const reference: Record<string, ReferenceData> = {};
  for (const [name, tensor] of Object.entries(inputs)) {
    const count = tensor.shape.reduce((a, b) => a * b, 1);
    const data = makeData(name, tensor.type, count, keys, random);
    gpu[name] = data;
    reference[name] = data;
  }
  return { problem, gpu, reference: reference as unknown as ReferenceInputs };
}

function makeData(name: string, type: string, count: number, keys: number, random: () => number) {
  if (type === 'int64') return BigInt64Array.from({ length: count }, () => BigInt(Math.floor(random() * (keys + 1))));
  if (type === 'bool') return Uint8Array.from({ length: count }, () => (random() < 0.6 ? 1 : 0));
  const isMask = name === 'attn_mask';
  const values = Float32Array.from({ length: count }, () => {
    if (isMask && random() < 0.2)
      return random() < 0.5 ? Number.NEGATIVE_INFINITY : type === 'float16' ? -65504 : -3.4028234663852886e38;
    return (random() - 0.5) * 4;
  });
  return type === 'float16' ? encodeHalf(values, 'float16') : values;
}

/** Largest difference from the reference, as a share of the reference's largest value; NaN wherever one is NaN. */
export function relativeError(got: Float32Array, expected: Float64Array): number {
  if (got.length !== expected.length) return Number.NaN;
  let error = 0;
  let scale = 1e-3;
  for (let i = 0; i < got.length; i++) {
    const difference = got[i] === expected[i] ? 0 : Math.abs(got[i]! - expected[i]!);
    if (!(difference <= error)) error = difference;
    scale = Math.max(scale, Math.abs(expected[i]!));
  }
  return error / scale;
}
