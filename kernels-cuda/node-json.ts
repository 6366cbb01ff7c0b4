/** Tensors as nested arrays of JSON. */
import { type ErrorPlace, OrtFlashError } from '../graph-rewrite/errors.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { encodeHalf } from '../graph-rewrite/op/half.js';
import type { ArrayData, ArrayTensor } from './node-npy.js';

/** Whole numbers that a type holds, for types that hold no others. */
const RANGES: Readonly<Record<string, readonly [bigint, bigint]>> = {
  int8: [-128n, 127n],
  int16: [-(1n << 15n), (1n << 15n) - 1n],
  int32: [-(1n << 31n), (1n << 31n) - 1n],
  int64: [-(1n << 63n), (1n << 63n) - 1n],
  uint8: [0n, 255n],
  uint16: [0n, (1n << 16n) - 1n],
  uint32: [0n, (1n << 32n) - 1n],
  uint64: [0n, (1n << 64n) - 1n],
};

/**
 * A tensor of the type from nested arrays, whose nesting is its shape. Integers past 2^53 are written as strings;
 * "NaN", "Infinity" and "-Infinity" are, too.
 * @throws OrtFlashError `invalid-tensor` where arrays differ in length or an element does not fit the type
 */
export function arrayFromJson(value: unknown, type: DataTypeName, place: ErrorPlace): ArrayTensor {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-tensor', why, place);
  };
  const dims: number[] = [];
  for (let level = value; Array.isArray(level); level = level[0]) dims.push(level.length);
  const elements: unknown[] = [];
  const collect = (level: unknown, depth: number): void => {
    if (depth === dims.length) {
      if (Array.isArray(level)) fail('its arrays are nested to different depths');
      elements.push(level);
    } else if (!Array.isArray(level) || level.length !== dims[depth]) fail('its arrays differ in length');
    else for (const item of level) collect(item, depth + 1);
  };
  collect(value, 0);
  return { type, dims, data: convert(elements, type, fail) };
}

function convert(elements: readonly unknown[], type: DataTypeName, fail: (why: string) => never): ArrayData {
  const floats = () => elements.map((element) => toFloat(element, fail));
  const integers = () => elements.map((element) => toInteger(element, type, fail));
  switch (type) {
    case 'string':
      return elements.map((element) => (typeof element === 'string' ? element : fail('an element is no string')));
    case 'bool':
      return Uint8Array.from(elements, (element) => toBit(element, fail));
    case 'float32':
      return Float32Array.from(floats());
    case 'float64':
      return Float64Array.from(floats());
    case 'float16':
    case 'bfloat16':
      return encodeHalf(floats(), type);
    case 'int64':
      return BigInt64Array.from(integers());
    case 'uint64':
      return BigUint64Array.from(integers());
    case 'int8':
      return Int8Array.from(integers(), Number);
    case 'int16':
      return Int16Array.from(integers(), Number);
    case 'int32':
      return Int32Array.from(integers(), Number);
    case 'uint8':
      return Uint8Array.from(integers(), Number);
    case 'uint16':
      return Uint16Array.from(integers(), Number);
    case 'uint32':
      return Uint32Array.from(integers(), Number);
    default:
      return fail(`${type} cannot be given as JSON`);
  }
}

function toFloat(element: unknown, fail: (why: string) => never): number {
  if (typeof element === 'number') return element;
  if (element === 'NaN' || element === 'Infinity' || element === '-Infinity') return Number(element);
  return fail(`${JSON.stringify(element)} is no number`);
}

function toInteger(element: unknown, type: DataTypeName, fail: (why: string) => never): bigint {
  const exact = typeof element === 'number' ? Number.isSafeInteger(element) : /^-?\d+$/.test(String(element));
  if (!exact) return fail(`${JSON.stringify(element)} is no whole number, or past 2^53 and not a string`);
  const value = BigInt(element as number | string);
  const [least, most] = RANGES[type]!;
  return value >= least && value <= most ? value : fail(`${value} is out of the range of ${type}`);
}

function toBit(element: unknown, fail: (why: string) => never): number {
  if (element === true || element === 1) return 1;
  return element === false || element === 0 ? 0 : fail(`${JSON.stringify(element)} is neither true nor false`);
}
