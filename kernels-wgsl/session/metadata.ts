import type { InferenceSession as OrtTypes, Tensor } from '#onnxruntime-web';
import { dataTypeInfo } from '../../graph-rewrite/onnx/data-type.js';
import type { ModelProto, ValueInfoProto } from '../../graph-rewrite/onnx/proto.js';
import type { ModelMetadata } from './handler.js';

/** What the runtime tells of a model's inputs and outputs; inputs with a default are none. */
export function readMetadata({ graph }: ModelProto): ModelMetadata {
  const constants = new Set(graph!.initializer.map(({ name }) => name));
  return {
    inputs: graph!.input.filter(({ name }) => !constants.has(name)).map(describe),
    outputs: graph!.output.map(describe),
  };
}

function describe({ name, type }: ValueInfoProto): OrtTypes.ValueMetadata {
  const tensor = type?.tensor_type;
  if (!tensor) return { name: name ?? '', isTensor: false };
  const shape = (tensor.shape?.dim ?? []).map((dim) => dim.dim_param ?? dim.dim_value?.toNumber() ?? '');
  return {
    name: name ?? '',
    isTensor: true,
    type: (dataTypeInfo(tensor.elem_type)?.name ?? 'float32') as Tensor.Type,
    shape,
  };
}
