import { OrtFlashError } from '../errors.js';
import { DataType } from './proto.js';

/** ONNX element types by the names that ONNX Runtime's JavaScript tensors give them, and the rest likewise. */
export type DataTypeName =
  | 'float32'
  | 'uint8'
  | 'int8'
  | 'uint16'
  | 'int16'
  | 'int32'
  | 'int64'
  | 'string'
  | 'bool'
  | 'float16'
  | 'float64'
  | 'uint32'
  | 'uint64'
  | 'complex64'
  | 'complex128'
  | 'bfloat16'
  | 'float8e4m3fn'
  | 'float8e4m3fnuz'
  | 'float8e5m2'
  | 'float8e5m2fnuz'
  | 'uint4'
  | 'int4'
  | 'float4e2m1'
  | 'float8e8m0'
  | 'uint2'
  | 'int2';

/** The fields of TensorProto that hold elements, other than raw_data. */
export type TypedField = 'float_data' | 'int32_data' | 'int64_data' | 'double_data' | 'uint64_data' | 'string_data';

/** How elements of one type are stored. */
export interface DataTypeInfo {
  readonly name: DataTypeName;
  /** Bits an element; 0 for strings. Types below 8 bits share bytes, low bits first. */
  readonly bits: number;
  /** The field that holds elements where raw_data does not (onnx.proto, TensorProto). */
  readonly field: TypedField;
  readonly kind: 'float' | 'signed' | 'unsigned' | 'bool' | 'complex' | 'string';
}

type Row = readonly [DataType, DataTypeName, number, TypedField, DataTypeInfo['kind']];

const ROWS: readonly Row[] = [
  [DataType.FLOAT, 'float32', 32, 'float_data', 'float'],
  [DataType.UINT8, 'uint8', 8, 'int32_data', 'unsigned'],
  [DataType.INT8, 'int8', 8, 'int32_data', 'signed'],
  [DataType.UINT16, 'uint16', 16, 'int32_data', 'unsigned'],
  [DataType.INT16, 'int16', 16, 'int32_data', 'signed'],
  [DataType.INT32, 'int32', 32, 'int32_data', 'signed'],
  [DataType.INT64, 'int64', 64, 'int64_data', 'signed'],
  [DataType.STRING, 'string', 0, 'string_data', 'string'],
  [DataType.BOOL, 'bool', 8, 'int32_data', 'bool'],
  [DataType.FLOAT16, 'float16', 16, 'int32_data', 'float'],
  [DataType.DOUBLE, 'float64', 64, 'double_data', 'float'],
  [DataType.UINT32, 'uint32', 32, 'uint64_data', 'unsigned'],
  [DataType.UINT64, 'uint64', 64, 'uint64_data', 'unsigned'],
  [DataType.COMPLEX64, 'complex64', 64, 'float_data', 'complex'],
  [DataType.COMPLEX128, 'complex128', 128, 'double_data', 'complex'],
  [DataType.BFLOAT16, 'bfloat16', 16, 'int32_data', 'float'],
  [DataType.FLOAT8E4M3FN, 'float8e4m3fn', 8, 'int32_data', 'float'],
  [DataType.FLOAT8E4M3FNUZ, 'float8e4m3fnuz', 8, 'int32_data', 'float'],
  [DataType.FLOAT8E5M2, 'float8e5m2', 8, 'int32_data', 'float'],
  [DataType.FLOAT8E5M2FNUZ, 'float8e5m2fnuz', 8, 'int32_data', 'float'],
  [DataType.UINT4, 'uint4', 4, 'int32_data', 'unsigned'],
  [DataType.INT4, 'int4', 4, 'int32_data', 'signed'],
  [DataType.FLOAT4E2M1, 'float4e2m1', 4, 'int32_data', 'float'],
  [DataType.FLOAT8E8M0, 'float8e8m0', 8, 'int32_data', 'float'],
  [DataType.UINT2, 'uint2', 2, 'int32_data', 'unsigned'],
  [DataType.INT2, 'int2', 2, 'int32_data', 'signed'],
];

const BY_NUMBER = new Map<number, DataTypeInfo>(
  ROWS.map(([number, name, bits, field, kind]) => [number, { name, bits, field, kind }]),
);
const BY_NAME = new Map<string, DataType>(ROWS.map(([number, name]) => [name, number]));

/** What is known of a TensorProto data type; undefined for UNDEFINED and for types newer than IR 13. */
export function dataTypeInfo(dataType: number | null | undefined): DataTypeInfo | undefined {
  return BY_NUMBER.get(dataType ?? 0);
}

/** The name of a TensorProto data type, for messages: 'float16', or 'type 99' where it is not known. */
export function dataTypeName(dataType: number | null | undefined): string {
  return dataTypeInfo(dataType)?.name ?? `type ${dataType ?? 0}`;
}

/**
 * The TensorProto data type of this name.
 * @throws OrtFlashError `invalid-argument` for a name that is none
 */
export function dataTypeOf(name: DataTypeName): DataType {
  const dataType = BY_NAME.get(name);
  if (dataType === undefined) throw new OrtFlashError('invalid-argument', `"${name}" is no ONNX data type`);
  return dataType;
}
