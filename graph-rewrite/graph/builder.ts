import type { DataTypeName } from '../onnx/data-type.js';
import { NodeProto, type TensorProto } from '../onnx/proto.js';
import { makeTensor } from '../onnx/tensor.js';
import { type AttributeValue, makeAttribute } from '../op/emit.js';
import type { Graph } from './graph.js';

/** A node of the ONNX standard (or of another domain) from plain values; numbers become integer attributes. */
export function makeNode(
  opType: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Readonly<Record<string, AttributeValue>> = {},
  domain = '',
): NodeProto {
  const node = new NodeProto({ op_type: opType, input: [...inputs], output: [...outputs] });
  if (domain !== '') node.domain = domain;
  node.name = outputs[0] ?? opType;
  for (const [name, value] of Object.entries(attributes)) node.attribute.push(makeAttribute(name, value));
  return node;
}

/** Collects the nodes that a rewrite puts in place of one, with names that the model does not use yet. */
export class NodeList {
  readonly nodes: NodeProto[] = [];
  /** Constants that the nodes read; the graph has them once the list is put into it. */
  readonly initializers: TensorProto[] = [];
  readonly #graph: Graph;
  readonly #prefix: string;

  constructor(graph: Graph, prefix: string) {
    this.#graph = graph;
    this.#prefix = prefix;
  }

  /** Adds a node with one output and returns the output's name. */
  add(
    opType: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, AttributeValue>> = {},
    domain = '',
  ): string {
    const output = this.#graph.model.freshName(`${this.#prefix}/${opType}`);
    this.nodes.push(makeNode(opType, inputs, [output], attributes, domain));
    return output;
  }

  /** Adds a 1-D int64 constant. */
  ints(values: readonly number[]): string {
    const name = this.#graph.model.freshName(`${this.#prefix}/shape`);
    this.initializers.push(makeTensor(name, 'int64', [values.length], values));
    return name;
  }

  /** Adds a scalar constant. */
  scalar(value: number, type: DataTypeName): string {
    const name = this.#graph.model.freshName(`${this.#prefix}/constant`);
    this.initializers.push(makeTensor(name, type, [], [value]));
    return name;
  }
}
