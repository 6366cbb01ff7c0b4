import type { Graph } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { readSoftmax, type SoftmaxForm } from './probabilities.js';
import { refuse } from './refusal.js';
import { matchSite, type Site } from './site.js';

/** Every softmax of a graph, in order. */
export function* softmaxes(graph: Graph, inference: Inference): Generator<SoftmaxForm> {
  for (const node of graph.nodes) {
    const softmax = readSoftmax(node, inference);
    if (softmax) yield softmax;
  }
}

/** Looks for attention around a softmax; throws a refusal with the reason where there is none to replace. */
export function examine(softmax: SoftmaxForm, inference: Inference): Site {
  if (softmax.output.producer === undefined) refuse('an earlier site replaced it', softmax.output);
  return matchSite(softmax, inference);
}
