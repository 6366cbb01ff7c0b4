/**
 * The graphs of fuzz.test.ts with random pieces in model-local functions: what becomes of a graph must not depend on
 * how it is cut. `ORT_FLASH_FUZZ` and `ORT_FLASH_FUZZ_SEED` as there.
 */
import test from 'ava';
import fc from 'fast-check';
import { decodeModel, encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { outline } from '../outline.js';
import { buildAttention, type Spec } from './attention.js';
import { Choices } from './graph.js';
import { judge } from './run.js';

const COUNT = Math.ceil(Number(process.env.ORT_FLASH_FUZZ ?? 400) / 4);
const SEED = Number(process.env.ORT_FLASH_FUZZ_SEED ?? 1);

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
const cuts = fc.array(fc.noBias(fc.nat(2519)), { minLength: 400, maxLength: 400 });

test(`${COUNT} random graphs in functions: fused or refused as without them`, async (t) => {
  t.timeout(60_000 + COUNT * 1000);
  let fused = 0;
  const judged = fc.asyncProperty(spec, cuts, fc.integer({ min: 1, max: 6 }), async (choices, cut, pieces) => {
    const whole = buildAttention(choices);
    const model = decodeModel(encodeModel(whole.model));
    outline(model, new Choices(cut), pieces);
    const [first, second] = [await judge(whole), await judge({ ...whole, model })];
    // What is wrong with the whole as well is for fuzz.test.ts to say.
    if (first.kind !== second.kind)
      throw new Error(`${JSON.stringify(first)} whole, ${JSON.stringify(second)} in functions [${whole.oddities}]`);
    if (second.kind === 'fused') fused++;
  });
  await fc.assert(judged, { numRuns: COUNT, seed: SEED, endOnFailure: true, includeErrorInReport: true });
  t.log(`seed ${SEED}, ${fused} fused`);
  t.true(fused > COUNT / 4);
});
