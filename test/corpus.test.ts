import { readFileSync } from 'node:fs';
import test from 'ava';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { allModels, readTestData } from '../models/corpus.js';
import { relativeDifference, runModel } from './runtime.js';

for (const example of allModels()) {
  test(`${example.name}: every site fused, PyTorch's outputs from stock onnxruntime`, async (t) => {
    const bytes = readFileSync(example.modelFile);
    const model = decodeModel(bytes, example.modelFile);
    const report = rewriteModel(model);
    const fused = report.sites.filter((site) => site.fused).length;
    t.is(fused, example.sites, JSON.stringify(report.sites.filter((s) => !s.fused)));
    const rewritten = encodeModel(model);
    const again = decodeModel(rewritten);
    rewriteModel(again);
    t.deepEqual(encodeModel(again), rewritten, 'rewriting is idempotent');
    if (example.unrunnableOnCpu) return;
    const data = readTestData(example.dataFolder);
    const outputs = await runModel(rewritten, data.inputs);
    for (const [i, expected] of data.outputs.entries()) {
      const output = outputs.find((o) => o.name === expected.name) ?? outputs[i]!;
      t.deepEqual([...output.dims], [...expected.dims]);
      const difference = relativeDifference(output.numbers, expected);
      t.true(difference <= example.tolerance, `${output.name} differs by ${difference}`);
    }
  });
}
