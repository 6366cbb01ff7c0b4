/** The softmax of a site in its several spellings. */
import type { Node, Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { beforeExpand } from './scores.js';

/** A softmax, however it is spelled: its input, the axis, and the probabilities. */
export interface SoftmaxForm {
  readonly input: Value;
  readonly output: Value;
  /** Counted from the front. */
  readonly axis: number;
  /** Every node of it. */
  readonly nodes: readonly Node[];
  /** The node that names the site. */
  readonly anchor: Node;
}

/**
 * Reads a softmax that ends at this node: Softmax itself (before opset 13 it flattens its input to 2-D at `axis`), or
 * exp(x) over its sum, as Div or as Mul by the sum's Reciprocal.
 */
export function readSoftmax(node: Node, inference: Inference): SoftmaxForm | undefined {
  if (node.is('Softmax')) return readOperator(node, inference);
  const [exponential, divisor] = node.inputs;
  if (!exponential || !divisor) return undefined;
  if (node.is('Div')) return readQuotient(node, exponential, divisor, [], inference);
  if (!node.is('Mul')) return undefined;
  const [e, reciprocal] = divisor.producer?.is('Reciprocal') ? [exponential, divisor] : [divisor, exponential];
  const sum = reciprocal.producer?.is('Reciprocal') ? reciprocal.producer.inputs[0] : undefined;
  return sum && readQuotient(node, e, sum, [reciprocal.producer!], inference);
}

function readOperator(node: Node, inference: Inference): SoftmaxForm | undefined {
  const [input] = node.inputs;
  const [output] = node.outputs;
  const shape = input && inference.of(input).shape;
  if (!shape || !output) return undefined;
  const flattens = node.graph.model.opset() < 13;
  const stated = node.int('axis') ?? (flattens ? 1 : -1);
  const axis = stated < 0 ? stated + shape.length : stated;
  if (axis < 0 || axis >= shape.length) return undefined;
  if (flattens && shape.slice(axis + 1).some((size) => !size.equals(1))) return undefined;
  return { input, output, axis, nodes: [node], anchor: node };
}

/** Why a Softmax cannot be looked at. */
export function whyUnread({ inputs: [input] }: Node, inference: Inference): string {
  if (!input || !inference.of(input).shape) return 'the rank of the input of Softmax is not known';
  return 'Softmax is over several dimensions at once, as before opset 13';
}

/** exp(x) / Σ exp(x), the sum kept as a dimension of size 1 by whatever means. */
function readQuotient(
  node: Node,
  exponential: Value,
  divisor: Value,
  between: readonly Node[],
  inference: Inference,
): SoftmaxForm | undefined {
  const kept = beforeExpand(divisor, exponential, inference);
  const moves = kept === divisor ? [] : [divisor.producer!];
  let sums = kept;
  while (sums.producer?.is('Unsqueeze', 'Reshape', 'Expand', 'Identity') && sums.producer.inputs[0]) {
    moves.unshift(sums.producer);
    sums = sums.producer.inputs[0];
  }
  const sum = sums.producer;
  const input = exponential.producer?.is('Exp') ? exponential.producer.inputs[0] : undefined;
  const shape = input && inference.of(input).shape;
  const [output] = node.outputs;
  if (!sum?.is('ReduceSum') || sum.inputs[0] !== exponential || !shape || !output) return undefined;
  const axes = sum.ints('axes') ?? (sum.inputs[1] && inference.of(sum.inputs[1]).elements?.map((e) => e.value));
  const stated = axes?.length === 1 ? axes[0] : undefined;
  if (stated === undefined || exponential.isOutput) return undefined;
  const axis = stated < 0 ? stated + shape.length : stated;
  const sizes = inference.of(kept).shape;
  const keepsRow = sizes?.length === shape.length && sizes.every((size, i) => size.equals(i === axis ? 1 : shape[i]!));
  const elsewhere = exponential.uses.some((u) => u.node !== node && u.node !== sum);
  if (!keepsRow || elsewhere) return undefined;
  const nodes = [exponential.producer!, sum, ...moves, ...between, node];
  return { input, output, axis, nodes, anchor: node };
}
