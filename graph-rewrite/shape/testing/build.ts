/** For tests: small models from short descriptions. */
import Long from 'long';
import { Model } from '../../graph/graph.js';
import type { DataTypeName } from '../../onnx/data-type.js';
import { type Dimension, opsetImports, tensorInfo } from '../../onnx/make.js';
import {
  AttributeProto,
  AttributeType,
  GraphProto,
  ModelProto,
  NodeProto,
  type TensorProto,
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

export function graphProto(text: GraphText): GraphProto {
  const infos = (all: GraphText['inputs'] = {}) =>
    Object.entries(all).map(([name, [type, shape]]) => tensorInfo(name, type, shape));
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
  return ModelProto.create({
    ir_version: Long.fromNumber(opset >= 23 ? 11 : 8),
    opset_import: opsetImports({ '': opset, 'com.microsoft': 1 }),
    graph: graphProto(text),
  });
}

export function model(text: GraphText, opset = 17): Model {
  return new Model(modelProto(text, opset));
}
