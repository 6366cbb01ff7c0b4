import test from 'ava';
import fc from 'fast-check';
import { decodeHalf, encodeHalf, halfToNumber, numberToHalf } from './half.js';

test('float16 and bfloat16 of known numbers', (t) => {
  const float16: [number, number][] = [
    [0, 0x0000],
    [-0, 0x8000],
    [1, 0x3c00],
    [-2, 0xc000],
    [65504, 0x7bff],
    [65519.999, 0x7bff],
    [65520, 0x7c00],
    [Number.NEGATIVE_INFINITY, 0xfc00],
    [2 ** -14, 0x0400],
    [2 ** -24, 0x0001],
    [2 ** -25, 0x0000],
    [2 ** -25 * (1 + 2 ** -52), 0x0001],
    [1 + 2 ** -11, 0x3c00],
    // Through float32 this would be rounded twice, and down.
    [1 + 2 ** -11 + 2 ** -40, 0x3c01],
    [1 + 3 * 2 ** -11, 0x3c02],
    [2 - 2 ** -12, 0x4000],
    [2 ** -14 * (1 - 2 ** -12), 0x0400],
  ];
  for (const [x, bits] of float16) t.is(numberToHalf(x, 'float16'), bits, `float16 of ${x}`);
  const bfloat16: [number, number][] = [
    [1, 0x3f80],
    [-3.140625, 0xc049],
    [3.3895313892515355e38, 0x7f7f],
    [3.4028235e38, 0x7f80],
    [2 ** -133, 0x0001],
    [1 + 2 ** -8, 0x3f80],
  ];
  for (const [x, bits] of bfloat16) t.is(numberToHalf(x, 'bfloat16'), bits, `bfloat16 of ${x}`);
  for (const type of ['float16', 'bfloat16'] as const)
    t.true(Number.isNaN(halfToNumber(numberToHalf(Number.NaN, type), type)));
});

for (const type of ['float16', 'bfloat16'] as const) {
  test(`${type}: every bit pattern survives the way through a number`, (t) => {
    let wrong = 0;
    for (let bits = 0; bits < 0x10000; bits++) {
      const x = halfToNumber(bits, type);
      if (!Number.isNaN(x) && numberToHalf(x, type) !== bits) wrong++;
    }
    t.is(wrong, 0);
  });

  test(`${type}: no neighbour is nearer than the rounded number`, (t) => {
    const limit = halfToNumber(type === 'float16' ? 0x7bff : 0x7f7f, type);
    const range = fc.double({ min: -limit, max: limit, noNaN: true });
    const small = fc.double({ min: -1, max: 1, noNaN: true });
    fc.assert(
      fc.property(fc.oneof(range, small), (x) => {
        const bits = numberToHalf(x, type);
        const error = Math.abs(halfToNumber(bits, type) - x);
        for (const neighbour of [bits - 1, bits + 1]) {
          const other = halfToNumber(neighbour & 0xffff, type);
          if (!Number.isFinite(other)) continue;
          const otherError = Math.abs(other - x);
          if (otherError < error || (otherError === error && (bits & 1) === 1)) return false;
        }
        return true;
      }),
    );
    t.pass();
  });
}

test('bfloat16 is the upper half of float32', (t) => {
  const view = new DataView(new ArrayBuffer(4));
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0xffff }), (bits) => {
      view.setUint32(0, bits << 16);
      return Object.is(halfToNumber(bits, 'bfloat16'), view.getFloat32(0));
    }),
  );
  t.pass();
});

test('bfloat16 of float32 elements are rounded as numbers are, and NaN stays NaN', (t) => {
  const words = fc.oneof(
    fc.integer({ min: 0, max: 0xffffffff }),
    // Halfway between two bfloat16, and beside that; the last before infinity; NaN with a payload in the lower half.
    fc.integer({ min: 0, max: 0xffff }).map((upper) => upper * 0x10000 + 0x8000),
    fc.constantFrom(0x7f7f8000, 0x7f7f7fff, 0xff7f8000, 0x7f800000, 0xff800000, 0x7f800001, 0xff80ffff, 0x80000000, 1),
  );
  fc.assert(
    fc.property(fc.array(words), (bits) => {
      const values = new Float32Array(Uint32Array.from([0, ...bits]).buffer).subarray(1);
      const halves = encodeHalf(values, 'bfloat16');
      for (const [i, value] of values.entries()) {
        if (Number.isNaN(value)) t.true(Number.isNaN(halfToNumber(halves[i]!, 'bfloat16')));
        else t.is(halves[i], numberToHalf(value, 'bfloat16'), `${value}`);
      }
    }),
    { numRuns: 500 },
  );
});

test('all bits of bfloat16 pass through float32, those of NaN too', (t) => {
  const bits = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
  const values = decodeHalf(bits, 'bfloat16');
  t.deepEqual(encodeHalf(values, 'bfloat16'), bits);
  t.deepEqual(
    Array.from(values),
    Array.from(bits, (b) => halfToNumber(b, 'bfloat16')),
  );
});
