/** Memory on the GPU and readbacks of `ort-flash/web` over many runs. */
import anyTest from 'ava';
import { bundledModel } from '../models/corpus.js';
import { asPast, emptyPast, greedy, prompt, type Tensors, feedsOf as tokenFeeds } from './decoding.js';
import { counts, feedsOf, hasWebGpu, largestDifference, loadWeb } from './web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);

const RUNS = 1000;
/** Runs after which ONNX Runtime and the kernels have what they keep. */
const WARM_UP = 20;

const bytes = () => [...counts.buffers].reduce((sum, buffer) => sum + buffer.size, 0);

test('memory is level over a thousand runs, and each reads back its output only', async (t) => {
  t.timeout(1_800_000);
  const example = bundledModel('alibi_bias-ts14');
  const session = await ort.InferenceSession.create(example.modelFile, { flash: 'on' });
  t.is(session.explain().attentions, 1);
  const feeds = feedsOf(ort, session, example);
  const run = async () => {
    const results = await session.run(feeds);
    return largestDifference(session, results, example);
  };
  for (let i = 0; i < WARM_UP; i++) await run();
  const before = { buffers: counts.buffers.size, bytes: bytes() };
  counts.maps = 0;
  let largest = 0;
  for (let i = 0; i < RUNS; i++) largest = Math.max(largest, await run());
  t.true(largest <= example.tolerance);
  t.deepEqual({ buffers: counts.buffers.size, bytes: bytes() }, before);
  t.is(counts.maps, RUNS);
  await session.release();
});

test('memory is level over a thousand tokens, and each step reads back its logits only', async (t) => {
  t.timeout(1_800_000);
  const layers = [0, 1].flatMap((layer) => [`present.${layer}.key`, `present.${layer}.value`]);
  const session = await ort.InferenceSession.create(bundledModel('llama_past-dyn18').modelFile, {
    flash: 'on',
    preferredOutputLocation: Object.fromEntries(layers.map((name) => [name, 'gpu-buffer' as const])),
  });
  const generations = 4;
  const generate = async () => {
    let past = emptyPast(ort, session, 1);
    let tokens = prompt(1, 5);
    for (let step = 0; step < RUNS / generations; step++) {
      const length = Object.values(past)[0]!.dims[2]!;
      const results = (await session.run({ ...tokenFeeds(ort, tokens, length), ...past })) as Tensors;
      for (const tensor of Object.values(past)) tensor.dispose();
      past = asPast(results);
      tokens = greedy(results.output!).map((token) => [token]);
    }
    for (const tensor of Object.values(past)) tensor.dispose();
    // Buffers that nothing has used for a few runs are given up.
    for (let i = 0; i < WARM_UP; i++)
      for (const tensor of Object.values(
        asPast(await session.run({ ...tokenFeeds(ort, [[1]], 0), ...emptyPast(ort, session, 1) })),
      ))
        tensor.dispose();
  };
  await generate();
  const before = { buffers: counts.buffers.size, bytes: bytes() };
  counts.maps = 0;
  for (let i = 1; i < generations; i++) await generate();
  t.deepEqual({ buffers: counts.buffers.size, bytes: bytes() }, before);
  t.is(counts.maps, (generations - 1) * (RUNS / generations + WARM_UP));
  await session.release();
});
