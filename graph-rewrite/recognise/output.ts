import { feedsOnly, type Node, type Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import type { Candidate } from './operands.js';
import { identityView, stepView, type View } from './view.js';

/**
 * Every tensor that the attention's result becomes by moving data alone, nearest first. A tensor that something else
 * reads as well ends the chain: it has to be computed anyway. Here the view's root is the result, and its dimensions
 * are those of the tensor that the result becomes.
 */
export function outputCandidates(result: Value, inference: Inference): Candidate[] {
  const shape = inference.of(result).shape;
  if (!shape) return [];
  let view: View | undefined = identityView(shape);
  const found: Candidate[] = [{ root: result, view, absorbed: [], factor: 1 }];
  const absorbed: Node[] = [];
  let value = result;
  for (;;) {
    const node = onlyMover(value);
    const output = node?.outputs[0];
    if (!node || !output) return found;
    view = stepView(view, node, output, inference);
    if (!view) return found;
    absorbed.push(node);
    found.push({ root: output, view, absorbed: [...absorbed], factor: 1 });
    value = output;
  }
}

/** The node that moves the value on, where nothing else needs it: what only computes that node's shape does not count. */
function onlyMover(value: Value): Node | undefined {
  const movers = value.uses.filter(({ node, index }) => index === 0 && node.graph === value.graph && isMove(node));
  const node = movers.length === 1 ? movers[0]!.node : undefined;
  if (!node || value.isOutput) return undefined;
  const others = value.uses.filter((u) => u.node !== node);
  return others.every((u) => u.node.is('Shape') && feedsOnly(u.node, new Set([node]))) ? node : undefined;
}

function isMove(node: Node): boolean {
  return node.is('Reshape', 'Transpose', 'Unsqueeze', 'Squeeze', 'Flatten', 'Identity');
}
