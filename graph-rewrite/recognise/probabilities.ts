import { feedsOnly, type Node, type Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { type Dimension, leavesOf, sizeOf } from './atoms.js';
import type { SinkTerm } from './combine.js';
import { type Contraction, readContraction } from './contraction.js';
import { refuse } from './refusal.js';
import { isSameValue } from './same.js';
import { type ScoreStep, type ScoreTrace, uniformValue } from './scores.js';
import { isInferenceDropout, readSelection, stepView, type View } from './view.js';

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

/** exp(x) / Σ exp(x), the sum kept as a dimension of size 1 by whatever means. */
function readQuotient(
  node: Node,
  exponential: Value,
  divisor: Value,
  between: readonly Node[],
  inference: Inference,
): SoftmaxForm | undefined {
  const widen = divisor.producer?.is('Unsqueeze', 'Reshape') ? divisor.producer : undefined;
  const sum = (widen?.inputs[0] ?? divisor).producer;
  const input = exponential.producer?.is('Exp') ? exponential.producer.inputs[0] : undefined;
  const shape = input && inference.of(input).shape;
  const [output] = node.outputs;
  if (!sum?.is('ReduceSum') || sum.inputs[0] !== exponential || !shape || !output) return undefined;
  const axes = sum.ints('axes') ?? (sum.inputs[1] && inference.of(sum.inputs[1]).elements?.map((e) => e.value));
  const stated = axes?.length === 1 ? axes[0] : undefined;
  if (stated === undefined || exponential.isOutput) return undefined;
  const axis = stated < 0 ? stated + shape.length : stated;
  const sums = inference.of(divisor).shape;
  const keepsRow = sums?.length === shape.length && sums.every((size, i) => size.equals(i === axis ? 1 : shape[i]!));
  const elsewhere = exponential.uses.some((u) => u.node !== node && u.node !== sum);
  if (!keepsRow || elsewhere) return undefined;
  const nodes = [exponential.producer!, sum, ...(widen ? [widen] : []), ...between, node];
  return { input, output, axis, nodes, anchor: node };
}

/** The probabilities from the softmax to the product with the values. */
export interface ProbabilityTrace {
  readonly product: Contraction;
  /** Which operand of the product the probabilities are. */
  readonly side: 0 | 1;
  /** The probabilities' dimensions as the product reads them, in atoms of the scores. */
  readonly view: View;
  readonly nodes: readonly Node[];
  /** Data types that the probabilities are cast to on the way, in order. */
  readonly casts: readonly number[];
  /** Masks whose keys get a probability of 0 once more after the softmax, which leaves rows without keys zeros. */
  readonly zeroed: readonly SelectStep[];
}

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
  // Written as a quotient, with no maximum taken off after the masks, rows of low scores are 0/0; with none at all, those of
  // high ones ∞/∞.
  const maximum = steps.findLastIndex((s) => s.kind === 'shift' && s.by !== undefined);
  const lowered = steps.findLastIndex((s) => ['add', 'select', 'floor', 'sink'].includes(s.kind));
  const mayBeUndefined = softmax.nodes.length > 1 && (maximum < 0 || maximum < lowered);
  for (;;) {
    const node = onlyConsumer(value, nodes);
    const product = readContraction(node, inference);
    if (product) {
      if (sink) refuse('the column of a sink takes part in the product with the values', node);
      if (product.operands[0].value === product.operands[1].value)
        refuse('the probabilities are multiplied by themselves', node);
      if (product.factor !== 1) refuse('the product of probabilities and values is scaled', node);
      const side = product.operands[0].value === value ? 0 : 1;
      return { product, side, view, nodes, casts, zeroed };
    }
    const output = node.outputs[0]!;
    if (sink && dropsSink(node, sink, view, inference)) {
      sink = undefined;
    } else if (node.is('Reshape', 'Transpose', 'Unsqueeze', 'Squeeze')) {
      const next = stepView(view, node, output, inference);
      if (!next) refuse(`what ${node.opType} does to the probabilities' shape is not understood`, output);
      view = next;
    } else if (node.is('Cast')) {
      casts.push(node.int('to') ?? 0);
    } else if (zeroedMask(node, value, view, steps, inference)) {
      zeroed.push(zeroedMask(node, value, view, steps, inference)!);
    } else if (!passesThrough(node, value, inference) || (mayBeUndefined && node.is('Where'))) {
      refuse(`the probabilities are changed by ${node.opType} before the product with the values`, output);
    }
    nodes.push(node);
    value = output;
  }
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
    dimensions.every((d, axis) => {
      const [own, other] = [leavesOf(d), leavesOf(view.dimensions[axis]!)];
      return own.length === other.length && own.every((leaf, i) => leaf === other[i]);
    });
  return steps.find(
    (step): step is SelectStep =>
      step.kind === 'select' &&
      step.keepWhere === keepWhere &&
      sameDimensions(step.dimensions) &&
      isSameValue(step.condition, condition, inference),
  );
}

/** Slice or Split that leaves out the sink's column and nothing else. */
function dropsSink(node: Node, sink: SinkTerm, view: View, inference: Inference): boolean {
  const keys = sizeOf(view.dimensions[sink.axis]!);
  const sizes = view.dimensions.map((d, axis) => (axis === sink.axis ? keys.plus(1) : sizeOf(d)));
  const selection = readSelection(node, node.outputs[0]!, sizes, inference);
  return selection?.axis === sink.axis && selection.start === (sink.first ? 1 : 0) && selection.length.equals(keys);
}

/** The one node that reads the probabilities, a guard against NaN counted as one node. */
function onlyConsumer(value: Value, nodes: Node[]): Node {
  if (value.isOutput) refuse('the probabilities are an output of the graph', value);
  const all = [...new Set(value.uses.map((u) => u.node))];
  const readers = all.filter((n) => !n.is('Shape'));
  // The shape of the probabilities may be asked for, as long as only what goes away with them needs the answer.
  const consumers = all.every((n) => readers.includes(n) || feedsOnly(n, new Set(readers))) ? readers : all;
  const guard = consumers.find((n) => n.is('Where'));
  const test = consumers.find((n) => n.is('IsNaN'));
  const isGuarded = consumers.length === 2 && guard && test && test.outputs[0] === guard.inputs[0];
  if (isGuarded && guard.inputs[2] === value && test.outputs[0]!.uses.length === 1) {
    nodes.push(test);
    return guard;
  }
  const [consumer] = consumers;
  if (!consumer) refuse('nothing reads the probabilities', value);
  if (consumers.length > 1) refuse(`the probabilities are also read by ${consumers.at(-1)!.opType}`, value);
  if (consumer.graph !== value.graph) refuse('the probabilities are read inside a subgraph', value);
  return consumer;
}

/** Operators that leave probabilities as they are. */
function passesThrough(node: Node, value: Value, inference: Inference): boolean {
  if (node.is('Identity')) return true;
  if (node.is('Dropout')) return isInferenceDropout(node);
  // Where(IsNaN(p), 0, p): rows without a key, which the operator makes zeros by itself.
  const [condition, replacement, kept] = node.inputs;
  const test = condition?.producer;
  const guards = node.is('Where') && test?.is('IsNaN') === true && test.inputs[0] === value && kept === value;
  return guards && replacement !== undefined && uniformValue(replacement, inference) === 0;
}
