/** Key and value caches on the GPU in `ort-flash/web`: used in place, and to everybody else dense tensors of their own. */
import anyTest, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import { allModels, bundledModel, type ModelExample } from '../models/corpus.js';
import {
  asPast,
  emptyPast,
  feedsOf,
  greedy,
  prompt,
  readAlso,
  referenceSession,
  runReference,
  type Tensors,
  type Tokens,
  type WebSession,
} from './decoding.js';
import { watch } from './gpu-traffic.js';
import { counts, hasWebGpu, loadWeb } from './web-runtime.js';

// Pipelines take long to compile on SwiftShader; tests share them, one after the other.
const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);
const llama = bundledModel('llama_past-dyn18');

/** A session whose caches stay on the GPU, as transformers.js opens it. */
async function open(
  { modelFile: model }: Pick<ModelExample, 'modelFile'> | { readonly modelFile: Uint8Array },
  location: 'gpu-buffer' | 'cpu' = 'gpu-buffer',
): Promise<WebSession> {
  const layers = [0, 1].flatMap((layer) => [`present.${layer}.key`, `present.${layer}.value`]);
  const options = {
    flash: 'on' as const,
    preferredOutputLocation: Object.fromEntries(layers.map((name) => [name, location])),
  };
  return typeof model === 'string'
    ? ort.InferenceSession.create(model, options)
    : ort.InferenceSession.create(model, options);
}

const lengthOf = (past: Tensors) => Object.values(past)[0]!.dims[2]!;

async function run(session: WebSession, tokens: Tokens, past: Tensors, fetches?: string[]) {
  const feeds = { ...feedsOf(ort, tokens, lengthOf(past)), ...past };
  return (await (fetches ? session.run(feeds, fetches) : session.run(feeds))) as Tensors;
}

const dispose = (tensors: Tensors) => {
  for (const tensor of Object.values(tensors)) tensor.dispose();
};

const elements = async (tensor: Tensors[string]) => (await tensor.getData()) as Float32Array;

/** What is done with the caches between one run and the next. */
const HANDLING: Record<string, (past: Tensors) => void> = {
  'left alone': () => {},
  'asked for their buffers': (past) => {
    for (const tensor of Object.values(past)) if (tensor.location === 'gpu-buffer') tensor.gpuBuffer;
  },
};

/** Greedy tokens and all logits of a generation. */
async function generate(session: WebSession, first: Tokens, steps: number, handle: (past: Tensors) => void) {
  let past = emptyPast(ort, session, first.length);
  let tokens = first;
  const chosen: number[][] = [];
  const logits: Float32Array[] = [];
  for (let step = 0; step < steps; step++) {
    const results = await run(session, tokens, past);
    dispose(past);
    past = asPast(results);
    handle(past);
    const next = greedy(results.output!);
    chosen.push(next);
    logits.push(results.output!.data as Float32Array);
    tokens = next.map((token) => [token]);
  }
  const last = await Promise.all(Object.values(past).map(elements));
  dispose(past);
  return { chosen, logits, last };
}

/** The same generation by the untouched model in stock onnxruntime-node. */
async function generateReference(
  t: ExecutionContext,
  example: ModelExample,
  session: WebSession,
  first: Tokens,
  steps: number,
) {
  const reference = await referenceSession(example);
  let past = emptyPast(ort, session, first.length);
  let tokens = first;
  const chosen: number[][] = [];
  for (let step = 0; step < steps; step++) {
    const results = await runReference(reference, tokens, past);
    past = asPast(results);
    chosen.push(greedy(results.output!));
    tokens = chosen.at(-1)!.map((token) => [token]);
  }
  await reference.release();
  t.is(chosen.length, steps);
  return chosen;
}

const PAST_MODELS = allModels().filter(
  ({ architecture, sites, unrunnableOnCpu }) => architecture.endsWith('_past') && sites > 0 && !unrunnableOnCpu,
);

for (const example of PAST_MODELS)
  test(`${example.name}: generates the untouched model’s tokens, whatever is done with the caches`, async (t) => {
    t.timeout(600_000);
    const session = await open(example);
    const first = prompt(2, 13);
    const steps = 24;
    const expected = await generateReference(t, example, session, first, steps);
    t.true(new Set(expected.flat()).size > 1);
    const inPlace = await generate(session, first, steps, HANDLING['left alone']!);
    t.deepEqual(inPlace.chosen, expected);
    const dense = await open(example, 'cpu');
    const read = await generate(dense, first, steps, HANDLING['left alone']!);
    t.deepEqual(read, inPlace);
    t.deepEqual(await generate(session, first, steps, HANDLING['asked for their buffers']!), inPlace);
    await Promise.all([session.release(), dense.release()]);
  });

test('a step copies no past: it appends one position, and makes no buffer of a cache’s size', async (t) => {
  t.timeout(600_000);
  const session = await open(llama);
  const tokens = prompt(1, 1200);
  let past = asPast(await run(session, tokens, emptyPast(ort, session, 1)));
  const step = async () => {
    const results = await run(session, [[7]], past);
    dispose(past);
    past = asPast(results);
  };
  for (let i = 0; i < 3; i++) await step();
  const cacheBytes = 2 * 1200 * 8 * 4;
  const steps = 50;
  const traffic = await watch(async () => {
    for (let i = 0; i < steps; i++) await step();
  });
  // Two layers, keys and values. 1,200 positions of 2 quads would be 10 workgroups.
  t.deepEqual(traffic.appends, new Array(steps * 4).fill(1));
  // ONNX Runtime uploads the mask, and the logits are read back.
  t.true(traffic.copied <= steps * 2048, `${traffic.copied} bytes are copied`);
  t.true(traffic.created <= steps * 4096, `${traffic.created} bytes are made`);
  t.is(lengthOf(past), 1200 + 3 + steps);
  // What the same steps take where the past is copied: the check sees it.
  const dense = await watch(async () => {
    HANDLING['asked for their buffers']!(past);
    await step();
  });
  t.deepEqual(dense.appends, new Array(4).fill(10));
  t.true(dense.copied > 4 * cacheBytes);
  dispose(past);
  await session.release();
});

test('whoever asks for the buffer gets the elements in order, and what is written to it counts', async (t) => {
  t.timeout(600_000);
  const session = await open(llama);
  const dense = await open(llama, 'cpu');
  const tokens = prompt(2, 9);
  const empty = emptyPast(ort, session, 2);
  const [ours, theirs] = [await run(session, tokens, empty), await run(dense, tokens, empty)];
  const [past, expected] = [asPast(ours), asPast(theirs)];
  const device = (await ort.env.webgpu.device) as GPUDevice;
  const name = 'past.1.key';
  const buffer = past[name]!.gpuBuffer as unknown as GPUBuffer;
  t.is(past[name]!.gpuBuffer as unknown, buffer);
  t.deepEqual(await readBuffer(device, buffer, past[name]!.size), expected[name]!.data);
  const written = (expected[name]!.data as Float32Array).map((x) => -x);
  device.queue.writeBuffer(buffer, 0, written);
  const changed = { ...expected, [name]: new ort.Tensor('float32', written, expected[name]!.dims) };
  const [after, wanted] = [await run(session, [[1], [2]], past), await run(dense, [[1], [2]], changed)];
  t.deepEqual(after.output!.data, wanted.output!.data);
  t.notDeepEqual(after.output!.data, (await run(dense, [[1], [2]], expected)).output!.data);
  t.deepEqual(await elements(after['present.1.key']!), wanted['present.1.key']!.data);
  dispose(past);
  t.throws(() => past[name]!.gpuBuffer, { message: /disposed/ });
  t.throws(() => past['past.0.key']!.gpuBuffer, { message: /disposed/ });
  dispose(asPast(ours));
  dispose(asPast(after));
  await Promise.all([session.release(), dense.release()]);
});

async function readBuffer(device: GPUDevice, buffer: GPUBuffer, count: number): Promise<Float32Array> {
  const copy = device.createBuffer({ size: count * 4, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, copy, 0, count * 4);
  device.queue.submit([encoder.finish()]);
  await copy.mapAsync(GPUMapMode.READ);
  const read = new Float32Array(copy.getMappedRange().slice(0));
  copy.destroy();
  return read;
}

test('caches outlive their session, and serve others: ours in place, ONNX Runtime’s as dense tensors', async (t) => {
  t.timeout(600_000);
  const session = await open(llama);
  const [other, whole] = [await open(llama), await ort.InferenceSession.create(llama.modelFile, { flash: 'off' })];
  const past = asPast(await run(session, prompt(1, 600), emptyPast(ort, session, 1)));
  await session.release();
  let results: Tensors = {};
  const traffic = await watch(async () => {
    results = await run(other, [[5]], past);
  });
  t.deepEqual(traffic.appends, [1, 1, 1, 1]);
  const expected = await run(whole, [[5]], past);
  const [actual, wanted] = [results.output!.data, expected.output!.data] as [Float32Array, Float32Array];
  t.true(actual.every((x, i) => Math.abs(x - wanted[i]!) <= 1e-5));
  for (const [name, tensor] of Object.entries(asPast(results))) {
    const present = await elements(asPast(expected)[name]!);
    t.true((await elements(tensor)).every((x, i) => Math.abs(x - present[i]!) <= 1e-5));
  }
  dispose(past);
  dispose(asPast(results));
  await Promise.all([other.release(), whole.release()]);
});

test('tensors given for the outputs are filled, and a past given twice is read twice', async (t) => {
  t.timeout(600_000);
  const session = await open(llama);
  const dense = await open(llama, 'cpu');
  const tokens = prompt(1, 20);
  const empty = emptyPast(ort, session, 1);
  const [past, expected] = [asPast(await run(session, tokens, empty)), asPast(await run(dense, tokens, empty))];
  const device = (await ort.env.webgpu.device) as GPUDevice;
  const dims = [1, 2, 21, 8];
  const buffer = device.createBuffer({ size: 2 * 21 * 8 * 4, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  const onGpu = ort.Tensor.fromGpuBuffer(buffer as never, { dataType: 'float32', dims });
  const onCpu = new ort.Tensor('float32', new Float32Array(2 * 21 * 8), dims);
  const feeds = { ...feedsOf(ort, [[3]], 20), ...past };
  const given = { output: null, 'present.0.key': onGpu, 'present.0.value': null, 'present.1.key': onCpu };
  const results = (await session.run(feeds, given as never)) as Tensors;
  const wanted = await run(dense, [[3]], expected);
  t.deepEqual(results.output!.data, wanted.output!.data);
  t.is(results['present.0.key']!, onGpu);
  t.deepEqual(await readBuffer(device, buffer, 2 * 21 * 8), wanted['present.0.key']!.data);
  t.deepEqual(onCpu.data, wanted['present.1.key']!.data);
  t.deepEqual(await elements(results['present.0.value']!), wanted['present.0.value']!.data);
  results['present.0.value']!.dispose();
  buffer.destroy();
  // One cache as keys and values, and of both layers: one of them at most grows.
  const same = (from: Tensors) => Object.fromEntries(Object.keys(from).map((name) => [name, from['past.0.key']!]));
  const [twice, twiceDense] = [await run(session, [[3]], same(past)), await run(dense, [[3]], same(expected))];
  t.deepEqual(twice.output!.data, twiceDense.output!.data);
  for (const [name, tensor] of Object.entries(asPast(twice)))
    t.deepEqual(await elements(tensor), asPast(twiceDense)[name]!.data);
  t.deepEqual(await elements(past['past.0.key']!), expected['past.0.key']!.data);
  dispose(asPast(twice));
  dispose(past);
  await Promise.all([session.release(), dense.release()]);
});

test('a session that chooses its form uses caches in place too, and takes them along from form to form', async (t) => {
  t.timeout(600_000);
  const { info } = (await navigator.gpu.requestAdapter())!;
  const machine = `${info.vendor} ${info.architecture}`.trim();
  // ONNX Runtime's own operators are the faster ones up to some forty keys.
  const whole = { leastMilliseconds: 40, operationsPerMillisecond: 1 };
  const kinds = ['4 on 2 heads × 8', '4 on 2 heads × 8, causal', '4 heads × 8', '4 heads × 8, causal'];
  const costs = Object.fromEntries(
    kinds.map((kind) => [
      `${machine}, float32, ${kind}`,
      { kernels: { leastMilliseconds: 5000, operationsPerMillisecond: 1e9 }, fused: whole, decomposed: whole },
    ]),
  );
  const names = [0, 1].flatMap((layer) => [`present.${layer}.key`, `present.${layer}.value`]);
  const session = await ort.InferenceSession.create(llama.modelFile, {
    costs,
    preferredOutputLocation: Object.fromEntries(names.map((name) => [name, 'gpu-buffer' as const])),
  });
  const reference = await referenceSession(llama);
  const forms: string[] = [];
  const generation = async (length: number, steps: number) => {
    let [past, expectedPast] = [emptyPast(ort, session, 1), emptyPast(ort, session, 1)];
    let tokens = prompt(1, length);
    const appends: number[] = [];
    for (let step = 0; step < steps; step++) {
      let results: Tensors = {};
      const traffic = await watch(async () => {
        results = await run(session, tokens, past);
      });
      appends.push(...traffic.appends);
      forms.push(session.explain().choice!.form);
      const expected = await runReference(reference, tokens, expectedPast);
      tokens = greedy(expected.output!).map((token) => [token]);
      t.deepEqual(greedy(results.output!), tokens.flat());
      dispose(past);
      [past, expectedPast] = [asPast(results), asPast(expected)];
    }
    dispose(past);
    return appends;
  };
  const kernelsOnly = await generation(300, 4);
  t.deepEqual(kernelsOnly.slice(4), new Array(12).fill(1));
  await generation(8, 60);
  t.true(new Set(forms).size > 1 && forms.at(-1) === 'kernels', forms.join(' '));
  await Promise.all([session.release(), reference.release()]);
});

test('outputs on the GPU outlive their session, in whichever form', async (t) => {
  t.timeout(600_000);
  for (const flash of ['on', 'off'] as const) {
    const session = await ort.InferenceSession.create(llama.modelFile, {
      flash,
      preferredOutputLocation: 'gpu-buffer',
    });
    const [kept, read] = await Promise.all([1, 2].map(() => run(session, prompt(1, 9), emptyPast(ort, session, 1))));
    const before = counts.buffers.size;
    await Promise.all([session.release(), session.release()]);
    const logits = await elements(kept!.output!);
    t.true(logits.length === 9 * 96 && logits.every(Number.isFinite) && logits.some((x) => x !== 0));
    t.deepEqual(await elements(read!.output!), logits);
    dispose(kept!);
    dispose(read!);
    // The session's own are returned with the last of them.
    await new Promise((resolve) => setTimeout(resolve, 100));
    t.true(counts.buffers.size < before);
  }
});

test('caches that other nodes read are right too, and those beside them stay in place', async (t) => {
  t.timeout(600_000);
  for (const [name, appends] of [
    ['past.0.key', [2, 2, 1, 1]],
    ['present.1.key', [1, 1, 2, 2]],
  ] as const) {
    const bytes = encodeModel(readAlso(llama, name));
    const [session, reference] = [await open({ modelFile: bytes }), await referenceSession(bytes)];
    let past = emptyPast(ort, session, 1);
    let expectedPast = past;
    let tokens = prompt(1, 200);
    for (let step = 0; step < 4; step++) {
      let results: Tensors = {};
      const traffic = await watch(async () => {
        results = await run(session, tokens, past);
      });
      if (step > 0) t.deepEqual(traffic.appends, [...appends]);
      const expected = await runReference(reference, tokens, expectedPast);
      const [actual, wanted] = [results.also!.data, expected.also!.data] as [Float32Array, Float32Array];
      t.is(actual.length, wanted.length);
      t.true(actual.every((x, i) => Math.abs(x - wanted[i]!) <= 1e-4));
      tokens = greedy(expected.output!).map((token) => [token]);
      t.deepEqual(greedy(results.output!), tokens.flat());
      dispose(past);
      [past, expectedPast] = [asPast(results), asPast(expected)];
    }
    dispose(past);
    await Promise.all([session.release(), reference.release()]);
  }
});

/** Caches as the session gave them, and what they must hold. */
interface State {
  readonly past: Tensors;
  readonly expected: Tensors;
}

type Operation =
  | {
      readonly kind: 'run';
      readonly from: number;
      readonly tokens: number;
      readonly forks: number;
      readonly asks: boolean;
    }
  | { readonly kind: 'dispose' | 'ask' | 'read'; readonly from: number; readonly tensor: number }
  | { readonly kind: 'mix'; readonly from: number; readonly other: number };

const index = fc.nat(99);
const OPERATION: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('run' as const),
      from: index,
      tokens: fc.oneof(
        { weight: 3, arbitrary: fc.constant(1) },
        { weight: 1, arbitrary: fc.integer({ min: 2, max: 90 }) },
      ),
      forks: fc.oneof({ weight: 3, arbitrary: fc.constant(1) }, { weight: 1, arbitrary: fc.constant(2) }),
      asks: fc.boolean(),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constantFrom('dispose', 'ask', 'read'), from: index, tensor: fc.nat(4) }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('mix' as const), from: index, other: index }) },
);

/** Carries operations out on caches in place, and on tensors in CPU memory that nothing is shared of. */
class Caches {
  readonly #states: State[] = [];
  #token = 1;

  constructor(
    readonly t: ExecutionContext,
    readonly session: WebSession,
    readonly dense: WebSession,
  ) {}

  async apply(operation: Operation): Promise<void> {
    const state = this.#states[operation.from % Math.max(1, this.#states.length)];
    if (operation.kind === 'run') return this.#run(state, operation);
    if (state === undefined) return;
    if (operation.kind === 'mix') return this.#mix(state, this.#states[operation.other % this.#states.length]!);
    const names = Object.keys(state.past);
    const chosen = operation.tensor < names.length ? [names[operation.tensor]!] : names;
    if (operation.kind === 'dispose') return this.#drop(state);
    for (const name of chosen) {
      const tensor = state.past[name]!;
      if (operation.kind === 'read') await this.#check(tensor, state.expected[name]!);
      else if (tensor.location === 'gpu-buffer') tensor.gpuBuffer;
    }
  }

  /** Checks and disposes of everything. */
  async end(): Promise<void> {
    for (const { past, expected } of this.#states)
      for (const [name, tensor] of Object.entries(past)) await this.#check(tensor, expected[name]!);
    while (this.#states.length > 0) this.#drop(this.#states[0]!);
  }

  async #check(tensor: Tensors[string], expected: Tensors[string]) {
    this.t.deepEqual(tensor.dims, expected.dims);
    this.t.deepEqual(await elements(tensor), expected.data);
  }

  #drop(state: State) {
    this.#states.splice(this.#states.indexOf(state), 1);
    // A mixed state has tensors of others.
    const used = new Set(this.#states.flatMap(({ past }) => Object.values(past)));
    for (const tensor of Object.values(state.past)) if (!used.has(tensor)) tensor.dispose();
  }

  #mix(one: State, other: State) {
    if (lengthOf(one.past) !== lengthOf(other.past)) return;
    const mixed = (a: Tensors, b: Tensors) => ({
      ...a,
      'past.0.value': b['past.0.value']!,
      'past.1.key': b['past.1.key']!,
    });
    this.#states.push({ past: mixed(one.past, other.past), expected: mixed(one.expected, other.expected) });
  }

  /** Runs from a state, several times at once where it forks; only for the logits where the caches are not asked for. */
  async #run(state: State | undefined, { tokens, forks, asks }: Operation & { kind: 'run' }) {
    const past = state?.past ?? emptyPast(ort, this.session, 2);
    const expected = state?.expected ?? past;
    const keepsCache = asks || state === undefined;
    const inputs = Array.from({ length: forks }, () => prompt(2, tokens, ++this.#token));
    const both = await Promise.all(
      inputs.map((input) =>
        Promise.all([
          run(this.session, input, past, keepsCache ? undefined : ['output']),
          run(this.dense, input, expected),
        ]),
      ),
    );
    for (const [ours, wanted] of both) {
      this.t.deepEqual(ours.output!.data, wanted.output!.data);
      if (keepsCache) this.#states.push({ past: asPast(ours), expected: asPast(wanted) });
    }
  }
}

test('whatever is run, forked, mixed, asked for, read and disposed of: each tensor is as if it were its own', async (t) => {
  t.timeout(900_000);
  const session = await open(llama);
  const dense = await open(llama, 'cpu');
  const sequence = async (operations: readonly Operation[]) => {
    const caches = new Caches(t, session, dense);
    for (const operation of operations) await caches.apply(operation);
    await caches.end();
  };
  await fc.assert(fc.asyncProperty(fc.array(OPERATION, { minLength: 8, maxLength: 24 }), sequence), { numRuns: 25 });
  // All memory came back: what is left are the pools' idle buffers, which runs without caches let go.
  const idle = async () => {
    for (let i = 0; i < 10; i++) dispose(asPast(await run(session, [[1]], emptyPast(ort, session, 1))));
    return [...counts.buffers].filter(({ label }) => label === 'ort-flash tensor').length;
  };
  t.true((await idle()) < 12);
  await Promise.all([session.release(), dense.release()]);
});
