/** For tests: what is inferred of a model's values, against what ONNX Runtime computes. */
import * as ort from 'onnxruntime-node';
import type { TestTensor } from '../../../models/corpus.js';
import type { Value } from '../../graph/graph.js';
import { decodeModel, encodeModel } from '../../onnx/codec.js';
import { dataTypeInfo } from '../../onnx/data-type.js';
import { ValueInfoProto } from '../../onnx/proto.js';
import { halfToNumber } from '../../op/half.js';
import type { Expression } from '../expression.js';
import type { ValueFacts } from '../facts.js';

/** A model that gives every value as an output. */
export async function openWithAllOutputs(bytes: Uint8Array, values: readonly Value[]): Promise<ort.InferenceSession> {
  const proto = decodeModel(bytes);
  const present = new Set(proto.graph!.output.map((o) => o.name));
  for (const { name } of values) if (!present.has(name)) proto.graph!.output.push(ValueInfoProto.create({ name }));
  return ort.InferenceSession.create(encodeModel(proto), { graphOptimizationLevel: 'disabled', logSeverityLevel: 4 });
}

export async function run(
  session: ort.InferenceSession,
  inputs: readonly TestTensor[],
): Promise<ort.InferenceSession.ReturnType> {
  const feeds: Record<string, ort.Tensor> = {};
  for (const [i, name] of session.inputNames.entries()) {
    const { type, data, dims } = inputs[i]!;
    feeds[name] = new ort.Tensor(type as 'float32', data as Float32Array, dims);
  }
  return session.run(feeds);
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
export function contradictions(facts: ValueFacts, tensor: ort.Tensor, bindings: Map<string, number>): string[] {
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
