/** Several samples in one run: putting their tensors together along the first axis, and the results apart. */
import type { InferenceSession } from 'onnxruntime-node';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import type { ArrayData, ArrayTensor } from './node-npy.js';
import type { Sample } from './node-samples.js';

type Metadata = readonly InferenceSession.ValueMetadata[];

/** How a model's samples may be batched. */
export interface BatchPlan {
  /** Whether the first axis of all inputs and outputs may have any size, so that it can count samples. */
  readonly batchable: boolean;
  /** The input that is 1 where a sequence has an element, and 0 where it was filled up: (batch, sequence). */
  readonly maskInput: string | undefined;
}

/** Samples in one run. */
export interface Assembled {
  readonly feeds: Sample;
  /** Of each sample, its size along the first axis. */
  readonly rows: readonly number[];
  /** Of each sample, the length of its sequence; all the same where nothing was filled up. */
  readonly lengths: readonly number[];
  /** The longest of them. */
  readonly longest: number;
}

/** Of each output, the axes that run over the sequence and are cut back to a sample's length. */
export type SequenceAxes = ReadonlyMap<string, readonly number[]>;

const MASK_NAMES = new Set(['attention_mask', 'input_mask']);
const PACKED = new Set(['int4', 'uint4', 'int2', 'uint2', 'float4e2m1']);

/** What a model's inputs and outputs allow. Whether the model treats batched samples alike is for a run to show. */
export function planBatching(inputs: Metadata, outputs: Metadata): BatchPlan {
  const free = (value: Metadata[number]) =>
    value.isTensor && typeof value.shape[0] === 'string' && !PACKED.has(value.type as string);
  const batchable = inputs.every(free) && outputs.every(free);
  const mask = inputs.find((input) => {
    if (!input.isTensor || !MASK_NAMES.has(input.name) || input.shape.length !== 2) return false;
    return typeof input.shape[1] === 'string';
  });
  return { batchable, maskInput: batchable ? mask?.name : undefined };
}

/** The inputs of a sample whose second axis is its sequence. */
function sequenceInputs(sample: Sample, length: number | undefined): string[] {
  if (length === undefined) return [];
  return Array.from(sample).flatMap(([name, { dims }]) => (dims.length >= 2 && dims[1] === length ? [name] : []));
}

/** The length of a sample's sequence, by the model's mask; undefined without one. */
export function sequenceLength(sample: Sample, maskInput: string | undefined): number | undefined {
  return maskInput === undefined ? undefined : sample.get(maskInput)?.dims[1];
}

/**
 * Samples of the same key can be put together.
 * @param maskInput the mask by which sequences of different lengths can; undefined where they may not
 */
export function batchKey(sample: Sample, maskInput: string | undefined): string {
  const sequences = new Set(sequenceInputs(sample, sequenceLength(sample, maskInput)));
  const keys = Array.from(sample, ([name, { type, dims }]) => {
    const inner = dims.slice(1).map((size, axis) => (axis === 0 && sequences.has(name) ? '*' : size));
    return `${name}:${type}[${inner.join(',')}]`;
  });
  return keys.join(' ');
}

/**
 * Puts samples of one key together; shorter sequences are filled up with zeros, which their mask says.
 */
export function assemble(samples: readonly Sample[], maskInput: string | undefined): Assembled {
  const first = samples[0]!;
  const lengths = samples.map((sample) => sequenceLength(sample, maskInput) ?? 0);
  const longest = Math.max(...lengths);
  const feeds = new Map<string, ArrayTensor>();
  for (const name of first.keys()) {
    const tensors = samples.map((sample) => sample.get(name)!);
    // All samples of a key have their sequence in the same inputs.
    const isSequence = sequenceInputs(first, sequenceLength(first, maskInput)).includes(name);
    feeds.set(name, stack(tensors, isSequence ? longest : undefined));
  }
  const rows = samples.map((sample) => sample.values().next().value?.dims[0] ?? 1);
  return { feeds, rows, lengths, longest };
}

const sizeOf = (dims: readonly number[]) => dims.reduce((product, size) => product * size, 1);

type NumericData = Exclude<ArrayData, string[]>;

/** An array of the same kind, of zeros. */
function emptyLike(data: NumericData, length: number): NumericData {
  return new (data.constructor as new (length: number) => NumericData)(length);
}

/** Puts tensors one after the other along the first axis, their second axis filled up to `length`. */
function stack(tensors: readonly ArrayTensor[], length: number | undefined): ArrayTensor {
  const first = tensors[0]!;
  const inner = first.dims.slice(1);
  if (length !== undefined) inner[0] = length;
  const rows = tensors.reduce((sum, { dims }) => sum + dims[0]!, 0);
  const dims = [rows, ...inner];
  const rowSize = sizeOf(inner);
  const strings: string[] = [];
  const numbers = Array.isArray(first.data) ? undefined : emptyLike(first.data, rows * rowSize);
  if (numbers === undefined) strings.length = rows * rowSize;
  if (numbers === undefined) strings.fill('');
  let at = 0;
  for (const tensor of tensors) {
    const ownRow = sizeOf(tensor.dims.slice(1));
    for (let row = 0; row < tensor.dims[0]!; row++, at += rowSize) {
      const part = tensor.data.slice(row * ownRow, (row + 1) * ownRow);
      if (numbers === undefined) strings.splice(at, part.length, ...(part as string[]));
      // The types pair up: all tensors of one input have the same.
      else (numbers as Float32Array).set(part as Float32Array, at);
    }
  }
  return { type: first.type, dims, data: numbers ?? strings };
}

/**
 * Takes a run's results apart.
 * @returns for each sample its results; undefined where a result's first axis does not count the samples
 */
export function takeApart(
  results: Sample,
  { rows, lengths, longest }: Assembled,
  axes: SequenceAxes,
): Map<string, ArrayTensor>[] | undefined {
  const total = rows.reduce((sum, count) => sum + count, 0);
  const parts = rows.map(() => new Map<string, ArrayTensor>());
  for (const [name, tensor] of results) {
    if (tensor.dims[0] !== total) return undefined;
    let start = 0;
    for (const [i, count] of rows.entries()) {
      const end = [...tensor.dims];
      end[0] = start + count;
      if (lengths[i]! < longest) for (const axis of axes.get(name) ?? []) end[axis] = lengths[i]!;
      parts[i]!.set(name, crop(tensor, start, end));
      start += count;
    }
  }
  return parts;
}

/** The elements from row `start` of the first axis, and from 0 of the others, up to `end`. */
function crop(tensor: ArrayTensor, start: number, end: readonly number[]): ArrayTensor {
  const { type, dims, data } = tensor;
  const cropped = [end[0]! - start, ...end.slice(1)];
  // From this axis on, elements that are kept lie together.
  let whole = dims.length;
  while (whole > 1 && end[whole - 1] === dims[whole - 1]) whole--;
  const run = sizeOf(cropped.slice(whole - 1));
  const strides = dims.map((_, axis) => sizeOf(dims.slice(axis + 1)));
  const pieces: ArrayData[] = [];
  const visit = (axis: number, at: number): void => {
    if (axis === whole - 1) {
      pieces.push(data.slice(at, at + run));
      return;
    }
    for (let i = 0; i < cropped[axis]!; i++) visit(axis + 1, at + i * strides[axis]!);
  };
  if (sizeOf(cropped) > 0) visit(0, start * strides[0]!);
  if (pieces.length === 1) return { type, dims: cropped, data: pieces[0]! };
  if (Array.isArray(data)) return { type, dims: cropped, data: pieces.flat() as string[] };
  const joined = emptyLike(data, sizeOf(cropped));
  for (const [i, piece] of pieces.entries()) (joined as Float32Array).set(piece as Float32Array, i * run);
  return { type, dims: cropped, data: joined };
}

/**
 * The axes of each output that run over the sequence: those that have a sample's own length where it ran alone, and the
 * longest one's where it was filled up.
 */
export function findSequenceAxes(batched: Sample, alone: readonly Sample[], assembled: Assembled): SequenceAxes {
  const { lengths, longest } = assembled;
  const shorter = lengths.findIndex((length) => length < longest);
  const axes = new Map<string, number[]>();
  for (const [name, { dims }] of batched) {
    const own = shorter < 0 ? dims : (alone[shorter]!.get(name)?.dims ?? []);
    const found = dims.flatMap((size, axis) =>
      axis > 0 && size === longest && own[axis] === lengths[shorter] && own[axis] !== size ? [axis] : [],
    );
    axes.set(name, found);
  }
  return axes;
}

/** Whether two runs agree but for rounding: that of a sample alone, and that of the sample among others. */
export function sameResults(a: Sample, b: Sample): boolean {
  return Array.from(a).every(([name, tensor]) => {
    const other = b.get(name);
    return other !== undefined && sameTensor(tensor, other);
  });
}

function sameTensor(a: ArrayTensor, b: ArrayTensor): boolean {
  if (a.type !== b.type || a.dims.length !== b.dims.length || a.dims.some((size, i) => size !== b.dims[i]))
    return false;
  if (Array.isArray(a.data) || Array.isArray(b.data)) {
    const other = b.data;
    return (a.data as string[]).every((text, i) => text === other[i]);
  }
  const half = a.type === 'float16' || a.type === 'bfloat16' ? a.type : undefined;
  const numbers = (data: NumericData) => (half ? decodeHalf(data as Uint16Array, half) : data);
  const [x, y] = [numbers(a.data), numbers(b.data)];
  const tolerance = half !== undefined ? 2e-2 : a.type === 'float32' || a.type === 'float64' ? 1e-3 : 0;
  let largest = 0;
  for (const value of y) if (Number.isFinite(Number(value))) largest = Math.max(largest, Math.abs(Number(value)));
  for (let i = 0; i < x.length; i++) {
    if (Object.is(x[i], y[i]) || x[i] === y[i]) continue;
    if (!(Math.abs(Number(x[i]) - Number(y[i])) <= tolerance * largest)) return false;
  }
  return true;
}
