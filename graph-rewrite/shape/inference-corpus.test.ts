/**
 * What is inferred of real exports, against what ONNX Runtime computes: every value of a graph becomes an output, and
 * its type, shape and elements must be the inferred ones with the inputs' sizes put in for their symbols.
 *
 * Runs over the bundled models; over the whole corpus where ORT_FLASH_WHOLE_CORPUS is set and the corpus is there.
 */
import { readFileSync } from 'node:fs';
import test from 'ava';
import * as ort from 'onnxruntime-node';
import { bundledModels, type ModelExample, readTestData, type TestTensor, wholeCorpus } from '../../models/corpus.js';
import { Model, type Value } from '../graph/graph.js';
import { decodeModel, encodeModel } from '../onnx/codec.js';
import { dataTypeInfo } from '../onnx/data-type.js';
import { ValueInfoProto } from '../onnx/proto.js';
import { halfToNumber } from '../op/half.js';
import type { Expression } from './expression.js';
import { Inference, type ValueFacts } from './inference.js';

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

function numbersOf(tensor: ort.Tensor): ArrayLike<number> {
  if (tensor.type !== 'float16' && (tensor.type as string) !== 'bfloat16')
    return Array.from(tensor.data as ArrayLike<number | bigint | boolean>, Number);
  const type = tensor.type === 'float16' ? 'float16' : 'bfloat16';
  const bits = new Uint16Array(
    (tensor.data as Uint16Array).buffer,
    (tensor.data as Uint16Array).byteOffset,
    tensor.size,
  );
  return Array.from(bits, (b) => halfToNumber(b, type));
}

/** What contradicts the tensor that ran; symbols seen for the first time are bound to what they were. */
function contradictions(facts: ValueFacts, tensor: ort.Tensor, bindings: Map<string, number>): string[] {
  const found: string[] = [];
  const check = (what: string, expression: Expression, actual: number) => {
    if (expression.atom && expression.atom.operation === undefined && !bindings.has(expression.atom.name))
      bindings.set(expression.atom.name, actual);
    const value = expression.evaluate(bindings);
    if (value !== undefined && value !== actual) found.push(`${what} is ${actual}, inferred ${expression} = ${value}`);
  };
  const type = dataTypeInfo(facts.type)?.name;
  if (type !== undefined && type !== tensor.type) found.push(`type is ${tensor.type}, inferred ${type}`);
  if (facts.shape && facts.shape.length !== tensor.dims.length)
    return [...found, `rank is ${tensor.dims.length}, inferred ${facts.shape.length}`];
  for (const [axis, size] of facts.shape?.entries() ?? []) check(`size ${axis}`, size, tensor.dims[axis]!);
  const numbers = facts.elements || facts.uniform !== undefined ? numbersOf(tensor) : [];
  for (const [i, element] of facts.elements?.entries() ?? []) check(`element ${i}`, element, numbers[i]!);
  for (let i = 0; i < numbers.length && facts.uniform !== undefined; i++)
    if (!Object.is(numbers[i]! + 0, facts.uniform + 0)) {
      found.push(`element ${i} is ${numbers[i]}, inferred to be ${facts.uniform} like all`);
      break;
    }
  return found;
}

function count(coverage: Coverage, facts: ValueFacts): void {
  coverage.values++;
  if (facts.type !== undefined) coverage.typed++;
  if (facts.shape) coverage.ranked++;
  if (facts.shape?.every((size) => [...size.symbols].every((s) => !s.startsWith('?')))) coverage.expressed++;
}

async function runAll(bytes: Uint8Array, values: readonly Value[], inputs: readonly TestTensor[]) {
  const proto = decodeModel(bytes);
  const present = new Set(proto.graph!.output.map((o) => o.name));
  for (const { name } of values) if (!present.has(name)) proto.graph!.output.push(ValueInfoProto.create({ name }));
  const session = await ort.InferenceSession.create(encodeModel(proto), {
    graphOptimizationLevel: 'disabled',
    logSeverityLevel: 4,
  });
  try {
    const feeds: Record<string, ort.Tensor> = {};
    for (const [i, name] of session.inputNames.entries()) {
      const { type, data, dims } = inputs[i]!;
      feeds[name] = new ort.Tensor(type as 'float32', data as Float32Array, dims);
    }
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

test('inferred facts agree with what ONNX Runtime computes', async (t) => {
  const coverage: Coverage = { values: 0, typed: 0, ranked: 0, expressed: 0 };
  for (const example of examples()) {
    const bytes = readFileSync(example.modelFile);
    const model = new Model(decodeModel(bytes));
    const inference = new Inference(model);
    const { inputs } = readTestData(example.dataFolder);
    const values = model.graph.nodes
      .filter((node) => !node.is('Constant'))
      .flatMap((node) => node.outputs.filter((v) => v !== undefined));
    for (const value of values) count(coverage, inference.of(value));
    if (example.unrunnableOnCpu) continue;
    const results = await runAll(bytes, values, inputs);
    const bindings = bindSizes(model, inference, inputs);
    const wrong = values.flatMap((value) =>
      contradictions(inference.of(value), results[value.name]!, bindings).map(
        (c) => `${value.name} (${value.producer!.opType}): ${c}`,
      ),
    );
    t.deepEqual(wrong.slice(0, 8), [], example.name);
  }
  const percent = (part: number) => `${((100 * part) / coverage.values).toFixed(2)} %`;
  t.log(
    `${coverage.values} values: type known of ${percent(coverage.typed)}, rank of ${percent(coverage.ranked)}, ` +
      `every size in terms of the inputs' of ${percent(coverage.expressed)}`,
  );
  t.true(coverage.ranked === coverage.values && coverage.expressed >= 0.99 * coverage.values);
});
