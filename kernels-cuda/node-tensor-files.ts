/** Tensors in files: ONNX's TensorProto (`.pb`) and NumPy's `.npy`. */
import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import Long from 'long';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { decodeTensor, encodeTensor } from '../graph-rewrite/onnx/codec.js';
import { type DataTypeName, dataTypeName, dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import { TensorProto } from '../graph-rewrite/onnx/proto.js';
import { checkTensor, tensorData, tensorShape } from '../graph-rewrite/onnx/tensor.js';
import { accessError } from '../graph-rewrite/whole-files.js';
import type { TensorFileFormat } from './node-batch-types.js';
import { type ArrayTensor, decodeNpy, encodeNpy } from './node-npy.js';

/** A tensor and its name. */
export interface NamedTensor extends ArrayTensor {
  readonly name: string;
}

/** Characters that a name may have and a file's name may not, as their hexadecimal code. */
export function fileNameOf(name: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the characters to replace
  return name.replace(/[%/\\:*?"<>|\x00-\x1f]/g, (c) => `%${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

async function readBytes(file: string): Promise<Uint8Array> {
  try {
    return await readFile(file);
  } catch (error) {
    throw accessError('read', file, error);
  }
}

/**
 * Reads a `.pb` file that holds a TensorProto.
 * @throws OrtFlashError `file-access` or `malformed-model`
 */
export async function readTensorProto(file: string): Promise<NamedTensor> {
  const tensor = decodeTensor(await readBytes(file), file);
  const type = dataTypeName(tensor.data_type) as DataTypeName;
  checkTensor(tensor);
  const decoder = new TextDecoder();
  const data = type === 'string' ? tensor.string_data.map((text) => decoder.decode(text)) : tensorData(tensor);
  return { name: tensor.name ?? '', type, dims: tensorShape(tensor), data };
}

/**
 * Reads a `.npy` file.
 * @throws OrtFlashError `file-access` or `invalid-tensor`
 */
export async function readNpyFile(file: string, name: string): Promise<NamedTensor> {
  return { name, ...decodeNpy(await readBytes(file), file) };
}

function encodeTensorProto({ name, type, dims, data }: NamedTensor): Uint8Array {
  const head = { name, dims: dims.map((size) => Long.fromNumber(size)), data_type: dataTypeOf(type) };
  if (Array.isArray(data)) {
    const encoder = new TextEncoder();
    return encodeTensor(TensorProto.create({ ...head, string_data: data.map((text) => encoder.encode(text)) }));
  }
  const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return encodeTensor(TensorProto.create({ ...head, raw_data: raw }));
}

/** The names of the files that hold a model's outputs. */
export function outputFiles(format: TensorFileFormat, names: readonly string[]): string[] {
  return names.map((name, i) => (format === 'pb' ? `output_${i}.pb` : `${fileNameOf(name)}.npy`));
}

/** What a file or folder is called while it is written: no other process uses this name. */
const unfinished = (name: string) => `.${name}.partial-${hostname()}-${process.pid}`;

/** Whether an entry of a folder was left unfinished by a process of this machine that is no more. */
export function isAbandoned(entry: string): boolean {
  const [, host, id] = /^\..*\.partial-(.+)-(\d+)$/.exec(entry) ?? [];
  if (host !== hostname() || Number(id) === process.pid) return false;
  try {
    process.kill(Number(id), 0);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH';
  }
}

/**
 * Writes a sample's outputs into its folder. A new folder appears whole; in one that is there already each file does,
 * and what else it holds stays.
 * @param root the folder for the results of all samples, which must be there
 * @param sample the name of the sample's folder in it; '' where it is that one
 * @throws OrtFlashError `file-access`
 */
export async function writeOutputs(
  root: string,
  sample: string,
  format: TensorFileFormat,
  outputs: readonly NamedTensor[],
): Promise<void> {
  const names = outputFiles(
    format,
    outputs.map((output) => output.name),
  );
  const encoded = outputs.map(format === 'pb' ? encodeTensorProto : encodeNpy);
  const folder = join(root, sample);
  const partial = join(root, unfinished(sample));
  try {
    await rm(partial, { recursive: true, force: true });
    await mkdir(partial);
    // All have ended when one has failed: nothing is written any more when the folder is removed.
    const writes = await Promise.allSettled(names.map((name, i) => writeFile(join(partial, name), encoded[i]!)));
    for (const write of writes) if (write.status === 'rejected') throw write.reason;
    if (existsSync(folder)) {
      for (const name of names) await rename(join(partial, name), join(folder, name));
      await rm(partial, { recursive: true });
    } else {
      await rename(partial, folder);
    }
  } catch (error) {
    await rm(partial, { recursive: true, force: true }).catch(() => undefined);
    const why = error instanceof Error ? error.message : String(error);
    throw new OrtFlashError('file-access', `cannot write the results: ${why}`, { file: folder }, undefined, {
      cause: error,
    });
  }
}
