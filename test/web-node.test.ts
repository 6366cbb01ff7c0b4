import anyTest from 'ava';
import { InferenceSession, Tensor } from '../kernels-cuda/index.js';
import { bundledModel, readTestData } from '../models/corpus.js';
import {
  asPast,
  emptyPast,
  feedsOf,
  greedy,
  prompt,
  referenceSession,
  runReference,
  type Tensors,
} from './decoding.js';
import { watch } from './gpu-traffic.js';
import { relativeDifference, toNumbers } from './runtime.js';
import { hasWebGpu, useTestAdapter } from './web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;

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

test('ort-flash/node keeps caches on the GPU, in place, as tensors of its own', async (t) => {
  t.timeout(600_000);
  useTestAdapter();
  const llama = bundledModel('llama_past-dyn18');
  const names = [0, 1].flatMap((layer) => [`present.${layer}.key`, `present.${layer}.value`]);
  const session = await InferenceSession.create(llama.modelFile, {
    executionProviders: ['webgpu'],
    preferredOutputLocation: Object.fromEntries(names.map((name) => [name, 'gpu-buffer' as const])),
  });
  const runtime = { Tensor } as unknown as Parameters<typeof emptyPast>[0];
  const reference = await referenceSession(llama);
  let past = emptyPast(runtime, session, 1);
  let expectedPast = past;
  let tokens: number[][] = prompt(1, 600);
  const step = async () => {
    const length = Object.values(past)[0]!.dims[2]!;
    const results = (await session.run({
      ...feedsOf(runtime, tokens, length),
      ...past,
    } as never)) as unknown as Tensors;
    const expected = await runReference(reference, tokens, expectedPast);
    for (const tensor of Object.values(past)) tensor.dispose();
    t.deepEqual(greedy(results.output!), greedy(expected.output!));
    past = asPast(results);
    expectedPast = asPast(expected);
    tokens = greedy(expected.output!).map((token) => [token]);
  };
  await step();
  const { appends } = await watch(async () => {
    for (let i = 0; i < 4; i++) await step();
  });
  t.deepEqual(appends, new Array(16).fill(1));
  for (const [name, tensor] of Object.entries(past)) {
    t.true((tensor as unknown) instanceof Tensor);
    t.is(tensor.location, 'gpu-buffer');
    const elements = (await tensor.getData()) as Float32Array;
    // SwiftShader's sine and cosine, of angles up to 600.
    const expected = expectedPast[name]!.data as Float32Array;
    t.true(elements.every((x, i) => Math.abs(x - expected[i]!) <= 1e-3));
  }
  // Asked for its buffer, a tensor is as dense as any other.
  tokens = [[3]];
  const results = (await session.run({ ...feedsOf(runtime, tokens, 604), ...past } as never)) as unknown as Tensors;
  const [one] = Object.values(asPast(results));
  t.true((one!.gpuBuffer as unknown) instanceof GPUBuffer);
  for (const tensor of [...Object.values(past), ...Object.values(asPast(results))]) tensor.dispose();
  t.is(one!.location, 'none');
  await Promise.all([session.release(), reference.release()]);
});
