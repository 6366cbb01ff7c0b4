/** Small models for tests of sessions, made of single ONNX operators. */
import Long from 'long';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import { type DataTypeName, dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import {
  AttributeProto,
  AttributeType,
  DataLocation,
  GraphProto,
  ModelProto,
  NodeProto,
  OperatorSetIdProto,
  StringStringEntryProto,
  TensorProto,
  TensorShapeProto,
  TypeProto,
  ValueInfoProto,
} from '../graph-rewrite/onnx/proto.js';

/** A value of a graph; a dimension that is a string is not fixed. */
export interface ValueSpec {
  readonly name: string;
  readonly type: DataTypeName;
  readonly shape: readonly (number | string)[];
}

export interface NodeSpec {
  readonly op: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly ints?: Readonly<Record<string, number>>;
}

function valueInfo({ name, type, shape }: ValueSpec): ValueInfoProto {
  const dim = shape.map((size) =>
    typeof size === 'number'
      ? TensorShapeProto.Dimension.create({ dim_value: Long.fromNumber(size) })
      : TensorShapeProto.Dimension.create({ dim_param: size }),
  );
  const tensor = TypeProto.Tensor.create({ elem_type: dataTypeOf(type), shape: TensorShapeProto.create({ dim }) });
  return ValueInfoProto.create({ name, type: TypeProto.create({ tensor_type: tensor }) });
}

function node({ op, inputs, outputs, ints = {} }: NodeSpec): NodeProto {
  const attribute = Object.entries(ints).map(([name, value]) =>
    AttributeProto.create({ name, type: AttributeType.INT, i: Long.fromNumber(value) }),
  );
  return NodeProto.create({ op_type: op, input: [...inputs], output: [...outputs], attribute });
}

/** The bytes of a model with these nodes. */
export function makeModel(
  inputs: readonly ValueSpec[],
  outputs: readonly ValueSpec[],
  nodes: readonly NodeSpec[],
  initializer: TensorProto[] = [],
): Uint8Array {
  const graph = GraphProto.create({
    name: 'test',
    initializer,
    input: inputs.map(valueInfo),
    output: outputs.map(valueInfo),
    node: nodes.map(node),
  });
  const opset = OperatorSetIdProto.create({ domain: '', version: Long.fromNumber(21) });
  const model = ModelProto.create({ ir_version: Long.fromNumber(10), opset_import: [opset], graph });
  return encodeModel(model);
}

/** y = x, for vectors of one type. */
export function identityModel(type: DataTypeName): Uint8Array {
  return makeModel(
    [{ name: 'x', type, shape: ['n'] }],
    [{ name: 'y', type, shape: ['n'] }],
    [{ op: 'Identity', inputs: ['x'], outputs: ['y'] }],
  );
}

/** real = x · scale, and y = real / scale in x's type again. */
export function quantizedModel(type: 'int4' | 'uint4'): Uint8Array {
  const inputs: ValueSpec[] = [
    { name: 'x', type, shape: ['n'] },
    { name: 'scale', type: 'float32', shape: [] },
  ];
  const outputs: ValueSpec[] = [
    { name: 'real', type: 'float32', shape: ['n'] },
    { name: 'y', type, shape: ['n'] },
  ];
  return makeModel(inputs, outputs, [
    { op: 'DequantizeLinear', inputs: ['x', 'scale'], outputs: ['real'] },
    { op: 'QuantizeLinear', inputs: ['real', 'scale'], outputs: ['y'], ints: { output_dtype: dataTypeOf(type) } },
  ]);
}

/** y = x + w, where w lies in the file `weights.bin`: 4 elements. */
export function externalModel(type: 'float32' | 'bfloat16' = 'float32'): Uint8Array {
  const entry = (key: string, value: string) => StringStringEntryProto.create({ key, value });
  const weights = TensorProto.create({
    name: 'w',
    dims: [Long.fromNumber(4)],
    data_type: dataTypeOf(type),
    data_location: DataLocation.EXTERNAL,
    external_data: [
      entry('location', 'weights.bin'),
      entry('offset', '0'),
      entry('length', type === 'float32' ? '16' : '8'),
    ],
  });
  const vector = (name: string): ValueSpec => ({ name, type, shape: ['n'] });
  return makeModel([vector('x')], [vector('y')], [{ op: 'Add', inputs: ['x', 'w'], outputs: ['y'] }], [weights]);
}

/** y = x multiplied by itself `count` times, for square float32 matrices: as long a run as one likes. */
export function powerModel(count: number): Uint8Array {
  const nodes = Array.from({ length: count }, (_, i) => ({
    op: 'MatMul',
    inputs: [i === 0 ? 'x' : `p${i}`, 'x'],
    outputs: [i === count - 1 ? 'y' : `p${i + 1}`],
  }));
  const square = (name: string): ValueSpec => ({ name, type: 'float32', shape: ['n', 'n'] });
  return makeModel([square('x')], [square('y')], nodes);
}
