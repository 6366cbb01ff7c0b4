import type { Graph, Node, Value } from '../graph/graph.js';
import type { Axis, Layout } from '../op/layout.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, leavesOf } from './atoms.js';
import { candidates, layoutOf, type Place } from './operands.js';

/** A key or value input that is past ones followed by new ones, and how the new ones are read. */
export interface CacheInput {
  /** The Concat. */
  readonly node: Node;
  /** (B, heads, past keys, D). */
  readonly past: Value;
  /** (B, heads, keys, D): the Concat's result. */
  readonly present: Value;
  readonly fresh: Value;
  readonly freshLayout: Layout;
  /** Nodes that the layout of the new ones makes unnecessary. */
  readonly absorbed: readonly Node[];
}

/**
 * Sees a value of layout BHSD as Concat(past, new) along the sequence. Everything else that reads it must come after
 * `reader`, the node that will compute it in the Concat's place.
 */
export function readCache(value: Value, reader: Node, graph: Graph, inference: Inference): CacheInput | undefined {
  const node = value.producer;
  if (!node?.is('Concat') || node.graph !== graph || node.inputs.length !== 2 || value.graph !== graph)
    return undefined;
  const [past, fresh] = node.inputs;
  if (!past || !fresh || past === fresh) return undefined;
  const rank = inference.of(value).shape?.length;
  const axis = node.int('axis') ?? 0;
  if (rank !== 4 || (axis !== 2 && axis !== -2)) return undefined;
  const position = graph.nodes.indexOf(reader);
  const late = (use: { node: Node }) =>
    use.node === reader || (use.node.graph === graph && graph.nodes.indexOf(use.node) > position);
  if (!value.uses.every(late)) return undefined;
  for (const { root, view, absorbed, factor } of candidates(fresh, inference).reverse()) {
    if (factor !== 1) continue;
    const places = new Map<Atom, Place>();
    const axes: readonly Axis[] = ['B', 'H', 'S', 'D'];
    for (const [i, dimension] of view.dimensions.entries())
      for (const [order, leaf] of leavesOf(dimension).entries())
        if (!leaf.repeated) places.set(leaf, { axis: axes[i]!, order });
    const repeats = view.dimensions.some((d) => leavesOf(d).some((leaf) => leaf.repeated));
    const freshLayout = repeats ? undefined : layoutOf(view.root, view.fixed, places);
    if (freshLayout) return { node, past, present: value, fresh: root, freshLayout, absorbed };
  }
  return undefined;
}
