/** Batches in which a device, a disk or a process fails in the middle. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type TestFn } from 'ava';
import { InferenceSession } from './index.js';
import { runBatch } from './node-batch.js';
import { BatchRun } from './node-batch-run.js';
import { decodeNpy, encodeNpy } from './node-npy.js';
import { openSamples } from './node-samples.js';
import { makeModel } from './test-models.js';

interface Context {
  readonly folder: string;
  readonly options: { readonly model: string; readonly inputs: string; readonly outputs: string };
}
const test = anyTest as TestFn<Context>;

/** y = x + x, or x · x. */
const model = (op: 'Add' | 'Mul') =>
  makeModel(
    [{ name: 'x', type: 'float32', shape: ['n', 'm'] }],
    [{ name: 'y', type: 'float32', shape: ['n', 'm'] }],
    [{ op, inputs: ['x', 'x'], outputs: ['y'] }],
  );

const SAMPLES = 24;
const nameOf = (sample: number) => `test_data_set_${sample}`;

test.beforeEach((t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-faults-'));
  const options = { model: join(folder, 'model.onnx'), inputs: join(folder, 'in'), outputs: join(folder, 'out') };
  writeFileSync(options.model, model('Add'));
  for (let sample = 0; sample < SAMPLES; sample++) {
    mkdirSync(join(options.inputs, nameOf(sample)), { recursive: true });
    const data = Float32Array.of(sample + 3, sample + 4);
    writeFileSync(join(options.inputs, nameOf(sample), 'x.npy'), encodeNpy({ type: 'float32', dims: [1, 2], data }));
  }
  t.context = { folder, options };
});
test.afterEach.always((t) => rmSync(t.context.folder, { recursive: true, force: true }));

/** The samples whose results are there, each checked. */
function finished(outputs: string, operation = (x: number) => x + x): string[] {
  const names = readdirSync(outputs).filter((name) => name.startsWith('test_data_set_'));
  for (const name of names) {
    const sample = Number(name.slice('test_data_set_'.length));
    const { data } = decodeNpy(readFileSync(join(outputs, name, 'y.npy')), name);
    const expected = [sample + 3, sample + 4].map(operation);
    if (!expected.every((value, i) => value === data[i])) throw new Error(`${name} is wrong`);
  }
  return names;
}

/** Sessions like those of two GPUs; the runs of the second fail from some run on, as when its GPU is lost. */
async function batchOn(options: Context['options'], dieAfter: readonly number[], batch = 1) {
  const sessions = await Promise.all(
    dieAfter.map(async (limit) => {
      const session = await InferenceSession.create(options.model, { executionProviders: ['cpu'] });
      const { run } = session;
      let runs = 0;
      return Object.assign(session, {
        run: (...args: Parameters<typeof run>) => {
          runs++;
          return runs > limit ? Promise.reject(new Error('CUDA failure 999')) : run.apply(session, args);
        },
      });
    }),
  );
  const source = await openSamples(options.inputs, sessions[0]!.inputMetadata);
  return new BatchRun({ ...options, batch }, sessions, source);
}

test('where one device fails for good, the others do its part', async (t) => {
  for (const [batch, dieAfter] of [
    [1, [Infinity, 3]],
    [1, [2, Infinity]],
    [4, [Infinity, 5]],
  ] as const) {
    const options = { ...t.context.options, outputs: `${t.context.options.outputs}-${batch}-${dieAfter.join('-')}` };
    const summary = await (await batchOn(options, dieAfter, batch)).run();
    t.like(summary, { finished: SAMPLES, failed: [], interrupted: false });
    t.regex(summary.explanation, /a device failed, and the others did its part \(CUDA failure 999\)/);
    t.is(finished(options.outputs).length, SAMPLES);
  }
});

test('where all devices fail, one error says so, and the next run goes on', async (t) => {
  const { options } = t.context;
  const run = await batchOn(options, [4, 5]);
  const error = await t.throwsAsync(run.run(), { code: 'device', message: /^the device fails: CUDA failure 999; / });
  const kept = finished(options.outputs).length;
  t.true(kept > 0 && kept < SAMPLES);
  t.regex(error!.message, new RegExp(`${kept} of ${SAMPLES} samples were finished and are kept`));
  t.like(await runBatch(options), { skipped: kept, finished: SAMPLES - kept, failed: [] });
  t.is(finished(options.outputs).length, SAMPLES);
});

test('old results that are not to be kept never pass for new ones', async (t) => {
  const { options } = t.context;
  await runBatch(options);
  writeFileSync(options.model, model('Mul'));
  const interruption = new AbortController();
  const onProgress = () => interruption.abort();
  const part = await runBatch({ ...options, resume: false, onProgress, signal: interruption.signal });
  t.true(part.interrupted && part.finished < SAMPLES);
  t.like(await runBatch(options), { skipped: part.finished, finished: SAMPLES - part.finished });
  t.is(finished(options.outputs, (x) => x * x).length, SAMPLES);
});

test('what a killed process left half-written goes, what others are writing stays', async (t) => {
  const { options } = t.context;
  // A process that has ended, whose number is nobody's now.
  const { pid } = spawnSync(process.execPath, ['-e', '']);
  const partial = (host: string, id: number) => `.test_data_set_1.partial-${host}-${id}`;
  const gone = partial(hostname(), pid);
  const kept = [partial(hostname(), process.ppid), partial('another-host', pid), '.test_data_set_1.partial'];
  for (const name of [gone, ...kept]) {
    mkdirSync(join(options.outputs, name), { recursive: true });
    writeFileSync(join(options.outputs, name, 'y.npy'), 'half');
  }
  t.like(await runBatch(options), { finished: SAMPLES, failed: [] });
  t.false(existsSync(join(options.outputs, gone)));
  for (const name of kept) t.true(existsSync(join(options.outputs, name, 'y.npy')), name);
});

test('a sample whose own results cannot be written is reported, and the others go on', async (t) => {
  const { options } = t.context;
  mkdirSync(options.outputs);
  writeFileSync(join(options.outputs, nameOf(5)), 'in the way');
  const { failed, finished: count } = await runBatch(options);
  t.deepEqual([count, failed.map(({ sample }) => sample)], [SAMPLES - 1, [nameOf(5)]]);
  t.is(failed[0]!.error.code, 'file-access');
  t.is(readFileSync(join(options.outputs, nameOf(5)), 'utf8'), 'in the way');
  t.deepEqual(
    readdirSync(options.outputs).filter((name) => name.includes('partial')),
    [],
  );
});
