import { Expression, product } from '../shape/expression.js';

/**
 * Reshape and Transpose as algebra. A dimension is a product of atoms, outermost first; splitting a dimension splits an
 * atom, and every list that holds the atom sees the split. Moving data around then is moving atoms around, and what a
 * chain of Reshape, Transpose, Expand and Slice does to a tensor can be read off where its atoms end up.
 */
export class Atom {
  readonly size: Expression;
  /** Not in memory: each index shows the same data (Expand). */
  readonly repeated: boolean;
  #parts: readonly Atom[] | undefined;

  constructor(size: Expression, repeated = false) {
    this.size = size;
    this.repeated = repeated;
  }

  /** This atom, or what it was split into. */
  get leaves(): readonly Atom[] {
    return this.#parts?.flatMap((p) => p.leaves) ?? [this];
  }

  /** Splits an atom that is not split yet; the product of the sizes must be its own. */
  split(sizes: readonly Expression[]): readonly Atom[] {
    if (this.#parts) throw new Error('an atom is split once');
    this.#parts = sizes.map((size) => new Atom(size, this.repeated));
    return this.#parts;
  }
}

/** One dimension: atoms, outermost first; none where the size is 1. */
export type Dimension = readonly Atom[];

export function leavesOf(dimension: Dimension): readonly Atom[] {
  return dimension.flatMap((a) => a.leaves);
}

/** Whether two lists hold the same leaves in the same order. */
export function sameLeaves(a: readonly Atom[], b: readonly Atom[]): boolean {
  return a.length === b.length && a.every((leaf, i) => leaf === b[i]);
}

export function sizeOf(dimension: Dimension): Expression {
  return product(dimension.map((a) => a.size));
}

/** A dimension of this size that nothing is known about. */
export function freshDimension(size: Expression, repeated = false): Dimension {
  return size.equals(1) ? [] : [new Atom(size, repeated)];
}

/**
 * Regroups atoms into dimensions of these sizes, in row-major order, splitting atoms where a boundary falls inside one.
 * There are as many elements before as after: what lies between the sizes that are matched from either end is equal,
 * also where the graph's symbols do not show it.
 * @returns undefined where some boundary cannot be shown to fall on a divisor.
 */
export function regroup(atoms: readonly Atom[], sizes: readonly Expression[]): Dimension[] | undefined {
  const source = atoms.flatMap((a) => a.leaves);
  const open = [...sizes];
  const front: Dimension[] = [];
  const back: Dimension[] = [];
  for (let next = takeFirst(source, open[0]); next; next = takeFirst(source, open[0])) {
    front.push(next);
    open.shift();
  }
  for (let next = takeLast(source, open.at(-1)); next; next = takeLast(source, open.at(-1))) {
    back.unshift(next);
    open.pop();
  }
  const left = source.filter((a) => !a.size.equals(1));
  const [only] = left;
  if (open.length === 0) return only ? undefined : [...front, ...back];
  if (!only || (open.length > 1 && left.length > 1)) return undefined;
  if (open.length === 1) return [...front, left, ...back];
  const parts = [...only.split(open.filter((size) => !size.equals(1)))];
  return [...front, ...open.map((size) => (size.equals(1) ? [] : [parts.shift()!])), ...back];
}

/** Takes a dimension of this size from the front of a list of leaves; leaves the list as it is where it cannot. */
function takeFirst(source: Atom[], size: Expression | undefined): Dimension | undefined {
  if (!size) return undefined;
  const dimension: Atom[] = [];
  let need = size;
  while (!need.equals(1)) {
    const atom = source[dimension.length];
    const rest = atom && need.dividedExactlyBy(atom.size);
    const inner = atom && !rest ? atom.size.dividedExactlyBy(need) : undefined;
    if (inner) source.splice(dimension.length, 1, ...atom!.split([need, inner]));
    else if (!rest) return undefined;
    dimension.push(source[dimension.length]!);
    need = rest ?? Expression.constant(1);
  }
  source.splice(0, dimension.length);
  return dimension;
}

/** The same from the back. */
function takeLast(source: Atom[], size: Expression | undefined): Dimension | undefined {
  if (!size) return undefined;
  const dimension: Atom[] = [];
  let need = size;
  while (!need.equals(1)) {
    const at = source.length - 1 - dimension.length;
    const atom = source[at];
    const rest = atom && need.dividedExactlyBy(atom.size);
    const outer = atom && !rest ? atom.size.dividedExactlyBy(need) : undefined;
    if (outer) source.splice(at, 1, ...atom!.split([outer, need]));
    else if (!rest) return undefined;
    dimension.unshift(source[source.length - 1 - dimension.length]!);
    need = rest ?? Expression.constant(1);
  }
  source.splice(source.length - dimension.length);
  return dimension;
}

/**
 * Splits two dimensions until their leaves correspond one to one.
 * @returns the pairs, outermost first; undefined where the sizes cannot be shown to be equal.
 */
export function align(a: Dimension, b: Dimension): [Atom, Atom][] | undefined {
  const left = [...leavesOf(a)];
  const right = [...leavesOf(b)];
  const pairs: [Atom, Atom][] = [];
  const inner: [Atom, Atom][] = [];
  while (left.length > 0 && right.length > 0) {
    const x = left.shift()!;
    const y = right.shift()!;
    const xOverY = x.size.dividedExactlyBy(y.size);
    const yOverX = xOverY ? undefined : y.size.dividedExactlyBy(x.size);
    if (x.size.equals(y.size)) {
      pairs.push([x, y]);
    } else if (xOverY) {
      const [outer, rest] = x.split([y.size, xOverY]) as [Atom, Atom];
      pairs.push([outer, y]);
      left.unshift(rest);
    } else if (yOverX) {
      const [outer, rest] = y.split([x.size, yOverX]) as [Atom, Atom];
      pairs.push([x, outer]);
      right.unshift(rest);
    } else if (left.length > 0 && right.length > 0 && left.at(-1)!.size.equals(right.at(-1)!.size)) {
      inner.unshift([left.pop()!, right.pop()!]);
      left.unshift(x);
      right.unshift(y);
    } else if (left.length === 0 || right.length === 0) {
      // The operator that joins the two dimensions forces their equality, though the graph's symbols do not show it.
      const [one, others, isLeft] = left.length === 0 ? [x, [y, ...right], true] : [y, [x, ...left], false];
      if (one.size.value !== undefined || others.every((o) => o.size.value !== undefined)) return undefined;
      const parts = others.length === 1 ? [one] : one.split(others.map((o) => o.size));
      for (const [i, part] of parts.entries()) pairs.push(isLeft ? [part, others[i]!] : [others[i]!, part]);
      left.splice(0);
      right.splice(0);
    } else return undefined;
  }
  return left.length === 0 && right.length === 0 ? [...pairs, ...inner] : undefined;
}
