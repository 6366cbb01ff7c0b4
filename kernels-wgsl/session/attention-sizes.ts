import type { Node } from '../../graph-rewrite/graph/graph.js';
import { dataTypeInfo } from '../../graph-rewrite/onnx/data-type.js';
import { parseLayout } from '../../graph-rewrite/op/layout.js';
import { readAttributes, readInputs } from '../../graph-rewrite/op/node.js';
import { Expression } from '../../graph-rewrite/shape/expression.js';
import type { Inference } from '../../graph-rewrite/shape/inference.js';
import { readSizes } from '../../graph-rewrite/shape/operators/flash-attention.js';
import type { AttentionSizes } from './forms.js';

/** Sizes of one attention over the model's symbolic dimensions; absent where nothing is known. */
export type SymbolicSizes = { readonly [size in keyof Omit<AttentionSizes, 'count'>]: Expression | undefined };

/** Attentions of the same sizes in every run. */
export interface SizeGroup {
  readonly sizes: SymbolicSizes;
  readonly count: number;
}

/** Puts attentions together that are alike. */
export function groupSizes(calls: readonly SymbolicSizes[]): SizeGroup[] {
  const groups = new Map<string, SizeGroup>();
  for (const sizes of calls) {
    const key = Object.values(sizes).join(';');
    groups.set(key, { sizes, count: (groups.get(key)?.count ?? 0) + 1 });
  }
  return [...groups.values()];
}

/**
 * What the model tells of a `FlashAttention` node's sizes.
 * @param growsCache whether the kernels leave past keys and values where they are
 */
export function symbolicSizes(node: Node, inference: Inference, growsCache = false): SymbolicSizes {
  const { queryLayout, queryHeads, keyLayout, valueLayout, keyHeads } = readAttributes(node.proto);
  const inputs = readInputs(node.proto);
  const shapeOf = (name: string | undefined) =>
    name === undefined ? undefined : inference.of(node.graph.value(name)!).shape;
  const sizes = (name: string | undefined, layout: string, heads: number) =>
    readSizes(parseLayout(layout), shapeOf(name), heads > 0 ? { H: Expression.constant(heads) } : {});
  const query = sizes(inputs.Q, queryLayout, queryHeads);
  const key = sizes(inputs.K, keyLayout, keyHeads);
  const value = sizes(inputs.V, valueLayout, keyHeads);
  const newKeys = key.S ?? value.S;
  const pastKeys = inputs.past_key === undefined ? Expression.constant(0) : shapeOf(inputs.past_key)?.[2];
  const headDimension = query.D ?? key.D ?? value.D;
  const bits = node.inputs[0] && dataTypeInfo(inference.of(node.inputs[0]).type)?.bits;
  return {
    batch: query.B ?? key.B,
    queryHeads: query.H,
    keyHeads: key.H ?? value.H,
    queries: query.S,
    keys: newKeys && pastKeys && newKeys.plus(pastKeys),
    cachedKeys: growsCache ? pastKeys : Expression.constant(0),
    headDimension,
    valueDimension: value.D ?? headDimension,
    elementBytes: bits === undefined ? undefined : Expression.constant(bits / 8),
  };
}

/** The shapes of a model's inputs, over the same symbols. */
export type SymbolicShapes = ReadonlyMap<string, readonly Expression[]>;

/**
 * The sizes of every attention of a run, or of all runs where no inputs are given.
 * @returns undefined where the inputs' shapes do not tell them
 */
export function resolveSizes(
  groups: readonly SizeGroup[],
  shapes: SymbolicShapes,
  feeds: Readonly<Record<string, { readonly dims: readonly number[] }>> = {},
): AttentionSizes[] | undefined {
  const bindings = new Map<string, number>();
  for (const [name, { dims }] of Object.entries(feeds)) {
    for (const [axis, size] of (shapes.get(name) ?? []).entries()) {
      const symbol = size.atom;
      const extent = dims[axis];
      if (symbol?.operation === undefined && symbol && extent !== undefined) bindings.set(symbol.name, extent);
    }
  }
  const resolved: AttentionSizes[] = [];
  for (const { sizes, count } of groups) {
    const entries = Object.entries(sizes).map(([size, value]) => [size, value?.evaluate(bindings)] as const);
    if (entries.some(([, value]) => value === undefined || !(value >= 0))) return undefined;
    resolved.push({ count, ...Object.fromEntries(entries) } as unknown as AttentionSizes);
  }
  return resolved;
}
