/** Models in bfloat16 on WebGPU, which lacks it: in float32, through `ort-flash/web` and `ort-flash/node` over Dawn. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type ExecutionContext } from 'ava';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { DataLocation, StringStringEntryProto } from '../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../graph-rewrite/onnx/tensor.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { createTensor, InferenceSession, type Tensor } from '../kernels-cuda/index.js';
import { makeModel } from '../kernels-cuda/test-models.js';
import { bundledModel, readTestData } from '../models/corpus.js';
import { relativeDifference, toNumbers } from './runtime.js';
import { feedsOf, hasWebGpu, largestDifference, loadWeb } from './web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);
const example = bundledModel('bf16_attn-dyn18');
const given = () => decodeModel(new Uint8Array(readFileSync(example.modelFile)));

async function checkWeb(t: ExecutionContext, model: Uint8Array, options: object, text: RegExp): Promise<void> {
  const session = await ort.InferenceSession.create(model, options);
  t.regex(session.explain().text, /bfloat16 is computed in float32 here/);
  t.regex(session.explain().text, text);
  t.like(session.inputMetadata[0], { name: 'x', type: 'float32' });
  t.like(session.outputMetadata[0], { name: 'output', type: 'float32' });
  const results = await session.run(feedsOf(ort, session, example));
  t.is(results.output!.type, 'float32');
  t.true(largestDifference(session, results, example) <= example.tolerance);
  await session.release();
}

test('ort-flash/web computes a model in bfloat16 in float32, in every form and on WebAssembly', async (t) => {
  t.timeout(600_000);
  const bytes = encodeModel(given());
  const kernels = /1 attentions in FlashAttention kernels/;
  await checkWeb(t, bytes, {}, kernels);
  await checkWeb(t, bytes, { flash: 'on', preferredOutputLocation: 'cpu' }, kernels);
  await checkWeb(t, bytes, { executionProviders: ['wasm'] }, /1 of 1 attention sites run as ONNX Runtime's own/);
  await t.throwsAsync(ort.InferenceSession.create(bytes, { flash: 'off', logSeverityLevel: 4 }), {
    name: 'OrtFlashError',
  });
});

test('a file that ort-flash rewrite has written runs likewise', async (t) => {
  t.timeout(600_000);
  const proto = given();
  rewriteModel(proto);
  await checkWeb(t, encodeModel(proto), {}, /1 attentions in FlashAttention kernels/);
});

test('weights in data files are widened too', async (t) => {
  t.timeout(600_000);
  const proto = given();
  const chunks: Uint8Array[] = [];
  let offset = 0;
  for (const tensor of proto.graph!.initializer) {
    const bytes = tensor.raw_data;
    if (!bytes || bytes.length < 64) continue;
    const entry = (key: string, value: string | number) => new StringStringEntryProto({ key, value: String(value) });
    tensor.external_data = [entry('location', 'weights.bin'), entry('offset', offset), entry('length', bytes.length)];
    tensor.data_location = DataLocation.EXTERNAL;
    tensor.raw_data = null;
    chunks.push(bytes);
    offset += bytes.length;
  }
  t.true(chunks.length >= 8);
  const weights = Buffer.concat(chunks);
  const externalData = [{ path: 'weights.bin', data: new Uint8Array(weights) }];
  for (const options of [{}, { executionProviders: ['wasm'] }])
    await checkWeb(t, encodeModel(proto), { ...options, externalData }, /attention/);
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-bfloat16-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, 'model.onnx'), encodeModel(proto));
  writeFileSync(join(folder, 'weights.bin'), weights);
  await checkNode(t, join(folder, 'model.onnx'));
});

async function checkNode(t: ExecutionContext, model: string): Promise<void> {
  const session = await InferenceSession.create(model, { executionProviders: ['webgpu'] });
  t.regex(session.explain().text, /^runs on webgpu.*1 attentions in FlashAttention kernels.*bfloat16 is computed in/);
  const { inputs, outputs } = readTestData(example.dataFolder);
  const x = createTensor('bfloat16', inputs[0]!.data as Uint16Array, inputs[0]!.dims);
  const { output } = await session.run({ x });
  t.is(output!.type as string, 'bfloat16');
  const numbers = toNumbers(output!.type, output!.data as unknown as Uint16Array);
  t.true(relativeDifference(numbers, outputs[0]!) <= example.tolerance);
  await session.release();
}

test('ort-flash/node has bfloat16 go in and come out; what stays on the GPU is float32, and can be fed again', async (t) => {
  t.timeout(600_000);
  await checkNode(t, example.modelFile);
  const session = await InferenceSession.create(example.modelFile, {
    executionProviders: ['webgpu'],
    preferredOutputLocation: 'gpu-buffer',
  });
  t.like(session.outputMetadata[0], { name: 'output', type: 'bfloat16' });
  const [input] = readTestData(example.dataFolder).inputs;
  const x = createTensor('bfloat16', input!.data as Uint16Array, input!.dims);
  const { output: once } = await session.run({ x });
  t.like(once, { location: 'gpu-buffer', type: 'float32' });
  const { output: twice } = await session.run({ x: once! });
  const data = (await twice!.getData()) as Float32Array;
  // Through the CPU, rounded in between.
  const rounded = createTensor('bfloat16', new Uint16Array(data.length), input!.dims);
  const whole = await InferenceSession.create(example.modelFile, { executionProviders: ['cpu'] });
  const { output: middle } = await whole.run({ x });
  await whole.run({ x: middle! }, { output: rounded });
  const expected = decodeHalf(rounded.data as unknown as Uint16Array, 'bfloat16');
  const worst = expected.reduce(
    (most, value, i) => Math.max(most, Math.abs(value - data[i]!) / (1 + Math.abs(value))),
    0,
  );
  t.true(worst <= example.tolerance, `${worst}`);
  for (const tensor of [once, twice] as Tensor[]) tensor.dispose();
  await Promise.all([session.release(), whole.release()]);
});

test('a model without attention, and float32 around bfloat16', async (t) => {
  t.timeout(600_000);
  const vector = (name: string) => ({ name, type: 'float32' as const, shape: ['n'] });
  const model = makeModel(
    [vector('x')],
    [vector('y')],
    [
      { op: 'Cast', inputs: ['x'], outputs: ['half'], ints: { to: 16 } },
      { op: 'Mul', inputs: ['half', 'w'], outputs: ['product'] },
      { op: 'Cast', inputs: ['product'], outputs: ['y'], ints: { to: 1 } },
    ],
    [makeTensor('w', 'bfloat16', [1], [3])],
  );
  // Without a tensor or a type that names it, an attribute alone tells.
  const casts = makeModel(
    [vector('x')],
    [vector('y')],
    [
      { op: 'Cast', inputs: ['x'], outputs: ['half'], ints: { to: 16 } },
      { op: 'Add', inputs: ['half', 'half'], outputs: ['sum'] },
      { op: 'Add', inputs: ['sum', 'half'], outputs: ['product'] },
      { op: 'Cast', inputs: ['product'], outputs: ['y'], ints: { to: 1 } },
    ],
  );
  for (const [bytes, executionProviders] of [
    [model, ['webgpu']],
    [model, ['wasm']],
    [casts, ['webgpu']],
    [casts, ['wasm']],
  ] as const) {
    const session = await ort.InferenceSession.create(bytes, { executionProviders });
    t.regex(session.explain().text, /bfloat16 is computed in float32 here/);
    const { y } = await session.run({ x: new ort.Tensor('float32', Float32Array.of(0.25, 1 / 3), [2]) });
    t.deepEqual(y!.data, Float32Array.of(0.75, 1));
    await session.release();
  }
});
