/** Masks whose keys get a probability of 0 once more after the softmax, as DeBERTa's and Conformers' have. */
import type { Inference } from '../shape/inference.js';
import type { MaskTerm, ScoreFormula } from './combine.js';
import { LARGEST_SCORE, mayHoldFill } from './mask/magnitude.js';
import { HIGHEST_ADDED_FILL } from './mask/terms.js';
import type { ProbabilityTrace } from './probabilities.js';
import { refuse } from './refusal.js';

/**
 * The formula with −∞ as the fill of those masks: where a row keeps a key, a low fill gives the others no weight before
 * and after; where it keeps none, the zeros after the softmax are what the operator gives for −∞.
 */
export function withZeroed(
  formula: ScoreFormula,
  zeroed: ProbabilityTrace['zeroed'],
  inference: Inference,
): ScoreFormula {
  if (zeroed.length === 0) return formula;
  const isZeroed = (mask: MaskTerm) =>
    zeroed.some((step) => step.condition === mask.value && step.dimensions === mask.dimensions);
  if (formula.sink) refuse('probabilities beside a sink are masked after the softmax', formula.sink.value);
  const limit = Math.min(LARGEST_SCORE, ...formula.masks.filter(isZeroed).map((m) => -m.fill / 4));
  const masks = formula.masks.map((mask) => {
    if (isZeroed(mask) && mask.fill <= HIGHEST_ADDED_FILL) return { ...mask, fill: Number.NEGATIVE_INFINITY };
    const isBias = mask.kind === 'additive' && !mayHoldFill(mask.value, inference, limit / Math.abs(mask.factor));
    return isBias ? mask : refuse('the probabilities are masked after the softmax, but not by all masks', mask.value);
  });
  return { ...formula, masks };
}
