/**
 * Model files on disk: the one module of graph-rewrite that needs Node.
 *
 * External data is never loaded. A rewritten model refers to the same data files as the one that it was made from; in
 * another folder they are linked or copied beside it. Whatever is written is written whole or not at all.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  rmdirSync,
  rmSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import {
  copyFile,
  type FileHandle,
  link,
  lstat,
  mkdir,
  open,
  realpath,
  rename,
  stat,
  writeFile,
} from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { OrtFlashError } from './errors.js';
import { decodeModel, encodeModelChunks } from './onnx/codec.js';
import { type DataFile, dataFiles } from './onnx/data-files.js';
import { checkLocation, type ExternalDataReader } from './onnx/external.js';
import type { ModelProto } from './onnx/proto.js';

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

/**
 * Writes a file whole or not at all: to a temporary file in the same folder, flushed to the disk, then renamed.
 * @throws OrtFlashError `file-access`
 */
export async function writeWholeFile(path: string, chunks: readonly Uint8Array[]): Promise<void> {
  const transaction = new Transaction();
  try {
    await transaction.writeFile(await outputPath(path), chunks);
    await transaction.commit();
  } finally {
    transaction.close();
  }
}

/** Where to write: through a symbolic link, so that it stays one. */
async function outputPath(path: string): Promise<string> {
  if (path === '') throw new OrtFlashError('invalid-argument', 'the name of the output is empty');
  const status = await stat(path).catch(() => undefined);
  if (status?.isDirectory() || path.endsWith('/') || path.endsWith(sep)) {
    throw new OrtFlashError('file-access', 'the output is a folder', { file: path }, 'name the file to write in it');
  }
  if (status === undefined) return resolve(path);
  if (!status.isFile()) throw new OrtFlashError('file-access', 'the output is no file', { file: path });
  return realpath(path);
}

/**
 * Makes a folder and those above it that are not there. Not by mkdir's `recursive`, which never ends where a file system
 * refuses a folder as if the one above it were missing (Linux's /proc).
 * @param made gets the folders that were made, innermost first
 */
export async function makeFolders(folder: string, made: string[] = []): Promise<void> {
  const missing: string[] = [];
  const isThere = (path: string) => statSync(path, { throwIfNoEntry: false }) !== undefined;
  for (let path = resolve(folder); !isThere(path) && path !== dirname(path); path = dirname(path)) missing.push(path);
  for (const path of missing.reverse()) {
    try {
      await mkdir(path);
      made.unshift(path);
    } catch (error) {
      // Another process may have made it in the meantime.
      if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw error;
    }
  }
}

/**
 * A folder with a name of its own in `parent`, which is there, that is gone after `remove`, also where SIGINT or SIGTERM
 * ends the process before.
 * @throws OrtFlashError `file-access`
 */
export function temporaryFolder(parent: string): { readonly path: string; remove(): void } {
  let path: string;
  try {
    path = mkdtempSync(join(parent, '.ort-flash-'));
  } catch (cause) {
    throw accessError('written', parent, cause);
  }
  const end = (signal: NodeJS.Signals) => {
    remove();
    process.kill(process.pid, signal);
  };
  const remove = () => {
    rmSync(path, { recursive: true, force: true });
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, end);
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, end);
  return { path, remove };
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

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Files that appear together or not at all. Each is made under a temporary name beside its place; `commit` renames
 * them. Until then any failure, signal or end of the process removes them again.
 */
class Transaction {
  /** Temporary name and place of each file, in the order in which they are to appear. */
  private readonly pending: { readonly temporary: string; readonly target: string }[] = [];
  /** Folders made on the way, innermost first. */
  private readonly folders: string[] = [];
  private readonly placed: string[] = [];
  private closed = false;

  constructor() {
    if (unfinished.size === 0) listen('on');
    unfinished.add(this);
  }

  /** Writes, flushes, and returns the number of bytes; an existing file's permissions are kept. */
  async writeFile(target: string, chunks: readonly Uint8Array[]): Promise<number> {
    const mode = (await stat(target).catch(() => undefined))?.mode;
    return this.make(target, async (temporary) => {
      const file = await open(temporary, 'wx', mode);
      try {
        if (mode !== undefined) await file.chmod(mode & 0o7777);
        await writeFile(file, chunks);
        await file.sync();
      } finally {
        await file.close();
      }
      return chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    });
  }

  /** Makes a hard link; false where the file system cannot. */
  async link(source: string, target: string): Promise<boolean> {
    return this.make(target, (temporary) =>
      link(source, temporary).then(
        () => true,
        () => false,
      ),
    );
  }

  async copy(source: string, target: string): Promise<void> {
    // Where the file system can share blocks between files, this takes no time and no space.
    await this.make(target, (temporary) =>
      copyFile(source, temporary, constants.COPYFILE_FICLONE | constants.COPYFILE_EXCL),
    );
  }

  private async make<T>(target: string, action: (temporary: string) => Promise<T>): Promise<T> {
    // Part of the name tells whose it is; the whole could be too long with what comes before and behind.
    const name = basename(target).slice(0, 40);
    const temporary = join(dirname(target), `.${name}.${randomBytes(6).toString('hex')}.tmp`);
    try {
      await makeFolders(dirname(target), this.folders);
      this.pending.push({ temporary, target });
      const result = await action(temporary);
      if (result === false) this.pending.pop();
      return result;
    } catch (cause) {
      throw accessError('written', target, cause);
    }
  }

  /** Puts every file in its place; the last one made comes last. */
  async commit(): Promise<void> {
    while (this.pending.length > 0) {
      const { temporary, target } = this.pending[0]!;
      try {
        const isNew = (await stat(target).catch(() => undefined)) === undefined;
        await rename(temporary, target);
        if (isNew) this.placed.push(target);
        this.pending.shift();
      } catch (cause) {
        throw accessError('written', target, cause);
      }
      await flushFolder(dirname(target));
    }
    if (this.closed) throw new OrtFlashError('file-access', 'writing was interrupted');
    this.placed.length = 0;
    this.folders.length = 0;
  }

  /** Ends the transaction: what was not committed is removed. */
  close(): void {
    this.closed = true;
    this.undo();
    unfinished.delete(this);
    if (unfinished.size === 0) listen('off');
  }

  private undo(): void {
    const remove = (action: (path: string) => void, paths: string[]) => {
      for (const path of paths.splice(0)) {
        try {
          action(path);
        } catch {
          // It was not made yet, or somebody else uses it.
        }
      }
    };
    remove(
      unlinkSync,
      this.pending.splice(0).map((file) => file.temporary),
    );
    remove(unlinkSync, this.placed);
    remove(rmdirSync, this.folders);
  }
}

const unfinished = new Set<Transaction>();

function closeAll(): void {
  for (const transaction of unfinished) transaction.close();
}

function onSignal(signal: NodeJS.Signals): void {
  closeAll();
  // Where nobody else handles it, die of it, as the process would have without these listeners.
  if (process.listenerCount(signal) === 0) process.kill(process.pid, signal);
}

function listen(how: 'on' | 'off'): void {
  for (const signal of SIGNALS) process[how](signal, onSignal);
  process[how]('exit', closeAll);
}

/** Makes a rename last; file systems that cannot do this for a folder do not need it. */
async function flushFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => undefined);
  if (handle === undefined) return;
  await handle.sync().catch(() => undefined);
  await handle.close();
}

function reading<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    throw accessError('read', path, cause);
  }
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file or folder',
  EACCES: 'permission is denied',
  EPERM: 'permission is denied',
  EISDIR: 'it is a folder',
  ENOTDIR: 'part of its path is no folder',
  ENAMETOOLONG: 'its name is too long',
  ELOOP: 'its symbolic links lead in a circle',
  ENOSPC: 'the disk is full',
  EDQUOT: 'the disk quota is used up',
  EFBIG: 'it may not become so large',
  EROFS: 'the file system is read-only',
};

/** What the system says about a file, as this package says it: `file-access`, with the system's error as its cause. */
export function accessError(verb: 'read' | 'written', path: string, cause: unknown): OrtFlashError {
  if (cause instanceof OrtFlashError) return cause;
  const code = (cause as NodeJS.ErrnoException).code ?? '';
  const why = REASONS[code] ?? (cause as Error).message;
  return new OrtFlashError('file-access', `the file cannot be ${verb}: ${why}`, { file: path }, undefined, { cause });
}
