import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { isExternal } from '../../graph-rewrite/onnx/external.js';
import {
  type AttributeProto,
  DataType,
  type GraphProto,
  type ModelProto,
  type NodeProto,
  type TensorProto,
} from '../../graph-rewrite/onnx/proto.js';
import { elementCount, tensorInts } from '../../graph-rewrite/onnx/tensor.js';

/** A dimension as the model states it: a number, or the name of a symbolic dimension. */
export type Dimension = number | string;

/** An input that a caller has to give. */
export interface ModelInput {
  readonly name: string;
  /** TensorProto data type. */
  readonly elementType: number;
  /** A dimension that the model leaves unnamed gets the name `INPUT.AXIS`. */
  readonly dimensions: readonly Dimension[];
  /** Set for integer inputs that index a table: the number of its entries. */
  readonly tableSize: number | undefined;
}

/** What {@link readSignature} learns about a model. */
export interface ModelSignature {
  readonly inputs: readonly ModelInput[];
  readonly outputs: readonly string[];
  /** The largest constant that the model compares positions with: a window, a number of position buckets. 0 for none. */
  readonly largestWindow: number;
}

/** Constants above this are taken for the "no limit" that exporters write as a large number. */
const LARGEST_WINDOW = 4096;

/** Operators whose result holds the elements of their first input, or of the inputs listed. */
const PASSES_ELEMENTS: Readonly<Record<string, readonly number[]>> = {
  Identity: [0],
  Cast: [0],
  Unsqueeze: [0],
  Squeeze: [0],
  Reshape: [0],
  Flatten: [0],
  Transpose: [0],
  Expand: [0],
  Slice: [0],
  Tile: [0],
  Clip: [0],
  Where: [1, 2],
  Concat: [0, 1],
};

const COMPARES_POSITIONS = new Set(['Less', 'LessOrEqual', 'Greater', 'GreaterOrEqual', 'Add', 'Sub', 'Min', 'Max']);

/** Reads what inputs a model takes, and which of their values make sense to it. */
export function readSignature(model: ModelProto, file?: string): ModelSignature {
  const graph = model.graph!;
  const nodes = [...allNodes(graph)];
  const constants = collectConstants(graph, nodes);
  const given = new Set(graph.initializer.map((tensor) => tensor.name));
  const inputs = graph.input
    .filter((input) => !given.has(input.name))
    .map((input): ModelInput => {
      const name = input.name ?? '';
      const tensor = input.type?.tensor_type;
      if (!tensor) throw new OrtFlashError('unsupported', 'an input is no tensor', place(file, name), GIVE_INPUTS);
      const dimensions = (tensor.shape?.dim ?? []).map((dim, axis): Dimension => {
        if (dim.dim_value !== null && dim.dim_value !== undefined) return dim.dim_value.toNumber();
        return dim.dim_param || `${name}.${axis}`;
      });
      const elementType = tensor.elem_type ?? 0;
      const isInteger = elementType === DataType.INT64 || elementType === DataType.INT32;
      return { name, elementType, dimensions, tableSize: isInteger ? findTable(name, nodes, constants) : undefined };
    });
  const outputs = graph.output.map((output) => output.name ?? '');
  return { inputs, outputs, largestWindow: findLargestWindow(nodes, constants) };
}

const GIVE_INPUTS = 'give its inputs with --inputs';

function place(file: string | undefined, tensor: string) {
  return file === undefined ? { tensor } : { file, tensor };
}

/** The nodes of a graph and of the graphs in its attributes. */
function* allNodes(graph: GraphProto): Generator<NodeProto> {
  for (const node of graph.node) {
    yield node;
    for (const attribute of node.attribute) for (const inner of graphsOf(attribute)) yield* allNodes(inner);
  }
}

function graphsOf(attribute: AttributeProto): GraphProto[] {
  return attribute.g ? [attribute.g, ...attribute.graphs] : attribute.graphs;
}

/** Tensors by name: initializers, and what Constant nodes hold. */
function collectConstants(graph: GraphProto, nodes: readonly NodeProto[]): Map<string, TensorProto> {
  const constants = new Map<string, TensorProto>();
  for (const tensor of graph.initializer) constants.set(tensor.name ?? '', tensor);
  for (const node of nodes) {
    if (node.op_type !== 'Constant') continue;
    const tensor = node.attribute.find((attribute) => attribute.name === 'value')?.t;
    if (tensor) constants.set(node.output[0] ?? '', tensor);
  }
  return constants;
}

/** The value of an integer constant of one element in this file; `undefined` for anything else. */
function integerConstant(tensor: TensorProto | undefined): number | undefined {
  if (!tensor || isExternal(tensor) || elementCount(tensor) !== 1) return undefined;
  if (tensor.data_type !== DataType.INT64 && tensor.data_type !== DataType.INT32) return undefined;
  return Number(tensorInts(tensor)[0]);
}

/** Follows an input to the Gather that looks it up, and returns how many values the smallest such table takes. */
function findTable(
  input: string,
  nodes: readonly NodeProto[],
  constants: ReadonlyMap<string, TensorProto>,
): number | undefined {
  // Largest amount added to the input's elements on the way to each value (OPT adds 2 to its positions).
  const added = new Map<string, number>([[input, 0]]);
  let smallest: number | undefined;
  const take = (table: number | undefined, offset: number) => {
    if (table !== undefined && table > offset) smallest = Math.min(smallest ?? table - offset, table - offset);
  };
  for (const node of nodes) {
    const at = (index: number) => added.get(node.input[index] ?? '');
    const pass = (offset: number | undefined) => {
      if (offset === undefined) return;
      for (const output of node.output) added.set(output, Math.max(offset, added.get(output) ?? 0));
    };
    const indices = at(1);
    if (node.op_type === 'Gather' && indices !== undefined) {
      take(tableLength(node, nodes, constants), indices);
    } else if (node.op_type === 'EmbedLayerNormalization') {
      for (const [ids, table] of [
        [0, 2],
        [1, 4],
      ] as const) {
        const offset = at(ids);
        if (offset !== undefined) take(constants.get(node.input[table] ?? '')?.dims[0]?.toNumber(), offset);
      }
    } else if (node.op_type === 'Add') {
      for (const [left, right] of [
        [0, 1],
        [1, 0],
      ] as const) {
        const offset = at(left);
        const step = integerConstant(constants.get(node.input[right] ?? ''));
        if (offset !== undefined && step !== undefined) pass(offset + Math.max(step, 0));
      }
    } else {
      for (const index of PASSES_ELEMENTS[node.op_type ?? ''] ?? []) pass(at(index));
    }
  }
  return smallest;
}

/** Length of the axis that a Gather indexes, where what it reads is a constant (possibly cast or dequantised). */
function tableLength(
  gather: NodeProto,
  nodes: readonly NodeProto[],
  constants: ReadonlyMap<string, TensorProto>,
): number | undefined {
  let name = gather.input[0] ?? '';
  for (let step = 0; step < 4; step++) {
    const table = constants.get(name);
    if (table) {
      const axis = gather.attribute.find((attribute) => attribute.name === 'axis')?.i?.toNumber() ?? 0;
      return table.dims.at(axis)?.toNumber();
    }
    const producer = nodes.find((node) => node.output.includes(name));
    if (!producer || !['Cast', 'Identity', 'DequantizeLinear'].includes(producer.op_type ?? '')) return undefined;
    name = producer.input[0] ?? '';
  }
  return undefined;
}

function findLargestWindow(nodes: readonly NodeProto[], constants: ReadonlyMap<string, TensorProto>): number {
  let largest = 0;
  for (const node of nodes) {
    if (!COMPARES_POSITIONS.has(node.op_type ?? '')) continue;
    for (const input of node.input) {
      const size = Math.abs(integerConstant(constants.get(input)) ?? 0);
      if (size <= LARGEST_WINDOW) largest = Math.max(largest, size);
    }
  }
  return largest;
}
