/** The ONNX standard's own conformance tests of `Attention`, through the WebGPU kernels. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { type ProblemInputs, resolveProblem } from '../graph-rewrite/op/problem.js';
import { isRefusal, type NodeFacts } from '../graph-rewrite/op/site.js';
import { readStandardAttention } from '../graph-rewrite/op/standard.js';
import { readTestData, standardAttentionCases, type TestTensor } from '../models/corpus.js';
import { FlashAttention } from './index.js';
import { openDevice } from './testing/device.js';
import { type CallData, type CallResult, runAttention } from './testing/run.js';

const bundled = join(dirname(fileURLToPath(import.meta.url)), '..', 'models', 'onnx-attention');
const cases =
  standardAttentionCases() ??
  readdirSync(bundled).map((name) => ({
    name,
    modelFile: join(bundled, name, 'model.onnx'),
    dataFolder: join(bundled, name, 'test_data_set_0'),
  }));

const { device, adapter } = await openDevice();
const flash = FlashAttention.create(device, { adapterInfo: adapter.info });
test.after.always(() => device.destroy());

/** As the standard's own runner compares: |difference| ≤ absolute + relative · |expected|. */
const TOLERANCE = {
  float32: { absolute: 1e-7, relative: 1e-3 },
  float16: { absolute: 1e-3, relative: 4e-3 },
} as const;

/** Reads a case as the call that its node stands for; the weights, where asked for, are left out. */
function load({ modelFile, dataFolder }: (typeof cases)[number]) {
  const graph = decodeModel(readFileSync(modelFile), modelFile).graph!;
  const node = graph.node[0]!;
  const data = readTestData(dataFolder);
  const types = new Map(graph.input.map((i) => [i.name, i.type!.tensor_type!]));
  const outputs = new Map(graph.output.map((o, i) => [o.name, data.outputs[i]!]));
  const inputs = new Map(graph.input.map((input, i) => [input.name, data.inputs[i]!]));
  const facts: NodeFacts = {
    opset: 0,
    rankOf: (value) => types.get(value)?.shape?.dim.length,
    typeOf: (value) => types.get(value)?.elem_type ?? undefined,
    isUsed: (value) => outputs.has(value) && value !== node.output[3],
  };
  const opset = Number(decodeModel(readFileSync(modelFile), modelFile).opset_import[0]!.version);
  const site = readStandardAttention(node, { ...facts, opset });
  if (isRefusal(site)) throw new Error(site.reason);
  const tensors = Object.entries(site.inputs).map(([role, name]) => [role, inputs.get(name)!] as const);
  const problem = resolveProblem(
    site.attributes,
    Object.fromEntries(
      tensors.map(([role, { type, dims }]) => [role, { type, shape: dims }]),
    ) as unknown as ProblemInputs,
  );
  const call = Object.fromEntries(tensors.map(([role, tensor]) => [role, tensor.data])) as CallData;
  return { site, problem, call, outputs };
}

/** The first element that differs, or undefined. */
function difference(actual: Float32Array, { type, data }: TestTensor): string | undefined {
  const { absolute, relative } = TOLERANCE[type as keyof typeof TOLERANCE];
  const expected = type === 'float16' ? decodeHalf(data as Uint16Array, 'float16') : (data as Float32Array);
  if (actual.length !== expected.length) return `${actual.length} elements, expected ${expected.length}`;
  const at = expected.findIndex((e, i) => !(Math.abs(e - actual[i]!) <= absolute + relative * Math.abs(e)));
  return at < 0 ? undefined : `element ${at} is ${actual[at]}, expected ${expected[at]}`;
}

for (const item of cases) {
  test.serial(`${item.name}: the kernels give the standard's outputs`, async (t) => {
    const { site, problem, call, outputs } = load(item);
    const isHere = problem.type === 'float32' || (problem.type === 'float16' && flash.facts.halfFloats);
    if (!isHere) {
      await t.throwsAsync(flash.prepare(problem), { code: 'unsupported' });
      return;
    }
    const result: CallResult = await runAttention(flash, problem, call);
    t.is(difference(result.Y, outputs.get(site.outputs.Y)!), undefined);
    for (const name of ['present_key', 'present_value'] as const)
      if (site.outputs[name]) t.is(difference(result[name]!, outputs.get(site.outputs[name])!), undefined);
  });
}
