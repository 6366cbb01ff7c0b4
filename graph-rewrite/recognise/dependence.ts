import type { Node, Value } from '../graph/graph.js';
import { refuse } from './refusal.js';
import type { ScoreTrace } from './scores.js';

/**
 * Refuses masks that are decided from the scores themselves (the largest few kept, say): the scores have to be computed
 * for them, and the operator would compute them again.
 */
export function requireIndependent(masks: readonly Value[], trace: ScoreTrace, softmaxNodes: readonly Node[]): void {
  const inside = new Set([...trace.nodes, ...softmaxNodes]);
  const watched = new Set(trace.nodes.flatMap((n) => n.outputs.filter((v) => v !== undefined)));
  const leaves = (v: Value) => v.uses.some(({ node }) => !inside.has(node) && !node.is('Shape'));
  if (![...watched].some(leaves)) return;
  for (const mask of masks) {
    if (dependsOn(mask, watched)) refuse('a mask is decided from the scores', mask);
  }
}

/** Whether a value is computed from one of these; their shapes do not count. */
function dependsOn(value: Value, sources: ReadonlySet<Value>): boolean {
  const seen = new Set<Value>([value]);
  for (const current of seen) {
    if (sources.has(current)) return true;
    if (!current.producer || current.producer.is('Shape')) continue;
    for (const input of current.producer.inputs) if (input) seen.add(input);
  }
  return false;
}
