/** Models in bfloat16 where a device lacks it: computed in float32, with bfloat16 in and out. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { makeTensor } from '../graph-rewrite/onnx/tensor.js';
import { decodeHalf, encodeHalf, numberToHalf } from '../graph-rewrite/op/half.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { bundledModel, readTestData } from '../models/corpus.js';
import { relativeDifference, toNumbers } from '../test/runtime.js';
import { createTensor, InferenceSession, Tensor } from './index.js';
import { addonPath } from './node-paths.js';
import { prepareModel } from './node-prepare.js';
import { externalModel, identityModel, makeModel, type ValueSpec } from './test-models.js';

const DEVICES = ['cpu', 'wasm'] as const;

const bfloat16 = (numbers: readonly number[], dims: readonly number[] = [numbers.length]) =>
  createTensor('bfloat16', encodeHalf(numbers, 'bfloat16'), dims);
const bitsOf = ({ data }: Tensor) => data as unknown as Uint16Array;
const numbersOf = (tensor: Tensor) => decodeHalf(bitsOf(tensor), 'bfloat16');

const vector = (name: string, type: ValueSpec['type']): ValueSpec => ({ name, type, shape: ['n'] });

/** sum = x + w, all bfloat16, and twice = own + own, int64. */
const sums = makeModel(
  [vector('x', 'bfloat16'), vector('own', 'int64')],
  [vector('sum', 'bfloat16'), vector('twice', 'int64')],
  [
    { op: 'Add', inputs: ['x', 'w'], outputs: ['sum'] },
    { op: 'Add', inputs: ['own', 'own'], outputs: ['twice'] },
  ],
  [makeTensor('w', 'bfloat16', [1], [1])],
);
const own = new Tensor('int64', BigInt64Array.of(3n), [1]);

for (const device of DEVICES) {
  const open = (model: string | Uint8Array) =>
    InferenceSession.create(model as Uint8Array, { executionProviders: [device] });

  test(`${device}: bfloat16 goes in and comes out, each sum rounded once`, async (t) => {
    const session = await open(sums);
    t.regex(session.explain().text, new RegExp(`^runs on ${device}.*; bfloat16 is computed in float32 here`));
    const typed = ({ name, isTensor, ...rest }: InferenceSession.ValueMetadata) =>
      `${name} ${isTensor && (rest as { type: string }).type}`;
    t.deepEqual(session.inputMetadata.map(typed), ['x bfloat16', 'own int64']);
    t.deepEqual(session.outputMetadata.map(typed), ['sum bfloat16', 'twice int64']);
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 40 }), async (bits) => {
        const x = createTensor('bfloat16', Uint16Array.from(bits), [bits.length]);
        const { sum, twice } = await session.run({ x, own });
        t.is(sum!.type as string, 'bfloat16');
        t.deepEqual([...sum!.dims], [bits.length]);
        const exact = Array.from(numbersOf(x), (value) => numberToHalf(Math.fround(value + 1), 'bfloat16'));
        // As numbers: which NaN comes out is the processor's to say.
        t.deepEqual(Array.from(numbersOf(sum!)), Array.from(decodeHalf(exact, 'bfloat16')));
        t.deepEqual(twice!.data, BigInt64Array.of(6n));
      }),
      { numRuns: 50, includeErrorInReport: true },
    );
    await session.release();
    await session.release();
  });

  test(`${device}: every bit pattern passes, NaN too`, async (t) => {
    const session = await open(identityModel('bfloat16'));
    const bits = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
    const { y } = await session.run({ x: createTensor('bfloat16', bits, [bits.length]) });
    t.deepEqual(bitsOf(y!), bits);
    await session.release();
  });

  test(`${device}: results go into the tensors given for them, and only the outputs asked for are computed`, async (t) => {
    const session = await open(sums);
    const sum = bfloat16([0, 0]);
    const twice = new Tensor('int64', new BigInt64Array(1), [1]);
    const results = await session.run({ x: bfloat16([2, -1]), own }, { sum, twice });
    t.is(results.sum, sum);
    t.deepEqual(numbersOf(sum), Float32Array.of(3, 0));
    t.deepEqual(twice.data, BigInt64Array.of(6n));
    t.deepEqual(Object.keys(await session.run({ x: bfloat16([2]), own }, ['sum'])), ['sum']);
    const into = (tensor: Tensor) => session.run({ x: bfloat16([2, -1]), own }, { sum: tensor });
    await t.throwsAsync(into(new Tensor('float32', new Float32Array(2), [2])), {
      name: 'OrtFlashError',
      message: /output sum has type float32, the output has bfloat16/,
    });
    await t.throwsAsync(into(bfloat16([0])), { message: /output sum has shape \(1\), the output has \(2\)/ });
    await session.release();
  });

  test(`${device}: inputs that are no bfloat16 tensor are refused by name, and the session goes on`, async (t) => {
    const session = await open(sums);
    const run = (x: unknown) => session.run({ x: x as Tensor, own });
    const refused = (x: unknown, message: RegExp) =>
      t.throwsAsync(run(x), { name: 'OrtFlashError', code: 'invalid-tensor', message });
    await refused(
      new Tensor('float32', Float32Array.of(1), [1]),
      /input x has type float32, the model expects bfloat16/,
    );
    await refused(null, /input x is no tensor/);
    await refused({ type: 'bfloat16', dims: [2], location: 'cpu', data: new Uint16Array(1) }, /do not fill \(2\)/);
    await refused({ type: 'bfloat16', dims: [1], location: 'cpu', data: new Float32Array(1) }, /do not fill \(1\)/);
    await refused({ type: 'bfloat16', location: 'cpu', data: new Uint16Array(1) }, /input x is no tensor/);
    const gone = bfloat16([1]);
    structuredClone(gone.data, { transfer: [(gone.data as Float32Array<ArrayBuffer>).buffer] });
    await refused(gone, /do not fill/);
    await t.throwsAsync(session.run({ own }), { message: /input 'x' is missing/ });
    t.deepEqual(numbersOf((await run(bfloat16([1]))).sum!), Float32Array.of(2));
    await session.release();
  });

  test(`${device}: a float32 model with bfloat16 inside runs, nearer to the exact numbers`, async (t) => {
    const model = makeModel(
      [vector('x', 'float32')],
      [vector('y', 'float32')],
      [
        { op: 'Cast', inputs: ['x'], outputs: ['half'], ints: { to: 16 } },
        { op: 'Mul', inputs: ['half', 'w'], outputs: ['product'] },
        { op: 'Cast', inputs: ['product'], outputs: ['y'], ints: { to: 1 } },
      ],
      [makeTensor('w', 'bfloat16', [1], [3])],
    );
    const session = await open(model);
    t.like(session.inputMetadata[0], { type: 'float32' });
    const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(0.1, 1 / 3), [2]) });
    t.deepEqual(y!.data, Float32Array.of(0.1 * 3, 1));
    await session.release();
  });

  test(`${device}: a model that ONNX Runtime takes as it is goes on rounding to bfloat16`, async (t) => {
    const model = makeModel(
      [vector('x', 'float32')],
      [vector('y', 'float32')],
      [
        { op: 'Cast', inputs: ['x'], outputs: ['half'], ints: { to: 16 } },
        { op: 'Cast', inputs: ['half'], outputs: ['y'], ints: { to: 1 } },
      ],
    );
    const session = await open(model);
    t.notRegex(session.explain().text, /float32/);
    const x = Float32Array.of(0.1, 1 / 3, -5, 1e-40);
    const { y } = await session.run({ x: new Tensor('float32', x, [4]) });
    t.deepEqual(y!.data, decodeHalf(encodeHalf(x, 'bfloat16'), 'bfloat16'));
    await session.release();
  });

  test(`${device}: a file that ort-flash rewrite has written runs, too`, async (t) => {
    const example = bundledModel('bf16_attn-dyn18');
    const proto = decodeModel(readFileSync(example.modelFile));
    t.true(rewriteModel(proto).sites.some(({ fused }) => fused));
    const session = await open(encodeModel(proto));
    const { inputs, outputs } = readTestData(example.dataFolder);
    const x = createTensor('bfloat16', inputs[0]!.data as Uint16Array, inputs[0]!.dims);
    const { output } = await session.run({ x });
    t.true(relativeDifference(toNumbers('bfloat16', bitsOf(output!)), outputs[0]!) <= example.tolerance);
    await session.release();
  });

  const needsAddon = device === 'cpu' && !existsSync(addonPath());
  (needsAddon ? test.skip : test)(`${device}: weights in a data file`, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'ort-flash-widened-'));
    t.teardown(() => rmSync(folder, { recursive: true }));
    writeFileSync(join(folder, 'model.onnx'), externalModel('bfloat16'));
    writeFileSync(join(folder, 'weights.bin'), encodeHalf([1, 2, 3, 4], 'bfloat16'));
    const session = await open(join(folder, 'model.onnx'));
    const { y } = await session.run({ x: bfloat16([1, 1, 1, -4]) });
    t.deepEqual(numbersOf(y!), Float32Array.of(2, 3, 4, 0));
    await session.release();
  });
}

test('flash: off leaves a model as it is, and so do devices that have bfloat16', async (t) => {
  const { modelFile } = bundledModel('bf16_attn-dyn18');
  for (const device of DEVICES)
    await t.throwsAsync(InferenceSession.create(modelFile, { executionProviders: [device], flash: 'off' }), {
      name: 'OrtFlashError',
      message: /bfloat16|implementation/,
    });
  for (const carrier of ['kernels', 'cuda'] as const) {
    const { widened, note } = await prepareModel(modelFile, carrier, 'auto');
    t.is(widened, undefined);
    t.notRegex(note ?? '', /float32/);
  }
  t.is((await prepareModel(sums, 'kernels', 'auto')).model, sums);
});

test('where float32 cannot stand for bfloat16, the model is left as it is, and the reason told', async (t) => {
  const bits = makeModel(
    [vector('x', 'bfloat16')],
    [vector('y', 'uint16')],
    [{ op: 'BitCast', inputs: ['x'], outputs: ['y'], ints: { to: 4 } }],
  );
  const prepared = await prepareModel(bits, 'cpu', 'auto', { widens: true });
  t.is(prepared.model, bits);
  t.is(prepared.widened, undefined);
  t.regex(prepared.note!, /bfloat16 cannot be computed in float32: a BitCast sees the bits/);
});
