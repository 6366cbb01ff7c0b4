import { feedsOnly, type Node, type Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import type { Candidate } from './operands.js';
import { identityView, stepView, type View } from './view.js';

/**
 * Every tensor that the attention's result becomes by moving data alone, nearest first. A tensor that something else
 * reads as well ends the chain: it has to be computed anyway. Here the view's root is the result, and its dimensions
 * are those of the tensor that the result becomes.
 * @param through nodes from the result to where a late division by its rows' sums has been made: only what comes of that
 * is the result then.
 */
export function outputCandidates(result: Value, inference: Inference, through: readonly Node[] = []): Candidate[] {
  const shape = inference.of(result).shape;
  if (!shape) return [];
  let view: View | undefined = identityView(shape);
  const isLate = through.length > 0;
  const found: Candidate[] = isLate ? [] : [{ root: result, view, absorbed: [], factor: 1 }];
  const absorbed: Node[] = [];
  let value = result;
  for (;;) {
    const division = through[absorbed.length];
    const node = division ? (isOnlyReader(division, value) ? division : undefined) : onlyMover(value);
    const output = node?.outputs[0];
    if (!node || !output) return found;
    if (isMove(node)) view = stepView(view, node, output, inference);
    if (!view) return found;
    absorbed.push(node);
    if (absorbed.length >= through.length) found.push({ root: output, view, absorbed: [...absorbed], factor: 1 });
    value = output;
  }
}

/** The node that moves the value on, where nothing else needs it: what only computes that node's shape does not count. */
export function onlyMover(value: Value): Node | undefined {
  const movers = value.uses.filter(({ node, index }) => index === 0 && node.graph === value.graph && isMove(node));
  const node = movers.length === 1 ? movers[0]!.node : undefined;
  return node && isOnlyReader(node, value) ? node : undefined;
}

/** Whether nothing but this node needs a value. */
export function isOnlyReader(node: Node, value: Value): boolean {
  if (value.isOutput || node.graph !== value.graph) return false;
  const others = value.uses.filter((u) => u.node !== node);
  return others.every((u) => u.node.is('Shape') && feedsOnly(u.node, new Set([node])));
}

function isMove(node: Node): boolean {
  return node.is('Reshape', 'Transpose', 'Unsqueeze', 'Squeeze', 'Flatten', 'Identity');
}
