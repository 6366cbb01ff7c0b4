/** Indices of the scores, and linear expressions in them, for which inequalities can be proven for every shape. */
import { Expression, toExpression } from '../../shape/expression.js';
import type { ScoreAxis } from '../masks.js';

/** An index of the scores: it runs from 0 to its size, which is excluded. */
export class IndexVariable {
  readonly axis: ScoreAxis;
  /** Sizes that are all equal to the number of its values: the scores' own first. */
  readonly sizes: Expression[];

  constructor(axis: ScoreAxis, size: Expression) {
    this.axis = axis;
    this.sizes = [size];
  }

  /** Notes that an axis of this size is read at this index. */
  addSize(size: Expression): void {
    if (!this.sizes.some((s) => s.equals(size))) this.sizes.push(size);
  }

  hasSize(size: Expression): boolean {
    return this.sizes.some((s) => s.equals(size));
  }
}

/** A constant plus indices times coefficients; constant and coefficients are expressions in the model's sizes. */
export class Affine {
  readonly terms: ReadonlyMap<IndexVariable, Expression>;
  readonly rest: Expression;

  private constructor(terms: ReadonlyMap<IndexVariable, Expression>, rest: Expression) {
    this.terms = terms;
    this.rest = rest;
  }

  static constant(value: Expression | number): Affine {
    return new Affine(new Map(), toExpression(value));
  }

  static variable(variable: IndexVariable): Affine {
    return new Affine(new Map([[variable, Expression.constant(1)]]), Expression.constant(0));
  }

  /** The number that this is, where it is one. */
  get value(): number | undefined {
    return this.terms.size === 0 ? this.rest.value : undefined;
  }

  /** The index that this is, with nothing added. */
  get variable(): IndexVariable | undefined {
    if (this.terms.size !== 1 || !this.rest.equals(0)) return undefined;
    const [[variable, coefficient]] = this.terms as unknown as [[IndexVariable, Expression]];
    return coefficient.equals(1) ? variable : undefined;
  }

  /** Whether no size of the model's is past what a double holds exactly. */
  get exact(): boolean {
    return this.rest.exact && [...this.terms.values()].every((c) => c.exact);
  }

  coefficient(variable: IndexVariable): Expression {
    return this.terms.get(variable) ?? Expression.constant(0);
  }

  plus(other: Affine | Expression | number): Affine {
    if (!(other instanceof Affine)) return new Affine(this.terms, this.rest.plus(other));
    const terms = new Map(this.terms);
    for (const [variable, coefficient] of other.terms) {
      const sum = coefficient.plus(this.coefficient(variable));
      if (sum.equals(0)) terms.delete(variable);
      else terms.set(variable, sum);
    }
    return new Affine(terms, this.rest.plus(other.rest));
  }

  minus(other: Affine | Expression | number): Affine {
    return this.plus(other instanceof Affine ? other.times(-1) : toExpression(other).times(-1));
  }

  times(factor: Expression | number): Affine {
    if (toExpression(factor).equals(0)) return Affine.constant(0);
    const terms = new Map([...this.terms].map(([variable, c]) => [variable, c.times(factor)]));
    return new Affine(terms, this.rest.times(factor));
  }

  /** This with an index replaced. */
  substitute(variable: IndexVariable, replacement: Affine): Affine {
    const coefficient = this.terms.get(variable);
    if (!coefficient) return this;
    const others = new Map(this.terms);
    others.delete(variable);
    return new Affine(others, this.rest).plus(replacement.times(coefficient));
  }

  /**
   * Quotient and remainder by a size, where the quotient's terms are those that divide evenly and the remainder is
   * shown to lie between 0 and the size.
   */
  divide(size: Expression): { readonly quotient: Affine; readonly remainder: Affine } | undefined {
    let quotient = Affine.constant(0);
    let remainder = Affine.constant(0);
    for (const [variable, coefficient] of this.terms) {
      const exact = coefficient.dividedExactlyBy(size);
      if (exact) quotient = quotient.plus(Affine.variable(variable).times(exact));
      else remainder = remainder.plus(Affine.variable(variable).times(coefficient));
    }
    const exact = this.rest.dividedExactlyBy(size);
    if (exact) quotient = quotient.plus(exact);
    else remainder = remainder.plus(this.rest);
    // Where there is an element, no size is 0.
    if (remainder.value === 0) return { quotient, remainder };
    if (!isNeverPositive(remainder.times(-1)) || !isNeverPositive(remainder.minus(size).plus(1))) return undefined;
    return { quotient, remainder };
  }
}

/** Whether the expression is at most 0 for every index and every shape on which the indices have a value at all. */
export function isNeverPositive(affine: Affine): boolean {
  if (!affine.exact) return false;
  return [...upperBounds(affine)].some((bound) => bound.range.upper <= 0);
}

/** The expression at the ends of its indices at which it is largest, once for each way to write the sizes. */
function* upperBounds(affine: Affine): Generator<Expression> {
  const [first] = affine.terms;
  if (!first) {
    yield affine.rest;
    return;
  }
  const [variable, coefficient] = first;
  const { lower, upper } = coefficient.range;
  if (upper <= 0) yield* upperBounds(affine.substitute(variable, Affine.constant(0)));
  else if (lower >= 0)
    for (const size of variable.sizes) yield* upperBounds(affine.substitute(variable, Affine.constant(size.minus(1))));
}
