/** Masks of nodes that are attention operators already, such as ONNX `Attention` (opset 23). */
import type { Value } from '../../graph/graph.js';
import type { Expression } from '../../shape/expression.js';
import type { Inference } from '../../shape/inference.js';
import { freshDimension } from '../atoms.js';
import type { MaskTerm } from '../combine.js';
import { type MaskPlacement, SCORE_AXES, type ScoreAxis } from '../masks.js';
import { type UnderstoodMasks, understandMasks } from './understand.js';

/** A mask input, aligned with the scores (batch, heads, queries, keys) from the right. */
export interface OperatorMask {
  readonly value: Value;
  /** A boolean mask is true where the key takes part; the others get −∞. */
  readonly kind: 'boolean' | 'additive';
  /** Sizes of the scores, past keys among the keys. */
  readonly sizes: Readonly<Record<ScoreAxis, Expression>>;
  /** Whether keys past the mask's end are masked. */
  readonly mayBeShorter: boolean;
}

/**
 * What an operator's mask means, as {@link understandMasks}. It is for an operator that takes no key out by itself:
 * attributes that the node has already are not looked at.
 * @param type TensorProto data type of the queries.
 */
export function understandOperatorMask(
  { value, kind, sizes, mayBeShorter }: OperatorMask,
  type: number,
  inference: Inference,
): UnderstoodMasks | undefined {
  const shape = inference.of(value).shape;
  if (!shape || shape.length > 4) return undefined;
  const axes = {
    B: freshDimension(sizes.B),
    H: freshDimension(sizes.H),
    Q: freshDimension(sizes.Q),
    K: freshDimension(sizes.K),
  };
  const term: MaskTerm = {
    value,
    dimensions: SCORE_AXES.map((axis) => axes[axis]),
    kind,
    factor: 1,
    scaledBy: 1,
    keepWhere: true,
    fill: Number.NEGATIVE_INFINITY,
  };
  const placement: MaskPlacement = { term, reshape: undefined, shape, period: 0 };
  const found = understandMasks([placement], axes, { type, hasSink: false }, inference);
  const covered = shape.at(-1);
  if (!found || !mayBeShorter || !covered || covered.equals(sizes.K) || covered.equals(1)) return found;
  // Then a mask as short as this one must stay, and no attribute may count from the end of the keys.
  const staysShort = found.rest.some((mask) => mask.shape.at(-1)?.equals(covered));
  return staysShort && !found.alignEnd ? found : undefined;
}
