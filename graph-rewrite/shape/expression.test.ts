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
