/**
 * Masks understood: what they take out by position becomes attributes, what depends on the batch and the key alone a
 * small boolean tensor, and what is added to the scores the smallest tensor that holds it.
 *
 * All of it is exact, also in a row none of whose keys is left, which the softmax of a finite fill makes the mean of all
 * values. See {@link understandMasks} for when that can be kept.
 */
import { DataType } from '../../onnx/proto.js';
import type { Inference } from '../../shape/inference.js';
import { type MaskPlacement, type ScoreAxes, termType } from '../masks.js';
import { Affine, isNeverPositive } from './affine.js';
import { type Band, hasBand, NO_BAND, readBand } from './bands.js';
import { and, atMostZero, type Condition, or } from './element.js';
import { absorbingFill, absorbs, isSmallBeside, LARGEST_SCORE } from './magnitude.js';
import { biasMayHoldFill, outcomeOf, uniqueConditions } from './outcome.js';
import { HIGHEST_ADDED_FILL, placeSource, readTerms, type ScoreIndices, scoreIndices, type Term } from './terms.js';

/** Masks as the operator takes them: attributes, and what is left for its mask input. */
export interface UnderstoodMasks extends Band {
  /** Score of a key that the attributes take out; boolean masks among the rest that have it as fill agree with them. */
  readonly maskedValue: number;
  /** Boolean and additive masks that are left, in the order in which they apply. */
  readonly rest: readonly MaskPlacement[];
}

type MaskTerm = Term & { readonly kind: 'mask' };

/** What one finding rests on. */
interface Situation {
  readonly terms: readonly Term[];
  readonly masks: readonly MaskTerm[];
  readonly indices: ScoreIndices;
  readonly type: number;
  readonly hasSink: boolean;
  readonly inference: Inference;
}

/**
 * Finds what masks on the scores of one site mean.
 *
 * With the fill −∞ every split into attributes and tensors is exact (a row without keys is NaN in the model and zeros
 * in the operator). With a finite fill it is exact
 *   - where no row can lose all its keys, as under plain causality: then any fill of −10⁴ or lower leaves a key no
 *     weight, for scores that differ by less than 9,896 (exp underflows below −104 in float32);
 *   - or where every key that is out has one and the same score, or −∞: see {@link outcomeOf}. So has the fill that is
 *     put in the scores' place, or added and so low that adding a score does not change it.
 *
 * Taken for granted, as by the exporters: scores and biases are smaller than {@link LARGEST_SCORE}, positions are below
 * 2²⁴, and a size that has a name is not 1 in just one of two tensors that meet.
 *
 * @param site TensorProto data type in which the scores are masked, whether that is wider than the queries', and whether
 * the softmax has an extra logit.
 * @returns undefined where nothing is gained, or nothing could be proven: the masks then stay as they are.
 */
export function understandMasks(
  masks: readonly MaskPlacement[],
  axes: ScoreAxes,
  site: { readonly type: number; readonly isWidened?: boolean; readonly hasSink: boolean },
  inference: Inference,
): UnderstoodMasks | undefined {
  if (masks.length === 0) return undefined;
  const { indices, of } = scoreIndices(axes);
  const terms = masks.flatMap((mask) => readTerms(mask, of, inference));
  const situation: Situation = { terms, masks: terms.filter((t) => t.kind === 'mask'), indices, ...site, inference };
  const found = combine(situation);
  // Booleans let the queries stay as narrow as they are.
  const narrows = site.isWidened === true && found?.rest.every((m) => m.term.kind === 'boolean');
  // Numbers of zeros and ones are no masks that the operator takes.
  const isNumeric = ({ term }: MaskPlacement) => term.kind === 'boolean' && termType(term, inference) !== DataType.BOOL;
  return found && (narrows || masks.some(isNumeric) || isGain(found, masks)) ? found : undefined;
}

function combine(situation: Situation): UnderstoodMasks | undefined {
  const { terms, masks, type, hasSink, inference } = situation;
  // With a fill that is an ordinary score, or a sink, all other scores may not move against it.
  const shifts = terms.some((t) => t.kind === 'shift');
  if (shifts && (hasSink || masks.some((m) => !absorbs(m.fill, type)))) return undefined;
  // A floor under a bias that may be −∞ leaves rows without keys what they would be without it.
  const huge = terms.some((t) => t.kind === 'bias' && biasMayHoldFill(t, inference));
  if (huge && terms.some((t) => t.kind === 'floor')) return undefined;
  if (masks.length === 0) return finish(situation, NO_BAND, []);
  const all = uniqueConditions(terms);
  const low = masks.every((m) => m.fill <= HIGHEST_ADDED_FILL);
  if (low && everyRowHasKeys(all, situation)) {
    const { band, rest } = bandOf(all, situation);
    return finish(situation, band, [{ conditions: rest, fill: Number.NEGATIVE_INFINITY }]);
  }
  const outcome = outcomeOf(terms, inference);
  if (!outcome) return undefined;
  const { lowest, others, fill } = outcome;
  if (lowest.length === 0) {
    const { band, rest } = bandOf(others, situation);
    return finish(situation, band, [{ conditions: rest, fill }], fill);
  }
  const { band, rest } = bandOf(lowest, situation);
  return finish(situation, band, [
    { conditions: others, fill },
    { conditions: rest, fill: Number.NEGATIVE_INFINITY },
  ]);
}

function bandOf(conditions: readonly Condition[], { indices }: Situation) {
  const [query, ...otherQueries] = indices.Q;
  const [key, ...otherKeys] = indices.K;
  const simple = otherQueries.length === 0 && otherKeys.length === 0;
  return readBand(conditions, simple ? query : undefined, simple ? key : undefined);
}

/** Whether a key that all conditions keep can be named for every query. */
function everyRowHasKeys(conditions: readonly Condition[], { terms, masks, indices, inference }: Situation): boolean {
  const [query] = indices.Q;
  const [key] = indices.K;
  if (indices.Q.length !== 1 || indices.K.length !== 1 || !query || !key) return false;
  // A bias must not bring the keys that are kept down to the others.
  const limit = Math.min(LARGEST_SCORE, ...masks.map((m) => -m.fill / 4));
  if (terms.some((t) => t.kind === 'bias' && biasMayHoldFill(t, inference, limit))) return false;
  const i = Affine.variable(query);
  const candidates = [
    Affine.constant(0),
    i,
    ...key.sizes.flatMap((k) => [Affine.constant(k.minus(1)), ...query.sizes.map((q) => i.plus(k).minus(q))]),
  ];
  return candidates.some((j) => {
    const inside = isNeverPositive(j.times(-1)) && key.sizes.some((k) => isNeverPositive(j.minus(k).plus(1)));
    const kept = (c: Condition) => {
      const there = withKey(c);
      return there.kind === 'constant' && there.value;
    };
    const withKey = (c: Condition): Condition => {
      switch (c.kind) {
        case 'atMostZero':
          return atMostZero(c.affine.substitute(key, j));
        case 'and':
          return and(...c.parts.map(withKey));
        case 'or':
          return or(...c.parts.map(withKey));
        default:
          return c;
      }
    };
    return inside && conditions.every(kept);
  });
}

/** Conditions that stay a boolean tensor, and the score of a key that fails one. */
interface Left {
  readonly conditions: readonly Condition[];
  readonly fill: number;
}

/**
 * The result, with the smallest tensors for what the attributes leave: biases first, so that what takes a key out has
 * the last word. Undefined where there is no tensor, or where a fill would have to be added to scores that it leaves a
 * trace of.
 */
function finish(
  { terms, masks, indices, inference, type }: Situation,
  band: Band,
  left: readonly Left[],
  maskedValue = Number.NEGATIVE_INFINITY,
): UnderstoodMasks | undefined {
  const rest: MaskPlacement[] = [];
  for (const term of terms) {
    if (term.kind !== 'bias') continue;
    const placed = placeSource(term.sources, term.placement, indices, inference)?.placement ?? whole(term);
    if (!placed || termType(placed.term, inference) !== type) return undefined;
    rest.push(placed);
  }
  const wanted = new Set(left.filter((l) => l.conditions.length > 0).map((l) => l.fill));
  const isAdded = rest.length > 0 || wanted.size > 1 || (hasBand(band) && !wanted.has(maskedValue));
  const lowered = (fill: number) => (isAdded && maskedValue !== fill ? loweredFill(fill, rest, type, inference) : fill);
  if (isAdded && [...wanted].some((fill) => !absorbs(lowered(fill), type))) return undefined;
  for (const { conditions, fill } of left)
    for (const condition of conditions) {
      const { placement } = masks.find((m) => m.conditions.includes(condition))!;
      const found = placeSource(condition.sources, placement, indices, inference);
      if (!found) return undefined;
      const { keepWhere } = found.source;
      const own = { kind: 'boolean', factor: 1, scaledBy: 1, keepWhere, fill: lowered(fill) } as const;
      const term = { ...found.placement.term, ...own };
      rest.push({ ...found.placement, term });
    }
  return { ...band, maskedValue, rest };
}

/**
 * A fill that leaves no trace of the scores that it is added to, in place of one that is put in their place: where a row
 * keeps a key, either takes all weight from the others; where it keeps none, all scores that are not −∞ are equal.
 */
function loweredFill(fill: number, biases: readonly MaskPlacement[], type: number, inference: Inference): number {
  const lower = absorbingFill(type, 1);
  if (absorbs(fill, type) || fill > HIGHEST_ADDED_FILL || lower === undefined) return fill;
  return biases.every(({ term }) => isSmallBeside(fill, term, inference)) ? lower : fill;
}

/** The mask as it was, where nothing was taken out of it. */
function whole(term: Term): MaskPlacement | undefined {
  return term.kind === 'bias' && term.sources.length === 0 ? term.placement : undefined;
}

/** Whether attributes were found, a mask went away, or one spans fewer axes than before. */
function isGain(found: UnderstoodMasks, masks: readonly MaskPlacement[]): boolean {
  if (hasBand(found)) return true;
  const axes = (list: readonly MaskPlacement[]) =>
    list.reduce((n, m) => n + m.shape.filter((size) => !size.equals(1)).length, 0);
  return found.rest.length < masks.length || axes(found.rest) < axes(masks);
}
