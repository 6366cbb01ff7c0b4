import { readFileSync } from 'node:fs';
import test from 'ava';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { halfToNumber } from '../graph-rewrite/op/half.js';
import { bundledModels, readTestData, standardAttentionCases, type TestTensor, wholeCorpus } from './corpus.js';

const numbers = (type: string, data: ArrayLike<number | bigint>) =>
  Array.from(data, (v) => (type === 'float16' ? halfToNumber(Number(v), 'float16') : Number(v)));

const feed = ({ type, data, dims }: TestTensor) =>
  new Tensor(type as Tensor.Type, data as Tensor.DataTypeMap[Tensor.Type], dims);

test('the selection spans both exporters, opsets 11 to 23, and models that must be left alone', (t) => {
  const models = bundledModels();
  t.true(models.length >= 25 && models.length <= 40);
  for (const opset of [11, 14, 17, 18, 23]) t.true(models.some((m) => m.opset === opset));
  for (const exporter of ['torchscript', 'dynamo']) t.true(models.some((m) => m.exporter === exporter));
  t.is(models.filter((m) => m.sites === 0).length, 5);
  for (const model of models) {
    const { graph, opset_import } = decodeModel(readFileSync(model.modelFile), model.name);
    t.is(opset_import.find((o) => (o.domain ?? '') === '')?.version?.toNumber(), model.opset, model.name);
    const data = readTestData(model.dataFolder);
    t.deepEqual(
      data.inputs.map((i) => i.name),
      [...model.inputs],
      model.name,
    );
    t.deepEqual(
      data.outputs.map((o) => o.name),
      graph?.output.map((o) => o.name),
      model.name,
    );
  }
});

for (const model of bundledModels().filter((m) => !m.unrunnableOnCpu)) {
  test(`${model.name} gives PyTorch's outputs in onnxruntime`, async (t) => {
    const { inputs, outputs } = readTestData(model.dataFolder);
    const session = await InferenceSession.create(model.modelFile);
    const results = await session.run(Object.fromEntries(inputs.map((input) => [input.name, feed(input)])));
    for (const output of outputs) {
      const result = results[output.name]!;
      t.deepEqual([...result.dims], [...output.dims]);
      const expected = numbers(output.type, output.data);
      const got = numbers(result.type, result.data as ArrayLike<number>);
      const worst = Math.max(...got.map((v, i) => Math.abs(v - expected[i]!) / (1 + Math.abs(expected[i]!))));
      t.true(worst <= model.tolerance, `${output.name}: ${worst}`);
    }
  });
}

test('the whole corpus, where it is there, lists its exports and the standard its cases', (t) => {
  const corpus = wholeCorpus();
  const cases = standardAttentionCases();
  if (corpus === undefined || cases === undefined) {
    t.pass('no corpus beside this repository');
    return;
  }
  t.is(corpus.length, 388);
  t.is(
    corpus.reduce((sum, model) => sum + model.sites, 0),
    807,
  );
  t.is(cases.length, 75);
  for (const model of corpus)
    t.deepEqual(
      readTestData(model.dataFolder).inputs.map((i) => i.name),
      [...model.inputs],
    );
});
