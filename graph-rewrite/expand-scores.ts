import { Model, type Node } from './graph/graph.js';
import { editWithoutCalls } from './inline/edit.js';
import type { ModelProto } from './onnx/proto.js';
import { isRefusal } from './op/site.js';
import { isStandardAttention } from './op/standard.js';
import {
  emitStandardAttention,
  readScoresSite,
  type ScoresSite,
  type StandardAttentionFacts,
} from './op/standard-attention.js';
import { Expression } from './shape/expression.js';
import { Inference } from './shape/inference.js';

/**
 * Replaces the standard's `Attention` nodes whose `qk_matmul_output` is used, which FlashAttention cannot give, by the
 * operators of the standard's own definition. Nodes of which something is not certain stay. The model is edited in
 * place, and left alone where there is none to replace.
 * @param choose what a site is to be computed as: itself, itself with another softmax type, or nothing, and it stays
 * @returns how many were replaced
 */
export function expandScores(proto: ModelProto, choose: (site: ScoresSite) => ScoresSite | undefined): number {
  return editWithoutCalls(proto, (model) => {
    const result = expandGraphs(model, choose);
    return { result, changed: result > 0 };
  });
}

function expandGraphs(proto: ModelProto, choose: (site: ScoresSite) => ScoresSite | undefined): number {
  const model = new Model(proto);
  const nodes = [...model.graphs()].flatMap((graph) => graph.nodes.filter((node) => isStandardAttention(node.proto)));
  if (!nodes.some((node) => node.proto.output[3])) return 0;
  const inference = new Inference(model);
  let count = 0;
  for (const node of nodes) {
    const read = readScoresSite(node.proto, factsOf(node, inference));
    const site = isRefusal(read) ? undefined : choose(read);
    if (site === undefined) continue;
    node.graph.replace(node, emitStandardAttention(site, freePrefix(model, `${node.label}/`)));
    count++;
  }
  if (count > 0) model.graph.commit();
  return count;
}

function factsOf(node: Node, inference: Inference): StandardAttentionFacts {
  const of = (name: string) => {
    const value = node.graph.value(name);
    return value && inference.of(value);
  };
  return {
    opset: node.graph.model.opset(),
    rankOf: (name) => of(name)?.shape?.length,
    typeOf: (name) => of(name)?.type,
    isUsed: (name) => {
      const value = node.graph.value(name);
      return value !== undefined && (value.isOutput || value.uses.length > 0);
    },
    dimensionOf: (name, axis) => of(name)?.shape?.at(axis)?.value,
    maskKeys: maskKeys(node, inference),
  };
}

/** How many keys the mask has beside those that there are, past ones included. */
function maskKeys({ inputs: [, K, , mask, past] }: Node, inference: Inference): StandardAttentionFacts['maskKeys'] {
  const shapeOf = (value: typeof K) => value && inference.of(value).shape;
  const own = shapeOf(mask)?.at(-1);
  const key = shapeOf(K);
  const newKeys = key?.[key.length === 4 ? 2 : 1];
  const pastKeys = past ? shapeOf(past)?.[2] : Expression.constant(0);
  if (own && newKeys && pastKeys && own.equals(pastKeys.plus(newKeys))) return 'all';
  return own?.value === 1 ? 'one' : 'unknown';
}

/** A beginning that no value's name of the model has. */
function freePrefix(model: Model, base: string): string {
  const names = [...model.graphs()].flatMap((graph) => [...graph.values].map(({ name }) => name));
  let prefix = base;
  for (let i = 2; names.some((name) => name.startsWith(prefix)); i++) prefix = `${base}${i}/`;
  return prefix;
}
