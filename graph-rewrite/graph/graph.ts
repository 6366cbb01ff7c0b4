import { OrtFlashError } from '../errors.js';
import type {
  AttributeProto,
  GraphProto,
  ModelProto,
  NodeProto,
  SparseTensorProto,
  TensorProto,
  ValueInfoProto,
} from '../onnx/proto.js';

/** One place that reads a value: an input of a node, possibly of a node inside a subgraph. */
export interface Use {
  readonly node: Node;
  readonly index: number;
}

/** A named tensor: a graph input, an initializer, or a node's output. */
export class Value {
  readonly name: string;
  readonly graph: Graph;
  producer: Node | undefined;
  /** Which output of the producer this is. */
  outputIndex = 0;
  readonly uses: Use[] = [];
  isInput = false;
  isOutput = false;
  initializer: TensorProto | undefined;
  sparseInitializer: SparseTensorProto | undefined;
  /** Type and shape as the file states them, where it does. */
  info: ValueInfoProto | undefined;

  constructor(name: string, graph: Graph) {
    this.name = name;
    this.graph = graph;
  }
}

/** An operator application, tied to the values that it reads and writes. */
export class Node {
  readonly proto: NodeProto;
  readonly graph: Graph;
  /** `undefined` where an optional input is left out. */
  readonly inputs: (Value | undefined)[] = [];
  readonly outputs: (Value | undefined)[] = [];
  /** Graphs held in attributes (If, Loop, Scan). */
  readonly subgraphs: Graph[] = [];

  constructor(proto: NodeProto, graph: Graph) {
    this.proto = proto;
    this.graph = graph;
  }

  get opType(): string {
    return this.proto.op_type ?? '';
  }

  /** The operator's domain, with `ai.onnx` written as the empty string. */
  get domain(): string {
    const domain = this.proto.domain ?? '';
    return domain === 'ai.onnx' ? '' : domain;
  }

  /** Name for messages: the node's own, or its operator and first output. */
  get label(): string {
    return this.proto.name || `${this.opType} → ${this.proto.output.find((o) => o !== '') ?? '?'}`;
  }

  /** Whether this is an operator of the ONNX standard with one of these names. */
  is(...opTypes: string[]): boolean {
    return this.domain === '' && opTypes.includes(this.opType);
  }

  attribute(name: string): AttributeProto | undefined {
    return this.proto.attribute.find((a) => a.name === name);
  }

  int(name: string): number | undefined {
    return this.attribute(name)?.i?.toNumber();
  }

  ints(name: string): number[] | undefined {
    return this.attribute(name)?.ints.map((i) => i.toNumber());
  }

  float(name: string): number | undefined {
    return this.attribute(name)?.f ?? undefined;
  }

  string(name: string): string | undefined {
    const bytes = this.attribute(name)?.s;
    return bytes ? new TextDecoder().decode(bytes) : undefined;
  }
}

/**
 * A graph with its uses resolved, over the protobuf message that it came from. Edits go through its methods and reach
 * the message with {@link Graph.commit}; nodes keep the order of the file.
 */
export class Graph {
  readonly proto: GraphProto;
  /** The graph around this one, whose values it may read. */
  readonly parent: Graph | undefined;
  readonly model: Model;
  nodes: Node[] = [];
  readonly inputs: Value[] = [];
  readonly outputs: Value[] = [];
  readonly #values = new Map<string, Value>();

  constructor(proto: GraphProto, model: Model, parent: Graph | undefined) {
    this.proto = proto;
    this.model = model;
    this.parent = parent;
    const constants = new Set(model.hasFixedInitializers ? proto.initializer.map(({ name }) => name) : []);
    for (const input of proto.input) {
      const value = this.#define(input.name ?? '');
      value.info = input;
      if (constants.has(input.name)) continue;
      value.isInput = true;
      this.inputs.push(value);
    }
    for (const tensor of proto.initializer) this.#define(tensor.name ?? '').initializer = tensor;
    for (const sparse of proto.sparse_initializer)
      this.#define(sparse.values?.name ?? '').sparseInitializer = sparse as SparseTensorProto;
    for (const node of proto.node) this.nodes.push(this.#connect(node));
    for (const info of proto.value_info) {
      const value = this.#values.get(info.name ?? '');
      if (value) value.info ??= info;
    }
    for (const output of proto.output) {
      const value = this.value(output.name ?? '');
      if (!value)
        throw new OrtFlashError('malformed-model', 'a graph output is not computed', { tensor: output.name ?? '' });
      value.isOutput = true;
      value.info ??= output;
      this.outputs.push(value);
    }
  }

  /** The value of this name, here or in a graph around this one. */
  value(name: string): Value | undefined {
    return this.#values.get(name) ?? this.parent?.value(name);
  }

  /** Every value defined in this graph itself. */
  get values(): IterableIterator<Value> {
    return this.#values.values();
  }

  #define(name: string): Value {
    let value = this.#values.get(name);
    if (!value) {
      value = new Value(name, this);
      this.#values.set(name, value);
      this.model.claimName(name);
    }
    return value;
  }

  #connect(proto: NodeProto): Node {
    const node = new Node(proto, this);
    for (const [index, name] of proto.input.entries()) {
      const value = name === '' ? undefined : this.value(name);
      if (name !== '' && !value)
        throw new OrtFlashError(
          'malformed-model',
          'a node reads a value that nothing before it computes (missing, or part of a cycle)',
          { node: node.label, tensor: name },
        );
      node.inputs.push(value);
      value?.uses.push({ node, index });
    }
    for (const [index, name] of proto.output.entries()) {
      if (name === '') {
        node.outputs.push(undefined);
        continue;
      }
      const value = this.#define(name);
      if (value.producer || value.isInput || value.initializer)
        throw new OrtFlashError('malformed-model', 'a value is computed twice', { node: node.label, tensor: name });
      value.producer = node;
      value.outputIndex = index;
      node.outputs.push(value);
    }
    for (const attribute of proto.attribute) {
      if (attribute.g) node.subgraphs.push(new Graph(attribute.g, this.model, this));
      for (const graph of attribute.graphs) node.subgraphs.push(new Graph(graph, this.model, this));
    }
    return node;
  }

  /**
   * Puts nodes in the place of one, in order. An output of theirs may carry a name that the old node computed: the uses
   * of that value pass to the new node.
   */
  replace(old: Node, protos: readonly NodeProto[]): Node[] {
    const at = this.nodes.indexOf(old);
    this.remove(old);
    const nodes = protos.map((proto) => this.#connect(proto));
    this.nodes.splice(at, 0, ...nodes);
    return nodes;
  }

  /** Adds a constant under a name nothing else has. */
  addInitializer(tensor: TensorProto): Value {
    this.proto.initializer.push(tensor);
    const value = this.#define(tensor.name ?? '');
    value.initializer = tensor;
    return value;
  }

  /** Makes a node read another value. */
  setInput(node: Node, index: number, value: Value): void {
    const old = node.inputs[index];
    if (old) removeUse(old, node, index);
    node.inputs[index] = value;
    node.proto.input[index] = value.name;
    value.uses.push({ node, index });
  }

  /** Takes a node out; its outputs stay as values without a producer until another node computes them. */
  remove(node: Node): void {
    for (const [index, value] of node.inputs.entries()) if (value) removeUse(value, node, index);
    for (const value of node.outputs) if (value) value.producer = undefined;
    for (const inner of node.subgraphs) for (const n of [...inner.nodes]) inner.remove(n);
    this.nodes.splice(this.nodes.indexOf(node), 1);
  }

  /**
   * Removes those of the candidates whose outputs nothing reads, then whatever only they needed, initializers included.
   * Code that was dead before stays.
   * @returns the nodes removed.
   */
  removeDead(candidates: Iterable<Node>): Node[] {
    const queue = new Set(candidates);
    const removed: Node[] = [];
    for (const node of queue) {
      queue.delete(node);
      if (!node.graph.nodes.includes(node)) continue;
      if (node.outputs.some((o) => o && (o.isOutput || o.uses.length > 0))) continue;
      const inputs = node.inputs.filter((v) => v !== undefined);
      node.graph.remove(node);
      removed.push(node);
      for (const value of inputs) {
        if (value.producer) queue.add(value.producer);
        else value.graph.#dropInitializer(value);
      }
    }
    return removed;
  }

  #dropInitializer(value: Value): void {
    if (!value.initializer || value.isInput || value.isOutput || value.uses.length > 0) return;
    const at = this.proto.initializer.indexOf(value.initializer);
    if (at >= 0) this.proto.initializer.splice(at, 1);
    this.proto.input = this.proto.input.filter(({ name }) => name !== value.name);
    this.#values.delete(value.name);
  }

  /** Writes the edits back into the message: node order, and value_info of values that are gone dropped. */
  commit(): void {
    this.proto.node = this.nodes.map((n) => n.proto);
    const exists = (v: Value) => v.producer || v.isInput || v.initializer || v.sparseInitializer;
    const gone = new Set<string>();
    for (const value of this.#values.values()) if (!exists(value)) gone.add(value.name);
    this.proto.value_info = this.proto.value_info.filter((info) => !gone.has(info.name ?? ''));
    for (const node of this.nodes) for (const inner of node.subgraphs) inner.commit();
  }
}

function removeUse(value: Value, node: Node, index: number): void {
  const at = value.uses.findIndex((u) => u.node === node && u.index === index);
  if (at >= 0) value.uses.splice(at, 1);
}

/** The first IR version in which an initializer of an input's name is that input's default. */
export const FIRST_IR_WITH_DEFAULTS = 4;

/** A model as graphs: the main one, reached with its subgraphs, and what they share. */
export class Model {
  readonly proto: ModelProto;
  readonly graph: Graph;
  readonly #names = new Set<string>();

  /** @throws OrtFlashError `malformed-model` where a value is missing, computed twice, or the graph has a cycle. */
  constructor(proto: ModelProto) {
    this.proto = proto;
    if (!proto.graph) throw new OrtFlashError('malformed-model', 'the model has no graph');
    this.graph = new Graph(proto.graph, this, undefined);
  }

  /** Before IR version 4 every initializer is listed among the inputs, and none is one: they cannot be overridden. */
  get hasFixedInitializers(): boolean {
    return (this.proto.ir_version?.toNumber() ?? 0) < FIRST_IR_WITH_DEFAULTS;
  }

  /** Version of a domain's operators that the model imports; the empty domain is `ai.onnx`. */
  opset(domain = ''): number {
    const match = this.proto.opset_import.find(
      (o) => (o.domain ?? '') === domain || (domain === '' && o.domain === 'ai.onnx'),
    );
    return match?.version?.toNumber() ?? (domain === '' ? 1 : 0);
  }

  /** Every graph, outer ones first. */
  *graphs(): Generator<Graph> {
    const queue = [this.graph];
    for (const graph of queue) {
      yield graph;
      for (const node of graph.nodes) queue.push(...node.subgraphs);
    }
  }

  claimName(name: string): void {
    this.#names.add(name);
  }

  /** A value name that no graph of the model uses, derived from this one. */
  freshName(base: string): string {
    let name = base;
    for (let n = 1; this.#names.has(name); n++) name = `${base}_${n}`;
    this.#names.add(name);
    return name;
  }
}

/**
 * Whether everything that a node computes ends up in some of these nodes and nowhere else, so that it dies with them:
 * the arithmetic on shapes around a Reshape that is no longer needed.
 */
export function feedsOnly(node: Node, targets: ReadonlySet<Node>, seen = new Set<Node>()): boolean {
  if (targets.has(node) || seen.has(node)) return true;
  seen.add(node);
  if (seen.size > 256 || node.subgraphs.length > 0) return false;
  return node.outputs.every((v) => !v || (!v.isOutput && v.uses.every((u) => feedsOnly(u.node, targets, seen))));
}
