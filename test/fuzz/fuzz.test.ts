/**
 * Differential fuzzing of the recogniser: random graphs of attention, and of what resembles it, are rewritten; what is
 * fused must compute the same in stock onnxruntime, what is refused must be left as it was, with a reason.
 * `ORT_FLASH_FUZZ=100000 npx ava test/fuzz/fuzz.test.ts` runs that many; `ORT_FLASH_FUZZ_SEED` repeats a run.
 */
import test from 'ava';
import fc from 'fast-check';
import { buildAttention, type Spec } from './attention.js';
import { judge } from './run.js';

const COUNT = Number(process.env.ORT_FLASH_FUZZ ?? 400);
const SEED = Number(process.env.ORT_FLASH_FUZZ_SEED ?? 1);
/** Graphs without anything odd that have to be fused; the rest have axes in an order that the operator has no layout for. */
const LEAST_FUSED = 0.8;

/** Choices that once made a graph which was fused wrongly. */
const FOUND: readonly Partial<Spec>[] = [
  { shape: [0, 0, 2214, 0, 0, 0, 0, 0, 0, 95], scores: [686, 0, 0, 0, 0, 0, 1661, 270, 0, 1406] },
  { scores: [0, 0, 0, 0, 0, 11, 846, 0, 0, 1226], softmax: [0, 1100, 0, 903] },
  {
    shape: [0, 0, 0, 1151],
    scores: [0, 0, 0, 0, 0, 0, 1163, 0, 1708, 0, 747, 0, 0, 0, 1038, 0, 0, 138, 0, 0, 50, 0, 0, 157],
  },
  {
    shape: [0, 0, 0, 0, 0, 0, 0, 0, 0, 1051, 277],
    scores: [0, 0, 0, 0, 0, 0, 199, 533, 314, 2249],
    softmax: [0, 0, 0, 0, 1653],
  },
  {
    shape: [0, 1308, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1917],
    scores: [0, 0, 0, 0, 0, 0, 1247, 2253, 1339, 362, 0, 0, 0, 0, 48, 704, 0, 1010, 0, 0, 0, 0, 0, 0, 0, 158],
    softmax: [0, 0, 0, 0, 575],
  },
  { scores: [1878, 0, 0, 0, 0, 0, 0, 771, 904, 217], softmax: [0, 2264, 0, 2269] },
  { scores: [0, 0, 0, 0, 0, 0, 1022, 0, 0, 250, 64, 0, 0, 0, 14, 513, 1843, 370] },
  {
    shape: [0, 0, 0, 2147, 0, 0, 0, 0, 0, 1411],
    query: [497],
    key: [0, 0, 0, 0, 0, 0, 0, 0, 0, 45],
    value: [0, 0, 0, 951],
    scores: [105, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, 0, 0, 1807],
  },
  { scores: [0, 0, 0, 0, 0, 0, 1585, 0, 2456, 0, 0, 0, 0, 1553, 683], softmax: [0, 1571, 0, 333] },
  { shape: [0, 0, 133], scores: [1222, 0, 0, 0, 0, 0, 299, 2159, 0, 0, 1996, 0, 977, 0, 2212, 18] },
];
const NOTHING: Spec = { shape: [], query: [], key: [], value: [], scores: [], softmax: [], output: [] };

for (const [i, choices] of FOUND.entries()) {
  test(`graph ${i + 1} that was fused wrongly`, async (t) => {
    const outcome = await judge(buildAttention({ ...NOTHING, ...choices }));
    t.true(outcome.kind === 'fused' || outcome.kind === 'refused', JSON.stringify(outcome));
  });
}

const list = fc.array(fc.noBias(fc.nat(2519)), { maxLength: 40, size: 'max' });
const spec: fc.Arbitrary<Spec> = fc.record({
  shape: list,
  query: list,
  key: list,
  value: list,
  scores: list,
  softmax: list,
  output: list,
});

test(`${COUNT} random graphs: fused and equal, or refused and untouched`, async (t) => {
  t.timeout(60_000 + COUNT * 500);
  const counts = new Map<string, number>();
  const count = (name: string) => counts.set(name, (counts.get(name) ?? 0) + 1);
  const judged = fc.asyncProperty(spec, async (choices) => {
    const model = buildAttention(choices);
    const outcome = await judge(model);
    if (outcome.kind === 'wrong' || outcome.kind === 'invalid')
      throw new Error(`${outcome.kind}: ${outcome.reason} [${model.oddities.join(', ')}]`);
    const kind = model.oddities.length === 0 ? 'plain' : 'odd';
    count(`${kind} ${outcome.kind}`);
    if (outcome.kind === 'refused') count(`${kind} refused: ${outcome.reason}`);
  });
  await fc.assert(judged, { numRuns: COUNT, seed: SEED, endOnFailure: COUNT > 10_000, includeErrorInReport: true });
  t.log(`seed ${SEED}`);
  for (const [name, times] of [...counts].sort(([, a], [, b]) => b - a)) t.log(`${times} ${name}`);
  const fused = counts.get('plain fused') ?? 0;
  t.true(fused >= LEAST_FUSED * (fused + (counts.get('plain refused') ?? 0)));
});
