import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import * as ort from 'onnxruntime-node';
import type { OrtFlashError } from '../graph-rewrite/errors.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { allModels, bundledModel, type ModelExample, readTestData, type TestTensor } from '../models/corpus.js';
import { createTensor, InferenceSession, Tensor } from './index.js';
import { loadAddon } from './node-addon.js';
import { addonPath } from './node-paths.js';
import { externalModel, identityModel, makeModel, powerModel, quantizedModel } from './test-models.js';

/** Tests of what only the addon does; `npm run build:addon` builds it, and the tests' set-up where it finds a compiler. */
const withAddon = existsSync(addonPath()) ? test : test.skip;

const cpu = { executionProviders: ['cpu'], intraOpNumThreads: 1 } as const;

function feedsOf(names: readonly string[], inputs: readonly TestTensor[]): Record<string, Tensor> {
  const feeds = inputs.map(({ name, type, dims, data }, i) => [
    name || names[i],
    createTensor(type as 'float32', data as Float32Array, dims),
  ]);
  return Object.fromEntries(feeds);
}

function numbersOf(type: string, data: unknown): ArrayLike<number> {
  if (type === 'float16' || type === 'bfloat16') {
    const bits = data as Uint16Array;
    return decodeHalf(new Uint16Array(bits.buffer, bits.byteOffset, bits.length), type);
  }
  return Array.from(data as ArrayLike<number | bigint>, Number);
}

/** Whether every element is within the tolerance, absolute and relative, of what PyTorch computed. */
function assertClose(t: ExecutionContext, what: string, actual: Tensor, expected: TestTensor, tolerance: number) {
  t.is(actual.type as string, expected.type, what);
  t.deepEqual([...actual.dims], [...expected.dims], what);
  const a = numbersOf(actual.type, actual.data);
  const b = numbersOf(expected.type, expected.data);
  for (let i = 0; i < b.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!);
    const same = difference <= tolerance * (1 + Math.abs(b[i]!)) || Object.is(a[i], b[i]);
    if (!same) return t.fail(`${what}: element ${i} is ${a[i]}, PyTorch has ${b[i]}`);
  }
  return t.pass();
}

const bytesOf = (tensor: Tensor) => {
  const data = tensor.data as Uint8Array;
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
};

async function compareModel(t: ExecutionContext, model: ModelExample) {
  const { inputs, outputs } = readTestData(model.dataFolder);
  const ours = await InferenceSession.create(model.modelFile, { ...cpu, flash: 'off' });
  const feeds = feedsOf(ours.inputNames, inputs);
  const results = await ours.run(feeds);
  for (const [i, expected] of outputs.entries())
    assertClose(t, `${model.name} output ${i}`, results[ours.outputNames[i]!]!, expected, model.tolerance);
  // onnxruntime-node refuses models with bfloat16 inputs or outputs.
  const theirs = await ort.InferenceSession.create(model.modelFile, cpu).catch(() => undefined);
  if (theirs !== undefined) {
    t.deepEqual(ours.inputMetadata, theirs.inputMetadata, model.name);
    t.deepEqual(ours.outputMetadata, theirs.outputMetadata, model.name);
    t.deepEqual(ours.inputNames, theirs.inputNames);
    t.deepEqual(ours.outputNames, theirs.outputNames);
    const reference = await theirs.run(feeds);
    for (const name of ours.outputNames)
      t.true(bytesOf(results[name]!).equals(bytesOf(reference[name]!)), `${model.name}: ${name} differs in its bits`);
    await theirs.release();
  }
  await ours.release();
  return theirs !== undefined;
}

withAddon(
  'every model, left as it is, gives PyTorch’s outputs, and onnxruntime-node’s metadata and bits',
  async (t) => {
    const models = allModels().filter((model) => model.unrunnableOnCpu !== true);
    let compared = 0;
    for (const model of models) if (await compareModel(t, model)) compared++;
    t.log(`${models.length} models, ${compared} of them also against onnxruntime-node`);
    t.true(compared > 0.9 * models.length);
  },
);

const IDENTITY_TYPES: readonly DataTypeName[] = [
  'float32',
  'float64',
  'float16',
  'bfloat16',
  'int8',
  'uint8',
  'int16',
  'uint16',
  'int32',
  'uint32',
  'int64',
  'uint64',
  'bool',
  'float8e4m3fn',
  'float8e4m3fnuz',
  'float8e5m2',
  'float8e5m2fnuz',
];

const bitsOf = (type: string) => (/16/.test(type) ? 16 : /32/.test(type) ? 32 : /64/.test(type) ? 64 : 8);

/** Elements of a type over these bytes. */
function elements(type: DataTypeName, bytes: Uint8Array): Tensor.DataType {
  const { buffer } = bytes.slice();
  if (type === 'float32') return new Float32Array(buffer);
  if (type === 'float64') return new Float64Array(buffer);
  if (type === 'int64') return new BigInt64Array(buffer);
  if (type === 'uint64') return new BigUint64Array(buffer);
  if (type === 'int32') return new Int32Array(buffer);
  if (type === 'uint32') return new Uint32Array(buffer);
  if (type === 'int16') return new Int16Array(buffer);
  if (type === 'int8') return new Int8Array(buffer);
  return bitsOf(type) === 16 ? new Uint16Array(buffer) : new Uint8Array(buffer);
}

for (const type of IDENTITY_TYPES) {
  withAddon(`tensors of ${type} pass unchanged, whatever their bits`, async (t) => {
    const session = await InferenceSession.create(identityModel(type), cpu);
    const input = session.inputMetadata[0]!;
    t.deepEqual(input, { name: 'x', isTensor: true, type: type as Tensor.Type, shape: ['n'] });
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 33 }), fc.infiniteStream(fc.nat(255)), async (count, random) => {
        const length = Math.ceil((count * bitsOf(type)) / 8);
        const bytes = Uint8Array.from({ length }, () => random.next().value as number);
        if (type === 'bool')
          bytes.forEach((byte, i) => {
            bytes[i] = byte & 1;
          });
        const x = createTensor(type as Tensor.Type, elements(type, bytes), [count]);
        const { y } = await session.run({ x });
        t.is(y!.type as string, type);
        t.deepEqual([...y!.dims], [count]);
        t.deepEqual(bytesOf(y!), Buffer.from(bytes));
      }),
      { numRuns: 20 },
    );
    await session.release();
  });
}

for (const type of ['int4', 'uint4'] as const) {
  withAddon(`tensors of ${type} go in and come out, of even and odd size`, async (t) => {
    const session = await InferenceSession.create(quantizedModel(type), cpu);
    const scale = new Tensor('float32', Float32Array.of(1), []);
    for (const count of [0, 1, 2, 7, 64]) {
      const bytes = Uint8Array.from({ length: Math.ceil(count / 2) }, (_, i) => (i * 37 + 0x9e) & 255);
      // The half of the last byte that holds no element.
      if (count % 2 === 1) bytes[bytes.length - 1]! &= 15;
      const { real, y } = await session.run({ x: new Tensor(type, bytes, [count]), scale });
      const first = (i: number) => (bytes[i >> 1]! >> (4 * (i & 1))) & 15;
      const sign = (nibble: number) => (type === 'int4' && nibble > 7 ? nibble - 16 : nibble);
      t.deepEqual(
        real!.data,
        Float32Array.from({ length: count }, (_, i) => sign(first(i))),
      );
      t.is(y!.type, type);
      t.deepEqual(y!.data, bytes);
    }
    await session.release();
  });
}

withAddon('strings pass unchanged, with zeros and beyond the basic plane', async (t) => {
  const session = await InferenceSession.create(identityModel('string'), cpu);
  const strings = ['', 'query', 'zero \0 inside', 'Größe', '注意', '🎯', 'x'.repeat(100_000)];
  const { y } = await session.run({ x: new Tensor('string', strings, [strings.length]) });
  t.deepEqual(y!.data, strings);
  const empty = await session.run({ x: new Tensor('string', [], [0]) });
  t.deepEqual(empty.y!.data, []);
  await session.release();
});

withAddon('results are the caller’s own memory', async (t) => {
  const session = await InferenceSession.create(identityModel('float32'), cpu);
  const data = Float32Array.of(1, 2, 3);
  const { y } = await session.run({ x: new Tensor('float32', data, [3]) });
  data.fill(0);
  t.deepEqual(y!.data, Float32Array.of(1, 2, 3));
  const moved = structuredClone(y!.data, { transfer: [(y!.data as Float32Array<ArrayBuffer>).buffer] });
  await session.release();
  t.deepEqual(moved, Float32Array.of(1, 2, 3));
});

withAddon('large results, which are copied off the event loop, are whole', async (t) => {
  const session = await InferenceSession.create(identityModel('float64'), cpu);
  const data = Float64Array.from({ length: 3_000_000 }, (_, i) => i * 0.5);
  const { y } = await session.run({ x: new Tensor('float64', data, [data.length]) });
  t.true(bytesOf(y!).equals(Buffer.from(data.buffer)));
  await session.release();
});

withAddon('a result goes into the tensor given for it', async (t) => {
  const session = await InferenceSession.create(identityModel('float32'), cpu);
  const x = new Tensor('float32', Float32Array.of(1, 2, 3, 4), [4]);
  const y = new Tensor('float32', new Float32Array(4), [4]);
  const results = await session.run({ x }, { y });
  t.is(results.y, y);
  t.deepEqual(y.data, x.data);
  const wrong = (tensor: Tensor) => session.run({ x }, { y: tensor });
  await t.throwsAsync(wrong(new Tensor('float32', new Float32Array(3), [3])), {
    message: /has shape \(3\), the output has \(4\)/,
  });
  await t.throwsAsync(wrong(new Tensor('int32', new Int32Array(4), [4])), {
    message: /has type int32, the output has float32/,
  });
  await session.release();
});

withAddon('bad inputs are refused by name and the session goes on', async (t) => {
  const session = await InferenceSession.create(powerModel(1), cpu);
  const square = new Tensor('float32', new Float32Array(4), [2, 2]);
  const run = (feeds: Record<string, unknown>) => session.run(feeds as Record<string, Tensor>);
  const forged = (changes: object) =>
    run({ x: { type: 'float32', dims: [2, 2], location: 'cpu', data: new Float32Array(4), ...changes } });
  const refused = async (promise: Promise<unknown>, message: RegExp, code = 'invalid-tensor') => {
    const error = await t.throwsAsync<OrtFlashError>(promise, { message });
    t.is(error.name, 'OrtFlashError');
    t.is(error.code, code as OrtFlashError['code']);
  };
  await refused(
    run({ x: new Tensor('float64', new Float64Array(4), [2, 2]) }),
    /input x has type float64, the model expects float32/,
  );
  await refused(run({ x: square, z: square }), /input z is none of the model's inputs/);
  await refused(forged({ dims: [2, 3] }), /input x has 16 bytes of data, its type and dims make 24/);
  await refused(forged({ dims: [-1, 4] }), /no whole number/);
  await refused(forged({ dims: [1.5, 4] }), /no whole number/);
  await refused(forged({ dims: [Number.NaN] }), /no whole number/);
  await refused(forged({ dims: ['2', 2] }), /no whole number/);
  await refused(forged({ dims: [2 ** 30, 2 ** 30] }), /more elements than a tensor can have/);
  await refused(forged({ dims: [2 ** 53] }), /no whole number/);
  await refused(forged({ type: 'float31' }), /has type float31, which ONNX does not have/);
  await refused(forged({ type: 'string' }), /has type string, the model expects float32/);
  await refused(forged({ data: 'text' }), /has no data on the CPU/);
  await refused(forged({ location: 'gpu-buffer' }), /another GPU/);
  await refused(run({ x: null }), /is no tensor/);
  await refused(
    run({ x: new Tensor('float32', new Float32Array(8), [2, 2, 2]) }),
    /Invalid rank for input: x Got: 3 Expected: 2/,
    'runtime',
  );
  await refused(run({ x: new Tensor('float32', new Float32Array(6), [2, 3]) }), /dimension/i, 'runtime');
  const gone = new Tensor('float32', new Float32Array(4), [2, 2]);
  structuredClone(gone.data, { transfer: [(gone.data as Float32Array<ArrayBuffer>).buffer] });
  await refused(run({ x: gone }), /has 0 bytes of data/);
  await t.throwsAsync(run({}), { message: /input 'x' is missing/ });
  const { y } = await session.run({ x: square });
  t.deepEqual(y!.data, new Float32Array(4));
  await session.release();
});

withAddon('the addon itself survives whatever it is called with', async (t) => {
  const state = loadAddon();
  if (state.addon === undefined) return t.fail(state.why);
  const native = await state.addon.createSession(powerModel(1), {});
  const odd = [
    undefined,
    null,
    0,
    -1,
    Number.NaN,
    '',
    'x',
    [],
    {},
    () => 0,
    Symbol('s'),
    1n,
    new Uint8Array(3),
    new DataView(new ArrayBuffer(4)),
    native,
  ];
  const call = async (work: () => unknown) => {
    try {
      await work();
    } catch (error) {
      t.true(error instanceof Error);
    }
  };
  const any = state.addon as unknown as Record<string, (...args: unknown[]) => unknown>;
  const session = native as unknown as Record<string, (...args: unknown[]) => unknown>;
  for (const a of odd) {
    await call(() => any.initialize!(a, a));
    await call(() => any.createSession!(a, a));
    for (const field of [
      'intraOpNumThreads',
      'enableMemPattern',
      'logId',
      'freeDimensionOverrides',
      'configEntries',
      'customOpLibraries',
      'externalData',
      'cuda',
    ])
      await call(async () =>
        ((await any.createSession!(powerModel(1), { [field]: a })) as { release(): unknown } | undefined)?.release(),
      );
    for (const field of ['name', 'type', 'dims', 'data', 'device']) {
      const feed = { name: 'x', type: 'float32', dims: [1, 1], data: new Uint8Array(4), [field]: a };
      await call(() => session.run!([feed], [{ name: 'y', onDevice: true }], {}));
    }
    await call(() => session.run!(a, a, a));
    await call(() => session.run!([a], [a], {}));
    await call(() => (native.run as () => unknown).call(a));
    await call(() => new (native.constructor as new (x: unknown) => unknown)(a));
  }
  const feed = { name: 'x', type: 'float32', dims: [1, 1], data: new Uint8Array(Float32Array.of(3).buffer) };
  const { y } = await native.run([feed], [{ name: 'y', onDevice: false }], {});
  t.deepEqual(new Float32Array(y!.data as ArrayBuffer), Float32Array.of(9));
  await native.release();
  await native.release();
  t.throws(() => native.inputs, { message: /was released/ });
});

test('a model that cannot be opened is refused with ONNX Runtime’s message', async (t) => {
  const open = (model: string | Uint8Array) =>
    t.throwsAsync<OrtFlashError>(InferenceSession.create(model as string, cpu));
  t.regex((await open('/no/such/model.onnx'))!.message, /no\/such\/model\.onnx/);
  t.regex((await open(Uint8Array.of(1, 2, 3)))!.message, /protobuf/i);
  t.is((await open(new Uint8Array()))!.name, 'OrtFlashError');
  const unknown = makeModel(
    [{ name: 'x', type: 'float32', shape: [1] }],
    [{ name: 'y', type: 'float32', shape: [1] }],
    [{ op: 'NoSuchOperator', inputs: ['x'], outputs: ['y'] }],
  );
  t.regex((await open(unknown))!.message, /NoSuchOperator/);
  await t.throwsAsync(
    InferenceSession.create(identityModel('float32'), { ...cpu, graphOptimizationLevel: 'most' as 'all' }),
    { message: /most/ },
  );
});

withAddon('many runs at once, of one session and of several, each get their own result', async (t) => {
  const sessions = await Promise.all([0, 1, 2].map(() => InferenceSession.create(powerModel(2), cpu)));
  await Promise.all(
    Array.from({ length: 90 }, async (_, i) => {
      const { y } = await sessions[i % 3]!.run({ x: new Tensor('float32', Float32Array.of(i, 0, 0, 1), [2, 2]) });
      t.deepEqual(y!.data, Float32Array.of(i ** 3, 0, 0, 1));
    }),
  );
  await Promise.all(sessions.map((session) => session.release()));
});

withAddon('timers and files go on during a long run, however many runs there are', async (t) => {
  const session = await InferenceSession.create(powerModel(20), { ...cpu });
  const size = 500;
  const x = new Tensor('float32', new Float32Array(size * size).fill(1 / size), [size, size]);
  await session.run({ x });
  let ticks = 0;
  let running = 6;
  const timer = setInterval(() => {
    ticks++;
  }, 1);
  const runs = Array.from({ length: 6 }, () =>
    session.run({ x }).finally(() => {
      running--;
    }),
  );
  const { readFile } = await import('node:fs/promises');
  await readFile(new URL(import.meta.url));
  t.true(running > 0, 'a file was read before the runs ended');
  await Promise.all(runs);
  clearInterval(timer);
  // Some seconds of computing; the event loop, had it been blocked, would have ticked about once a run.
  t.true(ticks > 50, `${ticks} ticks`);
  await session.release();
});

withAddon('release waits for runs, may come twice, and ends the session', async (t) => {
  const session = await InferenceSession.create(powerModel(20), cpu);
  const x = new Tensor('float32', new Float32Array(300 * 300).fill(1 / 300), [300, 300]);
  const runs = Array.from({ length: 5 }, () => session.run({ x }));
  const released = [session.release(), session.release()];
  await t.throwsAsync(session.run({ x }), { message: /was released/ });
  for (const { y } of await Promise.all(runs)) t.true(Math.abs((y!.data as Float32Array)[0]! - 1 / 300) < 1e-6);
  await Promise.all(released);
  await session.release();
  await t.throwsAsync(session.run({ x }), { message: /was released/ });
});

const WORKER = `
import { register } from '${import.meta.resolve('tsx/esm/api')}';
import { parentPort, workerData } from 'node:worker_threads';
register();
const { InferenceSession, Tensor } = await import(workerData.module);
const session = await InferenceSession.create(workerData.model, { executionProviders: ['cpu'], intraOpNumThreads: 1 });
const x = new Tensor('float32', new Float32Array(workerData.size ** 2).fill(1 / workerData.size), [workerData.size, workerData.size]);
parentPort.postMessage('started');
for (let i = 0; i < workerData.runs; i++) await session.run({ x });
parentPort.postMessage(session.explain().engine);
`;

function startWorker(size: number, runs: number): Worker {
  const module = new URL('./index.ts', import.meta.url).href;
  const workerData = { module, model: powerModel(20), size, runs };
  return new Worker(new URL(`data:text/javascript,${encodeURIComponent(WORKER)}`), { workerData });
}

withAddon('worker threads have sessions of their own, and may end in the middle of a run', async (t) => {
  const finish = (worker: Worker) =>
    new Promise<string>((resolve, reject) => {
      worker.on('message', (message: string) => message !== 'started' && resolve(message));
      worker.on('error', reject);
    });
  const engines = await Promise.all([startWorker(40, 20), startWorker(40, 20)].map(finish));
  t.deepEqual(engines, ['addon', 'addon']);
  for (let i = 0; i < 3; i++) {
    const worker = startWorker(600, 1000);
    await new Promise((resolve) => worker.once('message', resolve));
    await new Promise((resolve) => setTimeout(resolve, 50));
    await worker.terminate();
  }
  const session = await InferenceSession.create(identityModel('float32'), cpu);
  const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(7), [1]) });
  t.deepEqual(y!.data, Float32Array.of(7));
  await session.release();
});

withAddon('options reach ONNX Runtime', async (t) => {
  const model = bundledModel('bert-sdpa-dyn18');
  const free = (await InferenceSession.create(model.modelFile, cpu)).inputMetadata[0]!;
  const dimension = (free.isTensor ? free.shape : []).find((size) => typeof size === 'string') as string;
  const fixed = await InferenceSession.create(model.modelFile, { ...cpu, freeDimensionOverrides: { [dimension]: 2 } });
  const metadata = fixed.inputMetadata[0]!;
  t.true(metadata.isTensor && metadata.shape.includes(2));
  const plain = { ...cpu, enableCpuMemArena: false, enableMemPattern: false, executionMode: 'parallel' } as const;
  const doubling = await InferenceSession.create(powerModel(1), plain);
  const { y } = await doubling.run({ x: new Tensor('float32', Float32Array.of(3), [1, 1]) });
  t.deepEqual(y!.data, Float32Array.of(9));
  const wrong = { ...cpu, extra: { session: { disable_prepacking: 'perhaps' } } };
  await t.throwsAsync(InferenceSession.create(model.modelFile, { ...cpu, intraOpNumThreads: -1 }), {
    message: /intraOpNumThreads/,
  });
  await t.notThrowsAsync(InferenceSession.create(model.modelFile, wrong));
});

withAddon('external data is found beside the model, and taken from memory', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-external-'));
  const weights = Float32Array.of(10, 20, 30, 40);
  const bytes = new Uint8Array(weights.buffer);
  writeFileSync(join(folder, 'model.onnx'), externalModel());
  const check = async (session: InferenceSession) => {
    const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(1, 2, 3, 4), [4]) });
    t.deepEqual(y!.data, Float32Array.of(11, 22, 33, 44));
    await session.release();
  };
  await t.throwsAsync(InferenceSession.create(join(folder, 'model.onnx'), cpu), { message: /weights\.bin/ });
  const withData = (data: Uint8Array | Blob | string) => ({ ...cpu, externalData: [{ path: 'weights.bin', data }] });
  await check(await InferenceSession.create(externalModel(), withData(bytes)));
  await check(await InferenceSession.create(externalModel(), withData(new Blob([bytes]))));
  writeFileSync(join(folder, 'weights.bin'), bytes);
  await check(await InferenceSession.create(join(folder, 'model.onnx'), cpu));
  await check(await InferenceSession.create(externalModel(), withData(join(folder, 'weights.bin'))));
  await check(await InferenceSession.create(join(folder, 'model.onnx'), { ...cpu, externalData: ['weights.bin'] }));
  const short = withData(bytes.slice(0, 8));
  await t.throwsAsync(InferenceSession.create(externalModel(), short), { name: 'OrtFlashError' });
  const missing = withData(join(folder, 'none.bin'));
  await t.throwsAsync(InferenceSession.create(externalModel(), missing), { message: /none\.bin/ });
  rmSync(folder, { recursive: true });
});

test('without the addon, sessions go through onnxruntime-node, and what is missing is said once', (t) => {
  const program = `
    import { InferenceSession, Tensor } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
    import { identityModel } from ${JSON.stringify(new URL('./test-models.ts', import.meta.url).href)};
    for (let i = 0; i < 3; i++) {
      const session = await InferenceSession.create(identityModel('float32'));
      const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(i), [1]) });
      console.log(session.explain().engine, y.data[0], session.inputNames[0], session.outputMetadata[0].type);
      await session.release();
      await session.release();
    }`;
  const { stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', program],
    { encoding: 'utf8', env: { ...process.env, ORT_FLASH_NODE_ADDON: '/no/such/addon.node' } },
  );
  t.is(stdout.trim(), [0, 1, 2].map((i) => `onnxruntime-node ${i} x float32`).join('\n'));
  t.is(stderr.match(/npm run build:addon/g)?.length, 1, stderr);
});

test('execution providers fall through in order, with the reasons', async (t) => {
  const session = await InferenceSession.create(identityModel('float32'), { executionProviders: ['webgpu', 'cpu'] });
  const { device, refused, text } = session.explain();
  t.is(device, 'cpu');
  t.deepEqual(
    refused.map(({ provider }) => provider),
    ['webgpu'],
  );
  t.regex(text, /^runs on cpu through .*; not webgpu: /);
  const none = await t.throwsAsync(
    InferenceSession.create(identityModel('float32'), { executionProviders: ['webgpu', 'no-such'] }),
  );
  t.regex(none!.message, /webgpu: .*no-such: /);
  await session.release();
});
