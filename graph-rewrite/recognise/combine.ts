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

/** A tensor that the scores or the probabilities are multiplied or divided by. */
export interface Factor {
  readonly value: Value;
  readonly divide: boolean;
  readonly dimensions: readonly Dimension[];
  /** Of scores that one number a row was added to, which is left out. */
  readonly shifted?: boolean;
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
  readonly factors: readonly Factor[];
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
  const combination = new Combination();
  for (const step of steps) combination.take(step);
  return combination.formula();
}

type Step<K extends ScoreStep['kind']> = Extract<ScoreStep, { readonly kind: K }>;

/** The steps so far. */
class Combination {
  #inner = 1;
  #outer = 1;
  #capped = false;
  #masks: MaskTerm[] = [];
  readonly #factors: Factor[] = [];
  readonly #shifts: Shift[] = [];
  /** Something was added to all scores of a row: a number, or less their maximum. */
  #shifted = false;
  #numbered = false;
  #shiftedMasks = false;
  readonly #casts: number[] = [];
  #sink: SinkTerm | undefined;

  formula(): ScoreFormula {
    if (this.#capped && this.#outer <= 0) refuse('the scores are capped with a negative factor');
    const [scale, softcap] = this.#capped ? [this.#inner * this.#outer, this.#outer] : [this.#inner, 0];
    const [masks, factors, shifts] = [this.#masks, this.#factors, this.#shifts];
    return { scale, softcap, masks, factors, shifts, sink: this.#sink, casts: this.#casts };
  }

  take(step: ScoreStep): void {
    if (this.#sink && step.kind !== 'cast' && step.kind !== 'shift')
      refuse('the scores are changed after a sink was joined to them', this.#sink.value);
    switch (step.kind) {
      case 'scale':
        this.#scale(step.factor);
        break;
      case 'factor':
        if (this.#capped || this.#masks.length > 0)
          refuse('the scores are multiplied by a tensor after a mask or a soft cap', step.value);
        this.#factors.push({ ...step, shifted: this.#shifted });
        break;
      case 'tanh':
        this.#cap();
        break;
      case 'add':
        this.#add(step);
        break;
      case 'select':
        this.#select(step);
        break;
      case 'floor':
        if (this.#shifted) refuse('scores that a number was added to have a lower bound', step.value);
        this.#mask({ ...step, keepWhere: true, fill: step.lowest });
        break;
      case 'clip':
        if (this.#masks.length > 0) refuse('masked scores are clipped', this.#masks.at(-1)!.value);
        break;
      case 'shift':
        this.#shift(step);
        break;
      case 'sink':
        if (this.#shifted) refuse('a sink is joined to scores that a number was added to', step.value);
        this.#sink = step;
        break;
      case 'cast':
        // A fill that takes in every score of its own type need not do so in double.
        if (step.type === DataType.DOUBLE && this.#masks.some((m) => m.kind === 'additive'))
          refuse('masked scores are cast to double', this.#masks.at(-1)!.value);
        this.#casts.push(step.type);
    }
  }

  #mask(term: Omit<MaskTerm, 'factor' | 'scaledBy' | 'scoreType'> & { readonly factor?: number }): void {
    this.#masks.push({ factor: 1, ...term, scaledBy: 1, scoreType: this.#casts.at(-1) });
  }

  #scale(factor: number): void {
    if (!Number.isFinite(factor) || factor === 0) refuse('the scores are scaled by zero or infinity');
    if (this.#capped) this.#outer *= factor;
    else this.#inner *= factor;
    this.#masks = this.#masks.map((m) => scaleMask(m, factor));
  }

  #cap(): void {
    if (this.#capped || this.#masks.length > 0) refuse('tanh is applied to scores that are masked or capped already');
    if (this.#shifted) refuse('tanh is applied to scores that a number was added to');
    this.#capped = true;
  }

  #add(step: Step<'add'>): void {
    if (this.#shiftedMasks) refuse('a mask is added to masked scores that their maximum was taken from', step.value);
    const factor = step.negate ? -1 : 1;
    this.#mask({ ...step, kind: 'additive', factor, keepWhere: true, fill: 0, shifted: this.#numbered });
  }

  #select(step: Step<'select'>): void {
    // In a row that has lost all keys already every score is 0 then, and this fill takes its keys out of them.
    if (this.#shiftedMasks && step.fill !== Number.NEGATIVE_INFINITY)
      refuse('a finite fill takes the place of masked scores that their maximum was taken from', step.condition);
    if (this.#shifted && step.fill > HIGHEST_ABSORBING_FILL)
      refuse('a finite fill takes the place of scores that a number was added to', step.condition);
    this.#mask({ ...step, value: step.condition, kind: 'boolean' });
  }

  #shift({ by }: Step<'shift'>): void {
    this.#shifted = true;
    if (!by) {
      this.#numbered = true;
      return;
    }
    this.#shifts.push(by);
    if (this.#masks.length > 0) this.#shiftedMasks = true;
  }
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
