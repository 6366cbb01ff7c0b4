/** Memory on the GPU and readbacks of `ort-flash/web` over many runs. */
import anyTest from 'ava';
import { bundledModel } from '../models/corpus.js';
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
