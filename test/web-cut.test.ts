import { readFileSync } from 'node:fs';
import test from 'ava';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { type DataTypeName, dataTypeInfo } from '../graph-rewrite/onnx/data-type.js';
import { tensorData, tensorShape } from '../graph-rewrite/onnx/tensor.js';
import { encodeHalf } from '../graph-rewrite/op/half.js';
import { type ProblemInputs, resolveProblem } from '../graph-rewrite/op/problem.js';
import { type ReferenceInputs, referenceAttention } from '../graph-rewrite/op/reference.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { type AttentionCall, cutModel, type SplicePlan } from '../kernels-wgsl/session/cut.js';
import { allModels, bundledModel, readTestData, type TestData } from '../models/corpus.js';
import { readAlso } from './decoding.js';
import { relativeDifference, toNumbers } from './runtime.js';

/** Carries the steps out on the CPU: segments in stock onnxruntime, attention by the reference implementation. */
async function runPlan(plan: SplicePlan, inputs: TestData['inputs']): Promise<Map<string, Tensor>> {
  const values = new Map<string, Tensor>();
  const put = (name: string, type: DataTypeName, data: unknown, dims: readonly number[]) =>
    values.set(name, new Tensor(type as Tensor.Type, data as Tensor.DataType, dims));
  for (const [i, input] of inputs.entries()) put(input.name || plan.inputNames[i]!, input.type, input.data, input.dims);
  for (const [name, tensor] of plan.constants)
    put(name, dataTypeInfo(tensor.data_type)!.name, tensorData(tensor), tensorShape(tensor));
  for (const step of plan.steps) {
    if (step.kind === 'attention') {
      for (const call of step.calls) attend(call, values);
      continue;
    }
    const session = await InferenceSession.create(encodeModel(plan.models.get(step)!), {
      logSeverityLevel: 4,
      intraOpNumThreads: 1,
    });
    const results = await session.run(Object.fromEntries(step.inputs.map((name) => [name, values.get(name)!])));
    for (const name of step.outputs) values.set(name, results[name]!);
    await session.release();
  }
  return values;
}

function attend(call: AttentionCall, values: Map<string, Tensor>): void {
  const given = Object.entries(call.inputs).map(([input, name]) => [input, values.get(name)!] as const);
  const problem = resolveProblem(
    call.attributes,
    Object.fromEntries(given.map(([input, { type, dims }]) => [input, { type, shape: dims }])) as ProblemInputs,
  );
  const data = Object.fromEntries(given.map(([input, tensor]) => [input, tensor.data])) as unknown as ReferenceInputs;
  const result = referenceAttention(problem, data);
  const put = (name: string | undefined, numbers: Float64Array | undefined, dims: readonly number[] | undefined) => {
    if (name === undefined || numbers === undefined || dims === undefined) return;
    const floats = Float32Array.from(numbers);
    const elements = problem.type === 'float16' ? encodeHalf(floats, 'float16') : floats;
    values.set(name, new Tensor(problem.type as 'float32', elements as Float32Array, dims));
  };
  put(call.outputs.Y, result.Y, problem.outputShape);
  put(call.outputs.present_key, result.presentKey, problem.presentKeyShape);
  put(call.outputs.present_value, result.presentValue, problem.presentValueShape);
}

for (const example of allModels()) {
  if (example.unrunnableOnCpu || example.sites === 0) continue;
  test(`${example.name}: cut at its attentions, PyTorch's outputs`, async (t) => {
    const model = decodeModel(readFileSync(example.modelFile), example.modelFile);
    rewriteModel(model);
    const plan = cutModel(model);
    const { inputs, outputs } = readTestData(example.dataFolder);
    const values = await runPlan(plan, inputs);
    for (const [i, expected] of outputs.entries()) {
      const name = expected.name || plan.outputNames[i]!;
      const output = values.get(plan.outputNames.includes(name) ? name : plan.outputNames[i]!)!;
      t.deepEqual([...output.dims], [...expected.dims]);
      const numbers = toNumbers(output.type, output.data as ArrayLike<number | bigint>);
      const difference = relativeDifference(numbers, expected);
      t.true(difference <= example.tolerance, `${name} differs by ${difference}`);
    }
  });
}

for (const example of allModels().filter(({ architecture, sites }) => architecture.endsWith('_past') && sites > 0))
  test(`${example.name}: nothing but attention reads its caches, which so can grow in place`, (t) => {
    const model = decodeModel(readFileSync(example.modelFile), example.modelFile);
    rewriteModel(model);
    const { steps } = cutModel(model);
    const calls = steps.flatMap((step) => (step.kind === 'attention' ? step.calls : []));
    t.is(calls.length, example.sites);
    t.true(calls.every(({ growsCache }) => growsCache));
    for (const step of steps) {
      if (step.kind !== 'segment') continue;
      const elements = step.inputs.filter((name) => !step.shapeInputs.includes(name));
      t.false(elements.some((name) => name.startsWith('past.')));
    }
  });

test('a cache that something else reads does not grow in place', (t) => {
  const grows = (name: string) => {
    const model = readAlso(bundledModel('llama_past-dyn18'), name);
    rewriteModel(model);
    const { steps } = cutModel(model);
    return steps.flatMap((step) => (step.kind === 'attention' ? step.calls.map(({ growsCache }) => growsCache) : []));
  };
  t.deepEqual(grows('past.0.key'), [false, true]);
  t.deepEqual(grows('past.1.value'), [true, false]);
  t.deepEqual(grows('present.1.key'), [true, false]);
  t.deepEqual(grows('attention_mask'), [true, true]);
});
