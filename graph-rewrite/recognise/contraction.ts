import type { Node, Value } from '../graph/graph.js';
import type { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { reducedAxis } from './view.js';

/**
 * A product of two tensors that sums over shared dimensions, as an einsum: a label a dimension. MatMul, Gemm,
 * FusedMatMul and Einsum all are that, and so is the sum of a product element by element.
 */
export interface Contraction {
  /** The node that has the result. */
  readonly node: Node;
  readonly operands: readonly [Operand, Operand];
  readonly output: Value;
  readonly outputLabels: readonly string[];
  /** Factor on the result (alpha of Gemm and FusedMatMul). */
  readonly factor: number;
}

export interface Operand {
  readonly value: Value;
  /** One a dimension, outermost first; a dimension of size 1 may be broadcast against the other operand's. */
  readonly labels: readonly string[];
}

/** Labels that both operands have and the output lacks. */
export function contractedLabels({ operands, outputLabels }: Contraction): string[] {
  return operands[0].labels.filter((l) => operands[1].labels.includes(l) && !outputLabels.includes(l));
}

/** Reads a node as a contraction; undefined where it is none, or one of another kind. */
export function readContraction(node: Node, inference: Inference): Contraction | undefined {
  const [a, b] = node.inputs;
  const output = node.outputs[0];
  if (!a || !b || !output) return undefined;
  const rank = (v: Value) => inference.of(v).shape?.length;
  if (node.is('MatMul')) return matmul(node, a, b, output, [rank(a), rank(b)], 1);
  if (node.domain === 'com.microsoft' && ['FusedMatMul', 'TransposeMatMul'].includes(node.opType))
    return matmul(node, a, b, output, [rank(a), rank(b)], node.float('alpha') ?? 1);
  if (node.is('Gemm')) {
    const addsNothing = !node.inputs[2] || node.float('beta') === 0 || inference.uniformOf(node.inputs[2]) === 0;
    return addsNothing ? matmul(node, a, b, output, [2, 2], node.float('alpha') ?? 1) : undefined;
  }
  if (node.is('Mul')) return summedProduct(node, inference);
  return node.is('Einsum') && node.inputs.length === 2 ? einsum(node, [a, b], output, [rank(a), rank(b)]) : undefined;
}

/** The contraction that a value is the result of; undefined where it is none. */
export function contractionTo(value: Value, inference: Inference): Contraction | undefined {
  const node = value.producer;
  const factor = node?.is('ReduceSum') ? node.inputs[0]?.producer : node;
  const product = factor && readContraction(factor, inference);
  return product?.output === value ? product : undefined;
}

/** Mul whose result is only summed, over one dimension that both operands have. */
function summedProduct(node: Node, inference: Inference): Contraction | undefined {
  const product = node.outputs[0]!;
  const sum = product.uses.length === 1 && !product.isOutput ? product.uses[0]!.node : undefined;
  const [a, b] = node.inputs.map((v) => v && inference.of(v).shape);
  if (!sum?.is('ReduceSum') || sum.graph !== node.graph || !a || !b) return undefined;
  const rank = Math.max(a.length, b.length);
  const axis = reducedAxis(sum, rank, inference);
  if (axis === undefined) return undefined;
  // What is broadcast along a dimension of the other's does not have it.
  const labels = (shape: readonly Expression[], other: readonly Expression[], side: 'A' | 'B') =>
    shape.map((size, i) => {
      const facing = other[i + other.length - shape.length];
      const at = i + rank - shape.length;
      return size.equals(1) && facing && !facing.equals(1) ? `single${side}${at}` : `batch${at}`;
    });
  const [left, right] = [labels(a, b, 'A'), labels(b, a, 'B')];
  const summed = `batch${axis}`;
  // Other than MatMul, Mul would broadcast a size of 1 that is only known when the model runs.
  const sizeAlong = (shape: readonly Expression[]) => shape[axis - rank + shape.length];
  if (!sizeAlong(a)?.equals(sizeAlong(b) ?? -1)) return undefined;
  const all = Array.from({ length: rank }, (_, i) => `batch${i}`);
  const rename = (label: string) => {
    if (label === summed) return 'sum';
    if (left.includes(label) && right.includes(label)) return label;
    return label.replace('batch', left.includes(label) ? 'row' : 'column');
  };
  const kept = sum.int('keepdims') === 0 ? [] : ['kept'];
  return {
    node: sum,
    operands: [
      { value: node.inputs[0]!, labels: left.map(rename) },
      { value: node.inputs[1]!, labels: right.map(rename) },
    ],
    output: sum.outputs[0]!,
    outputLabels: all.flatMap((label) => (label === summed ? kept : rename(label))),
    factor: 1,
  };
}

/**
 * MatMul, and those that first transpose their operands' last two dimensions (transA, transB) or move the first one
 * behind the batch (transBatchA, transBatchB), which is the other way round.
 */
function matmul(
  node: Node,
  a: Value,
  b: Value,
  output: Value,
  [rankA, rankB]: readonly [number | undefined, number | undefined],
  factor: number,
): Contraction | undefined {
  if (rankA === undefined || rankB === undefined || rankA < 2 || rankB < 2) return undefined;
  const batch = Array.from({ length: Math.max(rankA, rankB) - 2 }, (_, i) => `batch${i}`);
  const labels = (rank: number, last: readonly [string, string], side: 'A' | 'B') => {
    const own = batch.slice(batch.length - (rank - 2));
    const [first, second] = node.int(`trans${side}`) ? [last[1], last[0]] : last;
    return node.int(`transBatch${side}`) ? [first, ...own, second] : [...own, first, second];
  };
  return {
    node,
    operands: [
      { value: a, labels: labels(rankA, ['row', 'sum'], 'A') },
      { value: b, labels: labels(rankB, ['sum', 'column'], 'B') },
    ],
    output,
    outputLabels: [...batch, 'row', 'column'],
    factor,
  };
}

/** Einsum of two operands without repeated labels or sums over one operand alone; an ellipsis is batch dimensions. */
function einsum(
  node: Node,
  [a, b]: readonly [Value, Value],
  output: Value,
  ranks: readonly (number | undefined)[],
): Contraction | undefined {
  const term = '((?:[a-zA-Z]|\\.{3})+)';
  const equation = (node.string('equation') ?? '').replaceAll(' ', '');
  const match = new RegExp(`^${term},${term}->${term}$`).exec(equation);
  if (!match) return undefined;
  const terms = match.slice(1);
  const hidden = terms.slice(0, 2).map((text, i) => (text.includes('...') ? (ranks[i] ?? 0) - text.length + 3 : 0));
  const most = Math.max(...hidden);
  if (hidden.some((n) => n < 0) || most > 9) return undefined;
  // The last dimensions of two ellipses belong together, as in MatMul.
  const labels = (text: string, count: number): string[] =>
    [...text.replace('...', '0123456789'.slice(most - count, most))].map((l) => (/\d/.test(l) ? `batch${l}` : l));
  const [left, right, out] = terms.map((text, i) => labels(text, hidden[i] ?? most)) as [string[], string[], string[]];
  for (const term of [left, right, out]) if (new Set(term).size !== term.length) return undefined;
  const single =
    left.some((l) => !right.includes(l) && !out.includes(l)) ||
    right.some((l) => !left.includes(l) && !out.includes(l));
  if (single || out.some((l) => !left.includes(l) && !right.includes(l))) return undefined;
  return {
    node,
    operands: [
      { value: a, labels: left },
      { value: b, labels: right },
    ],
    output,
    outputLabels: out,
    factor: 1,
  };
}
