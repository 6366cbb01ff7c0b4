/** Conditions on query and key positions as the operator's attributes: causality and windows. */
import { Expression } from '../../shape/expression.js';
import type { IndexVariable } from './affine.js';
import type { Condition } from './element.js';

/** The operator's attributes that take keys out by position; see op/definition.ts for their meaning. */
export interface Band {
  readonly causal: boolean;
  /** −1 for all. */
  readonly leftWindow: number;
  /** −1 for all. */
  readonly rightWindow: number;
  /** Query 0 stands at key (keys − queries), and not at key 0. */
  readonly alignEnd: boolean;
}

export const NO_BAND: Band = { causal: false, leftWindow: -1, rightWindow: -1, alignEnd: false };

/** Whether the attributes take any key out. */
export function hasBand({ causal, leftWindow, rightWindow }: Band): boolean {
  return causal || leftWindow >= 0 || rightWindow >= 0;
}

/** key ≤ query + distance ('upper'), or key ≥ query + distance ('lower'). */
interface Bound {
  readonly side: 'upper' | 'lower';
  readonly distance: Expression;
  readonly condition: Condition;
}

/** Splits conditions into those that attributes express, all together, and those that are left. */
export function readBand(
  conditions: readonly Condition[],
  query: IndexVariable | undefined,
  key: IndexVariable | undefined,
): { readonly band: Band; readonly rest: readonly Condition[] } {
  if (!query || !key) return { band: NO_BAND, rest: conditions };
  const bounds = conditions.flatMap((condition) => readBound(condition, query, key) ?? []);
  let best: { band: Band; expressed: readonly Condition[] } = { band: NO_BAND, expressed: [] };
  for (const { offset, alignEnd } of offsets(query, key)) {
    const upper = tightest(bounds, 'upper', offset);
    const lower = tightest(bounds, 'lower', offset);
    const expressed = [...upper.conditions, ...lower.conditions];
    if (expressed.length <= best.expressed.length) continue;
    const band = {
      causal: upper.distance === 0,
      leftWindow: lower.distance === undefined ? -1 : -lower.distance,
      rightWindow: upper.distance === undefined || upper.distance === 0 ? -1 : upper.distance,
      alignEnd,
    };
    best = { band, expressed };
  }
  return { band: best.band, rest: conditions.filter((c) => !best.expressed.includes(c)) };
}

/** Where query 0 may stand among the keys. */
function* offsets(query: IndexVariable, key: IndexVariable): Generator<{ offset: Expression; alignEnd: boolean }> {
  yield { offset: Expression.constant(0), alignEnd: false };
  for (const keys of key.sizes)
    for (const queries of query.sizes) yield { offset: keys.minus(queries), alignEnd: true };
}

function readBound(condition: Condition, query: IndexVariable, key: IndexVariable): Bound | undefined {
  if (condition.kind !== 'atMostZero') return undefined;
  const { affine } = condition;
  const others = [...affine.terms.keys()].some((v) => v !== query && v !== key);
  const [i, j] = [affine.coefficient(query), affine.coefficient(key)];
  if (others || !i.plus(j).equals(0)) return undefined;
  if (j.equals(1)) return { side: 'upper', distance: affine.rest.times(-1), condition };
  return i.equals(1) ? { side: 'lower', distance: affine.rest, condition } : undefined;
}

/**
 * The tightest of the bounds on one side whose distance from the diagonal at this offset is a constant, with every
 * condition that it implies. Keys at or after the diagonal have a lower bound at most 0, those before an upper one.
 */
function tightest(
  bounds: readonly Bound[],
  side: Bound['side'],
  offset: Expression,
): { readonly distance: number | undefined; readonly conditions: readonly Condition[] } {
  const distances = new Map<Condition, number>();
  for (const bound of bounds) {
    const distance = bound.side === side ? bound.distance.minus(offset).value : undefined;
    if (distance !== undefined) distances.set(bound.condition, distance + 0);
  }
  const all = [...distances.values()];
  if (all.length === 0) return { distance: undefined, conditions: [] };
  const distance = side === 'upper' ? Math.min(...all) : Math.max(...all);
  const expressible = side === 'upper' ? distance >= 0 : distance <= 0;
  return expressible ? { distance, conditions: [...distances.keys()] } : { distance: undefined, conditions: [] };
}
