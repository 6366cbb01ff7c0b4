import test from 'ava';
import fc from 'fast-check';
import { DataType } from '../../onnx/proto.js';
import type { ConstantTensor } from '../../shape/constant.js';
import { Expression } from '../../shape/expression.js';
import { Affine, IndexVariable, isNeverPositive } from './affine.js';
import { constantElement } from './constants.js';
import { and, atMostZero, type Condition, type Element, not, or } from './element.js';

const LENGTHS = [1, 2, 3, 5];

/** An index of each axis, of symbolic sizes. */
const query = new IndexVariable('Q', Expression.symbol('queries'));
const key = new IndexVariable('K', Expression.symbol('keys'));

interface Point {
  readonly i: number;
  readonly j: number;
  readonly queries: number;
  readonly keys: number;
}

function* points(): Generator<Point> {
  for (const queries of LENGTHS)
    for (const keys of LENGTHS)
      for (let i = 0; i < queries; i++) for (let j = 0; j < keys; j++) yield { i, j, queries, keys };
}

function numberAt(affine: Affine, { i, j, queries, keys }: Point): number {
  const sizes = new Map([
    ['queries', queries],
    ['keys', keys],
  ]);
  const at = (e: Expression) => e.evaluate(sizes)!;
  return at(affine.rest) + at(affine.coefficient(query)) * i + at(affine.coefficient(key)) * j;
}

function holds(condition: Condition, point: Point): boolean {
  switch (condition.kind) {
    case 'constant':
      return condition.value;
    case 'atMostZero':
      return numberAt(condition.affine, point) <= 0;
    case 'and':
      return condition.parts.every((p) => holds(p, point));
    case 'or':
      return condition.parts.some((p) => holds(p, point));
    case 'opaque':
      throw new Error('nothing here is opaque');
  }
}

const small = fc.integer({ min: -2, max: 2 });
const affine = fc
  .tuple(small, small, small, small, fc.integer({ min: -4, max: 4 }))
  .map(([i, j, q, k, c]) =>
    Affine.variable(query)
      .times(i)
      .plus(Affine.variable(key).times(j))
      .plus(Expression.symbol('queries').times(q))
      .plus(Expression.symbol('keys').times(k))
      .plus(c),
  );

test('what is never positive is so at every index of every size', (t) => {
  let proven = 0;
  fc.assert(
    fc.property(affine, (a) => {
      if (!isNeverPositive(a)) return;
      proven++;
      for (const point of points()) if (numberAt(a, point) > 0) throw new Error(JSON.stringify(point));
    }),
    { numRuns: 2000 },
  );
  t.true(proven > 100);
});

test('a quotient and its remainder are those of the division', (t) => {
  let divided = 0;
  const inner = fc.constantFrom(
    Affine.variable(key),
    Affine.variable(query),
    Affine.constant(0),
    Affine.constant(2),
    Affine.variable(key).minus(1),
    Affine.variable(key).times(-1).plus(Expression.symbol('keys')),
  );
  fc.assert(
    fc.property(affine, inner, fc.constantFrom('queries', 'keys', '3'), (outer, rest, divisor) => {
      const size = divisor === '3' ? Expression.constant(3) : Expression.symbol(divisor);
      const a = outer.times(size).plus(rest);
      const parts = a.divide(size);
      if (!parts) return;
      divided++;
      for (const point of points()) {
        const n = divisor === '3' ? 3 : divisor === 'keys' ? point.keys : point.queries;
        const remainder = numberAt(parts.remainder, point);
        if (remainder < 0 || remainder >= n || numberAt(parts.quotient, point) * n + remainder !== numberAt(a, point))
          throw new Error(JSON.stringify(point));
      }
    }),
    { numRuns: 1000 },
  );
  t.true(divided > 100);
});

/** The same condition built with simplification, and evaluated without. */
interface Both {
  readonly built: Condition;
  readonly at: (point: Point) => boolean;
}

const { condition } = fc.letrec<{ condition: Both }>((tie) => ({
  condition: fc.oneof(
    { maxDepth: 4, withCrossShrink: true },
    { weight: 2, arbitrary: affine.map((a): Both => ({ built: atMostZero(a), at: (p) => numberAt(a, p) <= 0 })) },
    tie('condition').map((c): Both => ({ built: not(c.built), at: (p) => !c.at(p) })),
    {
      weight: 2,
      arbitrary: fc
        .tuple(tie('condition'), tie('condition'))
        .map(([a, b]): Both => ({ built: and(a.built, b.built), at: (p) => a.at(p) && b.at(p) })),
    },
    {
      weight: 2,
      arbitrary: fc
        .tuple(tie('condition'), tie('condition'))
        .map(([a, b]): Both => ({ built: or(a.built, b.built), at: (p) => a.at(p) || b.at(p) })),
    },
  ),
}));

test('simplified conditions hold where the plain ones do', (t) => {
  fc.assert(
    fc.property(condition, ({ built, at }) => {
      for (const point of points()) if (holds(built, point) !== at(point)) throw new Error(JSON.stringify(point));
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

function tensorOf(dims: readonly number[], values: readonly number[]): ConstantTensor {
  return { type: DataType.FLOAT, dims, numbers: () => values, scalar: () => undefined };
}

function elementAt(element: Element, point: Point): number {
  if (element.kind === 'constant') return element.value;
  if (element.kind === 'linear') return numberAt(element.affine, point);
  if (element.kind !== 'choice') throw new Error(element.kind);
  return elementAt(holds(element.condition, point) ? element.yes : element.no, point);
}

test('buffers are what their formula says, and have one where they are bands or progressions', (t) => {
  const indices = [Affine.constant(0), Affine.variable(query), Affine.variable(key)];
  const bound = fc.integer({ min: -6, max: 6 });
  const matrix = fc.oneof(
    fc.tuple(bound, bound).map(([low, high]) => ({
      known: low <= high,
      at: (r: number, c: number) => (c - r >= low && c - r <= high ? 0 : -1e9),
    })),
    bound.map((step) => ({ known: true, at: (_: number, c: number) => 3 + step * c })),
    fc.array(fc.constantFrom(0, 1), { minLength: 30, maxLength: 30 }).map((bits) => ({
      known: false,
      at: (r: number, c: number) => bits[r * 6 + c]!,
    })),
  );
  fc.assert(
    fc.property(matrix, fc.constantFrom<[number, number]>([5, 6], [5, 1], [1, 6]), ({ known, at }, [rows, columns]) => {
      const values = Array.from({ length: rows * columns }, (_, n) => at(Math.floor(n / columns), n % columns));
      const element = constantElement(tensorOf([1, rows, columns], values), indices);
      const isLine = rows === 1 || columns === 1;
      if (!element) {
        if (known && (isLine || at(0, 0) === at(1, 1))) throw new Error('no formula');
        return;
      }
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < columns; j++) {
          const found = elementAt(element, { i, j, queries: rows, keys: columns });
          if (found !== values[i * columns + j]) throw new Error(`${found} at ${i}, ${j}`);
        }
    }),
    { numRuns: 1000 },
  );
  t.pass();
});
