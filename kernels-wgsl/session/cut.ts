import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { type Graph, Model, type Node, type Value } from '../../graph-rewrite/graph/graph.js';
import { dataTypeInfo } from '../../graph-rewrite/onnx/data-type.js';
import { GraphProto, ModelProto, type TensorProto } from '../../graph-rewrite/onnx/proto.js';
import { elementCount } from '../../graph-rewrite/onnx/tensor.js';
import { subgraphs } from '../../graph-rewrite/onnx/walk.js';
import {
  FLASH_ATTENTION_DOMAIN,
  FLASH_ATTENTION_OUTPUTS,
  type FlashAttentionAttributes,
  type FlashAttentionInput,
  type FlashAttentionOutput,
} from '../../graph-rewrite/op/definition.js';
import { isFlashAttention, readAttributes, readInputs } from '../../graph-rewrite/op/node.js';
import { Inference } from '../../graph-rewrite/shape/inference.js';
import { type SymbolicShapes, type SymbolicSizes, symbolicSizes } from './attention-sizes.js';
import { findCpuNodes, nameNodes } from './cpu-nodes.js';
import { type Placement, placeNodes, readsOf } from './placement.js';
import { describeValue } from './value-info.js';

/** A weight that several segments read is kept once, from so many bytes on. */
const LEAST_SHARED = 1 << 16;

/** A part of the model that ONNX Runtime runs. */
export interface SegmentStep {
  readonly kind: 'segment';
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Inputs of which nothing but the shape is read. */
  readonly shapeInputs: readonly string[];
  /** Names of the nodes that are to run on the CPU; see {@link findCpuNodes}. */
  readonly cpuNodes: readonly string[];
}

/** One `FlashAttention` node between two segments. */
export interface AttentionCall {
  /** The node's name, for messages. */
  readonly label: string;
  readonly attributes: FlashAttentionAttributes;
  /** Names of the values read. */
  readonly inputs: Readonly<Partial<Record<FlashAttentionInput, string>>>;
  /** Names of the values computed. */
  readonly outputs: Readonly<Partial<Record<FlashAttentionOutput, string>>>;
  /**
   * Past keys and values come from the caller and are read here alone, the present ones go to the caller alone: a cache
   * that may grow in place.
   */
  readonly growsCache: boolean;
  /** Over the symbols of the inputs' shapes. */
  readonly sizes: SymbolicSizes;
}

/** Attentions that are encoded together, between two segments. */
export interface AttentionStep {
  readonly kind: 'attention';
  readonly calls: readonly AttentionCall[];
}

export type SpliceStep = SegmentStep | AttentionStep;

/** A model cut at its `FlashAttention` nodes: steps to be carried out in order. */
export interface SplicePlan {
  readonly steps: readonly SpliceStep[];
  /** Each segment as a model of its own; its inputs and outputs carry the names that they have in the whole. */
  readonly models: ReadonlyMap<SegmentStep, ModelProto>;
  /** Constants that are fed to the steps that name them among their inputs: weights of several segments, masks. */
  readonly constants: ReadonlyMap<string, TensorProto>;
  /** Values that `FlashAttention` reads, and so must be on the GPU. */
  readonly attended: ReadonlySet<string>;
  /** TensorProto data type of every value that passes between steps. */
  readonly types: ReadonlyMap<string, number>;
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** Of inputs whose rank is known. */
  readonly inputShapes: SymbolicShapes;
}

/** What a `FlashAttention` node computes on, as far as the model tells. */
export interface AttentionFacts {
  /** TensorProto data type of the queries. */
  readonly elementType: number | undefined;
  /** Undefined where it depends on the inputs' shapes. */
  readonly headDimension: number | undefined;
  readonly valueDimension: number | undefined;
}

/**
 * Cuts a rewritten model at the `FlashAttention` nodes of its main graph, into as few parts as their longest chain
 * needs. Nodes inside subgraphs stay, with their function bodies. Tensor data is shared with the model, not copied.
 * @param takes whether the kernels take a node; others stay in their segments, with their function bodies
 * @throws OrtFlashError `unsupported` where the model cannot be cut, with the reason
 */
export function cutModel(proto: ModelProto, takes: (facts: AttentionFacts) => boolean = () => true): SplicePlan {
  const model = new Model(proto);
  const { graph } = model;
  readThrough(graph);
  const inference = new Inference(model);
  const cuts = new Set(
    graph.nodes.filter((node) => isFlashAttention(node.proto) && takes(attentionFacts(node, inference))),
  );
  for (const output of graph.outputs)
    if (!output.producer)
      throw new OrtFlashError('unsupported', 'an output that is an input or a constant cannot be spliced', {
        tensor: output.name,
      });
  const placement = placeNodes(graph, (node) => cuts.has(node), constantBytes);
  return new Cutter(model, inference, placement).plan();
}

function attentionFacts(node: Node, inference: Inference): AttentionFacts {
  const { headDimension, valueDimension } = symbolicSizes(node, inference);
  return {
    elementType: node.inputs[0] && inference.of(node.inputs[0]).type,
    headDimension: headDimension?.value,
    valueDimension: valueDimension?.value,
  };
}

/** Bytes of a constant; undefined for other values. Graph inputs with a default count as constants. */
function constantBytes(value: Value): number | undefined {
  if (value.producer) return undefined;
  if (value.initializer) return tensorBytes(value.initializer);
  return value.isInput ? undefined : 0;
}

function tensorBytes(tensor: TensorProto): number {
  return Math.ceil((elementCount(tensor) * (dataTypeInfo(tensor.data_type)?.bits ?? 8)) / 8);
}

class Cutter {
  readonly #graph: Graph;
  readonly #nodes: Node[][];
  readonly #types = new Map<string, number>();
  readonly #constants = new Map<string, TensorProto>();
  readonly #models = new Map<SegmentStep, ModelProto>();
  readonly #attended = new Set<string>();
  readonly #shared: ReadonlySet<Value>;
  readonly #cpuNodes: ReadonlySet<Node>;

  constructor(
    readonly model: Model,
    readonly inference: Inference,
    readonly placement: Placement,
  ) {
    this.#graph = model.graph;
    this.#nodes = Array.from({ length: placement.count }, (_, segment) =>
      this.#graph.nodes.filter((node) => placement.segments.get(node)?.has(segment)),
    );
    this.#shared = this.#sharedWeights();
    this.#cpuNodes = findCpuNodes(model, inference);
    nameNodes([...this.#cpuNodes].filter((node) => placement.segments.has(node)));
  }

  plan(): SplicePlan {
    const wanted = this.#crossing();
    const steps: SpliceStep[] = [];
    for (let segment = 0; segment < this.placement.count; segment++) {
      if (this.#nodes[segment]!.length > 0) steps.push(this.#segment(segment, wanted));
      const calls = this.#graph.nodes.filter((node) => this.placement.attentions.get(node) === segment);
      if (calls.length > 0) steps.push({ kind: 'attention', calls: calls.map((node) => this.#call(node)) });
    }
    return {
      steps,
      models: this.#models,
      constants: this.#constants,
      attended: this.#attended,
      types: this.#types,
      inputNames: this.#graph.inputs.filter((value) => !value.initializer).map((value) => value.name),
      outputNames: this.#graph.outputs.map((value) => value.name),
      inputShapes: new Map(
        this.#graph.inputs.flatMap((value) => {
          const { shape } = this.inference.of(value);
          return shape ? [[value.name, shape] as const] : [];
        }),
      ),
    };
  }

  /** Weights that more than one segment would hold. */
  #sharedWeights(): ReadonlySet<Value> {
    const users = new Map<Value, number>();
    for (const nodes of this.#nodes) {
      const read = new Set(nodes.flatMap(readsOf));
      for (const value of read) if (value.initializer) users.set(value, (users.get(value) ?? 0) + 1);
    }
    const isShared = ([value, count]: [Value, number]) =>
      count > 1 && isFloat(value.initializer!) && tensorBytes(value.initializer!) >= LEAST_SHARED;
    return new Set([...users].filter(isShared).map(([value]) => value));
  }

  /** Computed values that a later step or the caller reads. */
  #crossing(): ReadonlySet<Value> {
    const wanted = new Set(this.#graph.outputs);
    for (const nodes of this.#nodes) {
      const computed = new Set(nodes.flatMap((node) => node.outputs));
      for (const value of nodes.flatMap(readsOf)) if (value.producer && !computed.has(value)) wanted.add(value);
    }
    for (const node of this.placement.attentions.keys())
      for (const value of node.inputs) if (value?.producer) wanted.add(value);
    return wanted;
  }

  #segment(segment: number, wanted: ReadonlySet<Value>): SegmentStep {
    const nodes = this.#nodes[segment]!;
    const computed = new Set(nodes.flatMap((node) => node.outputs.filter((value) => value !== undefined)));
    const read = new Set(nodes.flatMap(readsOf).filter((value) => !computed.has(value)));
    const isConstant = (value: Value) => constantBytes(value) !== undefined && !this.#shared.has(value);
    const readsElements = (value: Value) => nodes.some((node) => !takesShape(node) && readsOf(node).includes(value));
    const inputs = [...read].filter((value) => !isConstant(value));
    // What several segments compute, the first one gives.
    const outputs = [...computed].filter(
      (value) => wanted.has(value) && Math.min(...this.placement.segments.get(value.producer!)!) === segment,
    );
    for (const value of inputs) if (value.initializer) this.#constants.set(value.name, value.initializer);
    const names = new Set([...read].filter(isConstant).map((value) => value.name));
    const { proto } = this.#graph;
    const inner = new Set([...computed].map((value) => value.name));
    const part = new GraphProto({
      name: `${proto.name ?? 'graph'} (${segment})`,
      node: nodes.map((node) => node.proto),
      input: inputs.map((value) => this.#describe(value)),
      output: outputs.map((value) => this.#describe(value)),
      initializer: proto.initializer.filter((tensor) => names.has(tensor.name ?? '')),
      sparse_initializer: proto.sparse_initializer.filter((tensor) => names.has(tensor.values?.name ?? '')),
      value_info: proto.value_info.filter((info) => inner.has(info.name ?? '')),
    });
    const step: SegmentStep = {
      kind: 'segment',
      inputs: inputs.map((value) => value.name),
      outputs: outputs.map((value) => value.name),
      shapeInputs: inputs.filter((value) => !readsElements(value)).map((value) => value.name),
      cpuNodes: nodes.filter((node) => this.#cpuNodes.has(node)).map(({ proto }) => proto.name!),
    };
    this.#models.set(step, this.#wrap(part));
    return step;
  }

  #describe(value: Value) {
    const info = describeValue(value, this.inference);
    this.#types.set(value.name, info.type!.tensor_type!.elem_type!);
    return info;
  }

  /** The part as a model: the whole's operator versions, and those of its functions that the part may call. */
  #wrap(part: GraphProto): ModelProto {
    const { proto } = this.model;
    const overloads = overloadsIn(part);
    const isOurs = (domain: string | null | undefined) => domain === FLASH_ATTENTION_DOMAIN;
    return new ModelProto({
      ir_version: proto.ir_version,
      producer_name: proto.producer_name,
      opset_import: proto.opset_import.filter((o) => overloads.size > 0 || !isOurs(o.domain)),
      functions: proto.functions.filter((f) => !isOurs(f.domain) || overloads.has(f.overload ?? '')),
      graph: part,
    });
  }

  #call(node: Node): AttentionCall {
    const inputs = readInputs(node.proto);
    for (const name of Object.values(inputs)) {
      const value = this.#graph.value(name)!;
      this.#attended.add(name);
      if (!value.producer && value.initializer) this.#constants.set(name, value.initializer);
      this.#describe(value);
    }
    const named = FLASH_ATTENTION_OUTPUTS.map((output, i) => [output, node.proto.output[i] ?? ''] as const);
    const outputs = Object.fromEntries(named.filter(([, name]) => name !== ''));
    for (const name of Object.values(outputs)) this.#describe(this.#graph.value(name)!);
    const growsCache = this.#growsCache(node, inputs, outputs);
    const sizes = symbolicSizes(node, this.inference, growsCache);
    return { label: node.label, attributes: readAttributes(node.proto), inputs, outputs, growsCache, sizes };
  }

  #growsCache(node: Node, inputs: AttentionCall['inputs'], outputs: AttentionCall['outputs']): boolean {
    const users = (value: Value) =>
      [...this.placement.segments.keys(), ...this.placement.attentions.keys()].filter((user) =>
        readsOf(user).includes(value),
      );
    const isOwnPast = (name: string | undefined) => {
      const value = name === undefined ? undefined : this.#graph.value(name);
      if (value === undefined || !value.isInput || value.initializer) return false;
      return (
        users(value).every((user) => user === node || takesShape(user)) &&
        node.inputs.filter((input) => input === value).length === 1
      );
    };
    const goesToCaller = (name: string | undefined) => {
      const value = name === undefined ? undefined : this.#graph.value(name);
      return value !== undefined && users(value).length === 0;
    };
    return (
      isOwnPast(inputs.past_key) &&
      isOwnPast(inputs.past_value) &&
      goesToCaller(outputs.present_key) &&
      goesToCaller(outputs.present_value)
    );
  }
}

/** Whether a node reads only the shape of what it is given. */
function takesShape(node: Node): boolean {
  return node.is('Shape', 'Size');
}

/**
 * Makes what reads a graph input through a node that only passes it on (`Concat` of one, as TorchScript writes caches)
 * read the input itself, so that caches are not copied.
 */
function readThrough(graph: Graph): void {
  for (const node of graph.nodes) {
    const [input, ...others] = node.inputs;
    const output = node.outputs[0];
    if (!input?.isInput || input.initializer || others.length > 0 || !node.is('Identity', 'Concat')) continue;
    for (const { node: user, index } of [...(output?.uses ?? [])])
      if (user.graph === graph) graph.setInput(user, index, input);
  }
}

function isFloat(tensor: TensorProto): boolean {
  const name = dataTypeInfo(tensor.data_type)?.name;
  return name === 'float32' || name === 'float16';
}

/** Variants of our operator that stay in a part. */
function overloadsIn(graph: GraphProto): ReadonlySet<string> {
  const found = new Set<string>();
  const visit = (one: GraphProto): void => {
    for (const node of one.node) {
      if (isFlashAttention(node)) found.add(node.overload ?? '');
      for (const inner of subgraphs(node)) visit(inner);
    }
  };
  visit(graph);
  return found;
}
