/** Attention that divides by the sum of the exponentials after the product with the values, as FlashAttention itself does. */
import type { Node, Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, freshDimension, leavesOf, sameLeaves, sizeOf } from './atoms.js';
import { type Contraction, readContraction } from './contraction.js';
import { isOfSequences } from './exponentials.js';
import { isOnlyReader, onlyMover } from './output.js';
import { refuse } from './refusal.js';
import { type Divisor, isWidening, labelsOfSum, readDivision, summedAxis } from './sums.js';
import { identityView, stepView, type View } from './view.js';

/** A division by the sum of exponentials behind their product with something. */
export interface LateDivision {
  /** What sums the exponentials, and what it sums. */
  readonly sum: Node;
  readonly summed: Value;
  /** The axis of the exponentials that is summed, counted from the front. */
  readonly axis: number;
  /** The product of the exponentials. */
  readonly product: Node;
  /** Undefined where nothing divides the product by that sum. */
  readonly divisor: Divisor | undefined;
  /** From the product's result on, in order: moves, perhaps a cast, what divides, and the cast back. */
  readonly through: readonly Node[];
}

const LONGEST_WAY = 12;
/** What may stand between exponentials and their product. */
const PASSED = ['Identity', 'Cast', 'Dropout', 'Reshape', 'Transpose', 'Unsqueeze', 'Squeeze', 'Mul', 'Where'];

/** Looks for the sum of exponentials, their product with something, and what divides one by the other. */
export function readLateDivision(exponential: Value, inference: Inference): LateDivision | undefined {
  const shape = inference.of(exponential).shape;
  let view: View | undefined = shape && identityView(shape);
  const passed: Value[] = [];
  let found: { readonly sum: Node; readonly summed: Value; readonly axis: number } | undefined;
  for (let value = exponential; passed.length < LONGEST_WAY && !value.isOutput; ) {
    passed.push(value);
    const readers = [...new Set(value.uses.map((u) => u.node))];
    const sum = readers.find((node) => summedAxis(node, value, inference) !== undefined);
    if (sum && view && !found) {
      const leaves = leavesOf(view.dimensions[summedAxis(sum, value, inference)!] ?? []);
      const axis = view.root.findIndex(({ atoms }) => leaves.length > 0 && sameLeaves(leavesOf(atoms), leaves));
      found = axis < 0 ? undefined : { sum, summed: value, axis };
    }
    const others = readers.filter((node) => node !== sum && !node.is('Shape'));
    const product = others.map((node) => readContraction(node, inference)).find((p) => p !== undefined);
    if (product) return found && divided({ ...found, passed, product: product.node }, product.output, inference);
    const [next] = others;
    const output = next?.outputs[0];
    if (!output || others.length > 1 || !next.is(...PASSED)) return undefined;
    if (readDivision(next, value, passed, inference)) return undefined;
    view = view && (next.is('Cast', 'Mul', 'Where') ? view : stepView(view, next, output, inference));
    value = output;
  }
  return undefined;
}

type Found = Pick<LateDivision, 'sum' | 'summed' | 'axis' | 'product'> & { readonly passed: readonly Value[] };

/** Follows the product's result to where it is divided by the sum. */
function divided({ passed, ...found }: Found, result: Value, inference: Inference): LateDivision | undefined {
  const through: Node[] = [];
  const typeOf = (value: Value) => inference.of(value).type;
  for (let value = result; ; ) {
    for (const { node } of value.uses) {
      const divisor = readDivision(node, value, passed, inference);
      if (divisor?.sum !== found.sum) continue;
      const [quotient] = node.outputs;
      const back = quotient && typeOf(quotient) !== typeOf(result) ? castOf(quotient) : undefined;
      const isBack = back?.outputs[0] && typeOf(back.outputs[0]) === typeOf(result);
      return { ...found, divisor, through: [...through, node, ...(isBack ? [back] : [])] };
    }
    const cast = castOf(value);
    const next = onlyMover(value) ?? (cast && isWidening(cast, inference) ? cast : undefined);
    if (next) {
      through.push(next);
      value = next.outputs[0]!;
    } else return isOfSequences(found.summed, inference) ? { ...found, divisor: undefined, through: [] } : undefined;
  }
}

/** The Cast that alone reads a value. */
function castOf(value: Value): Node | undefined {
  const [use] = value.uses;
  return use?.node.is('Cast') && isOnlyReader(use.node, value) ? use.node : undefined;
}

/** The product of the exponentials with the values, in atoms of the scores. */
export interface LateProduct {
  readonly product: Contraction;
  readonly side: 0 | 1;
  /** The exponentials as the product reads them, and as the sum does. */
  readonly view: View;
  readonly summed: View | undefined;
  /** The keys' atoms. */
  readonly keys: readonly Atom[];
}

/** Refuses a division that is not that of each row by its own sum. */
export function requireDivision(
  late: LateDivision,
  { product, side, view, summed, keys }: LateProduct,
  inference: Inference,
): void {
  const { divisor, through } = late;
  if (!divisor)
    refuse(
      'the exponentials of the scores are summed, but nothing divides their product with the values by that sum alone, as where keys come a block at a time',
      product.output,
    );
  const at = through.findIndex((node) => node.is('Div', 'Mul'));
  const sum = summed && sumOf(summed, divisor, keys, inference);
  const result = resultOf(product, side, view, inference);
  const divides = sum && followed(sum, divisor.path, inference);
  const divided = result && followed(result, through.slice(0, at), inference);
  if (!divides || !divided || !broadcasts(divides, divided))
    refuse('what divides the product with the values is not the sum of its own row', through[at]);
}

/** The dimensions of the exponentials' sum; undefined where it is not over the keys. */
function sumOf(
  view: View,
  { sum, axis, summed }: Divisor,
  keys: readonly Atom[],
  inference: Inference,
): View | undefined {
  const { dimensions } = view;
  if (!sameLeaves(leavesOf(dimensions[axis] ?? []), keys)) return undefined;
  if (sum.is('Einsum') && sum.inputs.length === 1) {
    const [from, to] = labelsOfSum(sum);
    return { ...view, dimensions: [...to].map((label) => dimensions[from.indexOf(label)]!) };
  }
  if (sum.is('ReduceSum', 'ReduceL1')) {
    const kept = sum.int('keepdims') === 0 ? [] : [[]];
    return { ...view, dimensions: dimensions.flatMap((d, i) => (i === axis ? kept : [d])) };
  }
  const product = readContraction(sum, inference);
  return product && resultOf(product, product.operands[0].value === summed ? 0 : 1, view, inference, true);
}

/**
 * The dimensions of a product: those of the exponentials are known, all others are of themselves alone.
 * @param repeats whether these show the same again and again, as in the product with ones.
 */
function resultOf(
  { operands, output, outputLabels }: Contraction,
  side: 0 | 1,
  view: View,
  inference: Inference,
  repeats = false,
): View | undefined {
  const { labels } = operands[side];
  const shape = inference.of(output).shape;
  if (shape?.length !== outputLabels.length || labels.length !== view.dimensions.length) return undefined;
  const dimensions = outputLabels.map((label, i) => {
    const own = view.dimensions[labels.indexOf(label)] ?? [];
    return own.length > 0 ? own : freshDimension(shape[i]!, repeats);
  });
  return { ...view, dimensions };
}

/** What a view is after nodes that move data, or change its elements one by one. */
function followed(view: View, nodes: readonly Node[], inference: Inference): View | undefined {
  return nodes.reduce<View | undefined>((before, node) => {
    const output = node.outputs[0]!;
    const isElementwise = node.is('Add', 'Max', 'Clip', 'Where', 'Reciprocal', 'Div', 'Mul', 'Cast');
    const hasRank = inference.of(output).shape?.length === before?.dimensions.length;
    return isElementwise && hasRank ? before : before && stepView(before, node, output, inference);
  }, view);
}

/** Whether each dimension of one view is that of the other, or the same for all of it. */
function broadcasts({ dimensions }: View, other: View): boolean {
  const added = other.dimensions.length - dimensions.length;
  return dimensions.every((dimension, i) => {
    const leaves = leavesOf(dimension);
    const facing = other.dimensions[i + added];
    const isRepeated = leaves.every((leaf) => leaf.repeated) && facing && sizeOf(facing).equals(sizeOf(dimension));
    return facing !== undefined && (leaves.length === 0 || isRepeated || sameLeaves(leaves, leavesOf(facing)));
  });
}
