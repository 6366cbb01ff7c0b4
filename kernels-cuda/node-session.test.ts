import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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
    for (const part of [0, 1, 2, 3]) {
      const feed = ['x', 'float32', [1, 1], new Uint8Array(4)].with(part, a as string);
      await call(() => session.run!([feed], ['y'], ['y'], {}));
      await call(() => session.run!([feed.slice(0, part)], ['y'], [], {}));
    }
    await call(() => session.run!([['x', a]], ['y'], [], {}));
    await call(() => session.run!(a, a, a, a));
    await call(() => session.run!([a], [a], [a], {}));
    await call(() => (native.run as () => unknown).call(a));
    await call(() => new (native.constructor as new (x: unknown) => unknown)(a));
  }
  const feed = ['x', 'float32', [1, 1], new Uint8Array(Float32Array.of(3).buffer)] as const;
  const [y] = await native.run([feed], ['y'], []);
  t.deepEqual(new Float32Array(y![2] as ArrayBuffer), Float32Array.of(9));
  await native.release();
  await native.release();
  t.throws(() => native.inputs, { message: /was released/ });
});

test('a model that is none, or not whole, is refused with what is wrong with it, on every engine', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-session-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const write = (name: string, bytes: Uint8Array) => {
    writeFileSync(join(folder, name), bytes);
    return join(folder, name);
  };
  const whole = readFileSync(bundledModel('bert-ts11').modelFile);
  const cut = whole.subarray(0, whole.length >> 1);
  const faults: [model: string | Uint8Array, code: string, message: RegExp][] = [
    [join(folder, 'none.onnx'), 'file-access', /there is no such file or folder \[.*none\.onnx\]/],
    [folder, 'file-access', /it is a folder/],
    [write('cut.onnx', cut), 'malformed-model', /it may have been cut short/],
    [new Uint8Array(cut), 'malformed-model', /it may have been cut short/],
    [write('page.onnx', new TextEncoder().encode('Not Found')), 'malformed-model', /this is text/],
    [write('external.onnx', externalModel()), 'external-data', /(missing|no such file) .*weights\.bin/],
  ];
  const x = { name: 'x', type: 'float32' as const, shape: [1] };
  const circle = [
    { op: 'Add', inputs: ['x', 'b'], outputs: ['a'] },
    { op: 'Relu', inputs: ['a'], outputs: ['b'] },
  ];
  faults.push([makeModel([x], [{ ...x, name: 'b' }], circle), 'malformed-model', /nodes form a cycle: .* → /]);
  for (const provider of ['cpu', 'wasm'])
    for (const [model, code, message] of faults) {
      // Only a file has a folder in which data files could be missing.
      const create = InferenceSession.create(model as string, { executionProviders: [provider] });
      await t.throwsAsync(create, { name: 'OrtFlashError', code, message }, `${provider}: ${message}`);
    }
});
