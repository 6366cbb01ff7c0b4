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

/** {@link numberToHalf} of every element. A NaN of a float32 keeps the upper bits of its payload in bfloat16. */
export function encodeHalf(values: ArrayLike<number>, type: HalfType): Uint16Array {
  if (type === 'bfloat16' && values instanceof Float32Array) return upperHalves(values);
  return Uint16Array.from(values, (x) => numberToHalf(x, type));
}

/** {@link halfToNumber} of every element. A NaN of a bfloat16 keeps its payload. */
export function decodeHalf(bits: ArrayLike<number>, type: HalfType): Float32Array {
  if (type !== 'bfloat16') return Float32Array.from(bits, (b) => halfToNumber(b, type));
  // bfloat16 is the upper half of float32.
  const words = new Uint32Array(bits.length);
  for (let i = 0; i < words.length; i++) words[i] = bits[i]! << 16;
  return new Float32Array(words.buffer);
}

/** float32 to the nearest bfloat16, ties to even, on the bits: weights and activations may be many. */
function upperHalves({ buffer, byteOffset, length }: Float32Array): Uint16Array {
  const words = new Uint32Array(buffer, byteOffset, length);
  const halves = new Uint16Array(length);
  for (let i = 0; i < length; i++) {
    const word = words[i]!;
    const upper = word >>> 16;
    const hasPayload = (word & 0x7fffffff) > 0x7f800000;
    // A NaN whose payload is in the lower half alone would become an infinity.
    if (hasPayload) halves[i] = (upper & 0x7f) === 0 ? upper | 0x40 : upper;
    // A carry out of the fraction is the next exponent's first number, after the last one infinity.
    else halves[i] = (word + 0x7fff + (upper & 1)) >>> 16;
  }
  return halves;
}
