import { readFileSync } from 'node:fs';
import anyTest from 'ava';
import { bundledModel } from '../models/corpus.js';
import { counts, feedsOf, hasWebGpu, largestDifference, loadWeb } from './web-runtime.js';

// Pipelines take long to compile on SwiftShader; tests share them, one after the other.
const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);
const bert = bundledModel('bert-sdpa-dyn18');

test('a model runs in parts, gives PyTorch’s outputs, and reads back its outputs only', async (t) => {
  t.timeout(600_000);
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(bert.modelFile)));
  const feeds = feedsOf(ort, session, bert);
  counts.maps = 0;
  const results = await session.run(feeds);
  t.is(counts.maps, 1);
  t.true(largestDifference(session, results, bert) <= bert.tolerance);
  const { attentions, segments, device } = session.explain();
  t.deepEqual({ attentions, segments, device }, { attentions: 2, segments: 3, device: 'webgpu' });
  await session.release();
});

test('memory stays level, runs follow each other without waiting, and sessions share the device', async (t) => {
  t.timeout(600_000);
  const [one, two] = await Promise.all([
    ort.InferenceSession.create(bert.modelFile),
    ort.InferenceSession.create(bert.modelFile, { flash: 'on' }),
  ]);
  const feeds = feedsOf(ort, one, bert);
  const check = (results: Awaited<ReturnType<typeof one.run>>) =>
    t.true(largestDifference(one, results, bert) <= bert.tolerance);
  for (let i = 0; i < 5; i++) check(await one.run(feeds));
  const level = counts.buffers.size;
  for (const results of await Promise.all([one.run(feeds), two.run(feeds), one.run(feeds), two.run(feeds)]))
    check(results);
  for (let i = 0; i < 20; i++) check(await one.run(feeds));
  // The second session's weights and buffers, and nothing for each run.
  const after = counts.buffers.size;
  for (let i = 0; i < 20; i++) check(await one.run(feeds));
  t.is(counts.buffers.size, after);
  t.true(after >= level);
  await Promise.all([one.release(), one.release(), two.release()]);
  await t.throwsAsync(one.run(feeds), { name: 'OrtFlashError', message: /released/ });
});

test('outputs stay on the GPU, or fill the tensors given for them', async (t) => {
  t.timeout(600_000);
  const session = await ort.InferenceSession.create(bert.modelFile, { preferredOutputLocation: 'gpu-buffer' });
  const feeds = feedsOf(ort, session, bert);
  const [name] = session.outputNames;
  counts.maps = 0;
  const { [name!]: kept } = await session.run(feeds, [name!]);
  t.is(counts.maps, 0);
  t.is(kept!.location, 'gpu-buffer');
  const data = (await kept!.getData()) as Float32Array;
  kept!.dispose();
  const given = new ort.Tensor('float32', new Float32Array(data.length), kept!.dims);
  const results = await session.run(feeds, { [name!]: given });
  t.is(results[name!], given);
  t.deepEqual(given.data, data);
  const wrong = new ort.Tensor('float32', new Float32Array(1), [1]);
  await t.throwsAsync(session.run(feeds, { [name!]: wrong }), { name: 'OrtFlashError', message: /\(1\)/ });
  await session.release();
});

test('inputs that do not fit are refused by name, and the session goes on', async (t) => {
  t.timeout(600_000);
  const session = await ort.InferenceSession.create(bert.modelFile);
  const feeds = feedsOf(ort, session, bert);
  const float = new ort.Tensor('float32', new Float32Array(2), [1, 2]);
  await t.throwsAsync(session.run({ ...feeds, input_ids: float }), { message: /input has type float32.*input_ids/ });
  const flat = new ort.Tensor('int64', new BigInt64Array(2), [2]);
  await t.throwsAsync(session.run({ ...feeds, input_ids: flat }), { message: /another shape.*input_ids/ });
  t.true(largestDifference(session, await session.run(feeds), bert) <= bert.tolerance);
  await session.release();
});

test('a run that fails leaves nothing behind: the next one is right, beside it and after it', async (t) => {
  t.timeout(600_000);
  const left: number[] = [];
  for (const options of [{}, { flash: 'off' as const }, { preferredOutputLocation: 'gpu-buffer' as const }]) {
    const session = await ort.InferenceSession.create(bert.modelFile, { ...options, logSeverityLevel: 4 });
    const feeds = feedsOf(ort, session, bert);
    const run = async () => {
      const results = await session.run(feeds);
      const entries = Object.entries(results).map(async ([name, tensor]) => {
        const read = new ort.Tensor('float32', (await tensor.getData()) as Float32Array, tensor.dims);
        tensor.dispose();
        return [name, read] as const;
      });
      t.true(largestDifference(session, Object.fromEntries(await Promise.all(entries)), bert) <= bert.tolerance);
    };
    // As long as the model's inputs may be, but not together.
    const long = new ort.Tensor('int64', new BigInt64Array(50), [2, 25]);
    const bad = () => session.run({ ...feeds, attention_mask: long });
    await run();
    await t.throwsAsync(bad(), { name: 'OrtFlashError' });
    await run();
    const results = await Promise.allSettled([bad(), run(), bad(), bad(), run()]);
    t.deepEqual(
      results.map(({ status }) => status),
      ['rejected', 'fulfilled', 'rejected', 'rejected', 'fulfilled'],
    );
    await run();
    await session.release();
    left.push(counts.buffers.size);
  }
  t.deepEqual(left, [left[0], left[0], left[0]]);
});

test('what the GPU refuses rejects the run, and the next one is right', async (t) => {
  t.timeout(600_000);
  const session = await ort.InferenceSession.create(bert.modelFile);
  const feeds = feedsOf(ort, session, bert);
  const device = (await ort.env.webgpu.device) as GPUDevice;
  const create = device.createBuffer;
  // ONNX Runtime reads the first of these and sees that it is no buffer; the second only the device does.
  for (const label of ['ort-flash tensor', 'ort-flash outputs']) {
    let refused = 0;
    // As a device does that is out of memory: it gives a buffer that is none.
    device.createBuffer = function (descriptor) {
      if (descriptor.label !== label) return create.call(this, descriptor);
      refused++;
      return create.call(this, { ...descriptor, size: this.limits.maxBufferSize * 2 });
    };
    await t.throwsAsync(session.run(feeds), {
      name: 'OrtFlashError',
      message: /exceeds the max buffer size|Invalid Buffer/,
    });
    device.createBuffer = create;
    t.true(refused > 0);
    t.true(largestDifference(session, await session.run(feeds), bert) <= bert.tolerance);
  }
  await session.release();
});

test('sessions are released once, whenever it is asked for', async (t) => {
  t.timeout(600_000);
  for (const options of [{}, { flash: 'off' as const }]) {
    const session = await ort.InferenceSession.create(bert.modelFile, options);
    const feeds = feedsOf(ort, session, bert);
    const pending = session.run(feeds);
    await Promise.all([session.release(), session.release()]);
    t.true(largestDifference(session, await pending, bert) <= bert.tolerance);
    await session.release();
    await t.throwsAsync(session.run(feeds), { name: 'OrtFlashError', message: /released/ });
  }
});

test('arguments that are none are refused as ours', async (t) => {
  const session = await ort.InferenceSession.create(bert.modelFile);
  const feeds = feedsOf(ort, session, bert);
  const argument = { name: 'OrtFlashError', code: 'invalid-argument' };
  await t.throwsAsync(session.run({}), { ...argument, message: /'input_ids' is missing/ });
  await t.throwsAsync(session.run(feeds, ['none']), { ...argument, message: /invalid output name: none/ });
  await t.throwsAsync(ort.InferenceSession.create(bert.modelFile, 1 as never), argument);
  await t.throwsAsync(ort.InferenceSession.create(undefined as never), argument);
  await session.release();
});

test('a lost device ends the runs under way, and the next session gets another', async (t) => {
  t.timeout(600_000);
  const session = await ort.InferenceSession.create(bert.modelFile);
  const feeds = feedsOf(ort, session, bert);
  await session.run(feeds);
  const device = (await ort.env.webgpu.device) as GPUDevice;
  const pending = session.run(feeds);
  device.destroy();
  await t.throwsAsync(pending, { name: 'OrtFlashError', message: /device was lost/ });
  await t.throwsAsync(session.run(feeds), { name: 'OrtFlashError', message: /device was lost/ });
  await session.release();
  const next = await ort.InferenceSession.create(bert.modelFile);
  t.true(largestDifference(next, await next.run(feeds), bert) <= bert.tolerance);
  t.not(await ort.env.webgpu.device, device);
  await next.release();
});
