/** For tests: small models from short descriptions. */
import Long from 'long';
import { Model } from '../../graph/graph.js';
import { type DataTypeName, dataTypeOf } from '../../onnx/data-type.js';
import {
  AttributeProto,
  AttributeType,
  GraphProto,
  ModelProto,
  NodeProto,
  OperatorSetIdProto,
  type TensorProto,
  TypeProto,
  ValueInfoProto,
} from '../../onnx/proto.js';
import { makeTensor } from '../../onnx/tensor.js';

/** A number is an INT; floats stand in an object. */
export type Attribute = number | readonly number[] | string | { float: number } | TensorProto | GraphProto;

export interface NodeText {
  readonly op: string;
  readonly domain?: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes?: Readonly<Record<string, Attribute>>;
}

/** Sizes are numbers, names, or null where the file says nothing. */
export type Dimension = number | string | null;

export interface GraphText {
  readonly inputs?: Readonly<Record<string, readonly [DataTypeName, readonly Dimension[] | undefined]>>;
  readonly constants?: readonly TensorProto[];
  readonly nodes: readonly NodeText[];
  readonly outputs: readonly string[];
  readonly stated?: Readonly<Record<string, readonly [DataTypeName, readonly Dimension[] | undefined]>>;
}

export function ints(name: string, values: readonly number[], shape: readonly number[] = [values.length]): TensorProto {
  return makeTensor(name, 'int64', shape, values);
}

export function info(name: string, type: DataTypeName, shape: readonly Dimension[] | undefined): ValueInfoProto {
  const dim = shape?.map((size) =>
    typeof size === 'number' ? { dim_value: Long.fromNumber(size) } : size === null ? {} : { dim_param: size },
  );
  return ValueInfoProto.create({
    name,
    type: TypeProto.create({
      tensor_type: { elem_type: dataTypeOf(type), ...(dim ? { shape: { dim } } : {}) },
    } as never),
  });
}

export function graphProto(text: GraphText): GraphProto {
  const infos = (all: GraphText['inputs'] = {}) =>
    Object.entries(all).map(([name, [type, shape]]) => info(name, type, shape));
  return GraphProto.create({
    name: 'graph',
    input: infos(text.inputs),
    initializer: [...(text.constants ?? [])],
    node: text.nodes.map(nodeProto),
    output: text.outputs.map((name) => ValueInfoProto.create({ name })),
    value_info: infos(text.stated),
  });
}

export function nodeProto({ op, domain, inputs, outputs, attributes = {} }: NodeText): NodeProto {
  return NodeProto.create({
    op_type: op,
    ...(domain === undefined ? {} : { domain }),
    input: [...inputs],
    output: [...outputs],
    attribute: Object.entries(attributes).map(([name, value]) => attributeProto(name, value)),
  });
}

function attributeProto(name: string, value: Attribute): AttributeProto {
  if (typeof value === 'number')
    return AttributeProto.create({ name, type: AttributeType.INT, i: Long.fromNumber(value) });
  if (typeof value === 'string')
    return AttributeProto.create({ name, type: AttributeType.STRING, s: new TextEncoder().encode(value) });
  if (value instanceof GraphProto) return AttributeProto.create({ name, type: AttributeType.GRAPH, g: value });
  if ('float' in value) return AttributeProto.create({ name, type: AttributeType.FLOAT, f: value.float });
  if ('dims' in value) return AttributeProto.create({ name, type: AttributeType.TENSOR, t: value });
  return AttributeProto.create({ name, type: AttributeType.INTS, ints: value.map((v) => Long.fromNumber(v)) });
}

export function modelProto(text: GraphText, opset: number): ModelProto {
  const version = (domain: string, v: number) => OperatorSetIdProto.create({ domain, version: Long.fromNumber(v) });
  return ModelProto.create({
    ir_version: Long.fromNumber(opset >= 23 ? 11 : 8),
    opset_import: [version('', opset), version('com.microsoft', 1)],
    graph: graphProto(text),
  });
}

export function model(text: GraphText, opset = 17): Model {
  return new Model(modelProto(text, opset));
}
