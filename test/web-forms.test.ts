/** How `flash: 'auto'` chooses the form of a model, over Dawn, with costs that are given. */
import { readFileSync } from 'node:fs';
import anyTest from 'ava';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import type { FormCosts, InferenceSession, SessionForm } from '../kernels-wgsl/web.js';
import { buildTransformer } from '../models/builder.js';
import { bundledModel } from '../models/corpus.js';
import {
  asPast,
  emptyPast,
  feedsOf as feedsOfTokens,
  greedy,
  prompt,
  referenceSession,
  runReference,
  type Tensors,
} from './decoding.js';
import { counts, feedsOf, hasWebGpu, largestDifference, loadWeb } from './web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);

const SHAPE = { layers: 2, width: 64, heads: 2 } as const;
const encoder = encodeModel(buildTransformer({ style: 'dynamo', ...SHAPE, type: 'float32' }));

/** Costs with which one form is the fastest for few tokens, and the kernels are from some fifty on. */
function favouring(form: SessionForm): FormCosts {
  const cost = (least: number, rate: number) => ({ leastMilliseconds: least, operationsPerMillisecond: rate });
  const others = { kernels: cost(50, 1e9), fused: cost(60, 5e3), decomposed: cost(60, 5e3) };
  return { ...others, [form]: cost(form === 'kernels' ? 1e-6 : 40, form === 'kernels' ? 1e9 : 5e3) };
}

/** What `costs` has to be called for a model on this adapter, as the session says where it is told all costs. */
const keyFor = (machine: string, heads: string) => `${machine}, float32, ${heads}`;

async function machineName(): Promise<string> {
  const adapter = (await navigator.gpu.requestAdapter())!;
  return `${adapter.info.vendor} ${adapter.info.architecture}`.trim();
}

const hidden = (tokens: number) => {
  const data = Float32Array.from({ length: tokens * SHAPE.width }, (_, i) => Math.sin(i * 0.7));
  return { hidden_states: new ort.Tensor('float32', data, [1, tokens, SHAPE.width]) };
};

const run = async (session: InferenceSession, tokens: number) =>
  (await session.run(hidden(tokens))).last_hidden_state!.data as Float32Array;

const differ = (a: Float32Array, b: Float32Array) => a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

async function open(model: Uint8Array, costs: FormCosts, options: InferenceSession.SessionOptions = {}) {
  const key = keyFor(await machineName(), '2 heads × 32');
  return ort.InferenceSession.create(model, { costs: { [key]: costs }, ...options });
}

test('where the model says how long its sequences are, the form is chosen as it is opened', async (t) => {
  t.timeout(600_000);
  const lengths = { batch: 1, batch_size: 1, sequence: 8, sequence_length: 8 };
  const expected = await open(encoder, favouring('kernels'));
  const reference = await run(expected, 8);
  await expected.release();
  for (const form of ['kernels', 'fused', 'decomposed'] as const) {
    const session = await open(encoder, favouring(form), { freeDimensionOverrides: lengths });
    const { choice, attentions, segments, text } = session.explain();
    t.is(choice?.form, form, text);
    t.deepEqual([attentions, segments], form === 'kernels' ? [2, 3] : [0, 1]);
    t.true(differ(await run(session, 8), reference) < 1e-5);
    t.is(session.explain().choice?.switches, 0);
    await session.release();
  }
});

for (const form of ['fused', 'decomposed'] as const)
  test(`runs of few tokens bring the form ${form}, long ones the kernels at once, and one copy of the weights is there`, async (t) => {
    t.timeout(600_000);
    // No more than the price of opening it is lost before.
    const session = await open(encoder, favouring(form));
    t.is(session.explain().choice?.form, 'kernels');
    const reference = await run(session, 8);
    const opened = counts.buffers.size;
    let runs = 1;
    for (; session.explain().choice?.form === 'kernels' && runs < 5000; runs++)
      t.true(differ(await run(session, 8), reference) < 1e-5);
    const { choice, text } = session.explain();
    t.is(choice?.form, form, text);
    t.regex(text, /opened anew 1 time for the runs that came/);
    t.true(runs > 1, 'it has to pay');
    t.is(choice?.switches, 1);
    t.log(`${runs} runs; ${text}`);
    // Twice the weights would be some thirty buffers more.
    t.true(counts.buffers.size < opened + 15, `${counts.buffers.size} buffers, before ${opened}`);
    t.deepEqual(session.explain().costs, { [keyFor(await machineName(), '2 heads × 32')]: favouring(form) });
    // Runs before it, beside it and after it are right.
    const all = await Promise.all([run(session, 8), run(session, 256), run(session, 8), run(session, 8)]);
    for (const at of [0, 2, 3]) t.true(differ(all[at]!, reference) < 1e-5);
    t.true(differ(await run(session, 256), all[1]!) < 1e-5);
    await Promise.all([session.release(), session.release()]);
    await t.throwsAsync(session.run(hidden(8)), { code: 'invalid-argument', message: /released/ });
  });

test('a form that cannot be had is told, and not tried again', async (t) => {
  t.timeout(600_000);
  const bert = bundledModel('bert-sdpa-dyn18');
  const file = new Uint8Array(readFileSync(bert.modelFile));
  const named = await ort.InferenceSession.create(file, { costs: {} });
  const feeds = feedsOf(ort, named, bert);
  await named.release();
  const machine = await machineName();
  // Its masks are not for ONNX Runtime's operator.
  const heads = ['2 heads × 16', '4 heads × 8', '4 heads × 16', '2 heads × 32', '4 heads × 32'];
  const costs = Object.fromEntries(heads.map((name) => [keyFor(machine, name), favouring('fused')]));
  const session = await ort.InferenceSession.create(file, { costs });
  for (let i = 0; i < 200 && session.explain().choice!.failures.length === 0; i++) await session.run(feeds);
  const { choice, text } = session.explain();
  t.regex(text, /fused could not be opened/);
  t.is(choice!.failures.length, 1);
  t.true(largestDifference(session, await session.run(feeds), bert) <= bert.tolerance);
  await session.release();
});

test('caches pass from form to form as a model generates', async (t) => {
  t.timeout(600_000);
  const llama = bundledModel('llama_past-dyn18');
  const model = decodeModel(readFileSync(llama.modelFile), llama.modelFile);
  const [site] = rewriteModel(model).sites;
  const heads =
    site!.queryHeads === site!.keyHeads ? `${site!.queryHeads}` : `${site!.queryHeads} on ${site!.keyHeads}`;
  const name = `${heads} heads × ${site!.headDimension}${site!.attributes!.isCausal ? ', causal' : ''}`;
  const cost = (least: number) => ({ leastMilliseconds: least, operationsPerMillisecond: 1e3 });
  // The kernels have the better rate: a prompt is long, a token is not.
  const costs = { kernels: { ...cost(1000), operationsPerMillisecond: 1e6 }, decomposed: cost(10) };
  const session = await ort.InferenceSession.create(llama.modelFile, {
    costs: { [keyFor(await machineName(), name)]: costs },
    preferredOutputLocation: 'gpu-buffer',
  });
  const reference = await referenceSession(llama);
  const forms: SessionForm[] = [];
  for (const length of [3, 120, 5]) {
    let past = emptyPast(ort, session, 1);
    let expectedPast = past;
    let tokens = prompt(1, length);
    for (let step = 0; step < 6; step++) {
      const inputs = feedsOfTokens(ort, tokens, Object.values(past)[0]!.dims[2]!);
      const results = (await session.run({ ...inputs, ...past })) as Tensors;
      const expected = await runReference(reference, tokens, expectedPast);
      for (const tensor of Object.values(past)) tensor.dispose();
      const { output, ...presents } = results;
      const logits = { dims: output!.dims, data: await output!.getData() };
      output!.dispose();
      t.deepEqual(greedy(logits), greedy(expected.output!), `${session.explain().text}, step ${step}`);
      past = asPast(presents);
      expectedPast = asPast(expected);
      tokens = greedy(expected.output!).map((token) => [token]);
      forms.push(session.explain().choice!.form);
    }
    for (const tensor of Object.values(past)) tensor.dispose();
  }
  t.log(forms.join(', '));
  t.true(session.explain().choice!.switches >= 2, 'both forms are used');
  await session.release();
});

test('costs that are none are refused', async (t) => {
  const good = { leastMilliseconds: 1, operationsPerMillisecond: 1 };
  const bad = [{ leastMilliseconds: -1 }, { operationsPerMillisecond: Number.NaN }, { cacheBytesPerMillisecond: '1' }];
  for (const costs of [null, 1, { any: 1 }, ...bad.map((cost) => ({ any: { kernels: { ...good, ...cost } } }))]) {
    const opening = ort.InferenceSession.create(encoder, { costs: costs as never });
    await t.throwsAsync(opening, { code: 'invalid-argument', message: /explain\(\)\.costs/ });
  }
});
