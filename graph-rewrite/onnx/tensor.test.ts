import test from 'ava';
import fc from 'fast-check';
import Long from 'long';
import { OrtFlashError } from '../errors.js';
import { decodeTensor, encodeTensor } from './codec.js';
import type { DataTypeName } from './data-type.js';
import { DataLocation, DataType, StringStringEntryProto, TensorProto } from './proto.js';
import {
  checkTensor,
  makeTensor,
  tensorByteSize,
  tensorData,
  tensorFloats,
  tensorInts,
  tensorNumbers,
} from './tensor.js';

const failure = (action: () => unknown): string => {
  try {
    action();
    return 'no error';
  } catch (error) {
    return error instanceof OrtFlashError ? `${error.code}: ${error.message}` : String(error);
  }
};

/** Base-128, as the protobuf encoding specification writes 64-bit numbers (negative ones in two's complement). */
function varint(value: bigint): number[] {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, value);
  for (; rest >= 128n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return [...bytes, Number(rest)];
}

function fixed(values: readonly number[], width: 4 | 8): number[] {
  const view = new DataView(new ArrayBuffer(values.length * width));
  values.forEach((v, i) => {
    if (width === 4) view.setFloat32(i * 4, v, true);
    else view.setFloat64(i * 8, v, true);
  });
  return [...new Uint8Array(view.buffer)];
}

const delimited = (field: number, bytes: readonly number[]) => [
  (field << 3) | 2,
  ...varint(BigInt(bytes.length)),
  ...bytes,
];

/** The file bytes of a rank-1 tensor whose elements, each given as bytes, are in a typed field in one of three ways. */
function typedTensor(type: number, field: number, wireType: number, elements: readonly number[][], form: string) {
  const header = [8, ...varint(BigInt(elements.length)), 16, ...varint(BigInt(type))];
  const split = Math.floor(elements.length / 2);
  const data = {
    packed: () => delimited(field, elements.flat()),
    runs: () => [
      ...delimited(field, elements.slice(0, split).flat()),
      ...delimited(field, elements.slice(split).flat()),
    ],
    single: () => elements.flatMap((element) => [(field << 3) | wireType, ...element]),
  }[form]!();
  return decodeTensor(Uint8Array.from([...header, ...data]));
}

const forms = fc.constantFrom('packed', 'runs', 'single');

test('integers are read from every typed field and every form of it', (t) => {
  const types: [number, number, number, boolean][] = [
    [DataType.INT64, 7, 64, true],
    [DataType.UINT64, 11, 64, false],
    [DataType.UINT32, 11, 32, false],
    [DataType.INT32, 5, 32, true],
    [DataType.INT16, 5, 16, true],
    [DataType.UINT16, 5, 16, false],
    [DataType.INT8, 5, 8, true],
    [DataType.UINT8, 5, 8, false],
  ];
  const example = fc.constantFrom(...types).chain(([type, field, bits, signed]) => {
    const range = signed
      ? { min: -(1n << BigInt(bits - 1)), max: (1n << BigInt(bits - 1)) - 1n }
      : { min: 0n, max: (1n << BigInt(bits)) - 1n };
    return fc.record({
      type: fc.constant(type),
      field: fc.constant(field),
      values: fc.array(fc.bigInt(range)),
      form: forms,
    });
  });
  fc.assert(
    fc.property(example, ({ type, field, values, form }) => {
      const tensor = typedTensor(type, field, 0, values.map(varint), form);
      t.deepEqual(tensorInts(tensor), values);
      t.deepEqual(tensorInts(decodeTensor(encodeTensor(tensor))), values);
    }),
  );
});

test('floats are read from float_data and double_data', (t) => {
  const property = fc.property(fc.array(fc.float()), forms, (values, form) => {
    const single = typedTensor(
      DataType.FLOAT,
      4,
      5,
      values.map((v) => fixed([v], 4)),
      form,
    );
    t.deepEqual(tensorFloats(single), values);
    const double = typedTensor(
      DataType.DOUBLE,
      10,
      1,
      values.map((v) => fixed([v], 8)),
      form,
    );
    t.deepEqual(tensorFloats(double), values);
  });
  fc.assert(property);
});

test('16-bit floats are read from the bits that int32_data and raw_data hold', (t) => {
  // float16: 1, −2, 65504, the smallest subnormal. bfloat16: 1, −2, π cut to 8 bits.
  const half = [0x3c00, 0xc000, 0x7bff, 0x0001];
  const halfValues = [1, -2, 65504, 2 ** -24];
  const brain = [0x3f80, 0xc000, 0x4049];
  const brainValues = [1, -2, 3.140625];
  const cases: [number, number[], number[]][] = [
    [DataType.FLOAT16, half, halfValues],
    [DataType.BFLOAT16, brain, brainValues],
  ];
  for (const [type, bits, values] of cases) {
    t.deepEqual(
      tensorFloats(
        typedTensor(
          type,
          5,
          0,
          bits.map((b) => varint(BigInt(b))),
          'packed',
        ),
      ),
      values,
    );
    const raw = new Uint8Array(Uint16Array.from(bits).buffer);
    const tensor = TensorProto.create({ dims: [Long.fromInt(bits.length)], data_type: type, raw_data: raw });
    t.deepEqual(tensorFloats(tensor), values);
  }
});

test('elements of 4 and 2 bits are unpacked, low bits first', (t) => {
  const tensor = (type: number, count: number, bytes: number[]) =>
    TensorProto.create({ dims: [Long.fromInt(count)], data_type: type, raw_data: Uint8Array.from(bytes) });
  t.deepEqual(tensorInts(tensor(DataType.INT4, 3, [0x8f, 0x07])), [-1n, -8n, 7n]);
  t.deepEqual(tensorInts(tensor(DataType.UINT4, 3, [0x8f, 0x07])), [15n, 8n, 7n]);
  t.deepEqual(tensorInts(tensor(DataType.INT2, 5, [0b11_10_01_00, 0b10])), [0n, 1n, -2n, -1n, -2n]);
  t.deepEqual(tensorInts(tensor(DataType.UINT2, 4, [0b11_10_01_00])), [0n, 1n, 2n, 3n]);
});

test('what makeTensor builds is read back, from the file too', (t) => {
  const floats: DataTypeName[] = ['float32', 'float64', 'float16', 'bfloat16'];
  const integers: DataTypeName[] = ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64'];
  for (const type of [...floats, ...integers]) {
    const tensor = decodeTensor(encodeTensor(makeTensor('x', type, [2, 2], [0, 1, 2, 96])));
    t.deepEqual(tensorNumbers(tensor), [0, 1, 2, 96], type);
    t.is(tensorByteSize(tensor), tensor.raw_data?.length);
  }
  t.deepEqual(tensorNumbers(makeTensor('x', 'bool', [3], [0, 1, 7])), [0, 1, 1]);
  t.deepEqual(tensorInts(makeTensor('x', 'int64', [], [2n ** 63n - 1n])), [2n ** 63n - 1n]);
  t.regex(
    failure(() => makeTensor('x', 'float32', [2], [1])),
    /invalid-argument: 1 values for 2 elements/,
  );
});

test('data that does not fit the dimensions is refused, naming the tensor', (t) => {
  const with_ = (properties: ConstructorParameters<typeof TensorProto>[0]) => () =>
    checkTensor(TensorProto.create({ name: 'w', data_type: DataType.FLOAT, ...properties }));
  const raw_data = new Uint8Array(8);
  const dims = (...values: number[]) => values.map((value) => Long.fromNumber(value));
  t.is(failure(with_({ dims: dims(2), raw_data })), 'no error');
  t.regex(
    failure(with_({ dims: dims(3), raw_data })),
    /malformed-model: the tensor holds 8 bytes, .* say 12 .*tensor w/,
  );
  t.regex(failure(with_({ dims: dims(-1), raw_data })), /include a negative/);
  t.regex(failure(with_({ dims: dims(0, 2 ** 40, 2 ** 40) })), /overflow/);
  t.regex(failure(with_({ dims: dims(2) })), /holds 0 entries of float_data/);
  t.regex(failure(with_({ dims: dims(2), raw_data, float_data: [raw_data] })), /both raw_data and float_data/);
  t.regex(failure(with_({ dims: dims(1), int64_data: [Uint8Array.of(1)] })), /cannot be in int64_data/);
  t.regex(failure(with_({ dims: dims(1), float_data: [raw_data.subarray(0, 3)] })), /ends within a number/);
  t.regex(failure(with_({ dims: dims(2), raw_data, data_type: 0 })), /no data type/);
});

test('external tensors are read through the reader given, and never out of the folder', (t) => {
  const external = (entries: Record<string, string>) =>
    TensorProto.create({
      name: 'w',
      dims: [Long.fromInt(2)],
      data_type: DataType.FLOAT,
      data_location: DataLocation.EXTERNAL,
      external_data: Object.entries(entries).map(([key, value]) => StringStringEntryProto.create({ key, value })),
    });
  const file = new Uint8Array(Float32Array.of(0, 1, 2, 3).buffer);
  const readExternal = (_: string, offset: number, length: number) => file.slice(offset, offset + length);
  const tensor = external({ location: 'data/w.bin', offset: '4' });
  t.deepEqual(tensorData(tensor, { readExternal }), Float32Array.of(1, 2));
  t.regex(
    failure(() => tensorData(tensor)),
    /external-data: .*cannot be read here/,
  );
  t.regex(
    failure(() => tensorData(external({ location: 'w', offset: '12' }), { readExternal })),
    /gave 4 of 8 bytes/,
  );
  t.regex(
    failure(() => checkTensor(external({ location: 'w', length: '4' }))),
    /4 external bytes for a tensor of 8/,
  );
  t.regex(
    failure(() => checkTensor(external({ location: 'w', offset: '-1' }))),
    /offset "-1" is no number/,
  );
  t.regex(
    failure(() => checkTensor(external({}))),
    /names no file/,
  );
  const outside = [
    '/etc/passwd',
    '../w',
    'a/../../w',
    'C:w',
    'c:/w',
    '..\\w',
    'a\\w',
    'file:///w',
    'w\0',
    'w\n',
    '.',
    'a/',
    'a/.',
  ];
  for (const location of outside)
    t.regex(
      failure(() => checkTensor(external({ location }))),
      /^external-data: /,
      location,
    );
});
