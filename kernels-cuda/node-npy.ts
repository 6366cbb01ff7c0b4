/**
 * NumPy's array files, as numpy.lib.format describes them (versions 1.0 to 3.0), little-endian.
 *
 * `.npy` is one array: a magic string, a header that is a Python dictionary, and the elements. `.npz` is a ZIP archive
 * of them; see node-npz.ts.
 */
import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { elementsFrom, type TensorData } from '../graph-rewrite/onnx/elements.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';

/** An array's elements: typed as onnxruntime-common's Tensor holds them. */
export type ArrayData = TensorData | string[];

/** A tensor in memory, row-major. */
export interface ArrayTensor {
  readonly type: DataTypeName;
  readonly dims: readonly number[];
  readonly data: ArrayData;
}

/** What the header of a `.npy` file says. */
export interface NpyHeader {
  readonly type: DataTypeName;
  readonly dims: readonly number[];
  /** Bytes an element; 4 a character for strings. */
  readonly elementBytes: number;
  /** Elements lie in Fortran's order, the first index running fastest. */
  readonly fortranOrder: boolean;
  /** Where the elements begin. */
  readonly dataOffset: number;
}

/** NumPy's type codes, less the byte order. `V2` is what NumPy saves ml_dtypes' bfloat16 as. */
const TYPES: Readonly<Record<string, DataTypeName>> = {
  f2: 'float16',
  f4: 'float32',
  f8: 'float64',
  i1: 'int8',
  i2: 'int16',
  i4: 'int32',
  i8: 'int64',
  u1: 'uint8',
  u2: 'uint16',
  u4: 'uint32',
  u8: 'uint64',
  b1: 'bool',
  V2: 'bfloat16',
};

const MAGIC = '\x93NUMPY';
/** Enough of a file to hold any header that NumPy itself writes; a longer one is asked for. */
export const NPY_HEADER_BYTES = 4096;

/**
 * Reads the header of a `.npy` file from its first bytes.
 * @returns undefined where more bytes are needed
 * @throws OrtFlashError `invalid-tensor` where it is no such file, or holds what no tensor can
 */
export function readNpyHeader(bytes: Uint8Array, file: string): NpyHeader | undefined {
  const fail = (why: string, hint?: string): never => {
    throw new OrtFlashError('invalid-tensor', `cannot read the NumPy array: ${why}`, { file }, hint);
  };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (!MAGIC.startsWith(String.fromCharCode(...bytes.subarray(0, 6)))) fail('it does not begin as one');
  if (bytes.length < 12) return undefined;
  const version = bytes[6]!;
  if (version < 1 || version > 3) fail(`its format version ${version} is not known`);
  const start = version === 1 ? 10 : 12;
  const dataOffset = start + (version === 1 ? view.getUint16(8, true) : view.getUint32(8, true));
  if (dataOffset > 1 << 24) fail('its header is too long');
  if (bytes.length < dataOffset) return undefined;
  const text = new TextDecoder(version === 3 ? 'utf-8' : 'latin1').decode(bytes.subarray(start, dataOffset));
  const descr = /'descr':\s*'([^']*)'/.exec(text)?.[1] ?? fail('its elements are records, or its header is damaged');
  const order = /'fortran_order':\s*(True|False)/.exec(text)?.[1] ?? fail('its header does not say fortran_order');
  const shape = /'shape':\s*\(([\d,\sL]*)\)/.exec(text)?.[1] ?? fail('its header does not say its shape');
  if (descr.startsWith('>')) fail('its elements are big-endian', `save it as array.astype('<${descr.slice(1)}')`);
  const dims = shape.split(',').flatMap((size) => (size.trim() === '' ? [] : [Number.parseInt(size, 10)]));
  if (!dims.every(Number.isSafeInteger)) fail('its shape is not readable');
  const code = descr.replace(/^[<=|]/, '');
  const characters = /^U(\d+)$/.exec(code)?.[1];
  const type = characters === undefined ? TYPES[code] : 'string';
  if (type === undefined) return fail(`its type ${descr} has no ONNX counterpart`);
  const elementBytes = characters === undefined ? Number(code.slice(1)) : 4 * Number(characters);
  return { type, dims, elementBytes, fortranOrder: order === 'True', dataOffset };
}

/**
 * Reads a whole `.npy` file.
 * @throws OrtFlashError as {@link readNpyHeader}, and where the file ends early
 */
export function decodeNpy(bytes: Uint8Array, file: string): ArrayTensor {
  const header = readNpyHeader(bytes, file);
  if (header === undefined) throw new OrtFlashError('invalid-tensor', 'the NumPy array ends in its header', { file });
  return decodeNpyElements(header, bytes.subarray(header.dataOffset), header.dims, file);
}

/**
 * Makes a tensor of an array's elements, or of a part of them where they are in C order.
 * @throws OrtFlashError `invalid-tensor` where there are too few or too many
 */
export function decodeNpyElements(
  header: NpyHeader,
  bytes: Uint8Array,
  dims: readonly number[],
  file: string,
): ArrayTensor {
  const count = countOf(dims);
  if (bytes.length !== count * header.elementBytes) {
    const what = `the NumPy array has ${bytes.length} bytes of elements, its shape makes ${count * header.elementBytes}`;
    throw new OrtFlashError('invalid-tensor', what, { file, shape: dims });
  }
  const ordered = header.fortranOrder ? toRowMajor(bytes, header.elementBytes, dims) : bytes;
  const { type } = header;
  if (type === 'string') return { type, dims, data: decodeStrings(ordered, header.elementBytes, count) };
  return { type, dims, data: elementsFrom(type, ordered) };
}

const countOf = (dims: readonly number[]) => dims.reduce((product, size) => product * size, 1);

/** Puts elements from Fortran's order into C's. */
function toRowMajor(bytes: Uint8Array, elementBytes: number, dims: readonly number[]): Uint8Array {
  const result = new Uint8Array(bytes.length);
  const count = countOf(dims);
  const index = dims.map(() => 0);
  const strides = dims.map((_, axis) => countOf(dims.slice(0, axis)));
  for (let target = 0; target < count; target++) {
    const source = index.reduce((sum, at, axis) => sum + at * strides[axis]!, 0);
    result.set(bytes.subarray(source * elementBytes, (source + 1) * elementBytes), target * elementBytes);
    for (let axis = dims.length - 1; axis >= 0 && ++index[axis]! === dims[axis]; axis--) index[axis] = 0;
  }
  return result;
}

/** Strings of fixed length in UTF-32, filled up with zeros. */
function decodeStrings(bytes: Uint8Array, elementBytes: number, count: number): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: count }, (_, i) => {
    const points: number[] = [];
    for (let at = i * elementBytes; at < (i + 1) * elementBytes; at += 4) points.push(view.getUint32(at, true));
    while (points.at(-1) === 0) points.pop();
    return points.map((point) => String.fromCodePoint(point)).join('');
  });
}

function encodeStrings(strings: readonly string[]): { code: string; bytes: Uint8Array } {
  const points = strings.map((text) => Array.from(text, (character) => character.codePointAt(0)!));
  const length = points.reduce((most, list) => Math.max(most, list.length), 1);
  const words = new Uint32Array(strings.length * length);
  for (const [i, list] of points.entries()) words.set(list, i * length);
  return { code: `<U${length}`, bytes: new Uint8Array(words.buffer) };
}

/**
 * Writes a `.npy` file. NumPy has no bfloat16: such a tensor is written as float32, which holds all its values.
 * @throws OrtFlashError `unsupported` for types that NumPy does not have
 */
export function encodeNpy({ type, dims, data }: ArrayTensor): Uint8Array {
  const { code, bytes } = Array.isArray(data) ? encodeStrings(data) : encodeElements(type, data);
  const size = dims.length === 1 ? `${dims[0]},` : dims.join(', ');
  const header = `{'descr': '${code}', 'fortran_order': False, 'shape': (${size}), }`;
  // The header is filled up so that the elements begin at a multiple of 64.
  const length = Math.ceil((10 + header.length + 1) / 64) * 64 - 10;
  const result = new Uint8Array(10 + length + bytes.length);
  result.set(Array.from(`${MAGIC}\x01\x00`, (character) => character.charCodeAt(0)));
  new DataView(result.buffer).setUint16(8, length, true);
  result.set(new TextEncoder().encode(`${header.padEnd(length - 1)}\n`), 10);
  result.set(bytes, 10 + length);
  return result;
}

function encodeElements(type: DataTypeName, data: Exclude<ArrayData, string[]>): { code: string; bytes: Uint8Array } {
  if (type === 'bfloat16') {
    const bits = new Uint16Array(data.buffer, data.byteOffset, data.length);
    return encodeElements('float32', Float32Array.from(decodeHalf(bits, 'bfloat16')));
  }
  const found = Object.entries(TYPES).find(([, name]) => name === type)?.[0];
  if (found === undefined)
    throw new OrtFlashError('unsupported', `NumPy has no ${type}`, {}, 'ask for results as .pb files');
  const order = found.endsWith('1') ? '|' : '<';
  return { code: order + found, bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) };
}
