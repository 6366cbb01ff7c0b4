import type { Value } from '../graph/graph.js';
import { DataType } from '../onnx/proto.js';
import type { Dimension } from './atoms.js';
import type { ElementStep } from './mask/derived.js';
import { refuse } from './refusal.js';
import type { ScoreStep } from './scores.js';

/** One mask or bias on the scores. */
export interface MaskTerm {
  readonly value: Value;
  /** What is done to each of the value's elements first. */
  readonly steps?: readonly ElementStep[];
  /** The scores' dimensions where it was applied; the value's own are aligned with them from the right. */
  readonly dimensions: readonly Dimension[];
  /**
   * `additive` is added times `factor`; `boolean` puts `fill` where the value is not `keepWhere`; `floor` puts `fill`
   * where the score is lower.
   */
  readonly kind: 'additive' | 'boolean' | 'floor';
  readonly factor: number;
  readonly keepWhere: boolean;
  readonly fill: number;
  /** What the scores were multiplied with behind it; in `factor` and `fill` already. */
  readonly scaledBy: number;
  /** Additive: where it takes a key out, the score itself is 0 as well. */
  readonly replaces?: boolean;
  /** Additive: to scores that a constant was added to, which the operator leaves out. */
  readonly shifted?: boolean;
  /** TensorProto data type that the scores were cast to before it, where they were. */
  readonly scoreType?: number | undefined;
}

/** A factor on the scores that is the same for all keys. */
export interface QueryFactor {
  readonly value: Value;
  readonly divide: boolean;
  readonly dimensions: readonly Dimension[];
}

/** Something added to the scores that must be the same for all keys. */
export type Shift = NonNullable<Extract<ScoreStep, { kind: 'shift' }>['by']>;

/** An extra logit a head, in the softmax's denominator only. */
export type SinkTerm = Extract<ScoreStep, { kind: 'sink' }>;

/** The scores' steps in the operator's own order: scale, soft cap, masks. */
export interface ScoreFormula {
  readonly scale: number;
  /** 0 for none. */
  readonly softcap: number;
  readonly masks: readonly MaskTerm[];
  readonly factors: readonly QueryFactor[];
  readonly shifts: readonly Shift[];
  readonly sink: SinkTerm | undefined;
  /** Data types that the scores are cast to on the way, in order. */
  readonly casts: readonly number[];
}

/**
 * Brings the steps into the order that the operator has. A scale behind a mask multiplies the mask as well, and
 * c · tanh(a · s) is the soft cap c of scores scaled by a·c.
 */
export function combineSteps(steps: readonly ScoreStep[]): ScoreFormula {
  let inner = 1;
  let outer = 1;
  let capped = false;
  let masks: MaskTerm[] = [];
  const factors: QueryFactor[] = [];
  const shifts: Shift[] = [];
  let shifted = false;
  let numbered = false;
  let shiftedMasks = false;
  const casts: number[] = [];
  let sink: SinkTerm | undefined;
  for (const step of steps) {
    if (sink && step.kind !== 'cast' && step.kind !== 'shift')
      refuse('the scores are changed after a sink was joined to them', sink.value);
    switch (step.kind) {
      case 'scale':
        if (!Number.isFinite(step.factor) || step.factor === 0) refuse('the scores are scaled by zero or infinity');
        if (capped) outer *= step.factor;
        else inner *= step.factor;
        masks = masks.map((m) => scaleMask(m, step.factor));
        break;
      case 'factor':
        if (capped || masks.length > 0)
          refuse('the scores are multiplied by a tensor after a mask or a soft cap', step.value);
        factors.push(step);
        break;
      case 'tanh':
        if (capped || masks.length > 0) refuse('tanh is applied to scores that are masked or capped already');
        if (shifted) refuse('tanh is applied to scores that a number was added to');
        capped = true;
        break;
      case 'add':
        if (shiftedMasks) refuse('a mask is added to masked scores that their maximum was taken from', step.value);
        masks.push({
          ...step,
          kind: 'additive',
          factor: step.negate ? -1 : 1,
          keepWhere: true,
          fill: 0,
          scaledBy: 1,
          shifted: numbered,
          scoreType: casts.at(-1),
        });
        break;
      case 'select':
        // In a row that has lost all keys already every score is 0 then, and this fill takes its keys out of them.
        if (shiftedMasks && step.fill !== Number.NEGATIVE_INFINITY)
          refuse('a finite fill takes the place of masked scores that their maximum was taken from', step.condition);
        if (shifted && step.fill > HIGHEST_ABSORBING_FILL)
          refuse('a finite fill takes the place of scores that a number was added to', step.condition);
        masks.push({
          ...step,
          value: step.condition,
          kind: 'boolean',
          factor: 1,
          scaledBy: 1,
          scoreType: casts.at(-1),
        });
        break;
      case 'floor':
        if (shifted) refuse('scores that a number was added to have a lower bound', step.value);
        masks.push({
          ...step,
          factor: 1,
          keepWhere: true,
          fill: step.lowest,
          scaledBy: 1,
          scoreType: casts.at(-1),
        });
        break;
      case 'clip':
        if (masks.length > 0) refuse('masked scores are clipped', masks.at(-1)!.value);
        break;
      case 'shift':
        shifted = true;
        if (!step.by) numbered = true;
        if (step.by) shifts.push(step.by);
        if (step.by && masks.length > 0) shiftedMasks = true;
        break;
      case 'sink':
        if (shifted) refuse('a sink is joined to scores that a number was added to', step.value);
        sink = step;
        break;
      case 'cast':
        // A fill that takes in every score of its own type need not do so in double.
        if (step.type === DataType.DOUBLE && masks.some((m) => m.kind === 'additive'))
          refuse('masked scores are cast to double', masks.at(-1)!.value);
        casts.push(step.type);
        break;
    }
  }
  if (capped && outer <= 0) refuse('the scores are capped with a negative factor');
  return capped
    ? { scale: inner * outer, softcap: outer, masks, factors, shifts, sink, casts }
    : { scale: inner, softcap: 0, masks, factors, shifts, sink, casts };
}

/** In place of scores this low a fill takes all weight from the key, whatever is added to all others. */
const HIGHEST_ABSORBING_FILL = -1e30;

function scaleMask(mask: MaskTerm, factor: number): MaskTerm {
  if (mask.kind === 'floor' && factor < 0) refuse('scores with a lower bound are negated', mask.value);
  if (mask.kind === 'boolean' && factor < 0) refuse('masked scores are scaled by a negative number', mask.value);
  const scaledBy = mask.scaledBy * factor;
  if (mask.kind === 'additive') return { ...mask, factor: mask.factor * factor, scaledBy };
  return { ...mask, fill: mask.fill * factor, scaledBy };
}
