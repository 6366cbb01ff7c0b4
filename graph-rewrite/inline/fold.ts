/** Folds what an expansion made, and a rewrite left as it was, back into what it was made from. */
import Long from 'long';
import { OrtFlashError } from '../errors.js';
import { Model } from '../graph/graph.js';
import { type GraphProto, type ModelProto, type NodeProto, OperatorSetIdProto } from '../onnx/proto.js';
import { validateModel } from '../onnx/validate.js';
import { subgraphs } from '../onnx/walk.js';
import { normalDomain } from './calls.js';
import { countReads, type Expanded, type Expansion, flatten } from './expansion.js';

/** How the nodes of an expansion stand before a rewrite. */
export type Snapshot = ReadonlyMap<NodeProto, string>;

/** Notes how each node stands that the expansion made. */
export function takeSnapshot({ expanded }: Expansion): Snapshot {
  const nodes = expanded.flatMap(({ items }) => items.filter((item): item is NodeProto => !('items' in item)));
  return new Map(nodes.map((node) => [node, stateOf(node)]));
}

/**
 * Gives a rewritten expansion the form of a file again: calls and branches in which nothing changed are as they were,
 * functions that nothing calls any more are gone, and every domain in use is imported.
 */
export function foldBack(expansion: Expansion, before: Snapshot, original: ModelProto): void {
  const { model, calls } = expansion;
  const left = foldUnchanged(expansion, before);
  removeUnread(model, left);
  dropStatements(model.graph!, original.graph!);
  const training = original.training_info
    .flatMap((t) => [t.initialization?.node ?? [], t.algorithm?.node ?? []])
    .flat();
  const called = new Set(calls.reachable([...original.graph!.node, ...training]));
  for (const f of calls.reachable([...model.graph!.node, ...training])) called.delete(f);
  model.functions = model.functions.filter((f) => !called.has(f));
  importDomains(expansion);
}

/** A node's connections, those of its subgraphs included; attributes are never edited. */
function stateOf(node: NodeProto): string {
  const inner = subgraphs(node).map((g) => [g.node.map(stateOf), g.initializer.length, g.output.map((o) => o.name)]);
  return JSON.stringify([node.op_type, node.input, node.output, inner]);
}

interface Location {
  readonly graph: GraphProto;
  readonly at: number;
}

/** Where a model's nodes and values are. */
class Locations {
  readonly nodes = new Map<NodeProto, Location>();
  readonly uses: ReadonlyMap<string, number>;
  readonly #producers = new Map<GraphProto, Map<string, number>>();
  readonly #parents = new Map<GraphProto, GraphProto>();

  constructor(model: ModelProto) {
    this.uses = countReads(model.graph!);
    this.#locate(model.graph!);
  }

  /** Whether a value can be read at a place. */
  has(name: string, { graph, at }: Location): boolean {
    const own = this.#producers.get(graph)!.get(name);
    if (own !== undefined) return own < at;
    for (let outer = this.#parents.get(graph); outer; outer = this.#parents.get(outer))
      if (this.#producers.get(outer)!.has(name)) return true;
    return false;
  }

  #locate(graph: GraphProto): void {
    const producers = new Map<string, number>();
    this.#producers.set(graph, producers);
    for (const { name } of [...graph.input, ...graph.initializer]) producers.set(name ?? '', -1);
    for (const { values } of graph.sparse_initializer) producers.set(values?.name ?? '', -1);
    for (const [at, node] of graph.node.entries()) {
      this.nodes.set(node, { graph, at });
      for (const name of node.output) if (name !== '') producers.set(name, at);
      for (const inner of subgraphs(node)) {
        this.#parents.set(inner, graph);
        this.#locate(inner);
      }
    }
  }
}

/** @returns those that could not be folded. */
function foldUnchanged({ model, expanded }: Expansion, before: Snapshot): Expanded[] {
  const locations = new Locations(model);
  const folded = new Set<Expanded>();
  const replaced = new Map<NodeProto, readonly NodeProto[]>();
  const gone = new Set<NodeProto>();
  const inside = new Set<Expanded>();
  for (const one of expanded) {
    if (inside.has(one)) {
      markInside(one, inside);
      continue;
    }
    const nodes = flatten(one.items);
    if (nodes.some((node) => gone.has(node)) || !isUnchanged(one, nodes, before, locations)) continue;
    folded.add(one);
    markInside(one, inside);
    replaced.set(nodes[0]!, one.originals);
    for (const node of nodes) forget(node, gone);
  }
  const lists = new Map<GraphProto, NodeProto[]>();
  for (const node of replaced.keys()) {
    const { graph } = locations.nodes.get(node)!;
    lists.set(graph, graph.node);
  }
  for (const [graph, list] of lists)
    graph.node = list.flatMap((node) => replaced.get(node) ?? (gone.has(node) ? [] : [node]));
  try {
    if (lists.size > 0) validateModel(model);
  } catch (error) {
    if (!(error instanceof OrtFlashError)) throw error;
    for (const [graph, list] of lists) graph.node = list;
    return expanded.slice();
  }
  return expanded.filter((one) => !folded.has(one) && !inside.has(one));
}

function markInside(one: Expanded, inside: Set<Expanded>): void {
  for (const item of one.items) if ('items' in item) inside.add(item);
}

function forget(node: NodeProto, gone: Set<NodeProto>): void {
  gone.add(node);
  for (const graph of subgraphs(node)) for (const inner of graph.node) forget(inner, gone);
}

/** Whether the nodes stand together as they were made, nothing else reads what they hide, and the originals can run. */
function isUnchanged(one: Expanded, nodes: readonly NodeProto[], before: Snapshot, locations: Locations): boolean {
  const places = nodes.map((node) => locations.nodes.get(node));
  const [first] = places;
  if (!first || !places.every((place, i) => place?.graph === first.graph && place.at === first.at + i)) return false;
  if (!nodes.every((node) => before.get(node) === stateOf(node))) return false;
  const { originals } = one;
  const shown = new Set(originals.flatMap((node) => node.output));
  const reads = new Map<string, number>();
  for (const node of nodes) countNode(node, reads);
  const hidden = nodes.flatMap((node) => node.output).filter((name) => name !== '' && !shown.has(name));
  if (hidden.some((name) => (reads.get(name) ?? 0) !== (locations.uses.get(name) ?? 0))) return false;
  return [...freeNames(originals)].every((name) => locations.has(name, first));
}

function countNode(node: NodeProto, counts: Map<string, number>): void {
  for (const name of node.input) counts.set(name, (counts.get(name) ?? 0) + 1);
  for (const graph of subgraphs(node)) countReads(graph, counts);
}

/** Names that nodes read and do not compute. */
function freeNames(
  nodes: readonly NodeProto[],
  free = new Set<string>(),
  outer: readonly ReadonlySet<string>[] = [],
): Set<string> {
  const own = new Set<string>();
  const scopes = [...outer, own];
  const isOwn = (name: string) => scopes.some((scope) => scope.has(name));
  for (const node of nodes) {
    for (const name of node.input) if (name !== '' && !isOwn(name)) free.add(name);
    for (const graph of subgraphs(node)) {
      const local = new Set([...graph.input, ...graph.initializer].map(({ name }) => name ?? ''));
      for (const { values } of graph.sparse_initializer) local.add(values?.name ?? '');
      freeNames(graph.node, free, [...scopes, local]);
      const computed = new Set(graph.node.flatMap((inner) => inner.output));
      for (const { name } of graph.output)
        if (name && !computed.has(name) && !local.has(name) && !isOwn(name)) free.add(name);
    }
    for (const name of node.output) own.add(name);
  }
  return free;
}

/** Removes what only calls read that are gone: their bodies did not need it. */
function removeUnread(proto: ModelProto, left: readonly Expanded[]): void {
  const names = freeNames(left.flatMap(({ originals }) => originals));
  if (names.size === 0) return;
  const model = new Model(proto);
  for (const graph of model.graphs()) {
    const values = [...graph.values].filter(
      (value) => names.has(value.name) && value.uses.length === 0 && !value.isOutput,
    );
    for (const value of values) {
      if (value.producer) graph.removeDead([value.producer]);
      else if (value.initializer && !value.isInput)
        graph.proto.initializer = graph.proto.initializer.filter((tensor) => tensor !== value.initializer);
    }
  }
  model.graph.commit();
}

/** Drops what is stated of values that are not in the model any more, or never were in the file. */
function dropStatements(graph: GraphProto, original: GraphProto): void {
  const defined = new Set(graph.node.flatMap((node) => node.output));
  const stated = new Set(original.value_info);
  const gone = new Set(original.node.flatMap((node) => node.output).filter((name) => !defined.has(name)));
  graph.value_info = graph.value_info.filter((info) => {
    const name = info.name ?? '';
    return stated.has(info) ? !gone.has(name) : defined.has(name);
  });
}

/** Nodes of functions may be of domains that only the functions imported. */
function importDomains({ model, calls }: Expansion): void {
  const known = new Set(model.opset_import.map(({ domain }) => normalDomain(domain)));
  const visit = (nodes: readonly NodeProto[]) => {
    for (const node of nodes) {
      const domain = normalDomain(node.domain);
      const version = known.has(domain) ? undefined : calls.version(domain);
      if (version !== undefined) {
        known.add(domain);
        model.opset_import.push(new OperatorSetIdProto({ domain, version: Long.fromNumber(version) }));
      }
      for (const graph of subgraphs(node)) visit(graph.node);
    }
  };
  visit(model.graph!.node);
}
