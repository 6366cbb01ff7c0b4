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

export function sizeOf(dimension: Dimension): Expression {
  return product(dimension.map((a) => a.size));
}

/** A dimension of this size that nothing is known about. */
export function freshDimension(size: Expression, repeated = false): Dimension {
  return size.equals(1) ? [] : [new Atom(size, repeated)];
}

/**
 * Regroups atoms into dimensions of these sizes, in row-major order, splitting atoms where a boundary falls inside one.
 * @returns undefined where some boundary cannot be shown to fall on a divisor.
 */
export function regroup(atoms: readonly Atom[], sizes: readonly Expression[]): Dimension[] | undefined {
  const source = atoms.flatMap((a) => a.leaves);
  const dimensions: Dimension[] = [];
  for (const size of sizes) {
    const dimension: Atom[] = [];
    let need = size;
    while (!need.equals(1)) {
      const atom = source.shift();
      if (!atom) return undefined;
      const rest = need.dividedExactlyBy(atom.size);
      const inner = rest ? undefined : atom.size.dividedExactlyBy(need);
      if (rest) {
        dimension.push(atom);
        need = rest;
      } else if (inner) {
        const [outer, remaining] = atom.split([need, inner]) as [Atom, Atom];
        dimension.push(outer);
        source.unshift(remaining);
        need = Expression.constant(1);
      } else return undefined;
    }
    dimensions.push(dimension);
  }
  return source.every((a) => a.size.equals(1)) ? dimensions : undefined;
}

/**
 * Splits two dimensions until their leaves correspond one to one.
 * @returns the pairs, outermost first; undefined where the sizes cannot be shown to be equal.
 */
export function align(a: Dimension, b: Dimension): [Atom, Atom][] | undefined {
  const left = [...leavesOf(a)];
  const right = [...leavesOf(b)];
  const pairs: [Atom, Atom][] = [];
  while (left.length > 0 && right.length > 0) {
    const x = left.shift()!;
    const y = right.shift()!;
    const xOverY = x.size.dividedExactlyBy(y.size);
    const yOverX = xOverY ? undefined : y.size.dividedExactlyBy(x.size);
    if (x.size.equals(y.size)) {
      pairs.push([x, y]);
    } else if (xOverY) {
      const [outer, inner] = x.split([y.size, xOverY]) as [Atom, Atom];
      pairs.push([outer, y]);
      left.unshift(inner);
    } else if (yOverX) {
      const [outer, inner] = y.split([x.size, yOverX]) as [Atom, Atom];
      pairs.push([x, outer]);
      right.unshift(inner);
    } else if (left.length === 0 && right.length === 0 && x.size.value === undefined && y.size.value === undefined) {
      // The operator that joins the two dimensions forces their equality, though the graph's symbols do not show it.
      pairs.push([x, y]);
    } else return undefined;
  }
  return left.length === 0 && right.length === 0 ? pairs : undefined;
}
