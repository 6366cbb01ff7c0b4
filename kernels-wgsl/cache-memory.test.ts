/** Key and value caches with room to grow, in every way that they can lie in memory, against the reference. */
import test from 'ava';
import fc from 'fast-check';
import { referenceAttention } from '../graph-rewrite/op/reference.js';
import { FlashAttention, type PlanOptions } from './index.js';
import { openDevice } from './testing/device.js';
import { type CallSpec, callSpecs, makeCall, relativeError } from './testing/problems.js';
import { type CallData, runAttention } from './testing/run.js';

const { device, adapter } = await openDevice();
const flash = FlashAttention.create(device, { adapterInfo: adapter.info });
test.after.always(() => device.destroy());

/** float32 against double precision, as a share of the output's scale. */
const TOLERANCE = 2e-6;

type Elements = Float32Array | Uint16Array;

/** Dense rows (rows · positions · width) moved apart to (rows · capacity · width), with NaN between them. */
function spread(dense: Elements, rows: number, capacity: number, width: number): Elements {
  const isHalf = dense instanceof Uint16Array;
  const cache = isHalf ? new Uint16Array(rows * capacity * width) : new Float32Array(rows * capacity * width);
  cache.fill(isHalf ? 0x7e00 : Number.NaN);
  const bytes = dense.length / rows;
  for (let row = 0; row < rows; row++)
    cache.set(dense.subarray(row * bytes, (row + 1) * bytes), row * capacity * width);
  return cache;
}

/** The inverse: the first positions of each row; throws where what lies behind them was touched. */
function gather(cache: Float32Array, rows: number, positions: number, capacity: number, width: number): Float32Array {
  const dense = new Float32Array(rows * positions * width);
  for (let row = 0; row < rows; row++) {
    const [start, end] = [row * capacity * width, (row * capacity + positions) * width];
    dense.set(cache.subarray(start, end), row * positions * width);
    if (!cache.subarray(end, (row + 1) * capacity * width).every(Number.isNaN))
      throw new Error('written behind the end');
  }
  return dense;
}

/** Room behind the past keys, the past values and the present ones; undefined where the cache grows in place. */
interface Room {
  readonly past: { readonly key: number; readonly value: number } | undefined;
  readonly present: number | undefined;
}

async function check(spec: CallSpec, room: Room, plan: PlanOptions): Promise<void> {
  const { problem, gpu, reference } = makeCall(spec);
  const expected = referenceAttention(problem, reference);
  const { batch, keyHeads, keys, pastKeys, headDimension, valueDimension } = problem;
  const rows = batch * keyHeads;
  const { past_key, past_value, ...inputs } = gpu;
  const [pastKey, pastValue] = [past_key as Elements, past_value as Elements];
  const capacity = room.present === undefined ? keys : keys + room.present;
  const past = room.past && { key: pastKeys + room.past.key, value: pastKeys + room.past.value };
  const data: CallData = past
    ? {
        ...inputs,
        past_key: spread(pastKey, rows, past.key, headDimension),
        past_value: spread(pastValue, rows, past.value, valueDimension),
      }
    : {
        ...inputs,
        present_key: spread(pastKey, rows, capacity, headDimension),
        present_value: spread(pastValue, rows, capacity, valueDimension),
      };
  const got = await runAttention(flash, problem, data, {
    ...plan,
    ...(past ? { pastCapacity: past } : {}),
    ...(past === undefined || room.present !== undefined ? { cacheCapacity: capacity } : {}),
  });
  const present = (cache: Float32Array | undefined, width: number) =>
    gather(cache ?? new Float32Array(0), rows, keys, capacity, width);
  const exact = spec.type === 'float16' ? 1e-3 : TOLERANCE;
  const errors = {
    Y: relativeError(got.Y, expected.Y) / exact,
    presentKey: relativeError(present(got.present_key, headDimension), expected.presentKey!),
    presentValue: relativeError(present(got.present_value, valueDimension), expected.presentValue!),
  };
  // Caches are copied, bit by bit.
  if (!(errors.Y < 1 && errors.presentKey === 0 && errors.presentValue === 0)) throw new Error(JSON.stringify(errors));
}

const rooms: fc.Arbitrary<Room> = fc.oneof(
  fc.record({ past: fc.constant(undefined), present: fc.integer({ min: 0, max: 40 }) }),
  fc.record({
    past: fc.record({ key: fc.integer({ min: 0, max: 40 }), value: fc.integer({ min: 0, max: 40 }) }),
    present: fc.constantFrom(undefined, 0, 7, 40),
  }),
);

const choices: fc.Arbitrary<PlanOptions> = fc.constantFrom(
  {},
  { kernel: 'decode', splits: 3 },
  { kernel: 'prefill' },
  { rowTiles: { threads: 16, rows: 2, lanes: 1, laneDistance: 1, keyBatch: 2, keyTile: 8 } },
);

const halves = flash.facts.halfFloats ? (['float32', 'float16'] as const) : (['float32'] as const);

for (const type of halves)
  test.serial(`a cache lies anywhere, in place or moved, with anything behind it: ${type}`, async (t) => {
    t.timeout(600_000);
    const specs = callSpecs.map((spec): CallSpec => ({ ...spec, type, pastKeys: Math.max(0, spec.pastKeys) }));
    await fc.assert(fc.asyncProperty(specs, rooms, choices, check), {
      numRuns: Number(process.env.ORT_FLASH_RUNS ?? 24),
      seed: Number(process.env.ORT_FLASH_SEED ?? 4),
      includeErrorInReport: true,
      endOnFailure: true,
    });
    t.pass();
  });

test.serial('a cache that is too small is refused', async (t) => {
  const spec = fc.sample(callSpecs, { numRuns: 1, seed: 1 })[0]!;
  const { problem } = makeCall({ ...spec, pastKeys: 10, newKeys: 3 });
  const error = { code: 'invalid-argument', message: /cannot hold/ };
  await t.throwsAsync(flash.prepare(problem, { cacheCapacity: 12 }), error);
  await t.throwsAsync(flash.prepare(problem, { pastCapacity: { key: 10, value: 9 } }), error);
  await t.notThrowsAsync(flash.prepare(problem, { pastCapacity: { key: 10, value: 11 }, cacheCapacity: 13 }));
});
