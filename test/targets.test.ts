import { readFileSync } from 'node:fs';
import test from 'ava';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { allModels, type ModelExample, readTestData } from '../models/corpus.js';
import { relativeDifference, runModel } from './runtime.js';

/** Largest difference of a model's outputs from PyTorch's. */
async function difference(model: Uint8Array, example: ModelExample): Promise<number> {
  const data = readTestData(example.dataFolder);
  const outputs = await runModel(model, data.inputs);
  const differences = data.outputs.map((expected, i) => {
    const output = outputs.find((o) => o.name === expected.name) ?? outputs[i]!;
    return relativeDifference(output.numbers, expected);
  });
  return Math.max(...differences);
}

for (const example of allModels().filter((m) => m.sites > 0 && !m.unrunnableOnCpu)) {
  test(`${example.name}: ONNX Runtime's own operators give PyTorch's outputs, and are attention again`, async (t) => {
    const model = decodeModel(readFileSync(example.modelFile), example.modelFile);
    const { lowered = [] } = rewriteModel(model, { target: 'ort' });
    t.is(lowered.length, example.sites);
    const file = encodeModel(model);
    t.true((await difference(file, example)) <= example.tolerance, 'lowered');
    const again = decodeModel(file);
    const { sites } = rewriteModel(again);
    const own = lowered.filter((site) => site.operator !== 'FlashAttention').length;
    t.is(sites.filter((site) => site.form.startsWith('com.microsoft.')).length, own);
    for (const site of sites) if (!site.fused) t.log(`${site.form}: ${site.refusal?.reason}`);
    t.true((await difference(encodeModel(again), example)) <= example.tolerance, 'rewritten again');
  });
}

// The models' sequences are short, and blocks of the default size would hold them whole.
for (const example of allModels().filter((m) => m.sites > 0 && !m.unrunnableOnCpu)) {
  test(`${example.name}: attention a block of queries at a time gives PyTorch's outputs`, async (t) => {
    const model = decodeModel(readFileSync(example.modelFile), example.modelFile);
    const { lowered = [] } = rewriteModel(model, { target: 'ort', blocks: { scores: 40, leastQueries: 2 } });
    if (!lowered.some((site) => site.inBlocks)) return t.pass();
    t.true((await difference(encodeModel(model), example)) <= example.tolerance);
  });
}

for (const example of allModels().filter((m) => m.sites > 0 && m.opset >= 23 && !m.unrunnableOnCpu)) {
  test(`${example.name}: the standard's Attention gives PyTorch's outputs, and is attention again`, async (t) => {
    const model = decodeModel(readFileSync(example.modelFile), example.modelFile);
    const { lowered = [] } = rewriteModel(model, { target: 'onnx' });
    t.is(lowered.length, example.sites);
    const file = encodeModel(model);
    t.true((await difference(file, example)) <= example.tolerance, 'lowered');
    const again = decodeModel(file);
    const { sites } = rewriteModel(again);
    const own = lowered.filter((site) => site.operator !== 'FlashAttention');
    for (const { refusal } of lowered) if (refusal) t.log(refusal.reason);
    t.is(sites.filter((site) => site.form === 'Attention').length, own.length);
    t.true((await difference(encodeModel(again), example)) <= example.tolerance, 'rewritten again');
  });
}
