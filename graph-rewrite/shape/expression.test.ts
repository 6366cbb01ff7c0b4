import test from 'ava';
import fc from 'fast-check';
import { Expression } from './expression.js';

const s = Expression.symbol('seq');
const b = Expression.symbol('batch');

test('polynomials have one normal form', (t) => {
  t.true(s.plus(1).times(b).equals(b.times(s).plus(b)));
  t.is(s.minus(s).value, 0);
  t.is(Expression.constant(6).times(7).value, 42);
  t.false(s.equals(b));
});

test('exact division finds the quotient or refuses', (t) => {
  t.true(b.times(s).times(768).dividedExactlyBy(s.times(64))!.equals(b.times(12)));
  t.is(s.plus(1).dividedExactlyBy(2), undefined);
  t.true(s.plus(b).times(s.plus(3)).dividedExactlyBy(s.plus(3))!.equals(s.plus(b)));
  t.true(s.floorDividedBy(2).equals(s.floorDividedBy(2)));
  t.is(Expression.constant(7).floorDividedBy(2).value, 3);
});

test('floor division leaves only what does not come out even', (t) => {
  // A convolution of width 16 and stride 16, with and without padding by a whole stride.
  t.is(s.minus(16).floorDividedBy(16).plus(1).key, s.floorDividedBy(16).key);
  t.is(s.floorDividedBy(4).floorDividedBy(2).key, s.floorDividedBy(8).key);
  t.is(b.times(s).times(2).floorDividedBy(b.times(4)).key, s.floorDividedBy(2).key);
  t.is(s.times(6).plus(5).floorDividedBy(6).key, 'seq');
});

test('padding to a multiple is seen to be one', (t) => {
  const padding = Expression.constant(7).minus(s.modulo(7)).modulo(7);
  t.true(s.plus(padding).dividedExactlyBy(7) !== undefined);
});

test('bounds decide maxima and minima', (t) => {
  t.is(Expression.maximum(s, Expression.constant(-1)).key, 'seq');
  t.is(Expression.maximum(s.plus(b), b).key, s.plus(b).key);
  t.is(Expression.minimum(Expression.minimum(s, Expression.constant(64)), s).key, 'min(64, seq)');
  t.is(Expression.maximum(s, b).key, Expression.maximum(b, s).key);
  t.deepEqual(s.modulo(7).range, { lower: 0, upper: 6 });
});

test('a size that cannot be negative bounds what it is made of', (t) => {
  const learned = new Map<string, number>();
  const size = s.minus(10).floorDividedBy(5).plus(1).assumeAtLeast(1, learned);
  t.is(size.key, s.floorDividedBy(5).minus(1).key);
  t.is(size.range.lower, 1);
  t.deepEqual([...learned], [['seq', 10]]);
  t.is(s.minus(10).range.lower, -10);
  t.is(s.minus(10).withLowerBounds(learned).range.lower, 0);
});

test('a product divided by a factor gives the other', (t) => {
  const expression = fc
    .array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.subarray(['x', 'y', 'z'])), { minLength: 1, maxLength: 3 })
    .map((terms) =>
      terms.reduce(
        (sum, [c, names]) => sum.plus(names.reduce((e, n) => e.times(Expression.symbol(n)), Expression.constant(c))),
        Expression.constant(0),
      ),
    );
  fc.assert(fc.property(expression, expression, (p, q) => p.times(q).dividedExactlyBy(q)?.equals(p) === true));
  t.pass();
});

/** An expression together with the number that plain arithmetic gives for it. */
interface Pair {
  readonly expression: Expression;
  readonly number: number;
}

/** Random expressions over x, y and z with these values. */
function pairs(values: Readonly<Record<string, number>>): fc.Arbitrary<Pair> {
  const { tree } = fc.letrec<{ tree: Pair }>((tie) => {
    const leaf = fc.oneof(
      fc
        .constantFrom(...Object.keys(values))
        .map((name) => ({ expression: Expression.symbol(name), number: values[name]! })),
      fc.integer({ min: -9, max: 9 }).map((c) => ({ expression: Expression.constant(c), number: c })),
    );
    const two = fc.tuple(fc.constantFrom('+', '-', '*', 'max', 'min'), tie('tree'), tie('tree')).map(([op, x, y]) => {
      const [p, q] = [x.expression, y.expression];
      if (op === '+') return { expression: p.plus(q), number: x.number + y.number };
      if (op === '-') return { expression: p.minus(q), number: x.number - y.number };
      if (op === '*') return { expression: p.times(q), number: x.number * y.number };
      if (op === 'max') return { expression: Expression.maximum(p, q), number: Math.max(x.number, y.number) };
      return { expression: Expression.minimum(p, q), number: Math.min(x.number, y.number) };
    });
    const quotient = fc.tuple(fc.boolean(), tie('tree'), fc.integer({ min: 1, max: 9 })).map(([rest, x, d]) => {
      const floor = Math.floor(x.number / d);
      return rest
        ? { expression: x.expression.modulo(d), number: x.number - floor * d }
        : { expression: x.expression.floorDividedBy(d), number: floor };
    });
    return { tree: fc.oneof({ maxDepth: 5, withCrossShrink: true }, leaf, two, quotient) };
  });
  return tree;
}

const anyPair = fc
  .record({ x: fc.nat({ max: 20 }), y: fc.nat({ max: 20 }), z: fc.nat({ max: 300 }) })
  .chain((values) => fc.tuple(fc.constant(values), pairs(values), pairs(values)));

test('an expression is worth what arithmetic says, and within its range', (t) => {
  fc.assert(
    fc.property(anyPair, ([values, { expression, number }]) => {
      const { lower, upper } = expression.range;
      return expression.evaluate(new Map(Object.entries(values))) === number + 0 && lower <= number && number <= upper;
    }),
    { numRuns: 3000 },
  );
  t.pass();
});

test('expressions that are equal objects are equal numbers', (t) => {
  fc.assert(
    fc.property(anyPair, ([, p, q]) => !p.expression.equals(q.expression) || p.number === q.number),
    { numRuns: 3000 },
  );
  t.pass();
});

test('what a lower bound teaches holds wherever the bound does', (t) => {
  fc.assert(
    fc.property(anyPair, ([values, { expression, number }]) => {
      const learned = new Map<string, number>();
      const { lower } = expression.assumeAtLeast(0, learned).range;
      if (number < 0) return true;
      return lower <= number && [...learned].every(([name, bound]) => values[name as 'x']! >= bound);
    }),
    { numRuns: 3000 },
  );
  t.pass();
});
