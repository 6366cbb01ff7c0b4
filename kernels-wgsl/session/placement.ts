import type { Graph, Node, Value } from '../../graph-rewrite/graph/graph.js';

/** Nodes made from constants alone are computed anew in each segment that needs them, up to so many constant bytes. */
const LARGEST_COPY = 1 << 16;

/** Where each node of a graph is carried out. */
export interface Placement {
  /** For a node of a segment, the segments that compute it: one, but for what is made from small constants alone. */
  readonly segments: ReadonlyMap<Node, ReadonlySet<number>>;
  /** For a spliced attention, the segment after which it is encoded. */
  readonly attentions: ReadonlyMap<Node, number>;
  /** Number of the last segment or attention, plus 1. */
  readonly count: number;
}

/**
 * Numbers the segments of a graph that is cut at some of its nodes. A node's number is how many cuts lie on the longest
 * path to it, so there are as few segments as the longest chain of cuts allows. Nodes that no output needs are left
 * out; what depends on constants only goes to the segments that use it, so that no weight travels between segments.
 * @param isCut the nodes to cut at
 * @param constantBytes bytes of a constant of the graph (an initializer); undefined for every other value
 */
export function placeNodes(
  graph: Graph,
  isCut: (node: Node) => boolean,
  constantBytes: (value: Value) => number | undefined,
): Placement {
  const live = liveNodes(graph);
  const level = new Map<Value, number>();
  const constant = new Map<Value, number>();
  const segments = new Map<Node, Set<number>>();
  const attentions = new Map<Node, number>();
  const folded: Node[] = [];
  for (const node of graph.nodes) {
    if (!live.has(node)) continue;
    const reads = readsOf(node);
    const bytes = isCut(node) ? undefined : sumOfConstants(reads, heldBytes(node), constant, constantBytes);
    if (bytes !== undefined && !isRandom(node)) {
      for (const output of node.outputs) if (output) constant.set(output, bytes);
      folded.push(node);
      continue;
    }
    const own = Math.max(0, ...reads.map((value) => level.get(value) ?? 0));
    if (isCut(node)) attentions.set(node, own);
    else segments.set(node, new Set([own]));
    for (const output of node.outputs) if (output) level.set(output, isCut(node) ? own + 1 : own);
  }
  const users = usersOf(graph, live);
  for (const node of folded.reverse()) {
    const wanted = new Set<number>();
    for (const output of node.outputs) {
      if (!output) continue;
      if (output.isOutput) wanted.add(0);
      for (const user of users.get(output) ?? []) {
        const at = attentions.get(user);
        for (const segment of at === undefined ? segments.get(user)! : [at]) wanted.add(segment);
      }
    }
    const bytes = Math.max(...node.outputs.map((output) => (output && constant.get(output)) ?? 0));
    segments.set(node, bytes <= LARGEST_COPY ? wanted : new Set([Math.min(...wanted)]));
  }
  const last = Math.max(-1, ...attentions.values(), ...[...segments.values()].flatMap((set) => [...set]));
  return { segments, attentions, count: last + 1 };
}

/** The values that a node reads from the graph that it stands in, its subgraphs' reads included. */
export function readsOf(node: Node): Value[] {
  const reads = new Set<Value>();
  const collect = (graph: Graph): void => {
    for (const inner of graph.nodes) {
      for (const value of inner.inputs) if (value?.graph === node.graph) reads.add(value);
      for (const subgraph of inner.subgraphs) collect(subgraph);
    }
    for (const { name } of graph.proto.output) {
      const value = graph.value(name ?? '');
      if (value?.graph === node.graph) reads.add(value);
    }
  };
  for (const value of node.inputs) if (value) reads.add(value);
  for (const subgraph of node.subgraphs) collect(subgraph);
  return [...reads];
}

/** Nodes that some output of the graph needs. */
function liveNodes(graph: Graph): ReadonlySet<Node> {
  const live = new Set<Node>();
  const queue = [...graph.outputs];
  for (const value of queue) {
    const { producer } = value;
    if (!producer || live.has(producer)) continue;
    live.add(producer);
    queue.push(...readsOf(producer));
  }
  return live;
}

function usersOf(graph: Graph, live: ReadonlySet<Node>): ReadonlyMap<Value, readonly Node[]> {
  const users = new Map<Value, Node[]>();
  for (const node of graph.nodes) {
    if (!live.has(node)) continue;
    for (const value of readsOf(node)) users.set(value, [...(users.get(value) ?? []), node]);
  }
  return users;
}

/** Bytes of the constants that a node's inputs are made from; undefined where one is no constant. */
function sumOfConstants(
  reads: readonly Value[],
  ownBytes: number,
  constant: ReadonlyMap<Value, number>,
  constantBytes: (value: Value) => number | undefined,
): number | undefined {
  let sum = ownBytes;
  for (const value of reads) {
    const bytes = constant.get(value) ?? constantBytes(value);
    if (bytes === undefined) return undefined;
    sum += bytes;
  }
  return sum;
}

/** Bytes of a constant that a node holds in its attributes. */
function heldBytes(node: Node): number {
  return node.attribute('value')?.t?.raw_data?.length ?? 0;
}

/** Operators whose result is another one each time, though their inputs are not. */
function isRandom(node: Node): boolean {
  return node.is('RandomNormal', 'RandomUniform', 'RandomNormalLike', 'RandomUniformLike', 'Bernoulli', 'Multinomial');
}
