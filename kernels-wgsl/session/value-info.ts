import Long from 'long';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import type { Value } from '../../graph-rewrite/graph/graph.js';
import { TensorShapeProto, TypeProto, ValueInfoProto } from '../../graph-rewrite/onnx/proto.js';
import type { Expression } from '../../graph-rewrite/shape/expression.js';
import type { Inference } from '../../graph-rewrite/shape/inference.js';

/**
 * Type and shape of a value that passes between parts of a model: sizes that are not numbers by the expression that
 * they are, so that equal sizes have equal names; those of which nothing is known left open.
 * @throws OrtFlashError `unsupported` where its type is not known, or it is no tensor
 */
export function describeValue(value: Value, inference: Inference): ValueInfoProto {
  const stated = value.info?.type;
  if (stated && !stated.tensor_type)
    throw new OrtFlashError('unsupported', 'only tensors can pass between spliced parts, this is none', {
      tensor: value.name,
    });
  const { type, shape } = inference.of(value);
  if (type === undefined)
    throw new OrtFlashError('unsupported', 'the type of a value that passes between spliced parts is not known', {
      tensor: value.name,
    });
  const tensor = new TypeProto.Tensor({ elem_type: type });
  if (shape) tensor.shape = new TensorShapeProto({ dim: shape.map(dimension) });
  return new ValueInfoProto({ name: value.name, type: new TypeProto({ tensor_type: tensor }) });
}

type Dimension = TensorShapeProto['dim'][number];

function dimension(size: Expression): Dimension {
  const made = new TensorShapeProto.Dimension();
  const isKnown = [...size.symbols].every((symbol) => !symbol.startsWith('?'));
  if (size.value !== undefined) made.dim_value = Long.fromNumber(size.value);
  else if (isKnown) made.dim_param = size.toString();
  return made;
}
