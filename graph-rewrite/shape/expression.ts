/**
 * Integer expressions over a model's symbolic dimensions, in a normal form: two expressions that are equal as
 * polynomials are equal as objects' keys. Sizes of dimensions, and elements of shape tensors, are such expressions.
 *
 * What is no polynomial (a floor division that does not come out even, a remainder, a maximum, a value that is not
 * known) is an atom: a name made of the operation and its operands' keys, so equal operations are equal atoms.
 */
export class Expression {
  /** Coefficient of each monomial; a monomial is its atoms' names, sorted, joined by `·`; the empty one is 1. */
  readonly #terms: ReadonlyMap<string, number>;
  /** Normal form as text: equal exactly where the expressions are. */
  readonly key: string;

  private constructor(terms: ReadonlyMap<string, number>) {
    this.#terms = terms;
    const names = [...terms.keys()].sort();
    this.key = names.length === 0 ? '0' : names.map((n) => term(n, terms.get(n)!)).join(' + ');
  }

  static constant(value: number): Expression {
    return new Expression(value === 0 ? new Map() : new Map([['', value]]));
  }

  /** A symbol. Names must not contain `·`; symbols of one name are the same number. */
  static symbol(name: string): Expression {
    return new Expression(new Map([[name.replaceAll('·', '.'), 1]]));
  }

  /** The number this is, where it is one. */
  get value(): number | undefined {
    if (this.#terms.size === 0) return 0;
    return this.#terms.size === 1 ? this.#terms.get('') : undefined;
  }

  equals(other: Expression | number): boolean {
    return typeof other === 'number' ? this.value === other : this.key === other.key;
  }

  plus(other: Expression | number): Expression {
    const terms = new Map(this.#terms);
    for (const [name, c] of toExpression(other).#terms) accumulate(terms, name, c);
    return new Expression(terms);
  }

  minus(other: Expression | number): Expression {
    return this.plus(toExpression(other).times(-1));
  }

  times(other: Expression | number): Expression {
    const terms = new Map<string, number>();
    for (const [a, x] of this.#terms)
      for (const [b, y] of toExpression(other).#terms) accumulate(terms, multiplyMonomials(a, b), x * y);
    return new Expression(terms);
  }

  /** this / other where the quotient is a polynomial with integer coefficients; `undefined` where it is none. */
  dividedExactlyBy(divisor: Expression | number): Expression | undefined {
    const other = toExpression(divisor);
    if (other.#terms.size === 0) return undefined;
    if (other.#terms.size === 1) {
      const [[monomial, coefficient]] = [...other.#terms] as [[string, number]];
      const terms = new Map<string, number>();
      for (const [name, c] of this.#terms) {
        const rest = divideMonomials(name, monomial);
        if (rest === undefined || c % coefficient !== 0) return undefined;
        terms.set(rest, c / coefficient);
      }
      return new Expression(terms);
    }
    return divideByPolynomial(this, other);
  }

  /** ⌊this / other⌋ for positive operands: exact where possible, else an atom. */
  floorDividedBy(divisor: Expression | number): Expression {
    const other = toExpression(divisor);
    const exact = this.dividedExactlyBy(other);
    if (exact) return exact;
    if (this.value !== undefined && other.value) return Expression.constant(Math.floor(this.value / other.value));
    return Expression.operation('floor-div', this, other);
  }

  /** An atom for an operation that polynomials lack. */
  static operation(name: string, ...operands: Expression[]): Expression {
    return Expression.symbol(`${name}(${operands.map((o) => o.key.replaceAll('·', '*')).join(', ')})`);
  }

  /** The monomials' leading one, for polynomial division: largest by number of atoms, then by name. */
  get leading(): Expression {
    const names = [...this.#terms.keys()].sort((a, b) => degree(b) - degree(a) || (a < b ? -1 : 1));
    const name = names[0];
    return name === undefined ? this : new Expression(new Map([[name, this.#terms.get(name)!]]));
  }

  /** Names of the atoms in it. */
  get atoms(): ReadonlySet<string> {
    return new Set([...this.#terms.keys()].flatMap((name) => (name === '' ? [] : name.split('·'))));
  }

  toString(): string {
    return this.key;
  }
}

export function toExpression(value: Expression | number): Expression {
  return typeof value === 'number' ? Expression.constant(value) : value;
}

/** Product of sizes; 1 of none. */
export function product(sizes: Iterable<Expression>): Expression {
  let result = Expression.constant(1);
  for (const size of sizes) result = result.times(size);
  return result;
}

function term(name: string, coefficient: number): string {
  if (name === '') return String(coefficient);
  return coefficient === 1 ? name : `${coefficient}·${name}`;
}

function degree(name: string): number {
  return name === '' ? 0 : name.split('·').length;
}

function accumulate(terms: Map<string, number>, name: string, coefficient: number): void {
  const sum = (terms.get(name) ?? 0) + coefficient;
  if (sum === 0) terms.delete(name);
  else terms.set(name, sum);
}

function multiplyMonomials(a: string, b: string): string {
  if (a === '') return b;
  if (b === '') return a;
  return [...a.split('·'), ...b.split('·')].sort().join('·');
}

function divideMonomials(a: string, b: string): string | undefined {
  const rest = a === '' ? [] : a.split('·');
  for (const name of b === '' ? [] : b.split('·')) {
    const at = rest.indexOf(name);
    if (at < 0) return undefined;
    rest.splice(at, 1);
  }
  return rest.join('·');
}

/** Long division by a divisor of several terms; gives up where a remainder is left. */
function divideByPolynomial(dividend: Expression, divisor: Expression): Expression | undefined {
  const lead = divisor.leading;
  let rest = dividend;
  let quotient = Expression.constant(0);
  for (let step = 0; rest.value !== 0; step++) {
    const part = step < 32 ? rest.leading.dividedExactlyBy(lead) : undefined;
    if (!part) return undefined;
    quotient = quotient.plus(part);
    rest = rest.minus(part.times(divisor));
  }
  return quotient;
}
