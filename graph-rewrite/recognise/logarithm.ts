/** The logarithm of a sum of exponentials, written out. */
import type { Node, Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { isSameValue } from './same.js';
import { beforeExpand, lessMaximum } from './scores.js';
import { keepsOrder, readDivisor } from './sums.js';

/** log Σ exp(x), and the nodes that compute it of x. */
export interface LogarithmOfSum {
  /** Before it is repeated for all keys. */
  readonly value: Value;
  /** The axis of x that is summed, counted from the front. */
  readonly axis: number;
  readonly nodes: readonly Node[];
}

/** Reads log Σ exp(x), or m + log Σ exp(x − m) where m is the maximum of x. */
export function readLogarithmOfSum(x: Value, logarithm: Value, inference: Inference): LogarithmOfSum | undefined {
  const start = beforeExpand(logarithm, x, inference);
  const { value, nodes } = unmoved(start);
  const add = value.producer;
  if (!add?.is('Add')) return logOf(start, value, nodes, x, undefined, inference);
  for (const [maximum, rest] of [add.inputs, [...add.inputs].reverse()]) {
    const log = rest && unmoved(rest);
    const found = maximum && log && logOf(start, log.value, [...log.nodes, add, ...nodes], x, maximum, inference);
    if (found) return found;
  }
  return undefined;
}

function logOf(
  start: Value,
  value: Value,
  behind: readonly Node[],
  x: Value,
  maximum: Value | undefined,
  inference: Inference,
): LogarithmOfSum | undefined {
  const log = value.producer;
  const [sum] = log?.is('Log') ? log.inputs : [];
  if (!log || !sum) return undefined;
  for (const exponential of exponentialsOf(x, maximum, inference)) {
    const divisor = readDivisor(sum, false, exponential, [exponential], inference);
    if (!divisor || divisor.more || divisor.guards.length > 0 || !keepsOrder(divisor)) continue;
    const difference = maximum ? [exponential.producer!.inputs[0]!.producer!] : [];
    const nodes = [...difference, exponential.producer!, divisor.sum, ...divisor.nodes, log, ...behind];
    return { value: start, axis: divisor.axis, nodes };
  }
  return undefined;
}

/** Values exp(x), or exp(x − m). */
function exponentialsOf(x: Value, maximum: Value | undefined, inference: Inference): Value[] {
  const readers = x.uses.map((u) => u.node);
  const arguments_ = maximum
    ? readers.flatMap((node) => {
        const [minuend, subtracted] = node.is('Sub') ? node.inputs : [];
        const isLess = minuend === x && subtracted && lessMaximum(subtracted, x, [], inference);
        const root = (v: Value) => unmoved(v).value;
        return isLess && isSameValue(root(subtracted), root(maximum), inference) ? [node.outputs[0]!] : [];
      })
    : [x];
  return arguments_.flatMap((argument) =>
    argument.uses.filter(({ node }) => node.is('Exp')).map(({ node }) => node.outputs[0]!),
  );
}

/** What a value is before dimensions of size 1 come and go. */
function unmoved(value: Value): { readonly value: Value; readonly nodes: readonly Node[] } {
  const nodes: Node[] = [];
  let source = value;
  while (source.producer?.is('Unsqueeze', 'Squeeze', 'Reshape', 'Identity') && source.producer.inputs[0]) {
    nodes.unshift(source.producer);
    source = source.producer.inputs[0];
  }
  return { value: source, nodes };
}
