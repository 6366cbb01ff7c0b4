/** Attention in and around model-local functions, as exporters write them that keep a model's modules. */
import { readFileSync } from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { bundledModels, readTestData } from '../models/corpus.js';
import { Choices } from './fuzz/graph.js';
import { outline } from './outline.js';
import { relativeDifference, runModel } from './runtime.js';

for (const example of bundledModels().filter((model) => !model.unrunnableOnCpu)) {
  test(`${example.name}: cut into random functions, it is fused as the whole was`, async (t) => {
    const bytes = readFileSync(example.modelFile);
    const data = readTestData(example.dataFolder);
    const numbers = fc.array(fc.nat({ max: 10_000 }), { minLength: 4000, maxLength: 4000 });
    const property = fc.asyncProperty(numbers, fc.integer({ min: 1, max: 12 }), async (choices, pieces) => {
      const model = decodeModel(bytes);
      outline(model, new Choices(choices), pieces);
      const before = encodeModel(model);
      const { sites } = rewriteModel(model);
      t.is(sites.filter((site) => site.fused).length, example.sites, JSON.stringify(sites.filter((s) => !s.fused)));
      const after = encodeModel(model);
      if (example.sites === 0) t.deepEqual(after, before);
      const again = decodeModel(after);
      rewriteModel(again);
      t.deepEqual(encodeModel(again), after, 'rewriting is idempotent');
      const [original, rewritten] = [await runModel(before, data.inputs), await runModel(after, data.inputs)];
      for (const [i, expected] of data.outputs.entries()) {
        t.true(relativeDifference(original[i]!.numbers, expected) <= example.tolerance, 'the functions themselves');
        t.true(relativeDifference(rewritten[i]!.numbers, expected) <= example.tolerance, `${expected.name} differs`);
      }
    });
    await fc.assert(property, { numRuns: 3, seed: 20, endOnFailure: true });
  });
}
