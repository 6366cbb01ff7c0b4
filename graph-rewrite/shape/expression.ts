import { boundsOf, evaluateOperation } from './operation.js';

/** What a polynomial is made of: a symbol, or an operation on expressions that is no polynomial. */
export interface Atom {
  /** Identity: atoms of one name are the same number. */
  readonly name: string;
  readonly lower: number;
  readonly upper: number;
  /** Set where the atom is an operation: its name, see operation.ts. */
  readonly operation: string | undefined;
  readonly operands: readonly Expression[];
}

/** The integers that an expression can be, both ends included; infinite where unbounded. */
export interface Range {
  readonly lower: number;
  readonly upper: number;
}

interface Term {
  /** Sorted by name; an atom appears as often as its power. */
  readonly factors: readonly Atom[];
  readonly coefficient: number;
}

/**
 * Integer expressions over a model's symbolic dimensions, in a normal form: two expressions that are equal as
 * polynomials have equal keys. Sizes of dimensions, and elements of shape tensors, are such expressions.
 *
 * What is no polynomial (a floor division that does not come out even, a maximum, a value that is not known) is an
 * atom: a name made of the operation and its operands' keys, so equal operations are equal atoms. Every atom carries
 * bounds, from which {@link Expression.range} proves that, say, a size is never −1.
 */
export class Expression {
  readonly #terms: ReadonlyMap<string, Term>;
  #key: string | undefined;
  #range: Range | undefined;

  private constructor(terms: ReadonlyMap<string, Term>) {
    this.#terms = terms;
  }

  static readonly #constants = new Map<number, Expression>();

  static constant(value: number): Expression {
    const known = Expression.#constants.get(value);
    if (known) return known;
    const made = new Expression(value === 0 ? new Map() : new Map([['', { factors: [], coefficient: value }]]));
    // Small ones are everywhere; sharing them saves most of their allocation.
    if (value >= -1 && value <= 1024) Expression.#constants.set(value, made);
    return made;
  }

  /** A size that is not known in advance, so at least 0. Symbols of one name are the same number. */
  static symbol(name: string): Expression {
    return Expression.#atom(name, 0, Number.POSITIVE_INFINITY);
  }

  /** A number of either sign that is not known. Its name must be no {@link symbol}'s. */
  static unknown(name: string, range: Range = EVERYTHING): Expression {
    return Expression.#atom(name, range.lower, range.upper);
  }

  /** An atom for an operation that polynomials lack; those that operation.ts knows have bounds and a value. */
  static operation(name: string, ...operands: Expression[]): Expression {
    const { lower, upper } = boundsOf(name, operands);
    return Expression.#atom(`${name}(${operands.map((o) => o.key).join(', ')})`, lower, upper, name, operands);
  }

  static #atom(name: string, lower: number, upper: number, operation?: string, operands: Expression[] = []) {
    const atom: Atom = { name: name.replaceAll('·', '*'), lower, upper, operation, operands };
    return new Expression(new Map([[atom.name, { factors: [atom], coefficient: 1 }]]));
  }

  /** Normal form as text: equal exactly where the expressions are. */
  get key(): string {
    if (this.#key === undefined) {
      const names = [...this.#terms.keys()].sort();
      this.#key = names.map((n) => termText(n, this.#terms.get(n)!.coefficient)).join(' + ') || '0';
    }
    return this.#key;
  }

  /** The number this is, where it is one. */
  get value(): number | undefined {
    if (this.#terms.size === 0) return 0;
    return this.#terms.size === 1 ? this.#terms.get('')?.coefficient : undefined;
  }

  /** Whether every coefficient is an integer that a double holds exactly; where not, equality proves nothing. */
  get exact(): boolean {
    for (const { coefficient } of this.#terms.values()) if (!Number.isSafeInteger(coefficient)) return false;
    return true;
  }

  /** Names of the atoms in it; those inside an operation's operands are not among them. */
  get atoms(): ReadonlySet<string> {
    return new Set([...this.#terms.values()].flatMap((t) => t.factors.map((f) => f.name)));
  }

  /** Names of the symbols in it, also those inside operations. */
  get symbols(): ReadonlySet<string> {
    const found = new Set<string>();
    for (const { factors } of this.#terms.values())
      for (const atom of factors) {
        if (atom.operation === undefined) found.add(atom.name);
        for (const operand of atom.operands) for (const name of operand.symbols) found.add(name);
      }
    return found;
  }

  /** The atom that this is, with nothing around it. */
  get atom(): Atom | undefined {
    if (this.#terms.size !== 1) return undefined;
    const [{ factors, coefficient }] = this.#terms.values() as unknown as [Term];
    return coefficient === 1 && factors.length === 1 ? factors[0] : undefined;
  }

  /** How many terms the polynomial has. */
  get termCount(): number {
    return this.#terms.size;
  }

  /** Bounds proven from the atoms'; every size is at least 0. */
  get range(): Range {
    this.#range ??= { lower: this.#bound(-1, 0), upper: this.#bound(1, 0) };
    return this.#range;
  }

  equals(other: Expression | number): boolean {
    return typeof other === 'number' ? this.value === other : this === other || this.key === other.key;
  }

  plus(other: Expression | number): Expression {
    const terms = new Map(this.#terms);
    for (const [name, t] of toExpression(other).#terms) accumulate(terms, name, t.factors, t.coefficient);
    return new Expression(terms);
  }

  minus(other: Expression | number): Expression {
    return this.plus(toExpression(other).times(-1));
  }

  times(other: Expression | number): Expression {
    const terms = new Map<string, Term>();
    const right = toExpression(other);
    for (const a of this.#terms.values())
      for (const b of right.#terms.values()) {
        const factors = multiplyFactors(a.factors, b.factors);
        accumulate(terms, monomialName(factors), factors, a.coefficient * b.coefficient);
      }
    return new Expression(terms);
  }

  /** this / other where the quotient is a polynomial with integer coefficients; `undefined` where it is none. */
  dividedExactlyBy(divisor: Expression | number): Expression | undefined {
    const other = toExpression(divisor);
    if (other.#terms.size === 0) return undefined;
    if (other.#terms.size > 1) return divideByPolynomial(this, other);
    const [{ factors, coefficient }] = [...other.#terms.values()] as [Term];
    const terms = new Map<string, Term>();
    for (const term of this.#terms.values()) {
      const rest = divideFactors(term.factors, factors);
      if (rest === undefined || term.coefficient % coefficient !== 0) return undefined;
      terms.set(monomialName(rest), { factors: rest, coefficient: term.coefficient / coefficient });
    }
    return new Expression(terms);
  }

  /** ⌊this / other⌋ for a positive divisor: exact where possible, else with an atom for what does not come out even. */
  floorDividedBy(divisor: Expression | number): Expression {
    const whole = toExpression(divisor);
    const exact = this.dividedExactlyBy(whole);
    if (exact) return exact;
    const common = commonFactors([...this.#terms.values(), ...whole.#terms.values()]);
    const numerator = this.#reducedBy(common);
    const denominator = whole.#reducedBy(common);
    const count = denominator.value;
    if (count === undefined || count <= 0) return Expression.operation('floor-div', numerator, denominator);
    return numerator.#floorDividedByConstant(count);
  }

  /** The remainder of {@link floorDividedBy}, which has the divisor's sign. */
  modulo(divisor: Expression | number): Expression {
    const other = toExpression(divisor);
    return this.minus(this.floorDividedBy(other).times(other));
  }

  static maximum(a: Expression, b: Expression): Expression {
    const { lower, upper } = a.minus(b).range;
    if (lower >= 0) return a;
    if (upper <= 0) return b;
    return Expression.operation('max', ...sortedByKey(a, b));
  }

  static minimum(a: Expression, b: Expression): Expression {
    const { lower, upper } = a.minus(b).range;
    if (upper <= 0) return a;
    if (lower >= 0) return b;
    return Expression.operation('min', ...sortedByKey(a, b));
  }

  /** The number that this is where each symbol has the value given; `undefined` where one has none. */
  evaluate(bindings: ReadonlyMap<string, number>): number | undefined {
    let sum = 0;
    for (const { factors, coefficient } of this.#terms.values()) {
      let part = coefficient;
      for (const atom of factors) {
        const value = bindings.get(atom.name) ?? evaluateAtom(atom, bindings);
        if (value === undefined) return undefined;
        part *= value;
      }
      sum += part;
    }
    return sum;
  }

  /**
   * The same expression with what it tells of its atoms where it is known to be at least this: from
   * `⌊x / 4⌋ − 2 ≥ 0` that the quotient is at least 2, and x at least 8. Only a sum of a constant and one term with one
   * atom tells anything.
   * @param learned gets the lower bounds of symbols that follow
   */
  assumeAtLeast(lower: number, learned?: Map<string, number>): Expression {
    if (this.range.lower >= lower || !Number.isFinite(lower)) return this;
    const constant = this.#terms.get('')?.coefficient ?? 0;
    const open = [...this.#terms].filter(([name]) => name !== '');
    const [name, term] = open[0] ?? [];
    if (open.length !== 1 || !term || term.factors.length !== 1 || term.coefficient <= 0) return this;
    const bound = Math.ceil((lower - constant) / term.coefficient);
    const terms = new Map(this.#terms);
    terms.set(name!, { ...term, factors: [raisedAtom(term.factors[0]!, bound, learned)] });
    return new Expression(terms);
  }

  /** The same expression with these lower bounds of symbols put to use. */
  withLowerBounds(bounds: ReadonlyMap<string, number>): Expression {
    const terms = new Map<string, Term>();
    let changed = false;
    for (const [name, term] of this.#terms) {
      const factors = term.factors.map((atom) => boundedAtom(atom, bounds));
      changed ||= factors.some((atom, i) => atom !== term.factors[i]);
      terms.set(name, { factors, coefficient: term.coefficient });
    }
    return changed ? new Expression(terms) : this;
  }

  /** The leading term, for polynomial division: largest by number of factors, then by name. */
  get leading(): Expression {
    const [first] = [...this.#terms].sort(
      ([a, x], [b, y]) => y.factors.length - x.factors.length || (a < b ? -1 : a > b ? 1 : 0),
    );
    return first === undefined ? this : new Expression(new Map([first]));
  }

  toString(): string {
    return this.key;
  }

  #floorDividedByConstant(count: number): Expression {
    const even = new Map<string, Term>();
    const odd = new Map<string, Term>();
    for (const [name, { factors, coefficient }] of this.#terms) {
      // The constant and every coefficient are reduced to 0 … count − 1, so that equal quotients are equal atoms.
      const quotient = Math.floor(coefficient / count);
      accumulate(even, name, factors, quotient);
      accumulate(odd, name, factors, coefficient - quotient * count);
    }
    const rest = new Expression(odd);
    const quotient = new Expression(even);
    if (rest.range.lower >= 0 && rest.range.upper < count) return quotient;
    const inner = rest.atom;
    const innerCount = inner?.operation === 'floor-div' ? inner.operands[1]!.value : undefined;
    const atom =
      innerCount === undefined
        ? Expression.operation('floor-div', rest, Expression.constant(count))
        : inner!.operands[0]!.floorDividedBy(innerCount * count);
    return quotient.plus(atom);
  }

  #reducedBy(common: Term): Expression {
    const terms = new Map<string, Term>();
    for (const { factors, coefficient } of this.#terms.values()) {
      const rest = divideFactors(factors, common.factors)!;
      terms.set(monomialName(rest), { factors: rest, coefficient: coefficient / common.coefficient });
    }
    return new Expression(terms);
  }

  /**
   * A bound on one side (−1 lower, 1 upper): the sum of the terms' own, or a better one found by putting an
   * operation's bounding expression in its place, as in x − min(x, 64) ≥ x − x.
   */
  #bound(side: -1 | 1, depth: number): number {
    let sum = 0;
    for (const term of this.#terms.values()) sum += termBound(term, side);
    if (Number.isNaN(sum)) sum = side * Number.POSITIVE_INFINITY;
    if (depth >= 3 || this.#terms.size > 8) return sum;
    let best = sum;
    for (const [name, { factors, coefficient }] of this.#terms) {
      const atom = factors.length === 1 ? factors[0]! : undefined;
      if (atom?.operation === undefined) continue;
      const upward = side > 0 === coefficient > 0;
      for (const { expression, divisor } of boundingExpressions(atom, upward)) {
        const others = new Map(this.#terms);
        others.delete(name);
        const scaled = new Expression(others).times(divisor).plus(expression.times(coefficient));
        const bound = scaled.#bound(side, depth + 1) / divisor;
        best = side < 0 ? Math.max(best, Math.ceil(bound)) : Math.min(best, Math.floor(bound));
      }
    }
    return best;
  }
}

function raisedAtom(atom: Atom, lower: number, learned: Map<string, number> | undefined): Atom {
  if (atom.lower >= lower) return atom;
  if (atom.operation === undefined) learned?.set(atom.name, Math.max(lower, learned.get(atom.name) ?? lower));
  const divisor = atom.operation === 'floor-div' ? atom.operands[1]!.value : undefined;
  if (divisor === undefined || divisor <= 0) return { ...atom, lower };
  const [numerator, denominator] = atom.operands as [Expression, Expression];
  return { ...atom, lower, operands: [numerator.assumeAtLeast(lower * divisor, learned), denominator] };
}

function boundedAtom(atom: Atom, bounds: ReadonlyMap<string, number>): Atom {
  if (atom.operation === undefined) {
    const lower = bounds.get(atom.name);
    return lower === undefined || lower <= atom.lower ? atom : { ...atom, lower };
  }
  const operands = atom.operands.map((operand) => operand.withLowerBounds(bounds));
  if (operands.every((operand, i) => operand === atom.operands[i])) return atom;
  const { lower, upper } = boundsOf(atom.operation, operands);
  return { ...atom, operands, lower: Math.max(lower, atom.lower), upper: Math.min(upper, atom.upper) };
}

const EVERYTHING: Range = { lower: Number.NEGATIVE_INFINITY, upper: Number.POSITIVE_INFINITY };

export function toExpression(value: Expression | number): Expression {
  return typeof value === 'number' ? Expression.constant(value) : value;
}

/** Product of sizes; 1 of none. */
export function product(sizes: Iterable<Expression>): Expression {
  let result = Expression.constant(1);
  for (const size of sizes) result = result.times(size);
  return result;
}

/** Two operands of a commutative operation in the order of their keys. */
export function sortedByKey(a: Expression, b: Expression): [Expression, Expression] {
  return a.key <= b.key ? [a, b] : [b, a];
}

/** Expressions e with atom ≤ e / divisor (upward) or atom ≥ e / divisor. */
function boundingExpressions(atom: Atom, upward: boolean): { expression: Expression; divisor: number }[] {
  const [first, second] = atom.operands as [Expression, Expression];
  const count = second?.value;
  if (atom.operation === 'floor-div' && count !== undefined && count > 0)
    return [{ expression: upward ? first : first.minus(count - 1), divisor: count }];
  if (atom.operation === (upward ? 'min' : 'max'))
    return atom.operands.map((expression) => ({ expression, divisor: 1 }));
  return [];
}

function termBound({ factors, coefficient }: Term, side: -1 | 1): number {
  let lower = 1;
  let upper = 1;
  for (const atom of factors) {
    const corners = [lower, upper].flatMap((x) => [multiply(x, atom.lower), multiply(x, atom.upper)]);
    lower = Math.min(...corners);
    upper = Math.max(...corners);
  }
  return multiply(coefficient, side > 0 === coefficient > 0 ? upper : lower);
}

function multiply(x: number, y: number): number {
  return x === 0 || y === 0 ? 0 : x * y;
}

function evaluateAtom(atom: Atom, bindings: ReadonlyMap<string, number>): number | undefined {
  if (atom.operation === undefined) return undefined;
  const values: number[] = [];
  for (const operand of atom.operands) {
    const value = operand.evaluate(bindings);
    if (value === undefined) return undefined;
    values.push(value);
  }
  return evaluateOperation(atom.operation, values);
}

function termText(name: string, coefficient: number): string {
  if (name === '') return String(coefficient);
  return coefficient === 1 ? name : `${coefficient}·${name}`;
}

function monomialName(factors: readonly Atom[]): string {
  return factors.map((f) => f.name).join('·');
}

function accumulate(terms: Map<string, Term>, name: string, factors: readonly Atom[], coefficient: number): void {
  const sum = (terms.get(name)?.coefficient ?? 0) + coefficient;
  if (sum === 0) terms.delete(name);
  else terms.set(name, { factors, coefficient: sum });
}

function multiplyFactors(a: readonly Atom[], b: readonly Atom[]): readonly Atom[] {
  if (a.length === 0) return b;
  if (b.length === 0) return a;
  return [...a, ...b].sort((x, y) => (x.name < y.name ? -1 : x.name > y.name ? 1 : 0));
}

function divideFactors(a: readonly Atom[], b: readonly Atom[]): readonly Atom[] | undefined {
  const rest = [...a];
  for (const { name } of b) {
    const at = rest.findIndex((f) => f.name === name);
    if (at < 0) return undefined;
    rest.splice(at, 1);
  }
  return rest;
}

/** The largest term that divides all of these. */
function commonFactors(terms: readonly Term[]): Term {
  let coefficient = 0;
  let factors: readonly Atom[] | undefined;
  for (const term of terms) {
    coefficient = greatestCommonDivisor(coefficient, Math.abs(term.coefficient));
    if (factors === undefined) factors = term.factors;
    else {
      const available = [...term.factors];
      factors = factors.filter((f) => {
        const at = available.findIndex((g) => g.name === f.name);
        if (at >= 0) available.splice(at, 1);
        return at >= 0;
      });
    }
  }
  return { factors: factors ?? [], coefficient: coefficient || 1 };
}

function greatestCommonDivisor(a: number, b: number): number {
  while (b !== 0) [a, b] = [b, a % b];
  return a;
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
