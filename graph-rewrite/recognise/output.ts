import { feedsOnly, type Node, type Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import type { Candidate } from './operands.js';
import { identityView, stepView, type View } from './view.js';

/**
 * Every tensor that the attention's result becomes by moving data alone, nearest first. A tensor that something else
 * reads as well ends the chain: it has to be computed anyway. Here the view's root is the result, and its dimensions
 * are those of the tensor that the result becomes.
 * @param division what divides the result by its own row's sum on the way; only what comes of that is the result.
 */
export function outputCandidates(result: Value, inference: Inference, division?: Node): Candidate[] {
  const shape = inference.of(result).shape;
  if (!shape) return [];
  let view: View | undefined = identityView(shape);
  const found: Candidate[] = division ? [] : [{ root: result, view, absorbed: [], factor: 1 }];
  const absorbed: Node[] = [];
  let value = result;
  let isDivided = division === undefined;
  for (;;) {
    const node = onlyMover(value, division);
    const output = node?.outputs[0];
    if (!node || !output) return found;
    if (node !== division) view = stepView(view, node, output, inference);
    if (!view) return found;
    absorbed.push(node);
    isDivided ||= node === division;
    if (isDivided) found.push({ root: output, view, absorbed: [...absorbed], factor: 1 });
    value = output;
  }
}

/** The node that moves the value on, where nothing else needs it: what only computes that node's shape does not count. */
export function onlyMover(value: Value, division?: Node): Node | undefined {
  const isMover = (node: Node, index: number) => node === division || (index === 0 && isMove(node));
  const movers = value.uses.filter(({ node, index }) => node.graph === value.graph && isMover(node, index));
  const node = movers.length === 1 ? movers[0]!.node : undefined;
  if (!node || value.isOutput) return undefined;
  const others = value.uses.filter((u) => u.node !== node);
  return others.every((u) => u.node.is('Shape') && feedsOnly(u.node, new Set([node]))) ? node : undefined;
}

function isMove(node: Node): boolean {
  return node.is('Reshape', 'Transpose', 'Unsqueeze', 'Squeeze', 'Flatten', 'Identity');
}
