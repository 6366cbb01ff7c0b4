import { spawn } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type TestFn } from 'ava';
import * as ort from 'onnxruntime-node';
import { bundledModel, readTestData } from '../models/corpus.js';
import { runBatch } from './node-batch.js';
import type { BatchProgress } from './node-batch-types.js';
import { decodeNpy, encodeNpy } from './node-npy.js';
import { makeModel } from './test-models.js';

const test = anyTest as TestFn<{ folder: string }>;

test.beforeEach((t) => {
  t.context.folder = mkdtempSync(join(tmpdir(), 'ort-flash-batch-'));
});
test.afterEach.always((t) => rmSync(t.context.folder, { recursive: true, force: true }));

const encoder = bundledModel('bert-sdpa-dyn18');

/** Deterministic token ids. */
const tokens = (sample: number, length: number) =>
  BigInt64Array.from({ length }, (_, i) => BigInt((sample * 31 + i * 17) % 90));

/** Samples of the encoder with these sequence lengths, as .npy files; the mask of every third ends early. */
function writeSamples(folder: string, lengths: readonly number[]): void {
  for (const [i, length] of lengths.entries()) {
    const sample = join(folder, `test_data_set_${i}`);
    mkdirSync(sample, { recursive: true });
    const mask = new BigInt64Array(length).fill(1n);
    if (i % 3 === 2) mask[length - 1] = 0n;
    const dims = [1, length];
    writeFileSync(join(sample, 'input_ids.npy'), encodeNpy({ type: 'int64', dims, data: tokens(i, length) }));
    writeFileSync(join(sample, 'attention_mask.npy'), encodeNpy({ type: 'int64', dims, data: mask }));
  }
}

/** What onnxruntime-node computes for a sample alone. */
async function expectedOutput(sampleFolder: string): Promise<ort.Tensor> {
  const session = await ort.InferenceSession.create(encoder.modelFile);
  const feeds: Record<string, ort.Tensor> = {};
  for (const name of session.inputNames) {
    const { dims, data } = decodeNpy(readFileSync(join(sampleFolder, `${name}.npy`)), name);
    feeds[name] = new ort.Tensor('int64', data as BigInt64Array, dims);
  }
  const results = await session.run(feeds);
  return results[session.outputNames[0]!]!;
}

const readOutput = (folder: string) => decodeNpy(readFileSync(join(folder, 'output.npy')), folder);

test('sequences of many lengths run in batches, with the results that each has alone', async (t) => {
  const { folder } = t.context;
  const lengths = Array.from({ length: 30 }, (_, i) => 3 + ((i * 7) % 11));
  writeSamples(join(folder, 'in'), lengths);
  const steps: BatchProgress[] = [];
  const summary = await runBatch({
    model: encoder.modelFile,
    inputs: join(folder, 'in'),
    outputs: join(folder, 'out'),
    batch: 5,
    onProgress: (progress) => steps.push(progress),
  });
  t.like(summary, { total: 30, finished: 30, skipped: 0, failed: [], devices: ['cpu'], interrupted: false });
  // 6 batches, and the members of up to two of them once more alone.
  t.true(summary.runs <= 6 + 10, `${summary.runs} runs`);
  t.notRegex(summary.explanation, /one by one|equal shapes/);
  for (const [i, length] of lengths.entries()) {
    const name = `test_data_set_${i}`;
    const expected = await expectedOutput(join(folder, 'in', name));
    const actual = readOutput(join(folder, 'out', name));
    t.deepEqual([...actual.dims], [1, length, 32]);
    const [a, b] = [actual.data as Float32Array, expected.data as Float32Array];
    t.true(
      a.every((value, j) => Math.abs(value - b[j]!) < 1e-5),
      name,
    );
  }
  t.deepEqual(steps.map(({ finished }) => finished).at(-1), 30);
  t.true(steps.every(({ finished }, i) => i === 0 || finished >= steps[i - 1]!.finished));
});

test('ONNX’s test data gives PyTorch’s outputs, as .pb and as .npy', async (t) => {
  const { folder } = t.context;
  for (const name of ['bert-sdpa-dyn18', 'dit_fp16-dyn18', 'whisper_dec-sdpa-dyn18']) {
    const model = bundledModel(name);
    const inputs = join(folder, `${name}-in`);
    cpSync(model.dataFolder, join(inputs, 'test_data_set_0'), { recursive: true });
    const outputs = join(folder, name);
    const { finished } = await runBatch({ model: model.modelFile, inputs, outputs });
    t.is(finished, 1);
    const expected = readTestData(model.dataFolder).outputs;
    const actual = readTestData(join(outputs, 'test_data_set_0')).outputs;
    t.is(actual.length, expected.length);
    for (const [i, output] of expected.entries()) {
      t.deepEqual([actual[i]!.type, actual[i]!.dims], [output.type, output.dims]);
      t.is(actual[i]!.data.length, output.data.length);
    }
    const single = await runBatch({
      model: model.modelFile,
      inputs: join(inputs, 'test_data_set_0'),
      outputs: join(folder, `${name}-one`),
      format: 'npy',
    });
    t.is(single.finished, 1);
    t.is(readdirSync(join(folder, `${name}-one`)).filter((file) => file.endsWith('.npy')).length, expected.length);
  }
  // As they hold numbers, the results of the first are compared.
  const [actual] = readTestData(join(folder, 'bert-sdpa-dyn18', 'test_data_set_0')).outputs;
  const [expected] = readTestData(encoder.dataFolder).outputs;
  const b = expected!.data as Float32Array;
  t.true(
    (actual!.data as Float32Array).every(
      (value, i) => Math.abs(value - b[i]!) <= encoder.tolerance * (1 + Math.abs(b[i]!)),
    ),
  );
});

/** y = x − the mean of x over the first axis: samples that run together change each other's results. */
const centring = makeModel(
  [{ name: 'x', type: 'float32', shape: ['n', 2] }],
  [{ name: 'y', type: 'float32', shape: ['n', 2] }],
  [
    { op: 'Shape', inputs: ['x'], outputs: ['s'], ints: { start: 0, end: 1 } },
    { op: 'Sub', inputs: ['s', 's'], outputs: ['axis'] },
    { op: 'ReduceMean', inputs: ['x', 'axis'], outputs: ['m'] },
    { op: 'Sub', inputs: ['x', 'm'], outputs: ['y'] },
  ],
);

test('a model that mixes the samples of a batch gets them one by one', async (t) => {
  const { folder } = t.context;
  writeFileSync(join(folder, 'model.onnx'), centring);
  writeFileSync(join(folder, 'in.jsonl'), Array.from({ length: 9 }, (_, i) => `{"x": [${i}, ${i + 1}]}\n`).join('\n'));
  const outputs = join(folder, 'out');
  const summary = await runBatch({
    model: join(folder, 'model.onnx'),
    inputs: join(folder, 'in.jsonl'),
    outputs,
    batch: 4,
  });
  t.is(summary.finished, 9);
  t.regex(summary.explanation, /one by one, because running them together changes the results/);
  for (let i = 0; i < 9; i++) {
    const y = decodeNpy(readFileSync(join(outputs, `test_data_set_${i}`, 'y.npy')), '');
    t.deepEqual([y.dims, y.data], [[1, 2], Float32Array.of(0, 0)]);
  }
});

/** y = 2·x. */
const doubling = makeModel(
  [{ name: 'x', type: 'float32', shape: ['n', 'm'] }],
  [{ name: 'y', type: 'float32', shape: ['n', 'm'] }],
  [{ op: 'Add', inputs: ['x', 'x'], outputs: ['y'] }],
);

test('samples of odd shapes wait for their like, and all of them run', async (t) => {
  const { folder } = t.context;
  writeFileSync(join(folder, 'model.onnx'), doubling);
  const lines = Array.from({ length: 50 }, (_, i) => JSON.stringify({ x: new Array(1 + (i % 4)).fill(i) }));
  writeFileSync(join(folder, 'in.jsonl'), lines.join('\n'));
  const outputs = join(folder, 'out');
  const summary = await runBatch({
    model: join(folder, 'model.onnx'),
    inputs: join(folder, 'in.jsonl'),
    outputs,
    batch: 8,
  });
  t.is(summary.finished, 50);
  t.true(summary.runs <= 8 + 8, `${summary.runs} runs`);
  for (let i = 0; i < 50; i++) {
    const y = decodeNpy(readFileSync(join(outputs, `test_data_set_${String(i).padStart(2, '0')}`, 'y.npy')), '');
    t.deepEqual([y.dims, y.data], [[1, 1 + (i % 4)], new Float32Array(1 + (i % 4)).fill(2 * i)]);
  }
});

test('the rows of an archive are samples', async (t) => {
  const { folder } = t.context;
  const { archives } = JSON.parse(readFileSync(new URL('./test-numpy-files.json', import.meta.url), 'utf8'));
  writeFileSync(join(folder, 'in.npz'), Buffer.from(archives.savez, 'base64'));
  writeFileSync(join(folder, 'model.onnx'), doubling);
  const options = { model: join(folder, 'model.onnx'), inputs: join(folder, 'in.npz'), outputs: join(folder, 'out') };
  const summary = await runBatch({ ...options, batch: 2 });
  t.like(summary, { total: 3, finished: 3 });
  for (let row = 0; row < 3; row++) {
    const y = decodeNpy(readFileSync(join(options.outputs, `test_data_set_${row}`, 'y.npy')), '');
    t.deepEqual([y.dims, y.data], [[1, 2], Float32Array.of(4 * row, 4 * row + 2)]);
  }
});

test('a sample that fails is reported and left out, wherever it stands in a batch', async (t) => {
  const { folder } = t.context;
  writeSamples(join(folder, 'in'), new Array(12).fill(6));
  const at = (i: number, file: string) => join(folder, 'in', `test_data_set_${i}`, file);
  writeFileSync(at(2, 'input_ids.npy'), 'no array');
  rmSync(at(5, 'attention_mask.npy'));
  writeFileSync(at(7, 'input_ids.npy'), encodeNpy({ type: 'int32', dims: [1, 6], data: new Int32Array(6) }));
  // Valid in itself; there is no such token, which ONNX Runtime finds out in the run.
  writeFileSync(
    at(9, 'input_ids.npy'),
    encodeNpy({ type: 'int64', dims: [1, 6], data: new BigInt64Array(6).fill(10n ** 9n) }),
  );
  const seen: string[] = [];
  const summary = await runBatch({
    model: encoder.modelFile,
    inputs: join(folder, 'in'),
    outputs: join(folder, 'out'),
    batch: 4,
    onFailure: ({ sample }) => seen.push(sample),
  });
  t.is(summary.finished, 8);
  const reasons = new Map(summary.failed.map(({ sample, error }) => [sample, error.message]));
  t.deepEqual(
    [...reasons.keys()].sort(),
    [2, 5, 7, 9].map((i) => `test_data_set_${i}`),
  );
  t.deepEqual(seen.sort(), [...reasons.keys()].sort());
  t.regex(reasons.get('test_data_set_2')!, /does not begin as one/);
  t.regex(reasons.get('test_data_set_5')!, /lacks attention_mask/);
  t.regex(reasons.get('test_data_set_7')!, /has type int32, the model expects int64/);
  t.regex(reasons.get('test_data_set_9')!, /out of|indices/);
  t.deepEqual(
    Array.from({ length: 12 }, (_, i) => existsSync(join(folder, 'out', `test_data_set_${i}`))),
    Array.from({ length: 12 }, (_, i) => ![2, 5, 7, 9].includes(i)),
  );
});

test('what is finished is not done again', async (t) => {
  const { folder } = t.context;
  writeSamples(join(folder, 'in'), new Array(20).fill(5));
  const stop = new AbortController();
  const options = { model: encoder.modelFile, inputs: join(folder, 'in'), outputs: join(folder, 'out'), batch: 2 };
  const first = await runBatch({
    ...options,
    signal: stop.signal,
    onProgress: ({ finished }) => finished > 4 && stop.abort(),
  });
  t.true(first.interrupted);
  t.true(first.finished > 4 && first.finished < 20, String(first.finished));
  const done = readdirSync(options.outputs).filter((name) => name.startsWith('test_data_set_'));
  t.is(done.length, first.finished);
  const times = new Map(done.map((name) => [name, statSync(join(options.outputs, name, 'output.npy')).mtimeMs]));
  const second = await runBatch(options);
  t.like(second, { total: 20, skipped: first.finished, finished: 20 - first.finished, interrupted: false });
  for (const [name, time] of times) t.is(statSync(join(options.outputs, name, 'output.npy')).mtimeMs, time);
  const third = await runBatch(options);
  t.like(third, { skipped: 20, finished: 0, runs: 0 });
  const again = await runBatch({ ...options, resume: false });
  t.like(again, { skipped: 0, finished: 20 });
});

test('a process that is killed leaves whole results only, and the next one does the rest', async (t) => {
  const { folder } = t.context;
  writeSamples(join(folder, 'in'), new Array(400).fill(8));
  const options = { model: encoder.modelFile, inputs: join(folder, 'in'), outputs: join(folder, 'out'), batch: 2 };
  const program = `
    import { runBatch } from ${JSON.stringify(new URL('./node-batch.ts', import.meta.url).href)};
    await runBatch({ ...${JSON.stringify(options)}, onProgress: ({ finished }) => process.stdout.write(finished + '\\n') });`;
  const child = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', program]);
  await new Promise<void>((resolve) => {
    child.stdout.on(
      'data',
      (text: Buffer) => Number(String(text).trim().split('\n').at(-1)) >= 20 && child.kill('SIGKILL'),
    );
    child.on('exit', () => resolve());
  });
  const whole = () => readdirSync(options.outputs).filter((name) => name.startsWith('test_data_set_'));
  const before = whole();
  t.true(before.length >= 20 && before.length < 400, String(before.length));
  for (const name of before) t.notThrows(() => readOutput(join(options.outputs, name)));
  const { skipped, finished } = await runBatch(options);
  t.deepEqual([skipped, finished], [before.length, 400 - before.length]);
  t.is(whole().length, 400);
});

test('a model without outputs has no results that could be there already', async (t) => {
  const { folder } = t.context;
  const x = { name: 'x', type: 'float32' as const, shape: ['n'] };
  const options = { inputs: join(folder, 'in.jsonl'), outputs: join(folder, 'out'), model: join(folder, 'model.onnx') };
  writeFileSync(options.inputs, '{"x": [1, 2]}\n');
  writeFileSync(options.model, makeModel([x], [], [{ op: 'Relu', inputs: ['x'], outputs: ['y'] }]));
  const { skipped, failed } = await runBatch(options);
  t.deepEqual([skipped, failed.length], [0, 1]);
});

test('what is no sample among samples is left alone', async (t) => {
  const { folder } = t.context;
  writeSamples(join(folder, 'in'), [5, 5]);
  mkdirSync(join(folder, 'in', 'test_data_set_'));
  writeFileSync(join(folder, 'in', 'test_data_set_0.zip'), 'packed');
  symlinkSync('nowhere', join(folder, 'in', 'test_data_set_2'));
  const options = { model: encoder.modelFile, inputs: join(folder, 'in'), outputs: join(folder, 'out') };
  const { finished, failed } = await runBatch(options);
  t.is(finished, 2);
  t.deepEqual(
    failed.map(({ sample, error }) => [sample, error.code]),
    [['test_data_set_', 'invalid-tensor']],
  );
});

test('results of one model do not pass for those of another', async (t) => {
  const { folder } = t.context;
  writeFileSync(join(folder, 'a.onnx'), doubling);
  writeFileSync(join(folder, 'b.onnx'), centring);
  writeFileSync(join(folder, 'in.jsonl'), '{"x": [1, 2]}\n');
  const options = { inputs: join(folder, 'in.jsonl'), outputs: join(folder, 'out') };
  t.is((await runBatch({ ...options, model: join(folder, 'a.onnx') })).finished, 1);
  await t.throwsAsync(runBatch({ ...options, model: join(folder, 'b.onnx') }), {
    message: /holds results of another model/,
  });
  await t.throwsAsync(runBatch({ ...options, model: join(folder, 'a.onnx'), format: 'pb' }), {
    message: /results of another model, or in another format/,
  });
  rmSync(join(folder, 'out', '.ort-flash-run.json'));
  await t.throwsAsync(runBatch({ ...options, model: join(folder, 'a.onnx') }), {
    code: 'invalid-argument',
    message: /holds results that no run has written .*test_data_set_0.y\.npy/,
  });
  t.is((await runBatch({ ...options, model: join(folder, 'b.onnx'), resume: false })).finished, 1);
});

test('options that make no sense are refused before anything is written', async (t) => {
  const { folder } = t.context;
  writeFileSync(join(folder, 'model.onnx'), doubling);
  writeFileSync(join(folder, 'in.jsonl'), '{"x": [1]}\n');
  const good = { model: join(folder, 'model.onnx'), inputs: join(folder, 'in.jsonl'), outputs: join(folder, 'out') };
  const refused = (changes: object, message: RegExp) =>
    t.throwsAsync(runBatch({ ...good, ...changes }), { name: 'OrtFlashError', message });
  await refused({ batch: 0 }, /batch must be/);
  await refused({ batch: 1.5 }, /batch must be/);
  await refused({ device: 'tpu' }, /device "tpu" is not known/);
  await refused({ deviceIds: [0] }, /for device cuda/);
  await refused({ format: 'csv' }, /format "csv" is not known/);
  await refused({ outputs: good.inputs }, /same folder/);
  symlinkSync(good.inputs, join(folder, 'link'));
  await refused({ outputs: join(folder, 'link') }, /same folder/);
  await refused({ model: join(folder, 'none.onnx') }, /none\.onnx/);
  await refused({ inputs: join(folder, 'none') }, /there is no such file or folder \[.*none\]/);
  writeFileSync(join(folder, 'empty.jsonl'), '\n\n');
  await refused({ inputs: join(folder, 'empty.jsonl') }, /there are no samples here/);
  await refused({ inputs: folder }, /neither test_data_set_\* folders nor/);
  await refused({ inputs: good.model }, /a folder, a \.npz or a \.jsonl/);
  t.false(existsSync(good.outputs));
});
