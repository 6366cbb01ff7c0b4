import { feedsOnly, type Node, type Value } from '../graph/graph.js';
import { FLASH_ATTENTION_DOMAIN } from '../op/definition.js';
import type { Inference } from '../shape/inference.js';
import { type Dimension, leavesOf, sameLeaves } from './atoms.js';
import type { Factor, SinkTerm } from './combine.js';
import { type Contraction, readContraction } from './contraction.js';
import { traceGuards } from './guards.js';
import { refuse } from './refusal.js';
import { isSameValue } from './same.js';
import { type ScoreStep, type ScoreTrace, uniformValue } from './scores.js';
import { unfollowed } from './sizes.js';
import type { SoftmaxForm } from './softmax.js';
import { isIdleDropout, readSelection, stepView, type View } from './view.js';

/** The probabilities from the softmax to the product with the values. */
export interface ProbabilityTrace {
  readonly product: Contraction;
  /** Which operand of the product the probabilities are. */
  readonly side: 0 | 1;
  /** The probabilities' dimensions as the product reads them, in atoms of the scores. */
  readonly view: View;
  /** The same as their sum reads them, where what divides by it comes behind the product. */
  readonly summed: View | undefined;
  readonly nodes: readonly Node[];
  /** Data types that the probabilities are cast to on the way, in order. */
  readonly casts: readonly number[];
  /** Whether a guard makes rows that are NaN zeros. */
  readonly guarded: boolean;
  /** Masks whose keys get a probability of 0 once more after the softmax, which leaves rows without keys zeros. */
  readonly zeroed: readonly SelectStep[];
  /** What they are multiplied or divided by, in order. */
  readonly factors: readonly Factor[];
}

/** Dead code of exporters and tools is a few nodes. */
const MOST_DEAD_NODES = 64;

type SelectStep = ScoreStep & { readonly kind: 'select' };

/**
 * Follows the probabilities from the softmax to their product with the values. They must go nowhere else.
 */
export function traceProbabilities(
  softmax: SoftmaxForm,
  { view: start, steps }: ScoreTrace,
  inference: Inference,
): ProbabilityTrace {
  let sink = steps.find((s) => s.kind === 'sink');
  let value = softmax.output;
  let view = start;
  const nodes: Node[] = [];
  const casts: number[] = [];
  const zeroed: SelectStep[] = [];
  const factors: Factor[] = [];
  // Written as a quotient, with no maximum taken off after the masks, rows of low scores are 0/0; with none at all, those of
  // high ones ∞/∞.
  const maximum = steps.findLastIndex((s) => s.kind === 'shift' && s.by !== undefined);
  const lowered = steps.findLastIndex((s) => ['add', 'select', 'floor', 'sink'].includes(s.kind));
  const { late } = softmax;
  const mayBeUndefined = softmax.isQuotient === true && (maximum < 0 || maximum < lowered);
  let guarded = false;
  let summed: View | undefined;
  for (;;) {
    const aligned = view === start ? softmax : undefined;
    // Guards are judged by what probabilities are, not by what a factor makes of them.
    const guards = mayBeUndefined || late || factors.length > 0 ? undefined : traceGuards(value, aligned, inference);
    if (guards) {
      nodes.push(...guards.nodes);
      value = guards.value;
      guarded ||= guards.zeroes;
    }
    if (late?.summed === value) {
      if (factors.length > 0 || zeroed.length > 0) refuse('the exponentials are weighed before they are summed', value);
      summed = view;
    }
    const { node, unread } = onlyConsumer(value, late?.sum);
    nodes.push(...unread);
    const product = readContraction(node, inference);
    if (product) {
      if (sink) refuse('the column of a sink takes part in the product with the values', node);
      if (product.operands[0].value === product.operands[1].value)
        refuse('the probabilities are multiplied by themselves', node);
      const side = product.operands[0].value === value ? 0 : 1;
      if (product.node !== node) nodes.push(node);
      return { product, side, view, summed, nodes, casts, guarded, zeroed, factors };
    }
    const output = node.outputs[0]!;
    const mask = zeroedMask(node, value, view, steps, inference);
    const factor = sink ? undefined : readFactor(node, value, view, inference);
    if (sink && dropsSink(node, sink, inference)) {
      sink = undefined;
    } else if (node.is('Reshape', 'Transpose', 'Unsqueeze', 'Squeeze')) {
      const next = stepView(view, node, output, inference);
      if (!next) refuse(unfollowed(node.opType, 'probabilities', value, output, inference), output);
      view = next;
    } else if (node.is('Cast')) {
      casts.push(node.int('to') ?? 0);
    } else if (mask) {
      zeroed.push(mask);
    } else if (factor) {
      factors.push(factor);
    } else if (!node.is('Identity') && !(node.is('Dropout') && isIdleDropout(node))) {
      const isAttention = node.domain === FLASH_ATTENTION_DOMAIN;
      refuse(
        isAttention
          ? 'the probabilities are themselves an operand of another attention'
          : `the probabilities are changed by ${node.opType} before the product with the values`,
        output,
      );
    }
    nodes.push(node);
    value = output;
  }
}

/** A tensor, other than the probabilities, that they are multiplied or divided by, and that leaves their shape. */
function readFactor(node: Node, value: Value, { dimensions }: View, inference: Inference): Factor | undefined {
  const [a, b] = node.inputs;
  const divide = node.is('Div');
  const factor = a === value ? b : a;
  if (!(node.is('Mul') || (divide && a === value)) || !factor || a === b) return undefined;
  const [shape, result] = [inference.of(value).shape, inference.of(node.outputs[0]!).shape];
  const keepsShape = shape?.length === result?.length && shape?.every((size, i) => size.equals(result![i]!));
  return keepsShape && inference.of(factor).shape ? { value: factor, divide, dimensions } : undefined;
}

/** The mask whose keys Where gives a probability of 0. */
function zeroedMask(
  node: Node,
  value: Value,
  view: View,
  steps: readonly ScoreStep[],
  inference: Inference,
): SelectStep | undefined {
  const [condition, whenTrue, whenFalse] = node.inputs;
  if (!node.is('Where') || !condition || !whenTrue || !whenFalse) return undefined;
  const keepWhere = whenTrue === value;
  if (uniformValue(keepWhere ? whenFalse : whenTrue, inference) !== 0) return undefined;
  const sameDimensions = (dimensions: readonly Dimension[]) =>
    dimensions.length === view.dimensions.length &&
    dimensions.every((d, axis) => sameLeaves(leavesOf(d), leavesOf(view.dimensions[axis]!)));
  return steps.find(
    (step): step is SelectStep =>
      step.kind === 'select' &&
      step.keepWhere === keepWhere &&
      sameDimensions(step.dimensions) &&
      isSameValue(step.condition, condition, inference),
  );
}

/** Slice or Split that leaves out the sink's column and nothing else. */
function dropsSink(node: Node, sink: SinkTerm, inference: Inference): boolean {
  const sizes = node.inputs[0] && inference.of(node.inputs[0]).shape;
  const selection = sizes && readSelection(node, node.outputs[0]!, sizes, inference);
  if (selection?.axis !== sink.axis || selection.start !== (sink.first ? 1 : 0)) return false;
  return selection.length.plus(1).equals(sizes![sink.axis]!);
}

/** The one node that reads the probabilities, other than what sums them, and dead ones that do. */
function onlyConsumer(value: Value, sum?: Node): { readonly node: Node; readonly unread: readonly Node[] } {
  if (value.isOutput) refuse('the probabilities are an output of the graph', value);
  const every = [...new Set(value.uses.map((u) => u.node))].filter((n) => n !== sum);
  const unread = every.flatMap((n) => (n.graph === value.graph ? (deadNodes(n) ?? []) : []));
  const all = every.filter((n) => !unread.includes(n));
  const readers = all.filter((n) => !n.is('Shape'));
  // The shape of the probabilities may be asked for, as long as only what goes away with them needs the answer.
  const consumers = all.every((n) => readers.includes(n) || feedsOnly(n, new Set(readers))) ? readers : all;
  const [consumer] = consumers;
  if (!consumer) refuse('nothing reads the probabilities', value);
  if (consumers.length > 1) refuse(`the probabilities are also read by ${consumers.at(-1)!.opType}`, value);
  if (consumer.graph !== value.graph) refuse('the probabilities are read inside a subgraph', value);
  return { node: consumer, unread };
}

/** The node and everything that reads it, where no output of the graph comes of it. */
function deadNodes(node: Node): Node[] | undefined {
  const dead = new Set([node]);
  for (const current of dead) {
    const outputs = current.outputs.filter((v) => v !== undefined);
    if (dead.size > MOST_DEAD_NODES || current.subgraphs.length > 0 || current.graph !== node.graph) return undefined;
    if (outputs.some((v) => v.isOutput)) return undefined;
    for (const use of outputs.flatMap((v) => v.uses)) dead.add(use.node);
  }
  return [...dead];
}
