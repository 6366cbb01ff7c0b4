/**
 * TensorProto's typed arrays (float_data and the like), which the schema keeps as packed bytes.
 *
 * A writer may also store elements one by one, each with its own tag; the schema does not know that form, so such
 * elements are among the message's unknown fields. A tensor that mixes both is refused, as their order would be lost.
 */
import { OrtFlashError } from '../errors.js';
import type { TensorProto } from './proto.js';

export type PackedField = 'float_data' | 'int32_data' | 'int64_data' | 'double_data' | 'uint64_data';

/** Field number and wire type of one element (0 varint, 1 eight bytes, 5 four bytes). */
const ELEMENT: Readonly<Record<PackedField, { readonly number: number; readonly wireType: number }>> = {
  float_data: { number: 4, wireType: 5 },
  int32_data: { number: 5, wireType: 0 },
  int64_data: { number: 7, wireType: 0 },
  double_data: { number: 10, wireType: 1 },
  uint64_data: { number: 11, wireType: 0 },
};

/**
 * The bytes of a typed array, in order, in as many runs as the file has.
 * @throws OrtFlashError `malformed-model` where packed and single elements are mixed
 */
export function packedRuns(tensor: TensorProto, field: PackedField): readonly Uint8Array[] {
  const runs = tensor[field];
  if (tensor.$unknowns === undefined) return runs;
  // Field numbers up to 15 make a tag of one byte.
  const tag = (ELEMENT[field].number << 3) | ELEMENT[field].wireType;
  const single = tensor.$unknowns.filter((unknown) => unknown[0] === tag).map((unknown) => unknown.subarray(1));
  if (runs.length > 0 && single.length > 0) fail(tensor, `${field} mixes packed and single elements`);
  return runs.length > 0 ? runs : single;
}

/**
 * How many numbers a typed array holds.
 * @throws OrtFlashError `malformed-model` where a run ends within a number
 */
export function packedCount(tensor: TensorProto, field: PackedField): number {
  const width = { 0: 0, 1: 8, 5: 4 }[ELEMENT[field].wireType]!;
  let count = 0;
  for (const run of packedRuns(tensor, field)) {
    if (width > 0) {
      if (run.length % width !== 0) fail(tensor, `${field} ends within a number`);
      count += run.length / width;
    } else {
      if (run.length > 0 && run[run.length - 1]! >= 128) fail(tensor, `${field} ends within a number`);
      for (let i = 0; i < run.length; i++) if (run[i]! < 128) count++;
    }
  }
  return count;
}

/** float_data or double_data as one run of little-endian bytes. */
export function readFixed(tensor: TensorProto, field: 'float_data' | 'double_data'): Uint8Array {
  const runs = packedRuns(tensor, field);
  const bytes = new Uint8Array(runs.reduce((sum, run) => sum + run.length, 0));
  let position = 0;
  for (const run of runs) {
    bytes.set(run, position);
    position += run.length;
  }
  return bytes;
}

/**
 * The numbers of int32_data, int64_data or uint64_data.
 * @throws OrtFlashError `malformed-model` where a number takes more than ten bytes
 */
export function readVarints(tensor: TensorProto, field: 'int32_data' | 'int64_data' | 'uint64_data'): bigint[] {
  const values: bigint[] = [];
  for (const run of packedRuns(tensor, field)) {
    let value = 0n;
    let shift = 0;
    for (const byte of run) {
      if (shift > 63) fail(tensor, `${field} has a number of more than ten bytes`);
      value |= BigInt(byte & 127) << BigInt(shift);
      shift += 7;
      if (byte >= 128) continue;
      values.push(
        field === 'uint64_data' ? BigInt.asUintN(64, value) : BigInt.asIntN(field === 'int32_data' ? 32 : 64, value),
      );
      value = 0n;
      shift = 0;
    }
  }
  return values;
}

function fail(tensor: TensorProto, what: string): never {
  throw new OrtFlashError('malformed-model', what, { tensor: tensor.name ?? '' });
}
