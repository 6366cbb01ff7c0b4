/** Access to the elements of small tensors, whichever of TensorProto's fields holds them. */
import Long from 'long';
import { OrtFlashError } from '../errors.js';
import { decodeHalf, encodeHalf } from '../op/half.js';
import { type DataTypeInfo, type DataTypeName, dataTypeInfo, dataTypeName, dataTypeOf } from './data-type.js';
import { elementsFrom, type TensorData } from './elements.js';
import { checkedReference, type ExternalDataReader, isExternal, readExternalTensor } from './external.js';
import { packedCount, packedRuns, readFixed, readVarints } from './packed.js';
import { TensorProto } from './proto.js';

export type { TensorData };

/** How to read a tensor whose data is not in the model file. */
export interface TensorReadOptions {
  /** Without it, external tensors are refused. */
  readonly readExternal?: ExternalDataReader;
}

/** No tensor that any runtime can hold has more elements; past it, numbers of elements are not exact. */
const LARGEST_COUNT = Number.MAX_SAFE_INTEGER;

function malformed(tensor: TensorProto, what: string): never {
  throw new OrtFlashError('malformed-model', what, { tensor: tensor.name ?? '' });
}

/**
 * The tensor's dimensions as numbers.
 * @throws OrtFlashError `malformed-model` where one is negative, or their product is no exact number
 */
export function tensorShape(tensor: TensorProto): number[] {
  const shape = tensor.dims.map(({ low, high }) => high * 2 ** 32 + (low >>> 0));
  let product = 1;
  for (const extent of shape) {
    if (extent < 0) malformed(tensor, `dimensions (${shape.join(', ')}) include a negative one`);
    // An extent of 0 must not hide that the others overflow: every reader multiplies in its own order.
    product *= Math.max(extent, 1);
  }
  if (product > LARGEST_COUNT) malformed(tensor, `dimensions (${shape.join(', ')}) overflow`);
  return shape;
}

/** How many elements the tensor's dimensions say it has; 1 for a scalar. Throws as {@link tensorShape}. */
export function elementCount(tensor: TensorProto): number {
  return tensorShape(tensor).reduce((product, extent) => product * extent, 1);
}

/**
 * Bytes of the tensor's elements, dense, as raw_data or external data holds them.
 * @returns undefined for strings and for data types newer than IR 13, whose size the shape does not tell
 * @throws OrtFlashError `malformed-model` as {@link tensorShape}
 */
export function tensorByteSize(tensor: TensorProto): number | undefined {
  const info = dataTypeInfo(tensor.data_type);
  return info === undefined ? undefined : bytesOf(info, elementCount(tensor));
}

function bytesOf(info: DataTypeInfo, count: number): number | undefined {
  return info.kind === 'string' ? undefined : Math.ceil((count * info.bits) / 8);
}

/**
 * Checks, without decoding it, that the tensor's data is there, in the right field, and as long as its dimensions say.
 * Of external data only the reference is checked: see files.ts for the file itself.
 * @throws OrtFlashError `malformed-model` or, for the reference, `external-data`
 */
export function checkTensor(tensor: TensorProto): void {
  const count = elementCount(tensor);
  if ((tensor.data_type ?? 0) === 0) malformed(tensor, 'the tensor has no data type');
  const info = dataTypeInfo(tensor.data_type);
  if (info === undefined || tensor.segment !== null) return;
  const size = bytesOf(info, count);
  const filled = filledFields(tensor);
  if (isExternal(tensor)) {
    if (filled.length > 0) malformed(tensor, `the tensor is external and has ${filled.join(' and ')} too`);
    checkedReference(tensor, size);
    return;
  }
  if (filled.length > 1) malformed(tensor, `the tensor has both ${filled.join(' and ')}`);
  if (info.kind === 'string' ? tensor.raw_data !== null : filled.some((f) => f !== 'raw_data' && f !== info.field)) {
    malformed(tensor, `elements of ${info.name} cannot be in ${filled[0] ?? 'raw_data'}`);
  }
  const [found, expected, unit] = storedSize(tensor, info, count);
  if (found !== expected) malformed(tensor, `the tensor holds ${found} ${unit}, its dimensions say ${expected}`);
}

const PACKED_FIELDS = ['float_data', 'int32_data', 'int64_data', 'double_data', 'uint64_data'] as const;

function filledFields(tensor: TensorProto): string[] {
  const filled: string[] = [];
  if ((tensor.raw_data?.length ?? 0) > 0) filled.push('raw_data');
  for (const field of PACKED_FIELDS) {
    if (packedRuns(tensor, field).some((run) => run.length > 0)) filled.push(field);
  }
  if (tensor.string_data.length > 0) filled.push('string_data');
  return filled;
}

/** What the tensor stores, what it should, and of what. */
function storedSize(tensor: TensorProto, info: DataTypeInfo, count: number): [number, number, string] {
  if (info.kind === 'string') return [tensor.string_data.length, count, 'strings'];
  const runs = info.field === 'string_data' ? [] : packedRuns(tensor, info.field);
  if (tensor.raw_data !== null && runs.length === 0) {
    return [tensor.raw_data.length, Math.ceil((count * info.bits) / 8), 'bytes'];
  }
  const stored = info.field === 'string_data' ? 0 : packedCount(tensor, info.field);
  const entries = info.kind === 'complex' ? count * 2 : info.bits < 8 ? Math.ceil((count * info.bits) / 8) : count;
  return [stored, entries, `entries of ${info.field}`];
}

/**
 * The tensor's elements. A copy, so meant for tensors whose values are needed.
 * @throws OrtFlashError `malformed-model` where data and dimensions disagree, `external-data` for an external tensor
 *   without a reader, `invalid-tensor` for strings, `unsupported` for a data type newer than IR 13 or a tensor in
 *   segments
 */
export function tensorData(tensor: TensorProto, options: TensorReadOptions = {}): TensorData {
  const info = dataTypeInfo(tensor.data_type);
  const place = { tensor: tensor.name ?? '' };
  if (tensor.segment !== null) throw new OrtFlashError('unsupported', 'a tensor stored in segments', place);
  if (info === undefined && (tensor.data_type ?? 0) !== 0) {
    throw new OrtFlashError('unsupported', `data ${dataTypeName(tensor.data_type)} is newer than IR version 13`, place);
  }
  checkTensor(tensor);
  if (info === undefined || info.kind === 'string') {
    throw new OrtFlashError('invalid-tensor', 'a string tensor has no numbers', place);
  }
  if (isExternal(tensor)) {
    return elementsFrom(info.name, readExternalTensor(tensor, tensorByteSize(tensor) ?? 0, options.readExternal));
  }
  if (tensor.raw_data !== null && tensor.raw_data.length > 0) return elementsFrom(info.name, tensor.raw_data);
  return typedFieldData(tensor, info);
}

function typedFieldData(tensor: TensorProto, info: DataTypeInfo): TensorData {
  switch (info.field) {
    case 'float_data':
    case 'double_data':
      return elementsFrom(info.name, readFixed(tensor, info.field));
    case 'int64_data':
      return BigInt64Array.from(readVarints(tensor, 'int64_data'));
    case 'uint64_data': {
      const values = readVarints(tensor, 'uint64_data');
      return info.name === 'uint32' ? Uint32Array.from(values, Number) : BigUint64Array.from(values);
    }
    default: {
      // int32_data: the low bits of each entry are the element's bits, for 16-bit floats too.
      const values = Int32Array.from(readVarints(tensor, 'int32_data'), Number);
      if (info.bits === 32) return values;
      return elementsFrom(
        info.name,
        new Uint8Array((info.bits === 16 ? Uint16Array.from(values) : Uint8Array.from(values)).buffer),
      );
    }
  }
}

/**
 * The elements of an integer or bool tensor, exactly.
 * @throws OrtFlashError `invalid-tensor` for other data types, else as {@link tensorData}
 */
export function tensorInts(tensor: TensorProto, options: TensorReadOptions = {}): bigint[] {
  const info = dataTypeInfo(tensor.data_type);
  if (info !== undefined && !['signed', 'unsigned', 'bool'].includes(info.kind)) {
    throw new OrtFlashError('invalid-tensor', `integers expected, not ${info.name}`, { tensor: tensor.name ?? '' });
  }
  const data = tensorData(tensor, options);
  if (info !== undefined && info.bits < 8) return unpack(data, info, elementCount(tensor)).map(BigInt);
  return Array.from(data as ArrayLike<number | bigint>, (value) => BigInt(value));
}

/** Elements of 2 or 4 bits, low bits of a byte first. */
function unpack(bytes: ArrayLike<number | bigint>, info: DataTypeInfo, count: number): number[] {
  const perByte = 8 / info.bits;
  const shift = 32 - info.bits;
  return Array.from({ length: count }, (_, i) => {
    const bits = Number(bytes[Math.floor(i / perByte)]) >> ((i % perByte) * info.bits);
    return info.kind === 'signed' ? (bits << shift) >> shift : (bits << shift) >>> shift;
  });
}

/**
 * The elements of a float32, float64, float16 or bfloat16 tensor, exactly.
 * @throws OrtFlashError `invalid-tensor` for other data types, else as {@link tensorData}
 */
export function tensorFloats(tensor: TensorProto, options: TensorReadOptions = {}): number[] {
  const name = dataTypeInfo(tensor.data_type)?.name;
  if (name === 'float16' || name === 'bfloat16') {
    return Array.from(decodeHalf(tensorData(tensor, options) as Uint16Array, name));
  }
  if (name !== 'float32' && name !== 'float64') {
    const what = `floats expected, not ${dataTypeName(tensor.data_type)}`;
    throw new OrtFlashError('invalid-tensor', what, { tensor: tensor.name ?? '' });
  }
  return Array.from(tensorData(tensor, options) as Float32Array | Float64Array);
}

/** The elements of any tensor that {@link tensorFloats} or {@link tensorInts} takes; integers past 2⁵³ are rounded. */
export function tensorNumbers(tensor: TensorProto, options: TensorReadOptions = {}): number[] {
  const kind = dataTypeInfo(tensor.data_type)?.kind;
  return kind === 'float' ? tensorFloats(tensor, options) : tensorInts(tensor, options).map(Number);
}

/**
 * Builds a tensor, its elements in raw_data.
 * @param values row-major; converted to the data type, 16-bit floats to the nearest, ties to even
 * @throws OrtFlashError `invalid-argument` where the number of values does not fit the shape, or the type is none that
 *   numbers can be given for (strings, complex numbers, types of 8 bits and less other than int8, uint8 and bool)
 */
export function makeTensor(
  name: string,
  type: DataTypeName,
  shape: readonly number[],
  values: ArrayLike<number> | ArrayLike<bigint>,
): TensorProto {
  const count = shape.reduce((product, extent) => product * extent, 1);
  if (values.length !== count) {
    throw new OrtFlashError('invalid-argument', `${values.length} values for ${count} elements`, {
      tensor: name,
      shape,
    });
  }
  const data = convert(name, type, values);
  return TensorProto.create({
    name,
    dims: shape.map((extent) => Long.fromNumber(extent)),
    data_type: dataTypeOf(type),
    raw_data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  });
}

function convert(name: string, type: DataTypeName, values: ArrayLike<number> | ArrayLike<bigint>): TensorData {
  const numbers = () => Array.from<number | bigint, number>(values as ArrayLike<number | bigint>, Number);
  const bigints = () => Array.from<number | bigint, bigint>(values as ArrayLike<number | bigint>, BigInt);
  switch (type) {
    case 'float32':
      return values instanceof Float32Array ? values : Float32Array.from(numbers());
    case 'float64':
      return Float64Array.from(numbers());
    case 'float16':
    case 'bfloat16':
      return encodeHalf(numbers(), type);
    case 'int8':
      return Int8Array.from(numbers());
    case 'uint8':
      return Uint8Array.from(numbers());
    case 'int16':
      return Int16Array.from(numbers());
    case 'uint16':
      return Uint16Array.from(numbers());
    case 'int32':
      return Int32Array.from(numbers());
    case 'uint32':
      return Uint32Array.from(numbers());
    case 'int64':
      return BigInt64Array.from(bigints());
    case 'uint64':
      return BigUint64Array.from(bigints());
    case 'bool':
      return Uint8Array.from(numbers(), (value) => (value === 0 ? 0 : 1));
    default:
      throw new OrtFlashError('invalid-argument', `numbers cannot be stored as ${type}`, { tensor: name });
  }
}
