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
