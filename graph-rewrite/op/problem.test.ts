import test from 'ava';
import { DEFAULT_ATTRIBUTES } from './definition.js';
import { formatLayout, layoutShape, parseLayout, resolveLayout } from './layout.js';
import { resolveProblem } from './problem.js';

test('layouts are read and written back', (t) => {
  for (const text of ['BHSD', 'BS(HD)', 'BHDS', 'SB(HD)', '(BH)SD', 'BS([1/3]HD)', '[2/3]BHSD', 'BS(HD@64/96)', 'SD'])
    t.is(formatLayout(parseLayout(text)), text);
  for (const text of ['BHSDD', 'BHS(D', 'X', 'B()', '[3/3]BHSD', '(HH)SD'])
    t.throws(() => parseLayout(text), { code: 'invalid-argument' });
});

test('a packed projection is seen as strides', (t) => {
  const key = resolveLayout(parseLayout('BS([1/3]HD)'), [2, 5, 3 * 4 * 8], { H: 4 });
  t.deepEqual(key.size, { B: 2, H: 4, S: 5, D: 8 });
  t.deepEqual(key.stride, { B: 5 * 96, H: 8, S: 96, D: 1 });
  t.is(key.offset, 32);
  const interleaved = resolveLayout(parseLayout('BSH([2/3]D)'), [2, 5, 4, 24]);
  t.deepEqual([interleaved.stride.H, interleaved.size.D, interleaved.offset], [24, 8, 16]);
});

test('a slice takes the head dimension from elsewhere', (t) => {
  const value = resolveLayout(parseLayout('BS(HD@48/64)'), [1, 7, 64], { H: 2, D: 8 });
  t.deepEqual([value.offset, value.stride.S, value.size.D], [48, 64, 8]);
  t.throws(() => resolveLayout(parseLayout('BS(HD@56/64)'), [1, 7, 64], { H: 2, D: 8 }), { code: 'invalid-tensor' });
  t.throws(() => resolveLayout(parseLayout('BS(HD)'), [1, 7, 10], { H: 4 }), { code: 'invalid-tensor' });
  t.deepEqual(layoutShape(parseLayout('SB(HD)'), { B: 2, H: 3, S: 5, D: 7 }), [5, 2, 21]);
});

test('a problem resolves sizes, past, mask and scale, and refuses what does not fit', (t) => {
  const f32 = (...shape: number[]) => ({ type: 'float32', shape }) as const;
  const attributes = { ...DEFAULT_ATTRIBUTES, queryLayout: 'BS(HD)', queryHeads: 4, outputLayout: 'BS(HD)' };
  const inputs = {
    Q: f32(2, 3, 32),
    K: f32(2, 2, 5, 8),
    V: f32(2, 2, 5, 6),
    past_key: f32(2, 2, 7, 8),
    past_value: f32(2, 2, 7, 6),
    attn_mask: { type: 'bool', shape: [2, 1, 1, 12] },
  } as const;
  const problem = resolveProblem(attributes, inputs);
  t.deepEqual(problem.outputShape, [2, 3, 24]);
  t.deepEqual(problem.presentKeyShape, [2, 2, 12, 8]);
  t.deepEqual(problem.mask?.stride, { batch: 12, head: 0, query: 0, key: 1 });
  t.is(problem.scale, 1 / Math.sqrt(8));
  t.throws(() => resolveProblem(attributes, { ...inputs, V: f32(2, 2, 4, 6) }), {
    code: 'invalid-tensor',
    message: /V must have 5 positions/,
  });
  t.throws(() => resolveProblem(attributes, { ...inputs, attn_mask: f32(3, 1, 1, 12) }), { code: 'invalid-tensor' });
  t.throws(() => resolveProblem(attributes, { ...inputs, attn_mask: { type: 'int64', shape: [12] } }), {
    code: 'invalid-tensor',
  });
});
