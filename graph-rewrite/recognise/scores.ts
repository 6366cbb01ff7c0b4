import type { Node, Value } from '../graph/graph.js';
import { DataType } from '../onnx/proto.js';
import { constantOfTensor } from '../shape/constant.js';
import type { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import type { Dimension } from './atoms.js';
import { type Contraction, contractedLabels, contractionTo } from './contraction.js';
import { refuse, refuseProduct } from './refusal.js';
import { copied } from './same.js';
import { joinSelections } from './selections.js';
import { unfollowed } from './sizes.js';
import { constantInts, identityView, isIdleDropout, stepView, type View } from './view.js';

/** What happens to the scores on their way from the product of queries and keys to the softmax, in that order. */
export type ScoreStep =
  | { readonly kind: 'scale'; readonly factor: number }
  /** Multiplied (or divided) by a tensor. */
  | {
      readonly kind: 'factor';
      readonly value: Value;
      readonly divide: boolean;
      readonly dimensions: readonly Dimension[];
    }
  | { readonly kind: 'tanh' }
  /** One number for all keys is added: a constant, or (`value`) something that may vary along other dimensions. */
  | { readonly kind: 'shift'; readonly by?: { readonly value: Value; readonly dimensions: readonly Dimension[] } }
  | {
      readonly kind: 'add';
      readonly value: Value;
      readonly negate: boolean;
      readonly dimensions: readonly Dimension[];
      /** Where it takes a key out, the score itself is 0 as well. */
      readonly replaces?: boolean;
    }
  /** Scores where the condition is `keepWhere`, `fill` elsewhere. */
  | {
      readonly kind: 'select';
      readonly condition: Value;
      readonly keepWhere: boolean;
      readonly fill: number;
      readonly dimensions: readonly Dimension[];
    }
  | { readonly kind: 'cast'; readonly type: number }
  /** Kept between bounds that no score reaches. */
  | { readonly kind: 'clip' }
  /** The larger of the score and a number that no score is as low as, against sums of masks that overflow. */
  | {
      readonly kind: 'floor';
      readonly value: Value;
      readonly lowest: number;
      readonly dimensions: readonly Dimension[];
    }
  /** One more column, at either end, that is no key: an attention sink. */
  | {
      readonly kind: 'sink';
      /** The column; where `logit` is set, where it is joined. */
      readonly value: Value;
      /** Set where the column is this number. */
      readonly logit?: number;
      readonly first: boolean;
      readonly axis: number;
      readonly dimensions: readonly Dimension[];
    };

/** The scores from their product to one later value. */
export interface ScoreTrace {
  readonly product: Contraction;
  readonly steps: readonly ScoreStep[];
  /** Every node on the way, the product's first. */
  readonly nodes: readonly Node[];
  /** The value's dimensions, in atoms of the product's output. */
  readonly view: View;
  /** Dimensions of the product's output. */
  readonly base: readonly Dimension[];
}

const MAXIMUM_PATH = 40;
/** Scores are taken to be far above. */
export const HIGHEST_FLOOR = -1e30;
/** The lowest number of float16. */
const LOWEST_HALF = -65504;

/** Where a search for the product ended. */
interface DeadEnd {
  readonly reason: string;
  readonly value: Value;
}

/** How many products are looked at in turn, where several are added up. */
const MOST_PRODUCTS = 6;

/**
 * Every way from a product of queries and keys to the softmax's input, the product's node first: more than one where
 * terms that are added, as of relative positions, are products too.
 * Throws a refusal that names the value at which the trail ends, where there is none.
 */
export function* scorePaths(input: Value, inference: Inference): Generator<readonly Node[]> {
  const ends: DeadEnd[] = [];
  let found = 0;
  for (const path of productPaths(input, inference, { barren: new Set(), ends }, 0)) {
    yield path;
    if (++found === MOST_PRODUCTS) return;
  }
  const end = ends.at(-1);
  if (found === 0 && end) refuse(end.reason, end.value);
}

/** Follows the scores along a path of {@link scorePaths}. Throws a refusal where a step of it is not understood. */
export function traceScores(path: readonly Node[], inference: Inference): ScoreTrace {
  const [first, ...rest] = path;
  const product = contractionTo(first!.outputs[0]!, inference)!;
  const shape = inference.of(product.output).shape;
  if (shape?.length !== product.outputLabels.length)
    return refuse('the rank of the scores is not known', product.output);
  let view = identityView(shape);
  const base = view.dimensions;
  const steps: ScoreStep[] = product.factor === 1 ? [] : [{ kind: 'scale', factor: product.factor }];
  let current = product.output;
  for (const node of rest) {
    const output = node.outputs[0]!;
    if (isNegated(node, current)) steps.push({ kind: 'scale', factor: -1 });
    const step = readStep(node, current, view, inference);
    if (step === 'view') {
      const next = stepView(view, node, output, inference);
      if (!next) return refuse(unfollowed(node.opType, 'scores', current, output, inference), output);
      view = next;
    } else if (step) {
      steps.push(step);
      requireSameRank(step, { node, scores: current }, view, inference);
    }
    current = output;
  }
  return { product, steps: joinSelections(steps, inference), nodes: path, view, base };
}

/** Nodes from a product to the value, the product first. */
function* productPaths(
  value: Value,
  inference: Inference,
  search: { readonly barren: Set<Value>; readonly ends: DeadEnd[] },
  depth: number,
): Generator<readonly Node[]> {
  const { barren, ends } = search;
  const node = value.producer;
  if (barren.has(value)) return;
  const product = contractionTo(value, inference);
  if (node && product && contractedLabels(product).length === 1) {
    yield [node];
    return;
  }
  let fertile = false;
  if (node && depth <= MAXIMUM_PATH) {
    for (const input of scoreInputs(node, inference)) {
      for (const path of productPaths(input, inference, search, depth + 1)) {
        fertile = true;
        yield [...path, node];
      }
    }
  }
  if (fertile) return;
  barren.add(value);
  const isEnd = !node || depth > MAXIMUM_PATH;
  const reason = isEnd
    ? 'the softmax is not over a product of queries and keys'
    : product
      ? `${node.opType} in front of the softmax does not sum over one dimension of two tensors`
      : `${node.opType} between the product of queries and keys and the softmax is not understood`;
  if (isEnd || scoreInputs(node, inference).length === 0) ends.push({ reason, value });
}

/** Which inputs of a node may carry the scores. */
function scoreInputs(node: Node, inference: Inference): Value[] {
  if (node.domain !== '') return [];
  const all = node.inputs.filter((v) => v !== undefined);
  const notScalar = (v: Value) => inference.scalarOf(v) === undefined;
  switch (node.opType) {
    case 'Add':
    case 'Sub':
    case 'Mul':
    case 'Max':
      return all.filter(notScalar).length > 0 ? all.filter(notScalar) : all;
    case 'Div':
    case 'Neg':
    case 'Tanh':
    case 'Cast':
    case 'Identity':
    case 'Reshape':
    case 'Transpose':
    case 'Unsqueeze':
    case 'Squeeze':
      return all.slice(0, 1);
    case 'Clip':
      return all.slice(0, 1);
    case 'Dropout':
      return isIdleDropout(node) ? all.slice(0, 1) : [];
    case 'Pad':
      return all.slice(0, 1);
    case 'Where':
      return all.slice(1, 3).filter((v) => uniformValue(v, inference) === undefined);
    case 'Concat':
      return all.length === 2 ? all : [];
    default:
      return [];
  }
}

function readStep(node: Node, scores: Value, view: View, inference: Inference): ScoreStep | 'view' | undefined {
  const other = node.inputs.find((v) => v !== scores);
  const { dimensions } = view;
  switch (node.opType) {
    case 'Add':
      if (!other) return refuse('the scores are added to themselves', node);
      return addition(other, false, dimensions, inference);
    case 'Sub':
      if (!other) return refuse('the scores are subtracted from themselves', node);
      return (
        lessMaximum(other, scores, dimensions, inference) ??
        addition(other, !isNegated(node, scores), dimensions, inference)
      );
    case 'Mul':
    case 'Div': {
      if (!other) return refuse('the scores are multiplied by themselves', node);
      const divide = node.opType === 'Div';
      const scalar = inference.scalarOf(other);
      if (scalar !== undefined) return { kind: 'scale', factor: divide ? 1 / scalar : scalar };
      return { kind: 'factor', value: other, divide, dimensions };
    }
    case 'Max':
      return floor(node, scores, dimensions, inference);
    case 'Clip':
      return clip(node, inference);
    case 'Tanh':
      return { kind: 'tanh' };
    case 'Cast':
      if (node.int('to') === inference.of(scores).type) return undefined;
      return { kind: 'cast', type: node.int('to') ?? 0 };
    case 'Where':
      return selection(node, scores, dimensions, inference);
    case 'Concat':
      return other ? sink(node, scores, other, dimensions, inference) : refuse('the scores are repeated', node);
    case 'Pad':
      return paddedSink(node, dimensions, inference);
    case 'Identity':
    case 'Dropout':
    case 'Neg':
      return undefined;
    default:
      return 'view';
  }
}

/** −x, and what x is subtracted from: the scores' signs are turned before anything else happens to them. */
function isNegated(node: Node, scores: Value): boolean {
  return node.is('Neg') || (node.is('Sub') && node.inputs[1] === scores);
}

/** Larger numbers added to all scores are not left out: they would cost the scores digits. */
const LARGEST_SHIFT = 64;

/** Adding a constant to every score changes nothing in a softmax. */
function addition(value: Value, negate: boolean, dimensions: readonly Dimension[], inference: Inference): ScoreStep {
  const number = uniformValue(value, inference);
  // As torch.baddbmm leaves it, of a β of 0 or a tensor of zeros.
  if (number === 0) return { kind: 'scale', factor: 1 };
  if (number !== undefined && Math.abs(number) <= LARGEST_SHIFT) return { kind: 'shift' };
  return { kind: 'add', value, negate, dimensions };
}

function selection(node: Node, scores: Value, dimensions: readonly Dimension[], inference: Inference): ScoreStep {
  const [condition, whenTrue, whenFalse] = node.inputs;
  const keepWhere = whenTrue === scores;
  const filler = keepWhere ? whenFalse : whenTrue;
  const fill = filler && uniformValue(filler, inference);
  if (!condition || fill === undefined) {
    let source = filler;
    while (source?.producer?.is('Identity', 'Cast')) source = source.producer.inputs[0];
    const isDefault = source?.initializer && source.isInput;
    const why = isDefault ? `: ${source!.name} is an input, for which the file holds a default only` : '';
    return refuse(`Where puts something other than one constant in place of scores${why}`, node);
  }
  return { kind: 'select', condition, keepWhere, fill, dimensions };
}

function floor(node: Node, scores: Value, dimensions: readonly Dimension[], inference: Inference): ScoreStep {
  const value = node.inputs.find((v) => v !== scores);
  const lowest = value && node.inputs.length === 2 ? inference.scalarOf(value) : undefined;
  if (!value || lowest === undefined) return refuse('the scores are compared with something other than a number', node);
  const isLowest = inference.of(scores).type === DataType.FLOAT16 && lowest <= LOWEST_HALF;
  if (lowest > HIGHEST_FLOOR && !isLowest)
    return refuse(`the scores are raised to ${lowest}, which they may be lower than`, node);
  return { kind: 'floor', value, lowest, dimensions };
}

/** Scores are taken to stay within these, where nothing is added to them: beyond, their differences decide alone. */
const LEAST_CLIP = 1e4;

function clip(node: Node, inference: Inference): ScoreStep {
  const bound = (index: 1 | 2, name: string, none: number) => {
    const value = node.inputs[index];
    return value ? inference.scalarOf(value) : (node.float(name) ?? none);
  };
  const [low, high] = [bound(1, 'min', -Infinity), bound(2, 'max', Infinity)];
  if (low === undefined || high === undefined || low > -LEAST_CLIP || high < LEAST_CLIP)
    return refuse('the scores are clipped', node);
  return { kind: 'clip' };
}

/** Concat of the scores with one column more. */
function sink(
  node: Node,
  scores: Value,
  value: Value,
  dimensions: readonly Dimension[],
  inference: Inference,
): ScoreStep {
  const stated = node.int('axis') ?? 0;
  const axis = stated < 0 ? stated + dimensions.length : stated;
  if (!inference.of(value).shape?.[axis]?.equals(1)) refuse('more than one column is joined to the scores', node);
  return { kind: 'sink', value, first: node.inputs[1] === scores, axis, dimensions };
}

/** Pad by one column of a constant. */
function paddedSink(node: Node, dimensions: readonly Dimension[], inference: Inference): ScoreStep {
  const rank = dimensions.length;
  const [, , constant, axes] = node.inputs;
  const pads = constantInts(node, 1, 'pads', inference);
  const logit = constant ? inference.scalarOf(constant) : (node.float('value') ?? 0);
  const padded = [...(pads ?? []).keys()].filter((i) => pads![i] !== 0);
  const [at] = padded;
  const isColumn = pads?.length === 2 * rank && padded.length === 1 && pads[at!] === 1 && !axes;
  if (!isColumn || logit === undefined || (node.string('mode') ?? 'constant') !== 'constant')
    return refuseProduct('the scores are padded by something other than one column of a constant', node);
  return { kind: 'sink', value: node.outputs[0]!, logit, first: at! < rank, axis: at! % rank, dimensions };
}

/** The number that every element of a tensor is, where that can be shown. */
export function uniformValue(value: Value, inference: Inference): number | undefined {
  const { uniform, constant } = inference.of(value);
  if (uniform !== undefined) return uniform;
  const numbers = constant?.numbers();
  if (numbers?.length && Array.prototype.every.call(numbers, (n: number) => n === numbers[0])) return numbers[0];
  const node = value.producer;
  if (node?.is('Expand', 'Identity', 'Cast', 'Reshape', 'Unsqueeze', 'Squeeze', 'CastLike') && node.inputs[0])
    return uniformValue(node.inputs[0], inference);
  if (node?.is('ConstantOfShape')) {
    const fill = node.attribute('value')?.t;
    return fill ? constantOfTensor(fill)?.scalar() : 0;
  }
  return undefined;
}

/** x − max(x): where the maximum is over the keys, a softmax is the same with and without. */
export function lessMaximum(
  subtracted: Value,
  scores: Value,
  dimensions: readonly Dimension[],
  inference: Inference,
): ScoreStep | undefined {
  const value = beforeExpand(subtracted, scores, inference);
  let reduce = value.producer;
  while (reduce?.is('Identity', 'Cast', 'Unsqueeze', 'Reshape', 'Expand', 'Max', 'Clip', 'Where')) {
    const rest = maximumIn(reduce, inference);
    const isCast = reduce.is('Cast') && reduce.int('to') !== (rest && inference.of(rest).type);
    reduce = isCast ? undefined : rest?.producer;
  }
  const [largest] = reduce?.is('ReduceMax') ? reduce.inputs : [];
  const isMaximum = largest !== undefined && copied(largest, inference) === copied(scores, inference);
  return isMaximum ? { kind: 'shift', by: { value, dimensions } } : undefined;
}

/** What was repeated to the shape of another value, as XLA has it before it combines them; else the value itself. */
export function beforeExpand(value: Value, other: Value, inference: Inference): Value {
  const { producer } = copied(value, inference);
  const source = producer?.is('Expand') ? producer.inputs[0] : undefined;
  const [shape, wanted] = [inference.of(value).shape, inference.of(other).shape];
  const isAsWide = shape && shape.length === wanted?.length && shape.every((size, i) => size.equals(wanted[i]!));
  return source && isAsWide ? source : value;
}

/** What a node passes on of a maximum, or a copy of it that is something else only where the maximum is −∞. */
function maximumIn(node: Node, inference: Inference): Value | undefined {
  const [a, b, c] = node.inputs;
  if (node.is('Max')) {
    const rest = node.inputs.filter((v) => !isLowest(v, inference));
    return rest.length === 1 ? rest[0] : undefined;
  }
  if (node.is('Clip')) {
    const bound = b ? inference.scalarOf(b) : node.float('min');
    const isBounded = c !== undefined || node.float('max') !== undefined;
    return a && !isBounded && bound !== undefined && bound <= lowestOf(a, inference) ? a : undefined;
  }
  if (!node.is('Where')) return a;
  const isNegated = a?.producer?.is('Not');
  const test = isNegated ? a!.producer!.inputs[0]?.producer : a?.producer;
  const [tested, limit] = test?.inputs ?? [];
  const isInfinite = test?.is('IsInf') || (test?.is('Equal') && limit && inference.scalarOf(limit) === -Infinity);
  const [kept, other] = isNegated ? [b, c] : [c, b];
  const fill = other && uniformValue(other, inference);
  const isTested = kept && tested && copied(kept, inference) === copied(tested, inference);
  return isInfinite && isTested && fill !== undefined && Number.isFinite(fill) ? kept : undefined;
}

/** The lowest number of float32, which is below those of narrower types, or of double. */
function lowestOf(value: Value, inference: Inference): number {
  return inference.of(value).type === DataType.DOUBLE ? -Number.MAX_VALUE : -3.4028234663852886e38;
}

/** What a maximum over nothing is, or the lowest number of all. */
function isLowest(value: Value | undefined, inference: Inference): boolean {
  const number = value && inference.scalarOf(value);
  return number !== undefined && number <= lowestOf(value!, inference);
}

function requireSameRank(
  step: ScoreStep,
  { node, scores }: { readonly node: Node; readonly scores: Value },
  view: View,
  inference: Inference,
): void {
  const rank = inference.of(node.outputs[0]!).shape?.length;
  if (rank !== view.dimensions.length) refuseProduct('the scores get more dimensions', node);
  if (step.kind === 'sink') return;
  // What is combined with the scores element by element.
  for (const operand of node.inputs) {
    if (!operand || operand === scores) continue;
    const { shape = refuse('the rank of what is combined with the scores is not known', operand) } =
      inference.of(operand);
    const expands = (size: Expression, axis: number) => {
      const at = axis + view.dimensions.length - shape.length;
      return !size.equals(1) && (at < 0 || view.dimensions[at]!.length === 0);
    };
    if (shape.some(expands)) refuseProduct('a mask repeats the scores along a dimension that they do not have', node);
  }
}
