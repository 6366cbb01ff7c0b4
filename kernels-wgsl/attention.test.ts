import test from 'ava';
import fc from 'fast-check';
import { referenceAttention } from '../graph-rewrite/op/reference.js';
import { FlashAttention, type PrefillTiles } from './index.js';
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

async function check(spec: CallSpec, options = {}): Promise<void> {
  const call = makeCall(spec);
  const expected = referenceAttention(call.problem, call.reference);
  const got = await runAttention(flash, call.problem, call.gpu, { writesLse: true, ...options });
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
  { queryTile: 16, keyTile: 32, rowThreads: 8, columnThreads: 4, depthChunk: 2, valueSteps: 1, queriesStay: true },
  { queryTile: 16, keyTile: 16, rowThreads: 4, columnThreads: 4, depthChunk: 1, valueSteps: 2, queriesStay: false },
];

/** How a call is planned: tiles of the prefill kernel, or the decode kernel; in one go or over several splits. */
const plans = fc.oneof(
  fc.record({ prefillTiles: fc.constantFrom(...SMALL_TILES), splits: fc.constantFrom(1, 1, 3) }),
  fc.record({ kernel: fc.constant('decode' as const), splits: fc.constantFrom(1, 2) }),
);

test.serial('random calls of every kind agree with the reference', async (t) => {
  await fc.assert(
    fc.asyncProperty(callSpecs, plans, (spec, plan) => check(spec, plan)),
    {
      numRuns: Number(process.env.ORT_FLASH_RUNS ?? 24),
      seed: Number(process.env.ORT_FLASH_SEED ?? 4),
      includeErrorInReport: true,
      endOnFailure: true,
    },
  );
  t.pass();
});
