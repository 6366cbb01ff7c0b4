import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { elementsFrom } from '../graph-rewrite/onnx/elements.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { arrayFromJson } from './node-json.js';
import { type ArrayData, decodeNpy, encodeNpy, readNpyHeader } from './node-npy.js';
import { NpzFile } from './node-npz.js';

interface NumpyFiles {
  readonly arrays: readonly {
    readonly name: string;
    readonly type: DataTypeName;
    readonly dims: number[];
    readonly elements: (number | string)[];
    readonly file: string;
  }[];
  readonly refused: Readonly<Record<'bigEndian' | 'records', string>>;
  readonly archives: Readonly<Record<'savez' | 'savez_compressed', string>>;
}

const files = JSON.parse(readFileSync(new URL('./test-numpy-files.json', import.meta.url), 'utf8')) as NumpyFiles;
const bytesOf = (base64: string) => new Uint8Array(Buffer.from(base64, 'base64'));
const textOf = (data: ArrayData) => Array.from<unknown, string>(data as ArrayLike<unknown>, String);

for (const { name, type, dims, elements, file } of files.arrays) {
  test(`reads what NumPy wrote: ${name}`, (t) => {
    const array = decodeNpy(bytesOf(file), name);
    t.is(array.type, type);
    t.deepEqual([...array.dims], dims);
    t.deepEqual(textOf(array.data), elements.map(String));
  });
}

test('arrays that no tensor can hold are refused', (t) => {
  const read = (bytes: Uint8Array) => () => decodeNpy(bytes, 'x.npy');
  t.throws(read(bytesOf(files.refused.bigEndian)), {
    message: /big-endian \[x\.npy\]; save it as array\.astype\('<f4'\)/,
  });
  t.throws(read(bytesOf(files.refused.records)), { message: /records/ });
  t.throws(read(new TextEncoder().encode('no NumPy array at all')), { message: /does not begin as one/ });
  const good = bytesOf(files.arrays[0]!.file);
  t.throws(read(good.subarray(0, good.length - 1)), { message: /has 15 bytes of elements, its shape makes 16/ });
  for (let length = 0; length < 128; length++)
    t.throws(read(good.subarray(0, length)), { message: /ends in its header/ });
});

const TYPES = [
  'float32',
  'float64',
  'float16',
  'int8',
  'int16',
  'int32',
  'int64',
  'uint8',
  'uint16',
  'uint32',
  'uint64',
];

test('what is written is read back, bit by bit, and begins at a multiple of 64', (t) => {
  const shape = fc.array(fc.nat(4), { maxLength: 5 });
  fc.assert(
    fc.property(fc.constantFrom(...TYPES), shape, fc.infiniteStream(fc.nat(255)), (type, dims, random) => {
      const count = dims.reduce((product, size) => product * size, 1);
      const bytes = Uint8Array.from({ length: count * 8 }, () => random.next().value as number);
      const data = elementsFrom(type as DataTypeName, bytes).slice(0, count);
      const file = encodeNpy({ type: type as DataTypeName, dims, data });
      t.is(readNpyHeader(file, '')!.dataOffset % 64, 0);
      const back = decodeNpy(file, '');
      t.is(back.type, type as DataTypeName);
      t.deepEqual([...back.dims], dims);
      const view = back.data as Uint8Array;
      t.deepEqual(
        Buffer.from(view.buffer, view.byteOffset, view.byteLength),
        Buffer.from(data.buffer, 0, data.byteLength),
      );
    }),
  );
});

test('strings and bfloat16 are written as NumPy can hold them', (t) => {
  const strings = ['', 'a', 'Größe', '🎯🎯'];
  t.deepEqual(decodeNpy(encodeNpy({ type: 'string', dims: [2, 2], data: strings }), '').data, strings);
  const bits = Uint16Array.of(0x3f80, 0xc0a0, 0x7f80);
  const wide = decodeNpy(encodeNpy({ type: 'bfloat16', dims: [3], data: bits }), '');
  t.is(wide.type, 'float32');
  t.deepEqual(wide.data, decodeHalf(bits, 'bfloat16'));
  t.throws(() => encodeNpy({ type: 'float8e4m3fn', dims: [1], data: Uint8Array.of(1) }), {
    message: /no float8e4m3fn/,
  });
});

const hasNumpy = spawnSync('python3', ['-c', 'import numpy']).status === 0;

(hasNumpy ? test : test.skip)('NumPy reads what is written', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-npy-'));
  writeFileSync(
    join(folder, 'a.npy'),
    encodeNpy({ type: 'float32', dims: [2, 3], data: Float32Array.of(1, 2, 3, 4, 5, 6.5) }),
  );
  writeFileSync(join(folder, 'b.npy'), encodeNpy({ type: 'string', dims: [2], data: ['x', 'Größe'] }));
  writeFileSync(join(folder, 'c.npy'), encodeNpy({ type: 'int64', dims: [], data: BigInt64Array.of(-7n) }));
  const program = 'import numpy as n; print([n.load(f).tolist() for f in ("a.npy", "b.npy", "c.npy")])';
  const { stdout } = spawnSync('python3', ['-c', program], { cwd: folder, encoding: 'utf8' });
  rmSync(folder, { recursive: true });
  t.is(stdout.trim(), "[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]], ['x', 'Größe'], -7]");
});

for (const name of ['savez', 'savez_compressed'] as const) {
  test(`reads the rows of an archive: ${name}`, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'ort-flash-npz-'));
    const file = join(folder, 'arrays.npz');
    writeFileSync(file, bytesOf(files.archives[name]));
    const npz = await NpzFile.open(file);
    t.deepEqual([...npz.headers().keys()].sort(), ['x', 'y']);
    for (const row of [2, 0, 1]) {
      t.deepEqual(await npz.readRow('x', row), {
        type: 'float32',
        dims: [1, 2],
        data: Float32Array.of(row * 2, row * 2 + 1),
      });
      const y = await npz.readRow('y', row);
      t.deepEqual(
        [y.type, [...y.dims], textOf(y.data)],
        ['int64', [1, 4], [0, 1, 2, 3].map((i) => String(row * 4 + i))],
      );
    }
    npz.close();
    rmSync(folder, { recursive: true });
  });
}

test('a file that is no archive is refused', async (t) => {
  const error = await t.throwsAsync(NpzFile.open(new URL(import.meta.url).pathname));
  t.regex(error!.message, /cannot read the \.npz file: .*central directory/);
  await t.throwsAsync(NpzFile.open('/no/such.npz'), { message: /cannot read the \.npz file/ });
});

test('nested arrays become tensors of the model’s type', (t) => {
  const read = (value: unknown, type: DataTypeName) => arrayFromJson(value, type, { tensor: 'x' });
  t.deepEqual(
    read(
      [
        [1, 2, 3],
        [4, 5, 6],
      ],
      'int64',
    ),
    { type: 'int64', dims: [2, 3], data: BigInt64Array.of(1n, 2n, 3n, 4n, 5n, 6n) },
  );
  t.deepEqual(read(['9223372036854775807'], 'int64').data, BigInt64Array.of(2n ** 63n - 1n));
  t.deepEqual(read(1.5, 'float32'), { type: 'float32', dims: [], data: Float32Array.of(1.5) });
  t.deepEqual(read([1, 'NaN', '-Infinity'], 'float16').data, Uint16Array.of(0x3c00, 0x7e00, 0xfc00));
  t.deepEqual(read([true, 0], 'bool').data, Uint8Array.of(1, 0));
  t.deepEqual(read([['a'], ['b']], 'string'), { type: 'string', dims: [2, 1], data: ['a', 'b'] });
  t.deepEqual(read([], 'float32').dims, [0]);
  const refused = (value: unknown, type: DataTypeName, message: RegExp) =>
    t.throws(() => read(value, type), { message });
  refused([[1], [2, 3]], 'int32', /differ in length/);
  refused([[1], 2], 'int32', /differ in length/);
  refused([1, [2]], 'int32', /different depths/);
  refused([256], 'uint8', /256 is out of the range of uint8/);
  refused([-129], 'int8', /out of the range/);
  refused([1.5], 'int32', /1\.5 is no whole number/);
  refused([2 ** 53], 'int64', /past 2\^53/);
  refused(['one'], 'float32', /"one" is no number/);
  refused([null], 'float32', /null is no number/);
  refused([2], 'bool', /neither true nor false/);
  refused([1], 'string', /no string/);
});
