/** Sessions on a CUDA device; skipped where ONNX Runtime's CUDA provider, the addon or a GPU is missing. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import anyTest, { type TestFn } from 'ava';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import { decodeHalf, encodeHalf } from '../graph-rewrite/op/half.js';
import { buildTransformer } from '../models/builder.js';
import { allModels, type ModelExample, readTestData, type TestTensor } from '../models/corpus.js';
import { createTensor, type FlashMode, InferenceSession, Tensor } from './index.js';
import { addonPath, cudaProviderPath, customOpLibraryPath } from './node-paths.js';
import { identityModel, powerModel } from './test-models.js';

function hasGpu(): boolean {
  try {
    return execFileSync('nvidia-smi', ['-L'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).includes(
      'GPU',
    );
  } catch {
    return false;
  }
}

const present = existsSync(addonPath()) && existsSync(cudaProviderPath()) && hasGpu();
const test = (present ? anyTest.serial : anyTest.skip) as TestFn;

const cuda = { executionProviders: ['cuda'] } as const;
const onGpu = { ...cuda, preferredOutputLocation: 'gpu-buffer' } as const;

function numbersOf(type: string, data: unknown): ArrayLike<number> {
  if (type === 'float16' || type === 'bfloat16') {
    const bits = data as Uint16Array;
    return decodeHalf(new Uint16Array(bits.buffer, bits.byteOffset, bits.length), type);
  }
  return Array.from(data as ArrayLike<number | bigint>, Number);
}

/** The largest difference from what PyTorch computed, in terms of the tolerance. */
function worst(actual: Tensor, expected: TestTensor, tolerance: number): number {
  const [a, b] = [numbersOf(actual.type, actual.data), numbersOf(expected.type, expected.data)];
  let largest = 0;
  for (let i = 0; i < b.length; i++) {
    if (Object.is(a[i], b[i])) continue;
    const off = Math.abs(a[i]! - b[i]!) / (tolerance * (1 + Math.abs(b[i]!)));
    largest = Math.max(largest, Number.isNaN(off) ? Number.POSITIVE_INFINITY : off);
  }
  return largest;
}

/** Matrix products of float32 in TF32, ONNX Runtime's default, would be past the tolerances. */
const exact = { name: 'cuda', providerOptions: { use_tf32: '0' } } as const;

/** Runs a model's reference inputs; the largest difference from PyTorch's outputs, and how attention was computed. */
async function runModel(model: ModelExample, flash: FlashMode): Promise<{ off: number; text: string }> {
  const { inputs, outputs } = readTestData(model.dataFolder);
  const session = await InferenceSession.create(model.modelFile, { executionProviders: [exact], flash });
  const feeds = inputs.map(({ name, type, dims, data }, i) => {
    return [name || session.inputNames[i]!, createTensor(type as Tensor.Type, data, dims)] as const;
  });
  const results = await session.run(Object.fromEntries(feeds));
  await session.release();
  const differences = outputs.map((output, i) => worst(results[session.outputNames[i]!]!, output, model.tolerance));
  return { off: Math.max(...differences), text: session.explain().text };
}

test('every model, left as it is, gives PyTorch’s outputs on CUDA', async (t) => {
  const wrong: string[] = [];
  for (const model of allModels()) {
    const { off } = await runModel(model, 'off');
    if (!(off <= 1)) wrong.push(`${model.name}: ${off} times its tolerance`);
  }
  t.deepEqual(wrong, []);
});

test('every model, rewritten, gives PyTorch’s outputs on CUDA, by our kernels where they are built', async (t) => {
  const wrong: string[] = [];
  const hasKernels = existsSync(customOpLibraryPath());
  for (const model of allModels().filter(({ sites }) => sites > 0)) {
    const { off, text } = await runModel(model, 'auto');
    if (!(off <= 1)) wrong.push(`${model.name}: ${off} times its tolerance`);
    t.is(/kernels are not built/.test(text), !hasKernels, text);
  }
  t.log(hasKernels ? 'by our kernels' : 'by ONNX Runtime’s fused operators');
  t.deepEqual(wrong, []);
});

test('outputs stay on the GPU, are fed again, and come back when they are asked for', async (t) => {
  const session = await InferenceSession.create(powerModel(1), onGpu);
  t.is(session.explain().device, 'cuda:0');
  t.is(session.explain().engine, 'addon');
  const x = new Tensor('float32', Float32Array.of(2, 0, 0, 3), [2, 2]);
  const { y } = await session.run({ x });
  t.is(y!.location, 'gpu-buffer');
  t.deepEqual([...y!.dims], [2, 2]);
  t.throws(() => y!.data);
  const again = await session.run({ x: y! });
  t.deepEqual(await again.y!.getData(), Float32Array.of(16, 0, 0, 81));
  t.is(again.y!.location, 'cpu');
  y!.dispose();
  await t.throwsAsync(session.run({ x: y! }));
  const host = await session.run({ x }, { y: new Tensor('float32', new Float32Array(4), [2, 2]) });
  t.deepEqual(host.y!.data, Float32Array.of(4, 0, 0, 9));
  await session.release();
});

test('a result on the GPU outlives its session', async (t) => {
  const session = await InferenceSession.create(powerModel(2), onGpu);
  const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(2, 0, 0, 2), [2, 2]) });
  await session.release();
  t.deepEqual(await y!.getData(), Float32Array.of(8, 0, 0, 8));
});

for (const type of ['float16', 'bfloat16', 'int64', 'bool', 'string'] as const) {
  test(`tensors of ${type} pass through a CUDA session unchanged`, async (t) => {
    const session = await InferenceSession.create(identityModel(type), cuda);
    const data =
      type === 'string'
        ? ['a', 'Größe', '']
        : type === 'int64'
          ? BigInt64Array.of(1n, -2n, 2n ** 62n)
          : type === 'bool'
            ? Uint8Array.of(1, 0, 1)
            : Uint16Array.of(0x3c00, 0x1234, 0xbeef);
    const { y } = await session.run({ x: createTensor(type, data, [3]) });
    t.deepEqual(Array.from(y!.data as ArrayLike<unknown>), Array.from(data as ArrayLike<unknown>));
    await session.release();
  });
}

test('runs at once, on sessions of their own and on one', async (t) => {
  const sessions = await Promise.all([0, 1].map(() => InferenceSession.create(powerModel(2), cuda)));
  await Promise.all(
    Array.from({ length: 60 }, async (_, i) => {
      const { y } = await sessions[i % 2]!.run({ x: new Tensor('float32', Float32Array.of(i % 8, 0, 0, 1), [2, 2]) });
      t.deepEqual(y!.data, Float32Array.of((i % 8) ** 3, 0, 0, 1));
    }),
  );
  await Promise.all(sessions.map((session) => session.release()));
});

test('causal attention in runs at once on one session gives what each gives alone', async (t) => {
  t.timeout(3 * 60_000);
  const width = 512;
  const options = { style: 'dynamo', layers: 6, width, heads: 8, type: 'float16', causal: true } as const;
  const session = await InferenceSession.create(encodeModel(buildTransformer(options)), cuda);
  const run = async (tokens: number) => {
    // Numbers from −1 to 1.
    const data = encodeHalf(
      Float64Array.from({ length: tokens * width }, (_, i) => Math.sin(i + tokens)),
      'float16',
    );
    const { last_hidden_state: y } = await session.run({
      hidden_states: createTensor('float16', data, [1, tokens, width]),
    });
    return Float64Array.from(numbersOf('float16', y!.data));
  };
  const lengths = Array.from({ length: 32 }, (_, i) => 200 + 50 * (i % 16));
  const alone = new Map<number, Float64Array>();
  for (const tokens of new Set(lengths)) alone.set(tokens, await run(tokens));
  const together = await Promise.all(lengths.map(run));
  together.forEach((numbers, i) => {
    const expected = alone.get(lengths[i]!)!;
    const off = numbers.reduce(
      (most, x, n) => Math.max(most, Math.abs(x - expected[n]!) / (1 + Math.abs(expected[n]!))),
      0,
    );
    t.true(off <= 0.02, `run ${i} is ${off} off`);
  });
  await session.release();
});

test('a GPU that is not there is refused, and the next provider is taken', async (t) => {
  const absent = { name: 'cuda', deviceId: 63 } as const;
  await t.throwsAsync(InferenceSession.create(identityModel('float32'), { executionProviders: [absent] }));
  const session = await InferenceSession.create(identityModel('float32'), { executionProviders: [absent, 'cpu'] });
  t.is(session.explain().device, 'cpu');
  t.regex(session.explain().text, /not cuda: /);
  await session.release();
});

if (!present) anyTest('there is no CUDA here to test', (t) => t.pass());

test('captured graphs replay with new inputs, shapes and placements', async (t) => {
  const session = await InferenceSession.create(powerModel(2), {
    ...cuda,
    executionProviders: [exact],
    enableGraphCapture: true,
  });
  const plain = await InferenceSession.create(powerModel(2), { executionProviders: [exact] });
  for (const size of [8, 8, 8, 16, 8, 16]) {
    const x = new Tensor(
      'float32',
      Float32Array.from({ length: size * size }, () => Math.random() - 0.5),
      [size, size],
    );
    const [captured, expected] = await Promise.all([session.run({ x }), plain.run({ x })]);
    t.deepEqual(captured.y!.data, expected.y!.data);
  }
  await session.release();
  await plain.release();
});

test('what a captured graph cannot see is refused', async (t) => {
  const options = { ...cuda, enableGraphCapture: true };
  const text = await t.throwsAsync(async () => {
    const session = await InferenceSession.create(identityModel('string'), options);
    await session.run({ x: new Tensor('string', ['a'], [1]) });
  });
  t.regex(text!.message, /graph/i);
});
