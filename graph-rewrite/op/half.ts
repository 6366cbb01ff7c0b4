/** Conversion between JavaScript numbers and the two 16-bit float types, whose bits are held in a Uint16Array. */
export type HalfType = 'float16' | 'bfloat16';

interface Format {
  readonly fractionBits: number;
  readonly bias: number;
}

const FORMATS: Readonly<Record<HalfType, Format>> = {
  float16: { fractionBits: 10, bias: 15 },
  bfloat16: { fractionBits: 7, bias: 127 },
};

/** Added to and taken from a number in [0, 2⁵¹), leaves it rounded to the nearest integer, ties to even (IEEE 754). */
const ROUND = 2 ** 52;

const float64 = new DataView(new ArrayBuffer(8));

/** ⌊log₂ x⌋ of a positive normal number. */
function exponentOf(x: number): number {
  float64.setFloat64(0, x);
  return ((float64.getUint16(0) >> 4) & 0x7ff) - 1023;
}

/** The bits of the nearest float16 or bfloat16, ties to even; rounded once, from the double itself. */
export function numberToHalf(x: number, type: HalfType): number {
  const { fractionBits, bias } = FORMATS[type];
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const infinity = (2 * bias + 1) << fractionBits;
  if (Number.isNaN(x)) return infinity | (1 << (fractionBits - 1));
  const magnitude = Math.abs(x);
  if (magnitude >= 2 ** (bias + 1)) return sign | infinity;
  // Below the smallest normal number the spacing stays that of the smallest exponent: subnormals, and 0.
  const exponent = magnitude < 2 ** (1 - bias) ? 1 - bias : exponentOf(magnitude);
  const significand = magnitude / 2 ** (exponent - fractionBits) + ROUND - ROUND;
  // The leading bit of a normal significand adds 1 to the exponent field, and so does a carry out of rounding.
  return sign | (((exponent + bias - 1) << fractionBits) + significand);
}

/** The number that these bits of a float16 or bfloat16 stand for; exact. */
export function halfToNumber(bits: number, type: HalfType): number {
  const { fractionBits, bias } = FORMATS[type];
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits & 0x7fff) >> fractionBits;
  const fraction = bits & ((1 << fractionBits) - 1);
  if (exponent === 2 * bias + 1) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  const significand = exponent === 0 ? fraction : fraction + 2 ** fractionBits;
  return sign * significand * 2 ** (Math.max(exponent, 1) - bias - fractionBits);
}

/** {@link numberToHalf} of every element. */
export function encodeHalf(values: ArrayLike<number>, type: HalfType): Uint16Array {
  return Uint16Array.from(values, (x) => numberToHalf(x, type));
}

/** {@link halfToNumber} of every element. */
export function decodeHalf(bits: ArrayLike<number>, type: HalfType): Float32Array {
  return Float32Array.from(bits, (b) => halfToNumber(b, type));
}
