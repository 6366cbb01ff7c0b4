import type { Graph, Node } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { isAttentionOperator } from './operator.js';
import { refuse } from './refusal.js';
import { matchSite, type Site } from './site.js';
import { readSoftmax, type SoftmaxForm } from './softmax.js';

/** Where attention may be: around a softmax, in an operator that computes it as one, or in what cannot be looked at. */
export type Place = { readonly softmax: SoftmaxForm } | { readonly operator: Node } | { readonly unread: Node };

/** Every place of a graph, in order. */
export function* places(graph: Graph, inference: Inference): Generator<Place> {
  for (const node of graph.nodes) {
    const softmax = readSoftmax(node, inference);
    if (softmax) yield { softmax };
    else if (isAttentionOperator(node)) yield { operator: node };
    else if (node.is('Softmax')) yield { unread: node };
  }
}

/** Looks for attention around a softmax; throws a refusal with the reason where there is none to replace. */
export function examine(softmax: SoftmaxForm, inference: Inference): Site {
  if (softmax.output.producer === undefined) refuse('an earlier site replaced it', softmax.output);
  return matchSite(softmax, inference);
}
