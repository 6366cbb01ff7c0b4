import type { Model, Node, Value } from '../../graph-rewrite/graph/graph.js';
import { DataType } from '../../graph-rewrite/onnx/proto.js';
import { elementCount } from '../../graph-rewrite/onnx/tensor.js';
import type { Inference } from '../../graph-rewrite/shape/inference.js';

const INTEGERS: ReadonlySet<number> = new Set([DataType.INT32, DataType.INT64, DataType.BOOL]);

/**
 * Constants of more elements are weights, and what is computed with them is the model's own work. Frequencies of rotary
 * embeddings are half as many as a head is wide.
 */
const LARGEST_CONSTANT = 512;

/** From this version on, ONNX Runtime has sines and cosines on the CPU only: opset 22 defines them anew, for bfloat16. */
const ANGLES_ON_CPU = 22;

/** Bytes of the longest list of names that ONNX Runtime takes. */
const LONGEST_LIST = 8191;

/**
 * The nodes to be kept on the CPU: those that compute on integers and booleans alone (positions, shapes, masks), and
 * what is made of them alone and leads back to the CPU, such as the logarithms that T5 sorts distances by, and the
 * angles of rotary embeddings. ONNX Runtime would split them between CPU and GPU, operator by operator, and read back in
 * between.
 */
export function findCpuNodes(model: Model, inference: Inference): ReadonlySet<Node> {
  const isInteger = (value: Value) => INTEGERS.has(inference.of(value).type ?? 0);
  const found = new Set<Node>();
  const between = new Set<Node>();
  for (const node of model.graph.nodes) {
    if (node.subgraphs.length > 0 || isLargeOrRandom(node)) continue;
    const inputs = node.inputs.filter((value) => value !== undefined);
    const outputs = node.outputs.filter((value) => value !== undefined);
    if ([...inputs, ...outputs].every(isInteger)) found.add(node);
    else if (inputs.every((value) => isInteger(value) || isSmall(value) || isFrom(between, value))) between.add(node);
  }
  if (model.opset() >= ANGLES_ON_CPU) for (const node of between) if (node.is('Sin', 'Cos')) found.add(node);
  for (const node of [...found]) for (const value of node.inputs) if (value) addProducers(value, between, found);
  return found;
}

function addProducers(value: Value, between: ReadonlySet<Node>, found: Set<Node>): void {
  const { producer } = value;
  if (!producer || found.has(producer) || !between.has(producer)) return;
  found.add(producer);
  for (const input of producer.inputs) if (input) addProducers(input, between, found);
}

const isFrom = (nodes: ReadonlySet<Node>, { producer }: Value) => producer !== undefined && nodes.has(producer);

/** Nodes without inputs hold a constant or make random numbers. */
function isLargeOrRandom(node: Node): boolean {
  if (node.inputs.length > 0) return false;
  const tensor = node.attribute('value')?.t;
  return !node.is('Constant') || (tensor !== null && tensor !== undefined && elementCount(tensor) > LARGEST_CONSTANT);
}

function isSmall({ initializer }: Value): boolean {
  return initializer !== undefined && elementCount(initializer) <= LARGEST_CONSTANT;
}

/**
 * Names by which ONNX Runtime is told of nodes: their own, those of their first outputs where they have none, and
 * numbers where names are too long together.
 */
export function nameNodes(nodes: Iterable<Node>): void {
  const all = [...nodes];
  for (const { proto } of all) proto.name ||= `${proto.op_type} → ${proto.output.find((name) => name !== '')}`;
  const length = all.reduce((sum, { proto }) => sum + listed(proto.name!), 0);
  // Half is left to the user's own list.
  if (length > LONGEST_LIST / 2) for (const [i, { proto }] of all.entries()) proto.name = `#${i.toString(36)}`;
}

/** As many of the names as ONNX Runtime takes; nodes that it is not told of run where it likes, only slower. */
export function fitNames(names: readonly string[]): readonly string[] {
  let length = 0;
  return names.filter((name) => {
    length += listed(name);
    return length <= LONGEST_LIST;
  });
}

/** Bytes of a name and its separator. */
function listed(name: string): number {
  return new TextEncoder().encode(name).length + 1;
}
