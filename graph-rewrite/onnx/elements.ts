import type { DataTypeName } from './data-type.js';

/**
 * A tensor's elements as ONNX Runtime's JavaScript tensors hold them: float16 and bfloat16 as bits in a Uint16Array,
 * bool and 8-bit floats as bytes, complex numbers as pairs, and types below 8 bits as the packed bytes.
 */
export type TensorData =
  | Float32Array
  | Float64Array
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | BigInt64Array
  | BigUint64Array;

/** What holds the elements of each type; of those that are not here, a Uint8Array. */
const HOLDERS: Readonly<Partial<Record<DataTypeName, new (buffer: ArrayBuffer) => TensorData>>> = {
  float32: Float32Array,
  complex64: Float32Array,
  float64: Float64Array,
  complex128: Float64Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  int16: Int16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
};

/** The elements of a type that a buffer holds, little-endian, as every JavaScript host stores them. */
export function elementsOver(type: DataTypeName, buffer: ArrayBuffer): TensorData {
  return new (HOLDERS[type] ?? Uint8Array)(buffer);
}

/** The elements of a type in a copy of these bytes, which need not be aligned. */
export function elementsFrom(type: DataTypeName, bytes: Uint8Array): TensorData {
  // Not bytes.slice(), which for a Buffer of Node's makes no copy.
  return elementsOver(type, new Uint8Array(bytes).buffer);
}
