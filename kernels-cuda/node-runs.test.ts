/** Runs of sessions: large ones, many at once, beside the event loop, in worker threads, and released in the middle. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import { InferenceSession, Tensor } from './index.js';
import { addonPath, onnxRuntimePath } from './node-paths.js';
import { identityModel, powerModel } from './test-models.js';

const withAddon = existsSync(addonPath()) ? test : test.skip;
/** For what must not share the event loop with other tests. */
const alone = existsSync(addonPath()) ? test.serial : test.serial.skip;

const cpu = { executionProviders: ['cpu'], intraOpNumThreads: 1 } as const;

/** 0, 0.5, 1, … */
const ramp = (length: number) => Float64Array.from({ length }, (_, i) => i * 0.5);

/** AVA's own comparison takes seconds for arrays as large as these. */
const sameBytes = ({ data }: Tensor, expected: Float64Array) =>
  Buffer.from((data as Float64Array).buffer).equals(Buffer.from(expected.buffer));

withAddon('large inputs and results are whole, whatever their sizes were before', async (t) => {
  const session = await InferenceSession.create(identityModel('float64'), cpu);
  // Memory for a result is made before the run where the last one was large; it may turn out larger, smaller or none.
  for (const length of [3_000_000, 3_000_000, 1_000_000, 5, 1_000_000, 0, 2_000_000]) {
    const data = ramp(length);
    const { y } = await session.run({ x: new Tensor('float64', data, [length]) });
    t.is(y!.data.length, length);
    t.true(sameBytes(y!, data));
  }
  const inputs = [2_000_000, 1_000_000, 2_000_000].map(ramp);
  const runs = inputs.map((data) => session.run({ x: new Tensor('float64', data, [data.length]) }));
  for (const [i, { y }] of (await Promise.all(runs)).entries()) t.true(sameBytes(y!, inputs[i]!));
  await session.release();
});

withAddon('a large input that starts anywhere in its buffer is read', async (t) => {
  const session = await InferenceSession.create(identityModel('float32'), cpu);
  const data = Float32Array.from({ length: 100_001 }, (_, i) => i).subarray(1);
  const shared = new Float32Array(new SharedArrayBuffer(400_000));
  shared.set(data);
  for (const x of [data, shared]) {
    const { y } = await session.run({ x: new Tensor('float32', x, [100_000]) });
    t.deepEqual(y!.data, data.slice());
  }
  await session.release();
});

withAddon('an input that is transferred while a run reads it is told of', async (t) => {
  const session = await InferenceSession.create(powerModel(20), cpu);
  const x = new Tensor('float32', new Float32Array(256 * 256), [256, 256]);
  const run = session.run({ x });
  const moved = structuredClone(x.data, { transfer: [(x.data as Float32Array<ArrayBuffer>).buffer] });
  await t.throwsAsync(run, { message: /input x was given to another thread/, code: 'invalid-tensor' });
  t.is(moved.length, 256 * 256);
  await session.release();
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

alone('timers and files go on during a long run, however many runs there are', async (t) => {
  const session = await InferenceSession.create(powerModel(20), { ...cpu });
  const size = 500;
  const x = new Tensor('float32', new Float32Array(size * size).fill(1 / size), [size, size]);
  await session.run({ x });
  let ticks = 0;
  let running = 20;
  const timer = setInterval(() => {
    ticks++;
  }, 1);
  t.teardown(() => clearInterval(timer));
  const runs = Array.from({ length: running }, () =>
    session.run({ x }).finally(() => {
      running--;
    }),
  );
  const { readFile } = await import('node:fs/promises');
  await readFile(new URL(import.meta.url));
  t.true(running > 0, 'a file was read before the runs ended');
  await Promise.all(runs);
  // Some seconds of computing; the event loop, had it been blocked, would have ticked about once a run.
  t.true(ticks > 50, `${ticks} ticks`);
  await session.release();
});

alone('runs that take no time still let timers have their turn', async (t) => {
  const session = await InferenceSession.create(identityModel('float32'), cpu);
  const x = new Tensor('float32', Float32Array.of(1), [1]);
  let ticks = 0;
  const timer = setInterval(() => {
    ticks++;
  }, 1);
  t.teardown(() => clearInterval(timer));
  const end = performance.now() + 20_000;
  while (ticks < 5 && performance.now() < end) await session.run({ x });
  t.true(ticks >= 5, `${ticks} ticks`);
  // Wrong inputs after right ones, and the other way round.
  for (let i = 0; i < 20; i++) {
    await t.throwsAsync(session.run({ x: new Tensor('float32', new Float32Array(2), [2, 1]) }), { code: 'runtime' });
    const { y } = await session.run({ x });
    t.deepEqual(y!.data, Float32Array.of(1));
  }
  await session.release();
});

withAddon('a large result goes into the tensor given for it, and the event loop goes on', async (t) => {
  const session = await InferenceSession.create(identityModel('float64'), cpu);
  const length = 1_000_003;
  const x = new Tensor('float64', ramp(length), [length]);
  const y = new Tensor('float64', new Float64Array(length), [length]);
  t.is((await session.run({ x }, { y })).y, y);
  t.true(sameBytes(y, x.data as Float64Array));
  // Given away in the middle of the copy.
  const target = new Tensor('float64', new Float64Array(length), [length]);
  const run = session.run({ x }, { y: target });
  const { buffer } = target.data as Float64Array<ArrayBuffer>;
  const isCopying = () => new Float64Array(buffer, 0, 2)[1] === 0.5;
  while (!isCopying()) await new Promise((done) => setImmediate(done));
  structuredClone(null, { transfer: [buffer] });
  await t.throwsAsync(run, { message: /given for output y was given to another thread/, code: 'invalid-tensor' });
  await session.release();
});

withAddon('results can be given to another thread', async (t) => {
  const session = await InferenceSession.create(identityModel('float32'), cpu);
  for (const length of [1, 5000, 5000, 100_000, 100_000, 100_000]) {
    const { y } = await session.run({ x: new Tensor('float32', new Float32Array(length).fill(length), [length]) });
    const data = y!.data as Float32Array<ArrayBuffer>;
    t.deepEqual([data.byteOffset, data.buffer.byteLength], [0, 4 * length]);
    const moved = structuredClone(data, { transfer: [data.buffer] });
    t.is(data.length, 0);
    t.deepEqual(moved, new Float32Array(length).fill(length));
  }
  await session.release();
});

const EXITING = `
import { register } from '${import.meta.resolve('tsx/esm/api')}';
register();
const { InferenceSession, Tensor } = await import('${new URL('./index.ts', import.meta.url).href}');
const { powerModel } = await import('${new URL('./test-models.ts', import.meta.url).href}');
const session = await InferenceSession.create(powerModel(20), { executionProviders: ['cpu'], intraOpNumThreads: 1 });
const x = new Tensor('float32', new Float32Array(600 * 600), [600, 600]);
for (let i = 0; i < 8; i++) session.run({ x });
setTimeout(() => process.exit(7), 20);
`;

withAddon('a process may exit in the middle of runs', async (t) => {
  for (let i = 0; i < 3; i++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', EXITING], { stdio: 'inherit' });
    const end = await new Promise((done) => child.once('exit', (code, signal) => done([code, signal])));
    t.deepEqual(end, [7, null]);
  }
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
for (let i = 0; i < workerData.runs; i++) await Promise.all([1, 2, 3, 4, 5, 6].map(() => session.run({ x })));
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

const ENDED = `
import { createRequire } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';
const addon = createRequire(workerData.addon)(workerData.addon);
addon.initialize(workerData.library, 3);
const session = await addon.createSession(workerData.model, { intraOpNumThreads: 1 });
const run = (length) => session.run([['x', 'float32', [length], new Uint8Array(4 * length)]], ['y'], []);
parentPort.postMessage('started');
for (;;) {
  // More than there are threads, brief ones and ones whose results are copied on another thread.
  await Promise.all([1, 1, 2_000_000, 1_500_000, 1, 2_000_000, 1_000_000, 1, 2_000_000].map(run));
  for (let i = 0; i < 20; i++) await run(1);
}
`;

withAddon('worker threads may end at any point of their runs', async (t) => {
  const workerData = { addon: addonPath(), library: onnxRuntimePath(), model: identityModel('float32') };
  for (let i = 0; i < 30; i++) {
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(ENDED)}`), { workerData });
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    await new Promise((resolve) => setTimeout(resolve, i % 11));
    await worker.terminate();
  }
  t.pass();
});
