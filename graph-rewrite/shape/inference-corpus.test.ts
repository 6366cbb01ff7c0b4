/**
 * What is inferred of real exports, against what ONNX Runtime computes: every value of a graph becomes an output, and
 * its type, shape and elements must be the inferred ones with the inputs' sizes put in for their symbols.
 *
 * Runs over the bundled models; over the whole corpus where ORT_FLASH_WHOLE_CORPUS is set and the corpus is there.
 */
import { readFileSync } from 'node:fs';
import test from 'ava';
import type * as ort from 'onnxruntime-node';
import {
  bundledModels,
  type ModelExample,
  readTestData,
  standardAttentionCases,
  type TestTensor,
  wholeCorpus,
} from '../../models/corpus.js';
import { Model, type Value } from '../graph/graph.js';
import { decodeModel } from '../onnx/codec.js';
import { Inference, type ValueFacts } from './inference.js';
import { contradictions, openWithAllOutputs, run } from './testing/agreement.js';

/** How much is known, over all values that nodes compute (constants aside). */
interface Coverage {
  values: number;
  typed: number;
  ranked: number;
  /** All sizes are expressions in the input's dimensions. */
  expressed: number;
}

function examples(): ModelExample[] {
  const whole = process.env.ORT_FLASH_WHOLE_CORPUS ? wholeCorpus() : undefined;
  return whole ?? bundledModels();
}

/** Sizes that the given inputs have, by the symbols that the graph's inputs give them. */
function bindSizes(model: Model, inference: Inference, inputs: readonly TestTensor[]): Map<string, number> {
  const bindings = new Map<string, number>();
  for (const [i, value] of model.graph.inputs.filter((v) => !v.initializer).entries())
    for (const [axis, size] of (inference.of(value).shape ?? []).entries())
      if (size.atom) bindings.set(size.atom.name, inputs[i]!.dims[axis]!);
  return bindings;
}

function count(coverage: Coverage, facts: ValueFacts): void {
  coverage.values++;
  if (facts.type !== undefined) coverage.typed++;
  if (facts.shape) coverage.ranked++;
  if (facts.shape?.every((size) => [...size.symbols].every((s) => !s.startsWith('?')))) coverage.expressed++;
}

/** Other sizes for the symbols: equal sizes stay equal, and sums stay sums (total = past + new). */
function resized(sizes: ReadonlyMap<string, number>, change: (size: number) => number): Map<string, number> {
  const values = [...new Set(sizes.values())];
  const changed = new Map(values.map((v) => [v, change(v)]));
  for (const v of values)
    for (const x of values)
      if (v > x && x > 0 && changed.has(v - x)) changed.set(v, changed.get(x)! + changed.get(v - x)!);
  return new Map([...sizes].map(([name, v]) => [name, changed.get(v)!]));
}

/** The tensor with another shape: its elements repeated or cut along each axis, so that ids stay ids. */
function stretched(tensor: TestTensor, dims: readonly number[]): TestTensor {
  const count = dims.reduce((product, d) => product * d, 1);
  const data = new (tensor.data.constructor as Float32ArrayConstructor)(count) as TestTensor['data'];
  for (let index = 0; index < count; index++) {
    let rest = index;
    let at = 0;
    let stride = 1;
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      at += ((rest % dims[axis]!) % tensor.dims[axis]!) * stride;
      rest = Math.floor(rest / dims[axis]!);
      stride *= tensor.dims[axis]!;
    }
    data[index] = tensor.data[at]!;
  }
  return { ...tensor, dims, data };
}

function computedValues(model: Model): Value[] {
  const nodes = model.graph.nodes.filter((node) => !node.is('Constant'));
  return nodes.flatMap((node) => node.outputs.filter((v) => v !== undefined));
}

/** What runs of one model contradict, and how many runs at sizes other than the recorded ones the model admitted. */
async function checkExample(
  example: ModelExample,
  coverage: Coverage,
): Promise<{ wrong: string[]; otherSizes: number }> {
  const bytes = readFileSync(example.modelFile);
  const model = new Model(decodeModel(bytes));
  const inference = new Inference(model);
  const values = computedValues(model);
  for (const value of values) count(coverage, inference.of(value));
  if (example.unrunnableOnCpu) return { wrong: [], otherSizes: 0 };
  const { inputs } = readTestData(example.dataFolder);
  const recorded = bindSizes(model, inference, inputs);
  const session = await openWithAllOutputs(bytes, values);
  const compare = (results: ort.InferenceSession.ReturnType, sizes: ReadonlyMap<string, number>) => {
    const bindings = new Map(sizes);
    const wrong = values.flatMap((value) =>
      contradictions(inference.of(value), results[value.name]!, bindings).map(
        (c) => `${value.name} (${value.producer!.opType}): ${c}`,
      ),
    );
    return wrong.slice(0, 8);
  };
  try {
    const wrong = compare(await run(session, inputs), recorded);
    let otherSizes = 0;
    const smallest = Math.min(...recorded.values());
    for (const change of [(v: number) => v + 1, (v: number) => (v === smallest ? 1 : v - 1)]) {
      const sizes = resized(recorded, change);
      if ([...sizes].every(([name, v]) => recorded.get(name) === v)) continue;
      const shapes = model.graph.inputs.filter((v) => !v.initializer).map((v) => inference.of(v).shape!);
      const others = inputs.map((tensor, i) =>
        stretched(
          tensor,
          shapes[i]!.map((s) => s.evaluate(sizes)!),
        ),
      );
      const results = await run(session, others).catch(() => undefined);
      if (!results) continue;
      otherSizes++;
      wrong.push(...compare(results, sizes));
    }
    return { wrong, otherSizes };
  } finally {
    await session.release();
  }
}

test('inferred facts agree with what ONNX Runtime computes', async (t) => {
  const coverage: Coverage = { values: 0, typed: 0, ranked: 0, expressed: 0 };
  let models = 0;
  let otherSizes = 0;
  for (const example of examples()) {
    const checked = await checkExample(example, coverage);
    t.deepEqual(checked.wrong, [], example.name);
    models++;
    otherSizes += checked.otherSizes;
  }
  const percent = (part: number) => `${((100 * part) / coverage.values).toFixed(2)} %`;
  t.log(
    `${coverage.values} values of ${models} models: type known of ${percent(coverage.typed)}, rank of ` +
      `${percent(coverage.ranked)}, every size in terms of the inputs' of ${percent(coverage.expressed)}; ` +
      `${otherSizes} runs at other sizes`,
  );
  t.is(coverage.typed, coverage.values);
  t.is(coverage.ranked, coverage.values);
  t.true(coverage.expressed >= 0.99 * coverage.values);
  t.true(otherSizes >= models);
});

test("inferred facts agree with what ONNX Runtime computes of the standard's Attention cases", async (t) => {
  const cases = standardAttentionCases();
  if (!cases) return t.pass('the corpus is not here');
  let ran = 0;
  for (const { name, modelFile, expandedFile, dataFolder } of cases)
    for (const file of [modelFile, expandedFile].filter((f) => f !== undefined)) {
      const bytes = readFileSync(file);
      const model = new Model(decodeModel(bytes));
      const inference = new Inference(model);
      const values = computedValues(model);
      t.true(
        values.every((value) => inference.of(value).type !== undefined && inference.of(value).shape !== undefined),
      );
      const { inputs } = readTestData(dataFolder);
      // Opset 25 and bfloat16 are not in ONNX Runtime's CPU provider.
      const session = await openWithAllOutputs(bytes, values).catch(() => undefined);
      const results = session && (await run(session, inputs).catch(() => undefined));
      await session?.release();
      if (!results) continue;
      ran++;
      const wrong = values.flatMap((value) => contradictions(inference.of(value), results[value.name]!, new Map()));
      t.deepEqual(wrong, [], name);
    }
  t.log(`${ran} models ran`);
  return t.true(ran >= 100);
});
