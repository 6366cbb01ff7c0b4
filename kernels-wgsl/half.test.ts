/** float16 kernels, the subgroup-matrix one among them: on a GPU that has them (`npm run test:gpu`), skipped elsewhere. */
import test from 'ava';
import fc from 'fast-check';
import { DEFAULT_ATTRIBUTES } from '../graph-rewrite/op/definition.js';
import { decodeHalf, encodeHalf } from '../graph-rewrite/op/half.js';
import { resolveProblem } from '../graph-rewrite/op/problem.js';
import { referenceAttention } from '../graph-rewrite/op/reference.js';
import { tuningCandidates } from './autotune.js';
import { FlashAttention, type MatrixTiles, type PlanOptions } from './index.js';
import { matrixMemory, matrixShape } from './plan-matrix.js';
import { openDevice } from './testing/device.js';
import { matrixCalls, matrixForms } from './testing/matrix-cases.js';
import { callSpecs, makeCall, type RandomCall, randomNumbers, relativeError } from './testing/problems.js';
import { runAttention } from './testing/run.js';

const { device, adapter } = await openDevice();
const flash = FlashAttention.create(device, { adapterInfo: adapter.info });
test.after.always(() => device.destroy());

const onHalf = flash.facts.halfFloats ? test.serial : test.serial.skip;
const onMatrices = flash.facts.subgroupMatrices.length > 0 ? test.serial : test.serial.skip;

/** Weights and outputs are rounded to float16, each to 2⁻¹¹ of itself. */
const TOLERANCE = 2e-3;

onHalf('random float16 calls of every kind agree with the reference', async (t) => {
  const plans: fc.Arbitrary<PlanOptions> = fc.constantFrom(
    {},
    { kernel: 'prefill' as const },
    { kernel: 'prefill-rows' as const },
    { kernel: 'decode' as const },
    { kernel: 'decode-lanes' as const },
    { decodeTiles: { threads: 16, rows: 1, lanes: 1, keys: 2 } },
    { decodeTiles: { threads: 32, rows: 1, lanes: 2, keys: 4 } },
  );
  await fc.assert(
    fc.asyncProperty(callSpecs, plans, async (spec, plan) => {
      const call = makeCall({ ...spec, type: 'float16' });
      const expected = referenceAttention(call.problem, call.reference);
      const { Y } = await runAttention(flash, call.problem, call.gpu, plan);
      const error = relativeError(Y, expected.Y);
      if (!(error < TOLERANCE)) throw new Error(`error ${error}`);
    }),
    { numRuns: Number(process.env.ORT_FLASH_RUNS ?? 60), seed: 5, includeErrorInReport: true, endOnFailure: true },
  );
  t.pass();
});

/** Several tiles of queries and of keys, with ends that fill none; dimensions of whole matrices, of whole quads, of neither. */
const matrixSizes = fc.record({
  queries: fc.oneof(fc.integer({ min: 5, max: 70 }), fc.integer({ min: 71, max: 400 })),
  newKeys: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.integer({ min: 71, max: 400 })),
  headDimension: fc.constantFrom(16, 20, 33, 64, 64, 128),
  valueDimension: fc.constantFrom(16, 20, 33, 64, 64, 128),
});

const matrixPlans: fc.Arbitrary<PlanOptions & { readonly matrixTiles: MatrixTiles }> = fc
  .record({
    subgroups: fc.constantFrom(1, 2, 4, 5),
    rows: fc.constantFrom(16, 32),
    keyTile: fc.constantFrom(16, 32),
    form: matrixForms,
    splits: fc.constantFrom(1, 1, 1, 3),
  })
  .map(({ splits, form, ...sizes }) => ({
    matrixTiles: { ...sizes, ...form },
    splits,
    writesLse: true,
  }));

/** Rows of nothing but masked keys have an LSE about that mask, which the kernels clamp. */
const clampLse = (x: number) => (Number.isFinite(x) ? Math.max(x, -1e30) : x);

async function checkMatrices(
  call: RandomCall,
  plan: PlanOptions,
  expected = referenceAttention(call.problem, call.reference),
): Promise<void> {
  const { kernel } = (await flash.prepare(call.problem, plan)).plan;
  if (kernel !== 'prefill-matrix') throw new Error(`planned ${kernel}`);
  const { Y, lse } = await runAttention(flash, call.problem, call.gpu, plan);
  const errors = {
    Y: relativeError(Y, expected.Y),
    lse: lse === undefined ? 0 : relativeError(lse.map(clampLse), expected.lse.map(clampLse)),
  };
  if (!Object.values(errors).every((error) => error < TOLERANCE)) throw new Error(JSON.stringify(errors));
}

onMatrices('random calls on subgroup matrices, in every form of the kernel, agree with the reference', async (t) => {
  await fc.assert(
    fc.asyncProperty(matrixCalls(matrixSizes), matrixPlans, (spec, plan) => {
      const call = makeCall({ ...spec, type: 'float16' });
      fc.pre(matrixMemory(call.problem, matrixShape(flash.facts)!, plan.matrixTiles) <= flash.facts.workgroupMemory);
      return checkMatrices(call, plan);
    }),
    {
      numRuns: Number(process.env.ORT_FLASH_RUNS ?? 80),
      seed: 7,
      includeErrorInReport: true,
      endOnFailure: true,
    },
  );
  t.pass();
});

for (const dimension of [64, 128]) {
  for (const attributes of [{}, { isCausal: true }, { isCausal: true, leftWindow: 300 }]) {
    const kind = `${dimension} dimensions, ${JSON.stringify(attributes)}`;
    onMatrices(`a longer call in every form that is tuned agrees with the reference: ${kind}`, async (t) => {
      const call = makeCall({ ...matrixCall(dimension), queries: 1100, newKeys: 1100, attributes });
      const expected = referenceAttention(call.problem, call.reference);
      for (const plan of tuningCandidates(call.problem, flash.facts)) {
        const { matrixTiles } = plan;
        try {
          await checkMatrices(call, plan, expected);
        } catch (error) {
          throw new Error(`${JSON.stringify(matrixTiles)}: ${error instanceof Error ? error.message : error}`);
        }
      }
      t.pass();
    });
  }
}

/** Root mean square of the differences. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i]! - b[i]!) ** 2;
  return Math.sqrt(sum / a.length);
}

async function errorOverRounding(options: PlanOptions, queries: number, dimension: number): Promise<number> {
  const random = randomNumbers(11);
  const shape = (tokens: number) => [1, 2, tokens, dimension];
  const tensor = (type: 'float16' | 'float32', tokens: number) => ({ type, shape: shape(tokens) });
  const keys = 600;
  const describe = (type: 'float16' | 'float32') =>
    resolveProblem(DEFAULT_ATTRIBUTES, { Q: tensor(type, queries), K: tensor(type, keys), V: tensor(type, keys) });
  const draw = (tokens: number) =>
    Float32Array.from({ length: 2 * tokens * dimension }, () => (random() + random() + random() - 1.5) * 2);
  const exact = { Q: draw(queries), K: draw(keys), V: draw(keys) };
  const halves = {
    Q: encodeHalf(exact.Q, 'float16'),
    K: encodeHalf(exact.K, 'float16'),
    V: encodeHalf(exact.V, 'float16'),
  };
  const truth = referenceAttention(describe('float32'), exact).Y;
  const rounded = referenceAttention(describe('float16'), halves).Y;
  const least = distance(decodeHalf(encodeHalf(rounded, 'float16'), 'float16'), truth);
  const { Y } = await runAttention(flash, describe('float16'), halves, options);
  return distance(Y, truth) / least;
}

for (const dimension of [64, 128]) {
  onHalf(`float16 at ${dimension} loses little more than rounding inputs and output does`, async (t) => {
    t.true((await errorOverRounding({ kernel: 'prefill' }, 200, dimension)) < 1.5);
    t.true((await errorOverRounding({ kernel: 'prefill-rows' }, 200, dimension)) < 1.5);
    t.true((await errorOverRounding({ kernel: 'decode' }, 1, dimension)) < 1.5);
    t.true((await errorOverRounding({ kernel: 'decode-lanes' }, 1, dimension)) < 1.5);
  });
  onMatrices(`subgroup matrices at ${dimension} lose little more than rounding inputs and output does`, async (t) => {
    const { kernel } = (await flash.prepare(makeCall(matrixCall(dimension)).problem)).plan;
    t.is(kernel, 'prefill-matrix');
    t.true((await errorOverRounding({}, 200, dimension)) < 1.5);
  });
}

function matrixCall(dimension: number) {
  return {
    type: 'float16' as const,
    batch: 1,
    keyHeads: 1,
    group: 1,
    queries: 200,
    newKeys: 64,
    pastKeys: -1,
    headDimension: dimension,
    valueDimension: dimension,
    layouts: ['BHSD', 'BHSD', 'BHSD', 'BHSD'] as const,
    mask: { type: 'none' as const, broadcast: 0, keys: 0 },
    attributes: {},
    lengths: false,
    sink: false,
    seed: 1,
  };
}
