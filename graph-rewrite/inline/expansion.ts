/**
 * A model with the bodies of its functions in the place of their calls, and of an If whose condition is the same for
 * every input the branch that it takes, so that attention is seen where modules were exported as functions. What was
 * expanded for nothing is folded back; see fold.ts.
 */

import { OrtFlashError } from '../errors.js';
import { makeNode } from '../graph/builder.js';
import { Model } from '../graph/graph.js';
import { isExternal } from '../onnx/external.js';
import {
  type AttributeProto,
  type FunctionProto,
  type GraphProto,
  ModelProto,
  type NodeProto,
  TensorShapeProto,
  TypeProto,
  ValueInfoProto,
} from '../onnx/proto.js';
import { validateModel } from '../onnx/validate.js';
import { subgraphs } from '../onnx/walk.js';
import { Inference } from '../shape/inference.js';
import { CallTable, mayAttend } from './calls.js';
import { copyGraph, copyNodes, SAME, type Scope } from './copy.js';

/** Nodes that stand in the place of others: of a call, or of an If and what only its condition needed. */
export interface Expanded {
  readonly originals: readonly NodeProto[];
  /** In order; what was expanded in turn stands where its originals stood. */
  items: (NodeProto | Expanded)[];
}

/** Conditions that become known only when another If is gone are looked for this often. */
const MOST_ROUNDS = 8;
/** Longer names of calls are cut where they begin the names of what the calls become. */
const LONGEST_PREFIX = 120;

export class Expansion {
  /** The copy to work on; the model that it was made from stays as it is. */
  readonly model: ModelProto;
  /** Outer ones before those inside. */
  readonly expanded: Expanded[] = [];
  /** Functions of which a call stayed, and why. */
  readonly refusals = new Map<FunctionProto, string>();
  readonly calls: CallTable;
  readonly #names = new Map<string, number>();
  readonly #owners = new Map<NodeProto, Expanded>();

  private constructor(original: ModelProto, calls: CallTable) {
    this.calls = calls;
    const graph = copyGraph(original.graph!, SAME);
    const { functions, opset_import } = original;
    this.model = ModelProto.create({ ...original, graph, functions: [...functions], opset_import: [...opset_import] });
    this.#claim(graph);
  }

  /**
   * Expands a model; `undefined` where that gives nothing: it has no attention, or neither calls nor known conditions.
   * Never throws for what a valid model holds: what cannot be expanded stays, and is among the refusals.
   */
  static of(model: ModelProto): Expansion | undefined {
    const calls = new CallTable(model);
    const reached = [...calls.reachable(model.graph!.node)];
    const mayHaveAttention = mayAttend(model.graph!.node) || reached.some((f) => mayAttend(f.node));
    if (!mayHaveAttention || (reached.length === 0 && !hasBranches(model.graph!.node))) return undefined;
    const expansion = new Expansion(model, calls);
    try {
      expansion.#expandGraph(expansion.model.graph!);
      expansion.#resolveBranches();
      if (expansion.expanded.length > 0) validateModel(expansion.model);
      return expansion;
    } catch (error) {
      if (!(error instanceof OrtFlashError)) throw error;
      const unchanged = new Expansion(model, calls);
      for (const f of reached) unchanged.refusals.set(f, error.message);
      return unchanged;
    }
  }

  #claim(graph: GraphProto): void {
    for (const { name } of [...graph.input, ...graph.initializer]) this.#names.set(name ?? '', 1);
    for (const { values } of graph.sparse_initializer) this.#names.set(values?.name ?? '', 1);
    for (const node of graph.node) {
      for (const name of [...node.input, ...node.output]) this.#names.set(name, 1);
      for (const inner of subgraphs(node)) this.#claim(inner);
    }
  }

  #fresh(base: string): string {
    let count = this.#names.get(base) ?? 0;
    let name = count === 0 ? base : `${base}_${count}`;
    while (count > 0 && this.#names.has(name)) name = `${base}_${++count}`;
    this.#names.set(base, count + 1);
    if (name !== base) this.#names.set(name, 1);
    return name;
  }

  #expandGraph(graph: GraphProto): void {
    const reads = readNames(graph.node);
    for (const output of graph.output) reads.add(output.name ?? '');
    graph.node = flatten(this.#expandNodes(graph.node, reads, graph));
  }

  /** @param reads names that anything reads where the nodes stand */
  #expandNodes(nodes: readonly NodeProto[], reads: ReadonlySet<string>, graph: GraphProto): (NodeProto | Expanded)[] {
    return nodes.map((node) => {
      for (const inner of subgraphs(node)) this.#expandGraph(inner);
      const f = this.calls.callee(node);
      if (!f || !this.calls.isWanted(f)) return node;
      const obstacle = this.calls.obstacle(node, f);
      if (obstacle !== undefined) this.refusals.set(f, obstacle);
      if (obstacle !== undefined || !node.output.some((name) => reads.has(name))) return node;
      return this.#expandCall(node, f, reads, graph);
    });
  }

  #expandCall(call: NodeProto, f: FunctionProto, reads: ReadonlySet<string>, graph: GraphProto): Expanded {
    const expanded: Expanded = { originals: [call], items: [] };
    this.expanded.push(expanded);
    const given = new Map<string, AttributeProto>();
    for (const attribute of f.attribute_proto) given.set(attribute.name ?? '', attribute);
    for (const attribute of call.attribute) given.set(attribute.name ?? '', attribute);
    const names = new Map(f.input.map((name, i) => [name, call.input[i] ?? '']));
    const scope = this.#scope(call, names, (name) => given.get(name));
    const outputs = f.output.map((name, i) => ({ inner: name, outer: call.output[i] ?? '' }));
    const read = outputs.filter(({ outer }) => outer !== '' && reads.has(outer));
    const body = copyWithOutputs(liveNodes(f.node, read), read, names, scope);
    const inside = readNames(body);
    for (const { outer } of read) inside.add(outer);
    expanded.items = this.#expandNodes(body, inside, graph);
    for (const info of f.value_info) {
      const name = names.get(info.name ?? '');
      if (name && !f.input.includes(info.name ?? '')) graph.value_info.push(ownInfo(info, name));
    }
    for (const item of expanded.items) if (!('items' in item)) this.#owners.set(item, expanded);
    return expanded;
  }

  #scope(node: NodeProto, names: Map<string, string>, attribute?: Scope['attribute']): Scope {
    const label = node.name || node.output.find(Boolean) || node.op_type || '';
    const prefix = label.slice(0, LONGEST_PREFIX);
    const define = (name: string) => {
      const known = names.get(name);
      if (known !== undefined) return known;
      const fresh = this.#fresh(`${prefix}/${name}`);
      names.set(name, fresh);
      return fresh;
    };
    // Values of inner graphs get names of their own each time.
    return {
      find: (name) => names.get(name),
      define,
      label: (name) => `${prefix}/${name}`,
      inner: (name) => this.#fresh(`${prefix}/${name}`),
      ...(attribute ? { attribute } : {}),
    };
  }

  #resolveBranches(): void {
    for (let round = 0; round < MOST_ROUNDS && hasBranches(this.model.graph!.node); round++) {
      const model = new Model(this.model);
      const inference = new Inference(model);
      const uses = countReads(this.model.graph!);
      const done = new Map<NodeProto, Expanded>();
      const stale = new Set<GraphProto>();
      for (const graph of [...model.graphs()]) {
        for (const node of graph.nodes) {
          const [condition] = node.inputs;
          const value = node.is('If') && condition ? inference.of(condition).uniform : undefined;
          const expanded =
            value === undefined || stale.has(graph.proto) ? undefined : this.#takeBranch(node.proto, value);
          if (expanded) done.set(node.proto, expanded);
          if (expanded || stale.has(graph.proto)) for (const inner of subgraphs(node.proto)) stale.add(inner);
        }
        if (!stale.has(graph.proto)) this.#putBranches(graph.proto, done, uses);
      }
      if (done.size === 0) return;
    }
  }

  /** The nodes of the branch that an If always takes. */
  #takeBranch(node: NodeProto, condition: number): Expanded | undefined {
    const branch = node.attribute.find((a) => a.name === (condition === 0 ? 'else_branch' : 'then_branch'))?.g;
    if (!branch || branch.output.length < node.output.length) return undefined;
    if (branch.sparse_initializer.length > 0 || branch.initializer.some(isExternal)) return undefined;
    const names = new Map<string, string>();
    // What the branch does not compute is of the graphs around it.
    const scope: Scope = { ...this.#scope(node, names), find: (inner) => names.get(inner) ?? inner };
    const outputs = node.output.map((outer, i) => ({ inner: branch.output[i]!.name ?? '', outer }));
    const constants = branch.initializer.map((tensor) =>
      makeNode('Constant', [], [tensor.name ?? ''], { value: tensor }),
    );
    const read = outputs.filter(({ outer }) => outer !== '');
    return { originals: [node], items: copyWithOutputs([...constants, ...branch.node], read, names, scope) };
  }

  /** Puts the branches of a graph's Ifs in their place, and takes out what only the conditions needed. */
  #putBranches(graph: GraphProto, done: ReadonlyMap<NodeProto, Expanded>, uses: Map<string, number>): void {
    const producers = new Map<string, { node: NodeProto; at: number }>();
    for (const [at, node] of graph.node.entries())
      for (const output of node.output) producers.set(output, { node, at });
    const gone = new Set<NodeProto>();
    const put = new Map<NodeProto, Expanded>();
    for (const node of graph.node) {
      const taken = done.get(node);
      if (!taken) continue;
      const owner = this.#owners.get(node);
      const chain: { node: NodeProto; at: number }[] = [];
      const queue = [node.input[0] ?? ''];
      for (const name of queue) {
        uses.set(name, (uses.get(name) ?? 0) - 1);
        const producer = producers.get(name);
        if (!producer || gone.has(producer.node) || this.#owners.get(producer.node) !== owner) continue;
        const isUsed = producer.node.output.some((output) => (uses.get(output) ?? 0) > 0);
        if (isUsed || subgraphs(producer.node).length > 0) continue;
        gone.add(producer.node);
        chain.push(producer);
        queue.push(...producer.node.input.filter((input) => input !== ''));
      }
      const originals = [...chain.sort((a, b) => a.at - b.at).map((link) => link.node), node];
      const expanded: Expanded = { originals, items: taken.items };
      put.set(node, expanded);
      this.expanded.push(expanded);
      for (const item of expanded.items) if (!('items' in item)) this.#owners.set(item, expanded);
      if (owner) owner.items = owner.items.flatMap((item) => (item === node ? [expanded] : [item]));
    }
    if (put.size === 0) return;
    for (const owner of new Set([...gone].map((node) => this.#owners.get(node))))
      if (owner) owner.items = owner.items.filter((item) => !gone.has(item as NodeProto));
    graph.node = graph.node.flatMap((node) => (gone.has(node) ? [] : flatten([put.get(node) ?? node])));
  }
}

function hasBranches(nodes: readonly NodeProto[]): boolean {
  return nodes.some((node) => node.op_type === 'If' || subgraphs(node).some((graph) => hasBranches(graph.node)));
}

interface Output {
  readonly inner: string;
  readonly outer: string;
}

/**
 * Copies nodes so that their outputs have the names that they have outside; an output that is an input, or stands there
 * twice, goes through an Identity.
 */
function copyWithOutputs(
  nodes: readonly NodeProto[],
  outputs: readonly Output[],
  names: Map<string, string>,
  scope: Scope,
): NodeProto[] {
  const computed = new Set(nodes.flatMap((node) => node.output));
  const passed: Output[] = [];
  for (const output of outputs) {
    if (computed.has(output.inner) && !names.has(output.inner)) names.set(output.inner, output.outer);
    else passed.push(output);
  }
  const copies = copyNodes(nodes, scope);
  return [...copies, ...passed.map(({ inner, outer }) => makeNode('Identity', [scope.find(inner) ?? inner], [outer]))];
}

/** What a function states of a value, without the names of dimensions: they need not be those of the graph around it. */
function ownInfo({ type, ...info }: ValueInfoProto, name: string): ValueInfoProto {
  const tensor = type?.tensor_type;
  const dim = tensor?.shape?.dim.map((d) => (d.dim_param ? TensorShapeProto.Dimension.create({}) : d));
  const shape = dim && TensorShapeProto.create({ dim });
  const tensor_type = tensor && TypeProto.Tensor.create({ elem_type: tensor.elem_type, ...(shape ? { shape } : {}) });
  return ValueInfoProto.create({ ...info, name, type: tensor_type ? TypeProto.create({ tensor_type }) : type });
}

/** The nodes that these outputs need. */
function liveNodes(nodes: readonly NodeProto[], outputs: readonly Output[]): NodeProto[] {
  const needed = new Set(outputs.map(({ inner }) => inner));
  const live: NodeProto[] = [];
  for (const node of [...nodes].reverse()) {
    if (!node.output.some((name) => name !== '' && needed.has(name))) continue;
    live.push(node);
    for (const name of readNames([node])) needed.add(name);
  }
  return live.reverse();
}

/** Names that nodes read, those of their subgraphs included. */
function readNames(nodes: readonly NodeProto[], names = new Set<string>()): Set<string> {
  for (const node of nodes) {
    for (const name of node.input) names.add(name);
    for (const graph of subgraphs(node)) {
      readNames(graph.node, names);
      for (const { name } of graph.output) names.add(name ?? '');
    }
  }
  return names;
}

/** How often each name is read, as an output of a graph too. */
export function countReads(graph: GraphProto, counts = new Map<string, number>()): Map<string, number> {
  const count = (name: string) => counts.set(name, (counts.get(name) ?? 0) + 1);
  for (const node of graph.node) {
    for (const name of node.input) count(name);
    for (const inner of subgraphs(node)) countReads(inner, counts);
  }
  for (const { name } of graph.output) count(name ?? '');
  return counts;
}

/** The nodes of a list of items, expanded ones included. */
export function flatten(items: readonly (NodeProto | Expanded)[]): NodeProto[] {
  return items.flatMap((item) => ('items' in item ? flatten(item.items) : [item]));
}
