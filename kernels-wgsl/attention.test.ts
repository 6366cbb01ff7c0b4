import test from 'ava';
import fc from 'fast-check';
import { referenceAttention } from '../graph-rewrite/op/reference.js';
import {
  type CombineTiles,
  type DecodeTiles,
  FlashAttention,
  type PlanOptions,
  type PrefillTiles,
  type PreparedAttention,
  type RowTiles,
} from './index.js';
import { openDevice } from './testing/device.js';
import { type CallSpec, callSpecs, makeCall, relativeError } from './testing/problems.js';
import { runAttention } from './testing/run.js';

const { device, adapter } = await openDevice();
const flash = FlashAttention.create(device, { adapterInfo: adapter.info });
test.after.always(() => device.destroy());

/** float32 against double precision, as a share of the output's scale (issue: under 2e-6). */
const TOLERANCE = 2e-6;

/** Rows of nothing but keys masked by −3·10³⁸ have an LSE about there, which the kernels clamp. */
const clampLse = (x: number) => (Number.isFinite(x) ? Math.max(x, -1e30) : x);

async function check(spec: CallSpec, options: PlanOptions = {}): Promise<void> {
  const call = makeCall(spec);
  const expected = referenceAttention(call.problem, call.reference);
  const got = await runAttention(flash, call.problem, call.gpu, { ...options, writesLse: true });
  const errors = {
    Y: relativeError(got.Y, expected.Y),
    lse: relativeError(got.lse!.map(clampLse), expected.lse.map(clampLse)),
    presentKey: expected.presentKey === undefined ? 0 : relativeError(got.present_key!, expected.presentKey),
    presentValue: expected.presentValue === undefined ? 0 : relativeError(got.present_value!, expected.presentValue),
  };
  if (!Object.values(errors).every((error) => error < TOLERANCE)) throw new Error(JSON.stringify(errors));
}

/** Tiles of small calls: quick to compile, several to a call, with the head dimension in one chunk and in several. */
const SMALL_TILES: readonly PrefillTiles[] = [
  { queryTile: 8, keyTile: 16, rowThreads: 8, columnThreads: 4, depthChunk: 4, valueSteps: 4, queriesStay: true },
  { queryTile: 16, keyTile: 32, rowThreads: 8, columnThreads: 4, depthChunk: 2, valueSteps: 2, queriesStay: true },
  {
    queryTile: 8,
    keyTile: 32,
    rowThreads: 8,
    columnThreads: 4,
    depthChunk: 2,
    valueSteps: 1,
    queriesStay: true,
    weightQuads: 1,
  },
  { queryTile: 16, keyTile: 16, rowThreads: 4, columnThreads: 4, depthChunk: 1, valueSteps: 4, queriesStay: false },
  {
    queryTile: 16,
    keyTile: 16,
    rowThreads: 8,
    columnThreads: 4,
    depthChunk: 2,
    valueSteps: 1,
    queriesStay: false,
    prefetches: false,
  },
];

/** Rows in registers: one lane and several, as many as rows, fewer and more, side by side and apart. */
const rowTiles = (rows: number, lanes: number, rest: Partial<RowTiles> = {}): RowTiles => ({
  threads: 16,
  rows,
  lanes,
  laneDistance: 1,
  keyBatch: 2,
  keyTile: 8,
  ...rest,
});
const SMALL_ROWS: readonly RowTiles[] = [
  rowTiles(1, 1),
  rowTiles(2, 1, { keyBatch: 4 }),
  rowTiles(2, 2, { laneDistance: 2 }),
  rowTiles(4, 4, { keyBatch: 4, keyTile: 16 }),
  rowTiles(4, 4, { threads: 24, keyTile: 6 }),
  rowTiles(4, 2),
  rowTiles(2, 4, { threads: 8 }),
  rowTiles(8, 4),
  rowTiles(1, 4),
].filter(({ lanes }) => lanes === 1 || flash.facts.subgroupMinSize >= 4);

/** Decoding without barriers: as many scores as lanes, fewer and more, down to one row, one lane and one key. */
const decodeTiles = (threads: number, rows: number, lanes: number, keys: number): DecodeTiles => ({
  threads,
  rows,
  lanes,
  keys,
});
const SMALL_DECODES: readonly DecodeTiles[] = [
  decodeTiles(16, 4, 4, 1),
  decodeTiles(8, 4, 4, 4),
  decodeTiles(16, 2, 4, 4),
  decodeTiles(8, 2, 4, 1),
  decodeTiles(16, 1, 4, 2),
  decodeTiles(8, 1, 4, 8),
  decodeTiles(8, 2, 2, 4),
  decodeTiles(8, 1, 2, 1),
  decodeTiles(4, 1, 1, 2),
  decodeTiles(64, 4, 16, 4),
  decodeTiles(64, 8, 16, 1),
  decodeTiles(64, 8, 32, 4),
  decodeTiles(64, 1, 8, 4),
  decodeTiles(64, 2, 32, 8),
].filter(({ lanes }) => lanes <= flash.facts.subgroupMinSize);

/** Combining splits: several workgroups to a row and one, more splits than are in flight. */
const SMALL_COMBINES: readonly CombineTiles[] = [
  { threads: 8, quads: 1, batch: 2 },
  { threads: 4, quads: 2, batch: 1 },
  { threads: 2, quads: 2, batch: 3 },
];

/** How a call is planned: tiles of the prefill kernel, or the decode kernel; in one go or over several splits. */
const plans = fc.oneof(
  fc.record({ prefillTiles: fc.constantFrom(...SMALL_TILES), splits: fc.constantFrom(1, 1, 3) }),
  fc.record({
    kernel: fc.constant('decode' as const),
    splits: fc.constantFrom(1, 2, 3),
  }),
);

const lanePlans = fc.record({
  decodeTiles: fc.constantFrom(...SMALL_DECODES),
  splits: fc.constantFrom(1, 2, 3, 9),
  combineTiles: fc.constantFrom(...SMALL_COMBINES),
});

const rowPlans = fc.record({ rowTiles: fc.constantFrom(...SMALL_ROWS), splits: fc.constantFrom(1, 1, 3) });

for (const [kernels, choices] of [
  ['tiles and decoding', plans],
  ['rows in registers', rowPlans],
  ['decoding without barriers', lanePlans],
] as const) {
  test.serial(`random calls of every kind agree with the reference: ${kernels}`, async (t) => {
    await fc.assert(
      fc.asyncProperty(callSpecs, choices as fc.Arbitrary<PlanOptions>, (spec, plan) => check(spec, plan)),
      {
        numRuns: Number(process.env.ORT_FLASH_RUNS ?? 24),
        seed: Number(process.env.ORT_FLASH_SEED ?? 4),
        includeErrorInReport: true,
        endOnFailure: true,
      },
    );
    t.pass();
  });
}

test.serial('a cache that grows in place gives the same, and keeps what lies behind its end', async (t) => {
  const spec: CallSpec = {
    batch: 2,
    keyHeads: 2,
    group: 2,
    queries: 3,
    newKeys: 3,
    pastKeys: 10,
    headDimension: 8,
    valueDimension: 4,
    layouts: ['BS(HD)', 'BS(HD)', 'BSHD', 'BS(HD)'],
    mask: { type: 'none', broadcast: 0, keys: 0 },
    attributes: { isCausal: true },
    lengths: false,
    sink: false,
    seed: 3,
  };
  const call = makeCall(spec);
  const expected = referenceAttention(call.problem, call.reference);
  const capacity = 20;
  /** (batch · heads, past, D) put into (batch · heads, capacity, D), the rest NaN. */
  const grown = (past: Float32Array, dimension: number) => {
    const cache = new Float32Array(4 * capacity * dimension).fill(Number.NaN);
    for (let row = 0; row < 4; row++)
      cache.set(past.subarray(row * 10 * dimension, (row + 1) * 10 * dimension), row * capacity * dimension);
    return cache;
  };
  const { past_key, past_value, ...inputs } = call.gpu;
  const data = {
    ...inputs,
    present_key: grown(past_key as Float32Array, 8),
    present_value: grown(past_value as Float32Array, 4),
  };
  const { Y } = await runAttention(flash, call.problem, data, { cacheCapacity: capacity });
  t.true(relativeError(Y, expected.Y) < TOLERANCE);
  await t.throwsAsync(flash.prepare(call.problem, { cacheCapacity: 12 }), { code: 'invalid-argument' });
});

test.serial('one plan serves passes and encoders, again and again, without new bind groups', async (t) => {
  const { problem } = makeCall({
    batch: 1,
    keyHeads: 1,
    group: 1,
    queries: 4,
    newKeys: 8,
    pastKeys: -1,
    headDimension: 4,
    valueDimension: 4,
    layouts: ['BHSD', 'BHSD', 'BHSD', 'BHSD'],
    mask: { type: 'none', broadcast: 0, keys: 0 },
    attributes: {},
    lengths: false,
    sink: false,
    seed: 1,
  });
  const prepared = await flash.prepare(problem);
  t.is(await flash.prepare(problem), prepared);
  t.is(flash.prepareNow(problem), prepared);
  const buffer = () => ({ buffer: device.createBuffer({ size: 256, usage: GPUBufferUsage.STORAGE }) });
  const buffers = { Q: buffer(), K: buffer(), V: buffer(), Y: buffer() };
  let groups = 0;
  const create = device.createBindGroup.bind(device);
  device.createBindGroup = (descriptor) => {
    groups++;
    return create(descriptor);
  };
  const encoder = device.createCommandEncoder();
  flash.encode(prepared, encoder, buffers);
  const once = groups;
  const pass = encoder.beginComputePass();
  flash.encode(prepared, pass, buffers);
  flash.encode(prepared, pass, { ...buffers });
  pass.end();
  device.queue.submit([encoder.finish()]);
  device.createBindGroup = create;
  t.is(groups, once);
  t.throws(() => flash.encode(prepared, device.createCommandEncoder(), { ...buffers, K: undefined } as never), {
    code: 'invalid-argument',
    message: /K is missing/,
  });
  const small = { buffer: device.createBuffer({ size: 64, usage: GPUBufferUsage.STORAGE }) };
  t.throws(() => flash.encode(prepared, device.createCommandEncoder(), { ...buffers, V: small }), {
    message: /V has 64 bytes, the problem needs 128/,
  });
});

test.serial('pruning frees the problems that were prepared first, and they can be prepared again', async (t) => {
  const spec = fc.sample(callSpecs, { numRuns: 1, seed: 1 })[0]!;
  const one = FlashAttention.create(device, { adapterInfo: adapter.info });
  const problems = [5, 6, 7].map((newKeys) => makeCall({ ...spec, newKeys }).problem);
  const prepared: PreparedAttention[] = [];
  for (const problem of problems) prepared.push(await one.prepare(problem));
  one.prune(2);
  t.throws(() => one.encode(prepared[0]!, device.createCommandEncoder(), {}), {
    code: 'invalid-argument',
    message: /pruned/,
  });
  t.is(one.prepareNow(problems[1]!), prepared[1]);
  t.is(one.prepareNow(problems[2]!), prepared[2]);
  t.not(one.prepareNow(problems[0]!), prepared[0]);
  one.destroy();
});

test.serial('tuning measures, is remembered, and can be stored', async (t) => {
  const { problem } = makeCall({
    batch: 1,
    keyHeads: 2,
    group: 1,
    queries: 1,
    newKeys: 300,
    pastKeys: -1,
    headDimension: 8,
    valueDimension: 8,
    layouts: ['BHSD', 'BHSD', 'BHSD', 'BHSD'],
    mask: { type: 'none', broadcast: 0, keys: 0 },
    attributes: {},
    lengths: false,
    sink: false,
    seed: 1,
  });
  const choice = await flash.autotune(problem);
  const stored = JSON.parse(JSON.stringify(flash.tuning));
  t.deepEqual(Object.values(stored), [choice]);
  const other = FlashAttention.create(device, { adapterInfo: adapter.info, tuning: stored });
  t.deepEqual((await other.prepare(problem)).plan.dispatches, (await flash.prepare(problem, choice)).plan.dispatches);
});
