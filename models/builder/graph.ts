import Long from 'long';
import type { DataTypeName } from '../../graph-rewrite/onnx/data-type.js';
import { opsetImports, tensorInfo } from '../../graph-rewrite/onnx/make.js';
import {
  AttributeProto,
  AttributeType,
  GraphProto,
  ModelProto,
  NodeProto,
  TensorProto,
  type ValueInfoProto,
} from '../../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../../graph-rewrite/onnx/tensor.js';

/** An attribute's value; integers and floats are told apart by the attribute's name where a number could be both. */
export type AttributeValue = number | readonly number[] | TensorProto;

/** Which exporter's manner a graph is written in. */
export type ExporterStyle = 'torchscript' | 'dynamo';

const FLOAT_ATTRIBUTES = new Set(['epsilon']);

/** Writes a graph node by node, naming values and storing constants as the exporter of its style does. */
export class GraphBuilder {
  readonly style: ExporterStyle;
  private readonly nodes: NodeProto[] = [];
  private readonly initializers: TensorProto[] = [];
  private readonly inputs: ValueInfoProto[] = [];
  private readonly outputs: ValueInfoProto[] = [];
  private readonly names = new Map<string, number>();
  private readonly shared = new Map<string, string>();
  /** Module path that TorchScript's names begin with. */
  scope = '';

  constructor(style: ExporterStyle) {
    this.style = style;
  }

  input(name: string, type: DataTypeName, shape: readonly (string | number)[]): string {
    this.inputs.push(tensorInfo(name, type, shape));
    return name;
  }

  output(name: string, type: DataTypeName, shape: readonly (string | number)[]): void {
    this.outputs.push(tensorInfo(name, type, shape));
  }

  /** Adds a weight and returns its name. */
  weight(tensor: TensorProto): string {
    this.initializers.push(tensor);
    return tensor.name ?? '';
  }

  /** Adds a node with one output and returns the output's name. */
  op(
    type: string,
    inputs: readonly string[],
    attributes: Record<string, AttributeValue> = {},
    output?: string,
  ): string {
    const name = output ?? this.fresh(type);
    this.nodes.push(
      NodeProto.create({
        op_type: type,
        input: [...inputs],
        output: [name],
        name: this.style === 'torchscript' ? name.replace(/_output_0$/, '') : `node_${name}`,
        attribute: Object.entries(attributes).map(([key, value]) => attribute(key, value)),
      }),
    );
    return name;
  }

  /** A constant: a Constant node in TorchScript's manner, an initializer shared by its value in dynamo's. */
  constant(type: DataTypeName, shape: readonly number[], values: readonly number[]): string {
    if (this.style === 'torchscript') {
      const output = this.fresh('Constant');
      const value = makeTensor('', type, shape, values);
      const held = attribute('value', value);
      const name = output.replace(/_output_0$/, '');
      this.nodes.push(NodeProto.create({ op_type: 'Constant', output: [output], name, attribute: [held] }));
      return output;
    }
    const key = JSON.stringify([type, shape, values.map(String)]);
    const known = this.shared.get(key);
    if (known !== undefined) return known;
    const name = this.weight(makeTensor(this.fresh('val'), type, shape, values));
    this.shared.set(key, name);
    return name;
  }

  ints(...values: number[]): string {
    return this.constant('int64', [values.length], values);
  }

  /** A scalar int64. */
  int(value: number): string {
    return this.constant('int64', [], [value]);
  }

  build(opset: number, irVersion: number, producer: string): ModelProto {
    const graph = GraphProto.create({
      name: 'main_graph',
      node: this.nodes,
      initializer: this.initializers,
      input: this.inputs,
      output: this.outputs,
    });
    return ModelProto.create({
      ir_version: Long.fromInt(irVersion),
      producer_name: producer,
      opset_import: opsetImports({ '': opset }),
      graph,
    });
  }

  private fresh(base: string): string {
    const stem = this.style === 'torchscript' ? `${this.scope}/${base}` : base.toLowerCase();
    const count = this.names.get(stem) ?? 0;
    this.names.set(stem, count + 1);
    const numbered = count === 0 ? stem : `${stem}_${count}`;
    return this.style === 'torchscript' ? `${numbered}_output_0` : numbered;
  }
}

function attribute(name: string, value: AttributeValue): AttributeProto {
  if (value instanceof TensorProto) return AttributeProto.create({ name, type: AttributeType.TENSOR, t: value });
  if (typeof value !== 'number') {
    return AttributeProto.create({ name, type: AttributeType.INTS, ints: value.map((v) => Long.fromNumber(v)) });
  }
  if (FLOAT_ATTRIBUTES.has(name)) return AttributeProto.create({ name, type: AttributeType.FLOAT, f: value });
  return AttributeProto.create({ name, type: AttributeType.INT, i: Long.fromNumber(value) });
}
