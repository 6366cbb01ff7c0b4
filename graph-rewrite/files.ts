/**
 * Model files on disk. With whole-files.ts, what needs Node in graph-rewrite.
 *
 * External data is never loaded. A rewritten model refers to the same data files as the one that it was made from; in
 * another folder they are linked or copied beside it. Whatever is written is written whole or not at all.
 */
import { closeSync, fstatSync, openSync, readFileSync, readSync, realpathSync, statSync } from 'node:fs';
import { type FileHandle, lstat, open, stat } from 'node:fs/promises';
import { dirname, join, resolve, sep } from 'node:path';
import { OrtFlashError } from './errors.js';
import { decodeModel, encodeModelChunks } from './onnx/codec.js';
import { type DataFile, dataFiles } from './onnx/data-files.js';
import { checkLocation, type ExternalDataReader } from './onnx/external.js';
import type { ModelProto } from './onnx/proto.js';
import { accessError, outputPath, Transaction } from './whole-files.js';

/**
 * What becomes of the data files when a model is written to another folder than its source's.
 * - `keep`: nothing; they must lie beside the output already
 * - `link`: a hard link beside the output, or a copy where the file system cannot link
 * - `copy`: a copy beside the output
 */
export type ExternalDataMode = 'keep' | 'link' | 'copy';

export interface ReadOptions {
  /** Whether to check that all external data is there (default), without loading it. */
  readonly checkExternalData?: boolean;
}

export interface WriteOptions {
  /** The file that the model was made from: its data files lie beside it. Absent for a model without a source. */
  readonly source?: string;
  /** Default `link`. */
  readonly externalData?: ExternalDataMode;
}

/** What was done with one data file. */
export interface DataFileReport {
  /** Relative to the model's folder. */
  readonly location: string;
  /** `kept`: it was beside the output already. */
  readonly action: 'kept' | 'linked' | 'copied';
  readonly bytes: number;
}

export interface WriteReport {
  /** Bytes of the model file itself. */
  readonly bytes: number;
  readonly dataFiles: readonly DataFileReport[];
}

/** A protobuf message ends at 2 GiB, so a longer file is no model. */
const LARGEST_FILE = 2 ** 31 - 1;

/**
 * Reads a model file. Its external data stays where it is.
 * @throws OrtFlashError `file-access` where the file cannot be read, `malformed-model` where it is no model,
 *   `external-data` where a data file is missing, too short, or out of the model's folder
 */
export function readModelFile(path: string, options: ReadOptions = {}): ModelProto {
  const model = decodeModel(readWholeFile(path), path);
  if (options.checkExternalData ?? true) {
    for (const file of dataFiles(model)) checkDataFile(dirname(path), file);
  }
  return model;
}

function readWholeFile(path: string): Uint8Array {
  const bytes = reading(path, () => {
    const { size } = statSync(path);
    if (size <= LARGEST_FILE) return readFileSync(path);
    throw new OrtFlashError('malformed-model', `the file takes ${size} bytes; an ONNX model ends at 2 GiB`, {
      file: path,
    });
  });
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * A reader for the external tensors of the model in this file, for passes that need a tensor's value.
 * Each call opens the file, checks that it lies within the model's folder, and reads just the bytes asked for.
 */
export function externalDataReader(modelPath: string): ExternalDataReader {
  return (location, offset, length) => {
    checkLocation(location, '');
    const path = dataFilePath(dirname(modelPath), { location, needed: offset + length, tensor: '' });
    return reading(path, () => {
      const descriptor = openSync(path, 'r');
      try {
        const bytes = new Uint8Array(Math.min(length, Math.max(0, fstatSync(descriptor).size - offset)));
        let done = 0;
        while (done < bytes.length) {
          const count = readSync(descriptor, bytes, done, bytes.length - done, offset + done);
          if (count === 0) break;
          done += count;
        }
        return bytes.subarray(0, done);
      } finally {
        closeSync(descriptor);
      }
    });
  };
}

/**
 * The path of a data file, with symbolic links followed.
 * @throws OrtFlashError `external-data` where it is missing, no file, or leaves the folder
 */
function dataFilePath(folder: string, { location, tensor }: DataFile): string {
  const path = join(folder, location);
  let real: string;
  try {
    real = realpathSync(path);
  } catch (cause) {
    const hint = 'a model and its data files must be moved together';
    throw new OrtFlashError('external-data', 'the data file is missing', { file: path, tensor }, hint, { cause });
  }
  if (!real.startsWith(withSeparator(realpathSync(folder)))) {
    const hint = `copy ${real} to ${path}`;
    throw new OrtFlashError(
      'external-data',
      `the data file is a link out of the model's folder`,
      { file: path, tensor },
      hint,
    );
  }
  return real;
}

function withSeparator(folder: string): string {
  return folder.endsWith(sep) ? folder : folder + sep;
}

/** Checks that a data file is there and long enough; returns its path and size. */
function checkDataFile(folder: string, file: DataFile): { path: string; bytes: number } {
  const path = dataFilePath(folder, file);
  const status = reading(path, () => statSync(path));
  const place = { file: join(folder, file.location), tensor: file.tensor };
  if (!status.isFile()) throw new OrtFlashError('external-data', 'the data file is no file', place);
  if (status.size < file.needed) {
    const what = `the data file has ${status.size} bytes, the tensor needs it to have ${file.needed}`;
    throw new OrtFlashError('external-data', what, place, 'it was cut short, or belongs to another model');
  }
  return { path, bytes: status.size };
}

/**
 * Writes a model file and, in another folder than its source's, its data files: all of them or none. The output may be
 * the source itself.
 * @throws OrtFlashError `file-access` where something cannot be written, `external-data` where a data file is missing
 *   or another file has its place, `unsupported` where the model file would reach 2 GiB
 */
export async function writeModelFile(
  path: string,
  model: ModelProto,
  options: WriteOptions = {},
): Promise<WriteReport> {
  const chunks = encodeModelChunks(model);
  const files = dataFiles(model);
  const folder = dirname(resolve(path));
  const mode = options.externalData ?? 'link';
  const sourceFolder = options.source === undefined || mode === 'keep' ? folder : dirname(resolve(options.source));
  const transaction = new Transaction();
  try {
    const target = await outputPath(path);
    const dataReports: DataFileReport[] = [];
    for (const file of files) {
      const source = checkDataFile(sourceFolder, file);
      if (source.path === target) {
        const place = { file: path, tensor: file.tensor };
        throw new OrtFlashError(
          'invalid-argument',
          'the output would overwrite its own data file',
          place,
          'choose another name',
        );
      }
      const action = await placeDataFile(transaction, source.path, folder, file, mode);
      dataReports.push({ location: file.location, action, bytes: source.bytes });
    }
    const bytes = await transaction.writeFile(target, chunks);
    await transaction.commit();
    return { bytes, dataFiles: dataReports };
  } finally {
    transaction.close();
  }
}

async function placeDataFile(
  transaction: Transaction,
  source: string,
  folder: string,
  file: DataFile,
  mode: ExternalDataMode,
): Promise<DataFileReport['action']> {
  const target = join(folder, file.location);
  if ((await lstat(target).catch(() => undefined)) !== undefined) {
    if (await sameContent(source, checkDataFile(folder, file).path)) return 'kept';
    const hint = 'remove it, or write the model to another folder';
    throw new OrtFlashError('external-data', "another data file has the place of the model's", { file: target }, hint);
  }
  if (mode === 'link' && (await transaction.link(source, target))) return 'linked';
  await transaction.copy(source, target);
  return 'copied';
}

async function sameContent(a: string, b: string): Promise<boolean> {
  const [statusA, statusB] = await Promise.all([stat(a), stat(b)]);
  if (statusA.ino === statusB.ino && statusA.dev === statusB.dev) return true;
  if (statusA.size !== statusB.size || !statusB.isFile()) return false;
  const block = 1 << 20;
  const [fileA, fileB] = await Promise.all([open(a), open(b)]);
  try {
    const [blockA, blockB] = [Buffer.alloc(block), Buffer.alloc(block)];
    for (let position = 0; position < statusA.size; position += block) {
      const length = Math.min(block, statusA.size - position);
      await Promise.all([readFully(fileA, blockA, length, position), readFully(fileB, blockB, length, position)]);
      if (blockA.compare(blockB, 0, length, 0, length) !== 0) return false;
    }
    return true;
  } finally {
    await Promise.all([fileA.close(), fileB.close()]);
  }
}

async function readFully(file: FileHandle, block: Buffer, length: number, position: number): Promise<void> {
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(block, done, length - done, position + done);
    if (bytesRead === 0) throw new OrtFlashError('file-access', 'a data file changed while it was read');
    done += bytesRead;
  }
}

function reading<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    throw accessError('read', path, cause);
  }
}
