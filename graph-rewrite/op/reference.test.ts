import test from 'ava';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from './definition.js';
import { encodeHalf } from './half.js';
import { type ProblemInputs, resolveProblem } from './problem.js';
import { type ReferenceInputs, referenceAttention } from './reference.js';

const f32 = (...shape: number[]) => ({ type: 'float32', shape }) as const;

function attend(attributes: Partial<FlashAttentionAttributes>, shapes: ProblemInputs, data: ReferenceInputs) {
  return referenceAttention(resolveProblem({ ...DEFAULT_ATTRIBUTES, ...attributes }, shapes), data);
}

// One head, head dimension 1 and scale 1: the score is the product of two numbers, and can be followed by hand.
const shapes = { Q: f32(1, 1, 2, 1), K: f32(1, 1, 3, 1), V: f32(1, 1, 3, 1) };
const data = { Q: [1, 2], K: [0, Math.log(2), Math.log(3)], V: [1, 10, 100] };

test('scores, softmax and values as by hand', (t) => {
  const { Y, lse } = attend({ scale: 1 }, shapes, data);
  const expected = [(1 + 2 * 10 + 3 * 100) / 6, (1 + 4 * 10 + 9 * 100) / 14];
  for (const [i, e] of expected.entries()) t.true(Math.abs(Y[i]! - e) < 1e-12);
  t.true(Math.abs(lse[0]! - Math.log(6)) < 1e-12 && Math.abs(lse[1]! - Math.log(14)) < 1e-12);
});

test('causality from the first key, and from the end of the keys', (t) => {
  t.deepEqual([...attend({ scale: 1, isCausal: true }, shapes, data).Y], [1, (1 + 4 * 10) / 5]);
  const aligned = attend({ scale: 1, isCausal: true, alignEnd: true }, shapes, data).Y;
  t.true(Math.abs(aligned[0]! - 7) < 1e-12 && Math.abs(aligned[1]! - 941 / 14) < 1e-12);
});

test('windows count from the position of the query', (t) => {
  t.deepEqual([...attend({ leftWindow: 0, rightWindow: 0 }, shapes, data).Y], [1, 10]);
  const lengths = { ...shapes, nonpad_kv_seqlen: { type: 'int64', shape: [1] } } as const;
  // Two queries at the end of three keys stand at positions 1 and 2.
  const Y = attend({ leftWindow: 0, rightWindow: 0 }, lengths, { ...data, nonpad_kv_seqlen: [3n] }).Y;
  t.deepEqual([...Y], [10, 100]);
});

test('a row without keys is zero with −∞, and the mean with a finite masked value', (t) => {
  const masked = { ...shapes, attn_mask: { type: 'bool', shape: [2, 3] } } as const;
  const inputs = { ...data, attn_mask: Uint8Array.of(0, 0, 0, 1, 0, 0) };
  const empty = attend({}, masked, inputs);
  t.deepEqual([...empty.Y], [0, 1]);
  t.is(empty.lse[0], Number.NEGATIVE_INFINITY);
  const mean = attend({ maskedValue: -1e30 }, masked, inputs).Y;
  t.true(Math.abs(mean[0]! - 37) < 1e-12);
  t.is(mean[1], 1);
});

test('a mask of fewer keys takes the later ones out', (t) => {
  const masked = { ...shapes, attn_mask: f32(1, 2) };
  const { Y } = attend({ scale: 1 }, masked, { ...data, attn_mask: [0, Number.NEGATIVE_INFINITY] });
  t.deepEqual([...Y], [1, 1]);
});

test('the sink takes weight and gives no value', (t) => {
  const { Y, lse } = attend({ scale: 1 }, { ...shapes, sink: f32(1) }, { ...data, sink: [Math.log(6)] });
  t.true(Math.abs(Y[0]! - 321 / 12) < 1e-12);
  t.true(Math.abs(lse[0]! - Math.log(12)) < 1e-12);
});

test('softcap bends the scores before the mask', (t) => {
  const Q = [1e6, 1e6];
  const { Y } = attend({ softcap: Math.log(2) }, shapes, { ...data, Q });
  t.true(Math.abs(Y[0]! - (1 + 2 * 10 + 2 * 100) / 5) < 1e-9);
});

test('half bits, past keys and grouped heads', (t) => {
  const f16 = (...shape: number[]) => ({ type: 'float16', shape }) as const;
  const problem = {
    Q: f16(1, 2, 1, 1),
    K: f16(1, 1, 1, 1),
    V: f16(1, 1, 1, 1),
    past_key: f16(1, 1, 1, 1),
    past_value: f16(1, 1, 1, 1),
  };
  const half = (...x: number[]) => encodeHalf(x, 'float16');
  const inputs = { Q: half(0, 0), K: half(2), V: half(3), past_key: half(5), past_value: half(7) };
  const { Y, presentKey, presentValue } = attend({}, problem, inputs);
  t.deepEqual(
    [[...Y], [...presentKey!], [...presentValue!]],
    [
      [5, 5],
      [5, 2],
      [7, 3],
    ],
  );
  const { V: _, ...withoutValues } = inputs;
  t.throws(() => attend({}, problem, withoutValues as unknown as ReferenceInputs), { code: 'invalid-tensor' });
});
