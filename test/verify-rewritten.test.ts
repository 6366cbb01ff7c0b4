/**
 * Rewritten models against the untouched ones in onnxruntime, at several lengths, batch sizes and masks, with and
 * without past keys: not only at the sizes that were recorded with PyTorch.
 */
import { readFileSync } from 'node:fs';
import test from 'ava';
import { verifyModels } from '../cli/verify.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { allModels, bundledModels } from '../models/corpus.js';

for (const [target, models] of [
  ['flash', allModels()],
  ['ort', bundledModels()],
  ['onnx', bundledModels()],
] as const) {
  test(`--target ${target}: the same outputs at every size that the untouched model takes`, async (t) => {
    let runs = 0;
    for (const { name, modelFile } of models) {
      const model = decodeModel(readFileSync(modelFile), modelFile);
      rewriteModel(model, { target });
      const report = await verifyModels(modelFile, encodeModel(model));
      t.true(report.holds, `${name}: ${report.failures[0]}`);
      runs += report.compared;
    }
    t.log(`${models.length} models, ${runs} runs compared`);
  });
}
