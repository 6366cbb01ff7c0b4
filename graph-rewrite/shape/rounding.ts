/** Known numbers, held to what their tensor's type can represent. */
import { DataType } from '../onnx/proto.js';
import { halfToNumber, numberToHalf } from '../op/half.js';

/** Whether a TensorProto data type is one of the floating-point types that {@link roundTo} rounds to. */
export function isFloat(type: number | undefined): boolean {
  return type === DataType.FLOAT || type === DataType.DOUBLE || type === DataType.FLOAT16 || type === DataType.BFLOAT16;
}

/**
 * The number as a tensor of this data type holds it: rounded to nearest for floats, towards zero for integers, 0 or 1
 * for bool.
 * @returns undefined where the type does not hold it, or is none whose rounding is known.
 */
export function roundTo(type: number, value: number): number | undefined {
  switch (type) {
    case DataType.FLOAT:
      return Math.fround(value);
    case DataType.DOUBLE:
      return value;
    case DataType.FLOAT16:
      return halfToNumber(numberToHalf(value, 'float16'), 'float16');
    case DataType.BFLOAT16:
      return halfToNumber(numberToHalf(value, 'bfloat16'), 'bfloat16');
    case DataType.BOOL:
      return value === 0 ? 0 : 1;
    default: {
      const [low, high] = INTEGERS[type] ?? [1, 0];
      const whole = Math.trunc(value) + 0;
      return whole >= low && whole <= high ? whole : undefined;
    }
  }
}

const INTEGERS: Readonly<Record<number, readonly [number, number]>> = {
  [DataType.INT8]: [-(2 ** 7), 2 ** 7 - 1],
  [DataType.INT16]: [-(2 ** 15), 2 ** 15 - 1],
  [DataType.INT32]: [-(2 ** 31), 2 ** 31 - 1],
  [DataType.INT64]: [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
  [DataType.UINT8]: [0, 2 ** 8 - 1],
  [DataType.UINT16]: [0, 2 ** 16 - 1],
  [DataType.UINT32]: [0, 2 ** 32 - 1],
  [DataType.UINT64]: [0, Number.MAX_SAFE_INTEGER],
};
