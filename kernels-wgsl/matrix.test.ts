/**
 * The subgroup-matrix kernel where there are no subgroup matrices: its products are emulated on SwiftShader, in f32, and
 * everything else is the kernel's own. half.test.ts runs it as it is, on a GPU.
 */
import test from 'ava';
import fc from 'fast-check';
import { referenceAttention } from '../graph-rewrite/op/reference.js';
import { FlashAttention, type MatrixTiles, type PlanOptions } from './index.js';
import { openDevice } from './testing/device.js';
import { emulateMatrices } from './testing/emulated-matrices.js';
import { matrixCalls, matrixForms } from './testing/matrix-cases.js';
import { makeCall, relativeError } from './testing/problems.js';
import { runAttention } from './testing/run.js';

const { device, adapter, isHardware } = await openDevice();
const createShaderModule = device.createShaderModule.bind(device);
device.createShaderModule = ({ code, ...rest }) => createShaderModule({ ...rest, code: emulateMatrices(code) });
const flash = FlashAttention.create(device, { adapterInfo: adapter.info });
test.after.always(() => device.destroy());
/** SwiftShader's subgroups are real ones, of four threads. */
const emulated = { ...flash.facts, halfFloats: true, subgroupMatrices: [{ M: 4, N: 4, K: 4 }] };
Object.defineProperty(flash, 'facts', { value: emulated });
const withSubgroups = !isHardware && flash.facts.subgroupMinSize === 4 ? test.serial : test.serial.skip;

/** float32 against double precision; weights reach 2⁸, and rows are rescaled. */
const TOLERANCE = 4e-6;

const tiles: fc.Arbitrary<MatrixTiles> = fc
  .record({
    subgroups: fc.constantFrom(1, 2, 3, 5),
    rows: fc.constantFrom(4, 8),
    keyTile: fc.constantFrom(8, 16),
    form: matrixForms,
  })
  .map(({ form, ...sizes }) => ({ ...sizes, ...form }));

const plans: fc.Arbitrary<PlanOptions> = fc.record({
  matrixTiles: tiles,
  splits: fc.constantFrom(1, 1, 3),
  writesLse: fc.constant(true),
  allowsHalfPrecision: fc.constant(true),
});

/** Rows of nothing but keys masked by −3·10³⁸ have an LSE about there, which the kernels clamp. */
const clampLse = (x: number) => (Number.isFinite(x) ? Math.max(x, -1e30) : x);

const calls = matrixCalls(fc.record({ queries: fc.integer({ min: 1, max: 60 }) }));

withSubgroups('random calls of every kind agree with the reference', async (t) => {
  await fc.assert(
    fc.asyncProperty(calls, plans, async (spec, plan) => {
      const call = makeCall({ ...spec, type: 'float32' });
      const expected = referenceAttention(call.problem, call.reference);
      const { Y, lse } = await runAttention(flash, call.problem, call.gpu, {
        ...plan,
      });
      const errors = {
        Y: relativeError(Y, expected.Y),
        lse: relativeError(lse!.map(clampLse), expected.lse.map(clampLse)),
      };
      if (!Object.values(errors).every((error) => error < TOLERANCE)) throw new Error(JSON.stringify(errors));
    }),
    {
      numRuns: Number(process.env.ORT_FLASH_RUNS ?? 10),
      seed: Number(process.env.ORT_FLASH_SEED ?? 6),
      includeErrorInReport: true,
      endOnFailure: true,
    },
  );
  t.pass();
});
