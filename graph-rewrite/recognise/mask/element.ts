/** What one element of a tensor is, as a function of the scores' indices; and conditions on them. */
import type { Value } from '../../graph/graph.js';
import { type Affine, isNeverPositive } from './affine.js';
import type { ElementStep } from './derived.js';

/** A tensor of the graph whose elements, at these indices, are the ones meant, or what they are computed from. */
export interface Source {
  readonly value: Value;
  readonly indices: readonly Affine[];
  /** What is done to each element, in order; the smaller tensor that a large one is made from may so stand for it. */
  readonly steps?: readonly ElementStep[];
  /** For a condition: whether it holds where the tensor is true, or where it is false. */
  readonly keepWhere: boolean;
}

/** A condition, with the boolean tensors that hold it, those nearest to the graph's inputs first. */
export type Condition =
  | { readonly kind: 'constant'; readonly value: boolean; readonly sources: readonly Source[] }
  /** affine ≤ 0. */
  | { readonly kind: 'atMostZero'; readonly affine: Affine; readonly sources: readonly Source[] }
  /** Known only by the tensors that hold it. */
  | { readonly kind: 'opaque'; readonly sources: readonly Source[] }
  | { readonly kind: 'and' | 'or'; readonly parts: readonly Condition[]; readonly sources: readonly Source[] };

export type Element =
  | { readonly kind: 'constant'; readonly value: number }
  | { readonly kind: 'linear'; readonly affine: Affine }
  /** An element of a boolean tensor. */
  | { readonly kind: 'condition'; readonly condition: Condition }
  | { readonly kind: 'choice'; readonly condition: Condition; readonly yes: Element; readonly no: Element }
  | { readonly kind: 'maximum' | 'minimum'; readonly parts: readonly Element[] }
  /** Masks and biases, not yet added up; the type is the one that rounds the sum. */
  | { readonly kind: 'sum'; readonly parts: readonly Element[]; readonly type: number | undefined }
  /** Known only by the tensors that hold it. */
  | { readonly kind: 'opaque'; readonly sources: readonly Source[] };

export const TRUE: Condition = { kind: 'constant', value: true, sources: [] };
export const FALSE: Condition = { kind: 'constant', value: false, sources: [] };

export const constant = (value: number): Element => ({ kind: 'constant', value });
export const linear = (affine: Affine): Element => ({ kind: 'linear', affine });
export const conditional = (condition: Condition): Element => ({ kind: 'condition', condition });

/** affine ≤ 0, decided where it can be. */
export function atMostZero(affine: Affine): Condition {
  if (isNeverPositive(affine)) return TRUE;
  if (isNeverPositive(affine.times(-1).plus(1))) return FALSE;
  return { kind: 'atMostZero', affine, sources: [] };
}

export function not(condition: Condition): Condition {
  const sources = condition.sources.map((s) => ({ ...s, keepWhere: !s.keepWhere }));
  switch (condition.kind) {
    case 'constant':
      return condition.value ? FALSE : TRUE;
    case 'atMostZero':
      return { ...condition, affine: condition.affine.times(-1).plus(1), sources };
    case 'opaque':
      return { ...condition, sources };
    default:
      return { kind: condition.kind === 'and' ? 'or' : 'and', parts: condition.parts.map(not), sources };
  }
}

export const and = (...parts: Condition[]): Condition => join('and', parts);
export const or = (...parts: Condition[]): Condition => join('or', parts);

/** Parts that decide the whole decide it; those that change nothing, being implied by others, are left out. */
function join(kind: 'and' | 'or', parts: readonly Condition[]): Condition {
  const isAnd = kind === 'and';
  const open: Condition[] = [];
  for (const part of parts.flatMap((p) => (p.kind === kind ? p.parts : [p]))) {
    if (part.kind === 'constant' && part.value === isAnd) continue;
    const decides = part.kind === 'constant' || open.some((other) => exclude(other, part, isAnd));
    if (decides) return isAnd ? FALSE : TRUE;
    if (open.includes(part) || open.some((other) => (isAnd ? implies(other, part) : implies(part, other)))) continue;
    const kept = open.filter((other) => !(isAnd ? implies(part, other) : implies(other, part)));
    open.splice(0, open.length, ...kept, part);
  }
  if (open.length === 0) return isAnd ? TRUE : FALSE;
  return open.length === 1 ? open[0]! : { kind, parts: open, sources: [] };
}

function implies(a: Condition, b: Condition): boolean {
  return a.kind === 'atMostZero' && b.kind === 'atMostZero' && isNeverPositive(b.affine.minus(a.affine));
}

/** Whether two inequalities never both hold (`both`), or never both fail. */
function exclude(a: Condition, b: Condition, both: boolean): boolean {
  if (a.kind !== 'atMostZero' || b.kind !== 'atMostZero') return false;
  const sum = a.affine.plus(b.affine);
  return isNeverPositive(both ? sum.times(-1).plus(1) : sum.minus(1));
}

/** Parts of a conjunction; the condition itself where it is none. */
export function conjuncts(condition: Condition): readonly Condition[] {
  if (condition.kind === 'constant' && condition.value) return [];
  return condition.kind === 'and' ? condition.parts.flatMap(conjuncts) : [condition];
}

export function choice(condition: Condition, yes: Element, no: Element): Element {
  if (condition.kind === 'constant') return condition.value ? yes : no;
  if (sameNumber(yes, no)) return yes;
  if (yes.kind === 'choice') {
    if (sameNumber(yes.no, no)) return choice(and(condition, yes.condition), yes.yes, no);
    if (sameNumber(yes.yes, no)) return choice(and(condition, not(yes.condition)), yes.no, no);
  }
  if (no.kind === 'choice') {
    if (sameNumber(no.yes, yes)) return choice(or(condition, no.condition), yes, no.no);
    if (sameNumber(no.no, yes)) return choice(or(condition, not(no.condition)), yes, no.yes);
  }
  if (yes.kind === 'condition' && no.kind === 'condition')
    return conditional(or(and(condition, yes.condition), and(not(condition), no.condition)));
  return { kind: 'choice', condition, yes, no };
}

/** Zeros of either sign are one number. */
function sameNumber(a: Element, b: Element): boolean {
  return a.kind === 'constant' && b.kind === 'constant' && a.value === b.value;
}

/** The same element, now also found in this tensor. */
export function alsoIn(element: Element, source: Source): Element {
  if (element.kind === 'opaque') return { ...element, sources: [...element.sources, source] };
  if (element.kind !== 'condition' || element.condition.kind === 'constant') return element;
  const { condition } = element;
  return conditional({ ...condition, sources: [...condition.sources, source] });
}

/** How many nodes the element's expression has: what is too large is not followed. */
export function complexity(element: Element): number {
  switch (element.kind) {
    case 'choice':
      return 1 + size(element.condition) + complexity(element.yes) + complexity(element.no);
    case 'condition':
      return size(element.condition);
    case 'sum':
    case 'maximum':
    case 'minimum':
      return element.parts.reduce((n, p) => n + complexity(p), 1);
    default:
      return 1;
  }
}

function size(condition: Condition): number {
  return condition.kind === 'and' || condition.kind === 'or' ? condition.parts.reduce((n, p) => n + size(p), 1) : 1;
}
