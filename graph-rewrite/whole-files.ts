/**
 * Files and folders that are there whole or not at all, whatever happens while they are written. With files.ts, what
 * needs Node in graph-rewrite.
 */
import { randomBytes } from 'node:crypto';
import { constants, mkdtempSync, rmdirSync, rmSync, statSync, unlinkSync } from 'node:fs';
import { copyFile, link, mkdir, open, realpath, rename, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { OrtFlashError } from './errors.js';

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
export async function outputPath(path: string): Promise<string> {
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
  if (!statSync(folder).isDirectory()) throw Object.assign(new Error(`${folder} is no folder`), { code: 'ENOTDIR' });
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

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Files that appear together or not at all. Each is made under a temporary name beside its place; `commit` renames
 * them. Until then any failure, signal or end of the process removes them again.
 */
export class Transaction {
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

/**
 * What the system says about a file, as this package says it, with the system's error as its cause.
 * @returns the cause itself where it is an OrtFlashError already
 */
export function accessError(
  verb: 'read' | 'written',
  path: string,
  cause: unknown,
  code: 'file-access' | 'external-data' = 'file-access',
): OrtFlashError {
  if (cause instanceof OrtFlashError) return cause;
  const why = REASONS[(cause as NodeJS.ErrnoException).code ?? ''] ?? (cause as Error).message;
  return new OrtFlashError(code, `the file cannot be ${verb}: ${why}`, { file: path }, undefined, { cause });
}
