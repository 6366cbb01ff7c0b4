/** Where a batch's samples come from: a folder, a `.npz` or a `.jsonl` file, read one sample at a time. */
import { createReadStream, statSync } from 'node:fs';
import { type FileHandle, open, readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { encodeHalf } from '../graph-rewrite/op/half.js';
import { accessError } from '../graph-rewrite/whole-files.js';
import type { TensorFileFormat } from './node-batch-types.js';
import { arrayFromJson } from './node-json.js';
import type { ArrayTensor } from './node-npy.js';
import { NpzFile } from './node-npz.js';
import { fileNameOf, type NamedTensor, readNpyFile, readTensorProto } from './node-tensor-files.js';

type InputMetadata = readonly InferenceSession.ValueMetadata[];
type TensorInput = InferenceSession.TensorValueMetadata;

/** A sample's tensors by the model's input names. */
export type Sample = ReadonlyMap<string, ArrayTensor>;

/** Samples in order, each read when it is wanted. */
export interface SampleSource {
  /** Names of the samples' folders among the results; a single sample that is the folder itself is called ''. */
  readonly names: readonly string[];
  /** The format of the results, where the caller does not say. */
  readonly format: TensorFileFormat;
  /** @throws OrtFlashError where this one sample is at fault */
  read(index: number): Promise<Sample>;
  close(): Promise<void>;
}

/**
 * Opens the samples at a path.
 * @throws OrtFlashError `file-access` or `invalid-argument`
 */
export async function openSamples(path: string, inputs: InputMetadata): Promise<SampleSource> {
  const tensors = inputs.filter((input): input is TensorInput => input.isTensor);
  try {
    if ((await stat(path)).isDirectory()) return await openFolder(path, tensors);
    if (path.endsWith('.npz')) return await openNpz(path, tensors);
    if (path.endsWith('.jsonl')) return await openJsonLines(path, tensors);
  } catch (cause) {
    throw accessError('read', path, cause);
  }
  throw new OrtFlashError('invalid-argument', 'samples come from a folder, a .npz or a .jsonl file', { file: path });
}

const SAMPLE_FOLDER = 'test_data_set_';

async function openFolder(folder: string, inputs: readonly TensorInput[]): Promise<SampleSource> {
  const entries = await readdir(folder, { withFileTypes: true });
  const order = new Intl.Collator('en', { numeric: true });
  const folders = entries
    .filter((entry) => entry.name.startsWith(SAMPLE_FOLDER) && isFolder(join(folder, entry.name)))
    .map((entry) => entry.name)
    .sort(order.compare);
  const names = folders.length > 0 ? folders : [''];
  const format = await formatOf(names.map((name) => join(folder, name)));
  if (format === undefined) {
    const what = 'there are no samples here: neither test_data_set_* folders nor input_N.pb or NAME.npy files';
    throw new OrtFlashError('invalid-argument', what, { file: folder });
  }
  return {
    names,
    format,
    read: (index) => readFolderSample(join(folder, names[index]!), inputs),
    close: async () => {},
  };
}

const isFolder = (path: string) => statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;

/** The format of the first of these folders that holds tensors; undefined where none does. */
async function formatOf(folders: readonly string[]): Promise<TensorFileFormat | undefined> {
  for (const folder of folders) {
    const entries = await readdir(folder);
    if (entries.some((entry) => entry.endsWith('.npy'))) return 'npy';
    if (entries.some((entry) => /^input_\d+\.pb$/.test(entry))) return 'pb';
  }
  return undefined;
}

async function readFolderSample(folder: string, inputs: readonly TensorInput[]): Promise<Sample> {
  const entries = new Set(await readdir(folder));
  const tensors: NamedTensor[] = [];
  for (const [index, { name }] of inputs.entries()) {
    if (entries.has(`input_${index}.pb`)) {
      const tensor = await readTensorProto(join(folder, `input_${index}.pb`));
      const known = inputs.some((input) => input.name === tensor.name);
      tensors.push(known ? tensor : { ...tensor, name });
    } else if (entries.has(`${fileNameOf(name)}.npy`)) {
      tensors.push(await readNpyFile(join(folder, `${fileNameOf(name)}.npy`), name));
    }
  }
  return fitSample(new Map(tensors.map((tensor) => [tensor.name, tensor])), inputs, folder);
}

async function openNpz(file: string, inputs: readonly TensorInput[]): Promise<SampleSource> {
  const npz = await NpzFile.open(file);
  const fail = (why: string): never => {
    npz.close();
    throw new OrtFlashError('invalid-argument', why, { file });
  };
  const headers = npz.headers();
  const wanted = inputs.filter(({ name }) => headers.has(name));
  const sizes = new Set(wanted.map(({ name }) => headers.get(name)!.dims[0] ?? fail(`array ${name} has no axis`)));
  if (wanted.length === 0) fail(`no array is named after an input of the model (${namesOf(inputs)})`);
  if (sizes.size > 1) fail(`the first axes of the arrays, which count samples, differ (${[...sizes].join(', ')})`);
  return {
    names: sampleNames([...sizes][0]!),
    format: 'npy',
    read: async (index) => {
      const rows = await Promise.all(wanted.map(async ({ name }) => [name, await npz.readRow(name, index)] as const));
      return fitSample(new Map(rows), inputs, `${file}, sample ${index}`);
    },
    close: async () => npz.close(),
  };
}

async function openJsonLines(file: string, inputs: readonly TensorInput[]): Promise<SampleSource> {
  const lines = await findLines(file);
  if (lines.length === 0) throw new OrtFlashError('invalid-argument', 'there are no samples here', { file });
  const handle = await open(file);
  return {
    names: sampleNames(lines.length),
    format: 'npy',
    read: async (index) => {
      const place = `${file}, line ${lines[index]!.number}`;
      return fitSample(parseLine(await readLine(handle, lines[index]!), inputs, place), inputs, place);
    },
    close: () => handle.close(),
  };
}

interface Line {
  readonly number: number;
  readonly start: number;
  readonly end: number;
}

/** Where the lines of a file lie that are not blank. */
async function findLines(file: string): Promise<Line[]> {
  const lines: Line[] = [];
  let [start, position, number, blank] = [0, 0, 1, true];
  const finish = (end: number) => {
    if (!blank) lines.push({ number, start, end });
    [start, number, blank] = [end + 1, number + 1, true];
  };
  for await (const chunk of createReadStream(file)) {
    for (const byte of chunk as Buffer) {
      if (byte === 10) finish(position);
      else if (byte > 32) blank = false;
      position++;
    }
  }
  finish(position);
  return lines;
}

async function readLine(handle: FileHandle, { start, end }: Line): Promise<string> {
  const bytes = Buffer.alloc(end - start);
  let done = 0;
  while (done < bytes.length) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return bytes.toString('utf8');
}

function parseLine(text: string, inputs: readonly TensorInput[], place: string): Map<string, ArrayTensor> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new OrtFlashError('invalid-tensor', `the line is no JSON: ${why}`, { file: place });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new OrtFlashError('invalid-tensor', 'the line is no object from input name to array', { file: place });
  const tensors = new Map<string, ArrayTensor>();
  for (const [name, array] of Object.entries(value)) {
    const input = inputs.find((candidate) => candidate.name === name);
    if (input === undefined)
      throw new OrtFlashError('invalid-tensor', `the model has no input ${name}`, { file: place });
    tensors.set(name, arrayFromJson(array, input.type as DataTypeName, { file: place, tensor: name }));
  }
  return tensors;
}

const namesOf = (inputs: readonly TensorInput[]) => inputs.map(({ name }) => name).join(', ');

/** `test_data_set_00` to `test_data_set_41`, so that names sort as samples do. */
function sampleNames(count: number): string[] {
  const digits = String(Math.max(0, count - 1)).length;
  return Array.from({ length: count }, (_, i) => SAMPLE_FOLDER + String(i).padStart(digits, '0'));
}

/** Checks that a sample has all inputs, in the types that the model wants; gives a lacking batch axis. */
function fitSample(tensors: ReadonlyMap<string, ArrayTensor>, inputs: readonly TensorInput[], place: string): Sample {
  const missing = inputs.filter(({ name }) => !tensors.has(name));
  if (missing.length > 0)
    throw new OrtFlashError('invalid-tensor', `the sample lacks ${namesOf(missing)}`, { file: basename(place) });
  return new Map(inputs.map((input) => [input.name, fitTensor(tensors.get(input.name)!, input, place)]));
}

function fitTensor(tensor: ArrayTensor, input: TensorInput, place: string): ArrayTensor {
  const lacksBatch = tensor.dims.length === input.shape.length - 1;
  const dims = lacksBatch ? [1, ...tensor.dims] : tensor.dims;
  const type = input.type as DataTypeName;
  if (tensor.type === type) return { ...tensor, dims };
  // NumPy and JSON have no bfloat16.
  if (type === 'bfloat16' && tensor.type === 'float32')
    return { type, dims, data: encodeHalf(tensor.data as Float32Array, 'bfloat16') };
  const what = `input ${input.name} has type ${tensor.type}, the model expects ${type}`;
  throw new OrtFlashError('invalid-tensor', what, { file: place, tensor: input.name });
}
