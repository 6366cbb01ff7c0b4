import anyTest from 'ava';
import { InferenceSession, Tensor } from '../kernels-cuda/index.js';
import { bundledModel, readTestData } from '../models/corpus.js';
import { relativeDifference, toNumbers } from './runtime.js';
import { hasWebGpu, useTestAdapter } from './web-runtime.js';

const test = hasWebGpu ? anyTest : anyTest.skip;

test('ort-flash/node runs models over Dawn', async (t) => {
  t.timeout(600_000);
  useTestAdapter();
  const bert = bundledModel('bert-sdpa-dyn18');
  const session = await InferenceSession.create(bert.modelFile, { executionProviders: ['webgpu'] });
  t.like(session.explain(), { device: 'webgpu', engine: 'onnxruntime-web', refused: [] });
  t.regex(session.explain().text, /2 attentions in FlashAttention kernels between 3 parts/);
  const { inputs, outputs } = readTestData(bert.dataFolder);
  const feeds = inputs.map(({ name, type, data, dims }) => [
    name,
    new Tensor(type as 'float32', data as Float32Array, dims),
  ]);
  const results = await session.run(Object.fromEntries(feeds));
  const { type, data } = results[session.outputNames[0]!]!;
  t.true(results[session.outputNames[0]!] instanceof Tensor);
  t.true(relativeDifference(toNumbers(type, data as ArrayLike<number>), outputs[0]!) <= bert.tolerance);
  await session.release();
});
