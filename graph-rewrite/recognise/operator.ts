import type { Node, Value } from '../graph/graph.js';
import { isContribAttention, readContribAttention } from '../op/contrib.js';
import type { FlashAttentionAttributes } from '../op/definition.js';
import { isMerged, parseLayout } from '../op/layout.js';
import { type FusedSite, isRefusal, type NodeFacts } from '../op/site.js';
import { isStandardAttention, readStandardAttention } from '../op/standard.js';
import { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { extendInput, extendOutput } from './extend.js';
import { isSliced, isWidthSaid, pairs } from './pairs.js';
import { refuse } from './refusal.js';

/** One tensor of the operator by its name: a value of the graph, or one that the site's own nodes make. */
export interface NamedConnection {
  readonly name: string;
  readonly layout: string;
  readonly absorbed: readonly Node[];
}

/** An attention operator of another domain, read as FlashAttention with the moves around it in its layouts. */
export interface OperatorSite {
  readonly node: Node;
  readonly read: FusedSite;
  readonly attributes: FlashAttentionAttributes;
  readonly query: NamedConnection;
  readonly key: NamedConnection;
  readonly value: NamedConnection;
  readonly output: NamedConnection;
  readonly type: number;
  readonly queryHeads: Expression | undefined;
  readonly keyHeads: Expression | undefined;
  readonly headDimension: Expression | undefined;
  readonly valueDimension: Expression | undefined;
}

/** Whether a node computes attention as one operator that {@link readOperator} may understand. */
export function isAttentionOperator(node: Node): boolean {
  return isStandardAttention(node.proto) || isContribAttention(node.proto);
}

/** Reads an attention operator; throws a refusal where FlashAttention cannot say what it computes. */
export function readOperator(node: Node, inference: Inference): OperatorSite {
  const facts = factsOf(node, inference);
  const read = isStandardAttention(node.proto)
    ? readStandardAttention(node.proto, facts)
    : readContribAttention(node.proto, facts);
  if (isRefusal(read)) return refuse(read.reason, node);
  const { attributes, inputs } = read;
  const type = node.inputs[0] && inference.of(node.inputs[0]).type;
  if (type === undefined) return refuse('the data type of the queries is not known', node);
  const [Q, K, V] = [inputs.Q, inputs.K, inputs.V].map((name) => node.graph.value(name));
  const heads = headsOf(Q, attributes.queryLayout, attributes.queryHeads, inference);
  const keyHeads = headsOf(K, attributes.keyLayout, attributes.keyHeads, inference);
  const hasPast = inputs.past_key !== undefined;
  const options = (value: Value | undefined, name: string, layout: string, count: number): Option[] =>
    value
      ? extendInput(value, layout, count, inference).map((c) => ({ ...c, name: c.value.name }))
      : [made(name, layout, count)];
  const sameType = (c: Option) => !c.value || inference.of(c.value).type === type;
  const free = (c: Option) => sameType(c) && (c.factor === 1 || attributes.scale !== 0);
  // A cache holds the heads as they are: then keys and values must not be seen before they were repeated or scaled.
  const plain = (c: Option) => !hasPast || (c.factor === 1 && (!keyHeads || c.heads.equals(keyHeads)));
  const keys = options(K, inputs.K, attributes.keyLayout, attributes.keyHeads).filter((c) => free(c) && plain(c));
  const headDimension = dimensionOf(Q, attributes.queryLayout, attributes.queryHeads, inference);
  const valueDimension = dimensionOf(V, attributes.valueLayout, attributes.keyHeads, inference);
  const isAsWide = hasPast || (headDimension && valueDimension?.equals(headDimension)) === true;
  const values = options(V, inputs.V, attributes.valueLayout, attributes.keyHeads).filter(
    (c) => sameType(c) && c.factor === 1 && plain(c) && (isAsWide || !isSliced(c)),
  );
  const [pair] = pairs(keys, values);
  if (!pair) return refuse('the shapes of the operator’s inputs are not understood', node);
  const [key, value] = pair;
  const isSaid = hasPast || isWidthSaid(key, value, isAsWide);
  const query = options(Q, inputs.Q, attributes.queryLayout, attributes.queryHeads).find(
    (c) => free(c) && (!heads || c.heads.equals(heads)) && (isSaid || !isSliced(c)),
  );
  if (!query) return refuse('the shapes of the operator’s inputs are not understood', node);
  const output = writtenOutput(node, read, inference);
  return {
    node,
    read,
    attributes: withLayouts(attributes, { query, key, value, output }, heads, key.heads, node),
    query,
    key,
    value,
    output,
    type,
    queryHeads: heads,
    keyHeads: key.heads,
    headDimension,
    valueDimension,
  };
}

/** A way to connect one input; without a value where the site's own nodes make it. */
type Option = NamedConnection & { readonly value?: Value; readonly heads: Expression; readonly factor: number };

function made(name: string, layout: string, heads: number): Option {
  return { name, layout, absorbed: [], factor: 1, heads: Expression.constant(heads) };
}

function writtenOutput(node: Node, read: FusedSite, inference: Inference): NamedConnection {
  const { outputLayout, queryHeads } = read.attributes;
  const Y = node.outputs.find((v) => v?.name === read.outputs.Y);
  if (!Y) return { name: read.outputs.Y, layout: outputLayout, absorbed: [] };
  const { value, layout, absorbed } = extendOutput(Y, outputLayout, queryHeads, inference);
  return { name: value.name, layout, absorbed };
}

function factsOf(node: Node, inference: Inference): NodeFacts {
  const named = (name: string): Value => node.graph.value(name) ?? refuse('an input of the operator is missing', node);
  return {
    opset: node.graph.model.opset(),
    rankOf: (name) => inference.of(named(name)).shape?.length,
    typeOf: (name) => inference.of(named(name)).type,
    isUsed: (name) => named(name).uses.length > 0 || named(name).isOutput,
    dimensionOf: (name, axis) => inference.of(named(name)).shape?.at(axis)?.value,
    isSelfAttention: isSelfAttention(node, inference),
  };
}

/** Whether the first two inputs, (B, S, H·D) or (B, H, S, D), always have as many positions. */
function isSelfAttention({ inputs: [query, key] }: Node, inference: Inference): boolean {
  const positions = (value: Value | undefined) => {
    const shape = value && inference.of(value).shape;
    return shape?.[shape.length === 4 ? 2 : 1];
  };
  const own = positions(query);
  const others = positions(key);
  return own !== undefined && others !== undefined && own.equals(others);
}

function withLayouts(
  attributes: FlashAttentionAttributes,
  c: Record<'query' | 'key' | 'value', Option> & { readonly output: NamedConnection },
  heads: Expression | undefined,
  keyHeads: Expression,
  node: Node,
): FlashAttentionAttributes {
  const merged = (...connections: NamedConnection[]) => connections.some((x) => isMerged(parseLayout(x.layout), 'H'));
  const count = (size: Expression | undefined) => size?.value ?? refuse('the number of heads is not a constant', node);
  return {
    ...attributes,
    scale: attributes.scale * c.query.factor * c.key.factor,
    queryHeads: merged(c.query, c.output) ? count(heads) : 0,
    keyHeads: merged(c.key, c.value) ? count(keyHeads) : 0,
    queryLayout: c.query.layout,
    keyLayout: c.key.layout,
    valueLayout: c.value.layout,
    outputLayout: c.output.layout,
  };
}

function headsOf(
  value: Value | undefined,
  layout: string,
  heads: number,
  inference: Inference,
): Expression | undefined {
  if (heads > 0) return Expression.constant(heads);
  return layout === 'BHSD' ? value && inference.of(value).shape?.[1] : undefined;
}

function dimensionOf(
  value: Value | undefined,
  layout: string,
  heads: number,
  inference: Inference,
): Expression | undefined {
  const last = value && inference.of(value).shape?.at(-1);
  return layout === 'BHSD' || heads === 0 ? last : last?.dividedExactlyBy(heads);
}
