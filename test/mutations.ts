/** Damages model files, each time in the same way for the same seed. */
import Long from 'long';
import { decodeModel, encodeModel, encodeModelChunks } from '../graph-rewrite/onnx/codec.js';
import {
  AttributeProto,
  AttributeType,
  FunctionProto,
  GraphProto,
  type ModelProto,
  NodeProto,
  type TensorProto,
} from '../graph-rewrite/onnx/proto.js';

/** A source of choices. */
export class Choices {
  private state: number;

  constructor(seed: number) {
    this.state = (Math.imul(seed + 1, 0x9e3779b1) ^ 0x5bd1e995) >>> 0 || 1;
  }

  /** An integer from 0 to below `limit`. */
  below(limit: number): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return Math.floor(((this.state >>> 0) / 2 ** 32) * limit);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}

const HUGE = ['9223372036854775807', '-9223372036854775808', '4611686018427387904', '-1', '0', '1000000007'] as const;

/** Where to damage a file: mostly not within large weights, where nothing depends on the bytes. */
function position(bytes: Uint8Array, choices: Choices): number {
  if (choices.below(8) === 0) return choices.below(bytes.length);
  const ranges: { start: number; length: number }[] = [];
  let start = 0;
  for (const chunk of encodeModelChunks(decodeModel(bytes))) {
    if (chunk.buffer !== bytes.buffer) ranges.push({ start, length: chunk.length });
    start += chunk.length;
  }
  let at = choices.below(ranges.reduce((sum, range) => sum + range.length, 0));
  for (const range of ranges) {
    if (at < range.length) return range.start + at;
    at -= range.length;
  }
  return 0;
}

/** Damage to a file's bytes. */
const BYTE_MUTATIONS: Readonly<Record<string, (bytes: Uint8Array, choices: Choices) => Uint8Array>> = {
  truncation: (bytes, choices) => bytes.slice(0, choices.below(bytes.length)),
  'bit flips': (bytes, choices) => {
    const copy = bytes.slice();
    for (let n = 1 + choices.below(8); n > 0; n--) copy[position(bytes, choices)]! ^= 1 << choices.below(8);
    return copy;
  },
  'length bombs': (bytes, choices) => {
    const at = position(bytes, choices);
    return join(
      bytes.subarray(0, at),
      Uint8Array.of(0xff, 0xff, 0xff, 0xff, choices.below(16)),
      bytes.subarray(at + 5),
    );
  },
  'bytes removed': (bytes, choices) => {
    const at = position(bytes, choices);
    return join(bytes.subarray(0, at), bytes.subarray(at + 1 + choices.below(64)));
  },
  'bytes repeated': (bytes, choices) => {
    const at = position(bytes, choices);
    const end = at + 1 + choices.below(4096);
    return join(bytes.subarray(0, end), bytes.subarray(at));
  },
  'bytes of another place': (bytes, choices) => {
    const copy = bytes.slice();
    const length = 1 + choices.below(256);
    const from = position(bytes, choices);
    copy.copyWithin(position(bytes, choices), from, from + length);
    return copy;
  },
  'nested groups': (bytes, choices) => {
    const at = position(bytes, choices);
    return join(bytes.subarray(0, at), new Uint8Array(1 + choices.below(5000)).fill(0x0b), bytes.subarray(at));
  },
};

function join(...parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

type MessageMutation = (model: ModelProto, graph: GraphProto, choices: Choices) => void;

function swap<T>(items: T[], choices: Choices): void {
  if (items.length < 2) return;
  const [a, b] = [choices.below(items.length), choices.below(items.length)];
  [items[a], items[b]] = [items[b]!, items[a]!];
}

function anyNode(graph: GraphProto, choices: Choices, wanted: (node: NodeProto) => boolean): NodeProto | undefined {
  const nodes = graph.node.filter(wanted);
  return nodes.length > 0 ? choices.pick(nodes) : undefined;
}

/** Every tensor that a pass might read: initializers and the values of constants. */
function tensors(graph: GraphProto): TensorProto[] {
  return [...graph.initializer, ...graph.node.flatMap((node) => node.attribute.flatMap((a) => (a.t ? [a.t] : [])))];
}

/** Damage to what a file says, well-formed as bytes. */
const MESSAGE_MUTATIONS: Readonly<Record<string, MessageMutation>> = {
  'nodes swapped': (_, graph, choices) => swap(graph.node, choices),
  'inputs of a node swapped': (_, graph, choices) => {
    const node = anyNode(graph, choices, (n) => n.input.length > 1);
    if (node) swap(node.input, choices);
  },
  'inputs of two nodes swapped': (_, graph, choices) => {
    const [a, b] = [choices.pick(graph.node), choices.pick(graph.node)];
    [a.input, b.input] = [b.input, a.input];
  },
  'operators swapped': (_, graph, choices) => {
    const [a, b] = [choices.pick(graph.node), choices.pick(graph.node)];
    [a.op_type, b.op_type] = [b.op_type, a.op_type];
  },
  'attributes swapped': (_, graph, choices) => {
    const [a, b] = [choices.pick(graph.node), choices.pick(graph.node)];
    [a.attribute, b.attribute] = [b.attribute, a.attribute];
  },
  'a cycle': (_, graph, choices) => {
    const node = anyNode(graph, choices, (n) => n.input.length > 0);
    if (node) node.input[choices.below(node.input.length)] = choices.pick(choices.pick(graph.node).output);
  },
  'a tensor missing': (_, graph, choices) => {
    graph.initializer.splice(choices.below(graph.initializer.length), 1);
  },
  'a node missing': (_, graph, choices) => {
    graph.node.splice(choices.below(graph.node.length), 1);
  },
  'an input or output left out': (_, graph, choices) => {
    const node = choices.pick(graph.node);
    const names = choices.below(2) === 0 ? node.input : node.output;
    if (choices.below(2) === 0) names.pop();
    else if (names.length > 0) names[choices.below(names.length)] = '';
  },
  'huge dimensions of a tensor': (_, graph, choices) => {
    const tensor = choices.pick(tensors(graph));
    const dims = Array.from({ length: choices.below(4) }, () => Long.fromString(choices.pick(HUGE)));
    tensor.dims = [...tensor.dims, ...dims];
  },
  'huge dimensions of an input': (_, graph, choices) => {
    const dims = choices.pick(graph.input).type?.tensor_type?.shape?.dim ?? [];
    if (dims.length === 0) return;
    const dim = choices.pick(dims);
    dim.dim_param = null;
    dim.dim_value = Long.fromString(choices.pick(HUGE));
  },
  'huge values of a shape': (_, graph, choices) => {
    const small = tensors(graph).filter((t) => t.data_type === 7 && (t.raw_data?.length ?? 0) > 0);
    if (small.length === 0) return;
    const tensor = choices.pick(small);
    const data = tensor.raw_data!.slice();
    const value = Long.fromString(choices.pick(HUGE));
    data.set(value.toBytesLE(), choices.below(data.length >> 3) * 8);
    tensor.raw_data = data;
  },
  'huge values of an attribute': (_, graph, choices) => {
    const node = anyNode(graph, choices, (n) => n.attribute.some((a) => a.i !== null || a.ints.length > 0));
    const attribute = node?.attribute.find((a) => a.i !== null || a.ints.length > 0);
    if (!attribute) return;
    const value = Long.fromString(choices.pick(HUGE));
    if (attribute.ints.length > 0) attribute.ints[choices.below(attribute.ints.length)] = value;
    else attribute.i = value;
  },
  'not-a-number in a constant': (_, graph, choices) => {
    const floats = tensors(graph).filter((t) => t.data_type === 1 && (t.raw_data?.length ?? 0) > 0);
    if (floats.length === 0) return;
    const tensor = choices.pick(floats);
    tensor.raw_data = new Uint8Array(tensor.raw_data!.length).fill(0xff);
  },
  'another data type': (_, graph, choices) => {
    choices.pick(tensors(graph)).data_type = choices.below(30);
  },
  'another type of an input': (_, graph, choices) => {
    const type = choices.pick([...graph.input, ...graph.output, ...graph.value_info]).type?.tensor_type;
    if (type) type.elem_type = choices.below(30);
  },
  'another rank of a value': (_, graph, choices) => {
    const shape = choices.pick([...graph.input, ...graph.output, ...graph.value_info]).type?.tensor_type?.shape;
    if (shape) shape.dim = shape.dim.slice(0, choices.below(shape.dim.length + 1));
  },
  'another operator set': (model, _, choices) => {
    if (model.opset_import.length > 0) model.opset_import[0]!.version = Long.fromInt(choices.pick([0, 1, 6, 12, 999]));
  },
  'a value named twice': (_, graph, choices) => {
    const node = anyNode(graph, choices, (n) => n.output.length > 0);
    if (node) node.output[0] = choices.pick(choices.pick(graph.node).output);
  },
  'deep subgraphs': (_, graph, choices) => {
    let inner = GraphProto.create();
    for (let depth = choices.below(60); depth > 0; depth--) {
      const attribute = AttributeProto.create({ name: 'body', type: AttributeType.GRAPH, g: inner });
      inner = GraphProto.create({ node: [NodeProto.create({ op_type: 'Loop', attribute: [attribute] })] });
    }
    graph.node.push(...inner.node);
  },
  'a function that calls itself': (model, graph, choices) => {
    const target = choices.pick(graph.node);
    const call = NodeProto.create({ op_type: 'Again', domain: 'local', input: ['a'], output: ['b'] });
    const properties = {
      name: 'Again',
      domain: 'local',
      input: ['a'],
      output: ['b'],
      opset_import: model.opset_import,
    };
    model.functions.push(FunctionProto.create({ ...properties, node: [call] }));
    target.domain = 'local';
    target.op_type = 'Again';
  },
};

/** Every kind of damage. */
export const MUTATIONS: readonly string[] = [...Object.keys(BYTE_MUTATIONS), ...Object.keys(MESSAGE_MUTATIONS)];

/** A damaged copy of a valid model file. */
export function mutate(bytes: Uint8Array, kind: string, seed: number): Uint8Array {
  const choices = new Choices(seed);
  const damage = BYTE_MUTATIONS[kind];
  if (damage) return damage(bytes, choices);
  const model = decodeModel(bytes);
  MESSAGE_MUTATIONS[kind]!(model, model.graph!, choices);
  try {
    return encodeModel(model);
  } catch {
    return bytes; // nested too deep to be a file at all
  }
}
