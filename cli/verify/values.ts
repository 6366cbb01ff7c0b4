import { Tensor } from 'onnxruntime-node';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { dataTypeName } from '../../graph-rewrite/onnx/data-type.js';
import type { TensorProto } from '../../graph-rewrite/onnx/proto.js';
import { tensorData, tensorShape } from '../../graph-rewrite/onnx/tensor.js';
import { decodeHalf } from '../../graph-rewrite/op/half.js';
import { makeInputs, type Random, RUNTIME_TYPES } from './inputs.js';
import type { ModelSignature } from './signature.js';
import type { Binding, SizeCase } from './sizes.js';

/** Inputs of one run, by name. */
export type Feeds = Record<string, Tensor>;

/** A tensor of a file as onnxruntime takes it: bfloat16 as float32, as the models that take it are run so. */
export function toOrtTensor(proto: TensorProto, file?: string): Tensor {
  const type = dataTypeName(proto.data_type);
  if (type === 'string') return new Tensor('string', proto.string_data.map(decodeText), tensorShape(proto));
  if (type === 'bfloat16')
    return new Tensor('float32', decodeHalf(tensorData(proto) as Uint16Array, type), tensorShape(proto));
  if (!RUNTIME_TYPES.has(type)) {
    const place = { tensor: proto.name ?? '', ...(file === undefined ? {} : { file }) };
    throw new OrtFlashError('unsupported', `onnxruntime-node takes no ${type} tensors`, place);
  }
  // The data has the array type that the name asks for; the constructor's overloads cannot express that.
  return new Tensor(type as 'float32', tensorData(proto) as Float32Array, tensorShape(proto));
}

const decodeText = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** {@link makeInputs} as onnxruntime-node takes them. */
export function makeFeeds(
  signature: ModelSignature,
  binding: Binding,
  sizes: SizeCase,
  random: Random,
): Feeds | undefined {
  const inputs = makeInputs(signature, binding, sizes, random);
  return inputs && Object.fromEntries([...inputs].map(([name, proto]) => [name, toOrtTensor(proto)]));
}
