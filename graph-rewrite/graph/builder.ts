import type { DataTypeName } from '../onnx/data-type.js';
import { NodeProto, type TensorProto } from '../onnx/proto.js';
import { makeTensor, tensorNumbers } from '../onnx/tensor.js';
import { type AttributeValue, makeAttribute } from '../op/emit.js';
import type { Graph, Node, Value } from './graph.js';

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

  /**
   * Adds an Unsqueeze, or takes one that the graph has already computed where the nodes will stand.
   * @param before the node in whose place they will be
   */
  unsqueeze(value: Value, axes: readonly number[], before: Node): string {
    const isInput = this.#graph.model.opset() >= 13;
    for (const { node } of value.uses) {
      const known = isInput ? constantInts(node.inputs[1]) : node.ints('axes');
      const isSame = known?.length === axes.length && axes.every((axis, i) => axis === known[i]);
      const isEarlier =
        node.graph === before.graph && this.#graph.nodes.indexOf(node) < this.#graph.nodes.indexOf(before);
      if (node.is('Unsqueeze') && isSame && isEarlier && node.outputs[0]) return node.outputs[0].name;
    }
    if (!isInput) return this.add('Unsqueeze', [value.name], { axes });
    return this.add('Unsqueeze', [value.name, this.ints(axes)]);
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

function constantInts(value: Value | undefined): readonly number[] | undefined {
  return value?.initializer && !value.isInput ? tensorNumbers(value.initializer) : undefined;
}
