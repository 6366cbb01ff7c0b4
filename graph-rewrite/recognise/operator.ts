import type { Node, Value } from '../graph/graph.js';
import type { FlashAttentionAttributes } from '../op/definition.js';
import { isMerged, parseLayout } from '../op/layout.js';
import { type FusedSite, isRefusal, type NodeFacts } from '../op/site.js';
import { isStandardAttention, readStandardAttention } from '../op/standard.js';
import { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type ExtendedInput, extendInput, extendOutput } from './extend.js';
import { refuse } from './refusal.js';
import type { Connection } from './site.js';

/** An attention operator of another domain, read as FlashAttention with the moves around it in its layouts. */
export interface OperatorSite {
  readonly node: Node;
  readonly read: FusedSite;
  readonly attributes: FlashAttentionAttributes;
  readonly query: Connection;
  readonly key: Connection;
  readonly value: Connection;
  readonly output: Connection;
  readonly type: number;
  readonly queryHeads: Expression | undefined;
  readonly keyHeads: Expression | undefined;
  readonly headDimension: Expression | undefined;
  readonly valueDimension: Expression | undefined;
}

/** Whether a node computes attention as one operator that {@link readOperator} may understand. */
export function isAttentionOperator(node: Node): boolean {
  return isStandardAttention(node.proto);
}

/** Reads an attention operator; throws a refusal where FlashAttention cannot say what it computes. */
export function readOperator(node: Node, inference: Inference): OperatorSite {
  const named = (name: string): Value => node.graph.value(name) ?? refuse('an input of the operator is missing', node);
  const facts: NodeFacts = {
    opset: node.graph.model.opset(node.domain),
    rankOf: (name) => inference.of(named(name)).shape?.length,
    typeOf: (name) => inference.of(named(name)).type,
    isUsed: (name) => named(name).uses.length > 0 || named(name).isOutput,
  };
  const read = readStandardAttention(node.proto, facts);
  if (isRefusal(read)) return refuse(read.reason, node);
  const { attributes, inputs } = read;
  const [Q, K, V, Y] = [inputs.Q, inputs.K, inputs.V, read.outputs.Y].map(named) as [Value, Value, Value, Value];
  const type = inference.of(Q).type;
  if (type === undefined) return refuse('the data type of the queries is not known', Q);
  const heads = headsOf(Q, attributes.queryLayout, attributes.queryHeads, inference);
  const hasPast = inputs.past_key !== undefined;
  const sameType = (c: ExtendedInput) => inference.of(c.value).type === type;
  const scalable = attributes.scale !== 0;
  const free = (c: ExtendedInput) => sameType(c) && (c.factor === 1 || scalable);
  const query = extendInput(Q, attributes.queryLayout, attributes.queryHeads, inference).find(
    (c) => free(c) && (!heads || c.heads.equals(heads)),
  );
  // A cache holds the heads as they are: then keys and values must not be seen before they were repeated or scaled.
  const keyHeads = headsOf(K, attributes.keyLayout, attributes.keyHeads, inference);
  const plain = (c: ExtendedInput) => !hasPast || (c.factor === 1 && (!keyHeads || c.heads.equals(keyHeads)));
  const keys = extendInput(K, attributes.keyLayout, attributes.keyHeads, inference).filter((c) => free(c) && plain(c));
  const values = extendInput(V, attributes.valueLayout, attributes.keyHeads, inference).filter(
    (c) => sameType(c) && c.factor === 1 && plain(c),
  );
  const pair = keys.flatMap((k) => values.filter((v) => v.heads.equals(k.heads)).map((v) => [k, v] as const))[0];
  if (!query || !pair) return refuse('the shapes of the operator’s inputs are not understood', node);
  const [key, value] = pair;
  const output = extendOutput(Y, attributes.outputLayout, attributes.queryHeads, inference);
  return {
    node,
    read,
    attributes: withLayouts(attributes, { query, key, value, output }, heads, key.heads),
    query,
    key,
    value,
    output,
    type,
    queryHeads: heads,
    keyHeads: key.heads,
    headDimension: dimensionOf(Q, attributes.queryLayout, attributes.queryHeads, inference),
    valueDimension: dimensionOf(V, attributes.valueLayout, attributes.keyHeads, inference),
  };
}

function withLayouts(
  attributes: FlashAttentionAttributes,
  c: Record<'query' | 'key' | 'value' | 'output', Connection> & { query: ExtendedInput; key: ExtendedInput },
  heads: Expression | undefined,
  keyHeads: Expression,
): FlashAttentionAttributes {
  const merged = (...connections: Connection[]) => connections.some((x) => isMerged(parseLayout(x.layout), 'H'));
  const count = (size: Expression | undefined) =>
    size?.value ?? refuse('the number of heads is not a constant', c.query.value);
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

function headsOf(value: Value, layout: string, heads: number, inference: Inference): Expression | undefined {
  if (heads > 0) return Expression.constant(heads);
  return layout === 'BHSD' ? inference.of(value).shape?.[1] : undefined;
}

function dimensionOf(value: Value, layout: string, heads: number, inference: Inference): Expression | undefined {
  const last = inference.of(value).shape?.at(-1);
  return layout === 'BHSD' || heads === 0 ? last : last?.dividedExactlyBy(heads);
}
