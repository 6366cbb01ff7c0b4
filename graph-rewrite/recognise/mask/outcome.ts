/** What the score of a key becomes that some of a site's conditions take out. */
import type { Inference } from '../../shape/inference.js';
import { roundTo } from '../../shape/rounding.js';
import { sameSource } from './derived.js';
import type { Condition } from './element.js';
import { absorbs, mayHoldFill } from './magnitude.js';
import type { Term } from './terms.js';

/** Scores of keys that are out, such that the operator can give the same. */
export interface Outcome {
  /** Whichever else fails, a key that fails one of these has the score −∞. */
  readonly lowest: readonly Condition[];
  /** A key that fails some of these and none of the former has the score `fill`. */
  readonly others: readonly Condition[];
  readonly fill: number;
}

/** All subsets of the conditions are looked at. */
const MOST_CONDITIONS = 8;

/** A score that is a number whatever the input is; or the score as it was, to which something huge may be added. */
type Score = { readonly number: number } | { readonly number: undefined; readonly mayBeHuge: boolean };

/**
 * Follows every set of failing conditions through the masks, in their order and rounding.
 * @returns undefined where a key that is out keeps a part of its score, or where different numbers come out.
 */
export function outcomeOf(terms: readonly Term[], inference: Inference): Outcome | undefined {
  const conditions = uniqueConditions(terms);
  const sets = 2 ** conditions.length;
  if (conditions.length > MOST_CONDITIONS) return undefined;
  const isIn = (set: number, i: number) => (set & (1 << i)) !== 0;
  const scores: number[] = [Number.NaN];
  for (let set = 1; set < sets; set++) {
    const failing = conditions.filter((_, i) => isIn(set, i));
    const score = scoreOf(terms, failing, inference);
    if (score === undefined) return undefined;
    scores.push(score);
  }
  const infinite = Number.NEGATIVE_INFINITY;
  const isLowest = (i: number) => scores.every((score, set) => !isIn(set, i) || score === infinite);
  const positions = [...conditions.keys()];
  const lowest = positions.filter(isLowest);
  const fills = new Set(scores.filter((_, set) => set > 0 && !lowest.some((i) => isIn(set, i))));
  if (fills.size > 1) return undefined;
  return {
    lowest: lowest.map((i) => conditions[i]!),
    others: positions.filter((i) => !lowest.includes(i)).map((i) => conditions[i]!),
    fill: [...fills][0] ?? infinite,
  };
}

/** The conditions of all masks, each once. */
export function uniqueConditions(terms: readonly Term[]): Condition[] {
  const unique: Condition[] = [];
  for (const term of terms) {
    if (term.kind !== 'mask') continue;
    for (const condition of term.conditions) if (!includes(unique, condition)) unique.push(condition);
  }
  return unique;
}

function scoreOf(terms: readonly Term[], failing: readonly Condition[], inference: Inference): number | undefined {
  let score: Score | undefined = { number: undefined, mayBeHuge: false };
  const fails = (term: Term) => term.kind === 'mask' && term.conditions.some((c) => includes(failing, c));
  const skipped = new Set(terms.flatMap((term) => (term.kind === 'mask' && fails(term) ? (term.instead ?? []) : [])));
  for (const term of terms) {
    if (score === undefined) return undefined;
    if (skipped.has(term)) continue;
    if (term.kind === 'bias') score = plusBias(score, term, inference);
    else if (term.kind === 'floor' && score.number !== undefined) score = { number: Math.max(score.number, term.fill) };
    else if (term.kind === 'mask' && fails(term)) score = masked(score, term);
  }
  return score?.number;
}

function masked(score: Score, { mode, fill, type, placement }: Term & { kind: 'mask' }): Score | undefined {
  if (mode === 'replace' || fill === Number.NEGATIVE_INFINITY) return { number: fill };
  if (score.number === undefined) return !score.mayBeHuge && absorbs(fill, type) ? { number: fill } : undefined;
  // Two masks that were added and then scaled may have overflowed before.
  if (Math.abs(placement.term.factor) !== 1) return undefined;
  const sum = roundTo(type, score.number + fill);
  return sum === undefined ? undefined : { number: sum };
}

function plusBias(score: Score, bias: Term & { kind: 'bias' }, inference: Inference): Score | undefined {
  const { number } = score;
  if (number === Number.NEGATIVE_INFINITY) return score;
  const isHuge = biasMayHoldFill(bias, inference);
  if (number === undefined) return { number, mayBeHuge: score.mayBeHuge || isHuge };
  const type = inference.of(bias.placement.term.value).type;
  return !isHuge && type !== undefined && absorbs(number, type) ? score : undefined;
}

export function biasMayHoldFill(bias: Term & { kind: 'bias' }, inference: Inference, limit?: number): boolean {
  const whole = bias.sources.find((s) => !s.steps);
  if (bias.sources.length > 0 && !whole) return true;
  return mayHoldFill(whole?.value ?? bias.placement.term.value, inference, limit);
}

function includes(conditions: readonly Condition[], condition: Condition): boolean {
  return conditions.some((c) => isSame(c, condition));
}

function isSame(a: Condition, b: Condition): boolean {
  if (a === b) return true;
  switch (a.kind) {
    case 'atMostZero':
      return b.kind === 'atMostZero' && a.affine.minus(b.affine).value === 0;
    case 'opaque': {
      const [x, y] = [a.sources[0], b.sources[0]];
      return b.kind === 'opaque' && x?.keepWhere === y?.keepWhere && sameSource(x, y);
    }
    case 'and':
    case 'or':
      return b.kind === a.kind && a.parts.length === b.parts.length && a.parts.every((p, i) => isSame(p, b.parts[i]!));
    default:
      return false;
  }
}
