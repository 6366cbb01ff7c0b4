/** Masks of zeros and ones that scores are multiplied by. */
import type { Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import type { ScoreStep } from './scores.js';

/**
 * Joins s · b − c · (1 − b), where b holds zeros and ones, into one mask. Where a key keeps its score both are the same;
 * where it loses it, the first step puts 0 in the score's place, so that the mask may only stay as an attribute, or as
 * one whose keys get no weight at all.
 */
export function joinSelections(steps: readonly ScoreStep[], inference: Inference): readonly ScoreStep[] {
  return steps.flatMap((step, i): ScoreStep[] => {
    const [before, after] = [steps[i - 1], steps[i + 1]];
    if (step.kind === 'factor' && after && isSelection(step, after, inference)) return [];
    if (step.kind === 'add' && before && isSelection(before, step, inference)) return [{ ...step, replaces: true }];
    return [step];
  });
}

function isSelection(factor: ScoreStep, added: ScoreStep, inference: Inference): boolean {
  if (factor.kind !== 'factor' || factor.divide || added.kind !== 'add') return false;
  return isComplement(added.value, factor.value, inference) && isZeroOrOne(factor.value, inference);
}

/** A number times (1 − b). */
function isComplement(value: Value, b: Value, inference: Inference): boolean {
  const [own, others] = [inference.of(value).constant, inference.of(b).constant];
  const sameSizes = own && others && own.dims.join() === others.dims.join();
  if (sameSizes) return isConstantComplement(own.numbers(), others.numbers());
  const product = value.producer;
  if (!product?.is('Mul')) return false;
  return product.inputs.some((rest, i) => {
    const number = product.inputs[1 - i];
    const difference = rest?.producer;
    if (!number || inference.scalarOf(number) === undefined || !difference?.is('Sub')) return false;
    const [one, taken] = difference.inputs;
    return one !== undefined && inference.uniformOf(one) === 1 && taken === b;
  });
}

/** The same, computed beforehand. */
function isConstantComplement(numbers: ArrayLike<number> | undefined, b: ArrayLike<number> | undefined): boolean {
  if (!numbers || !b) return false;
  const removed = Array.prototype.indexOf.call(b, 0);
  const fill = removed < 0 ? 0 : numbers[removed]!;
  return Array.prototype.every.call(numbers, (n: number, i: number) => n === fill * (1 - b[i]!));
}

/** Whether a tensor is made of elements of a constant that holds nothing but zeros and ones. */
function isZeroOrOne(value: Value, inference: Inference): boolean {
  let root = value;
  while (root.producer?.is('Slice', 'Cast', 'Identity', 'Reshape', 'Unsqueeze', 'Squeeze', 'Expand', 'Transpose')) {
    const [source] = root.producer.inputs;
    if (!source) return false;
    root = source;
  }
  const numbers = inference.of(root).constant?.numbers();
  return numbers !== undefined && Array.prototype.every.call(numbers, (n: number) => n === 0 || n === 1);
}
