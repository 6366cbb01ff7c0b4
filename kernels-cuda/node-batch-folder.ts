/** The folder that a batch's results go into. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { accessError, makeFolders } from '../graph-rewrite/whole-files.js';
import { isAbandoned } from './node-tensor-files.js';

/** What the results of a batch are, and where. */
export interface OutputsPlace {
  readonly outputs: string;
  /** Path of the model file. */
  readonly model: string;
  readonly format: string;
  /** Whether results that are there may be kept. */
  readonly resume: boolean;
  /** Paths of all result files, inside `outputs`. */
  readonly files: () => Iterable<string>;
}

/**
 * Makes the folder, and sees to it that what it holds are results of this model: a file beside them says whose they
 * are. Results that are not to be kept go before that file is written, so that they never pass for new ones.
 * @throws OrtFlashError `invalid-argument` where it holds results of another model, or of nobody knows what,
 *   `file-access` where it cannot be used
 */
export async function prepareOutputs({ outputs, model, format, resume, files }: OutputsPlace): Promise<void> {
  const file = join(outputs, '.ort-flash-run.json');
  const manifest = JSON.stringify({ model: await fingerprint(model), format });
  await makeFolders(outputs).catch((cause: unknown) => {
    throw accessError('written', outputs, cause);
  });
  const before = resume ? await readFile(file, 'utf8').catch(() => undefined) : undefined;
  if (before !== undefined && before !== manifest) {
    const what = 'the folder holds results of another model, or in another format';
    const hint = 'choose another folder, or do not resume';
    throw new OrtFlashError('invalid-argument', what, { file: outputs }, hint);
  }
  const unknown =
    before === undefined && resume ? firstOf(files(), (old) => existsSync(join(outputs, old))) : undefined;
  if (unknown !== undefined) {
    const what = 'the folder holds results that no run has written';
    const hint = 'choose another folder, or do not resume: they are removed then';
    throw new OrtFlashError('invalid-argument', what, { file: join(outputs, unknown) }, hint);
  }
  if (!resume)
    for (const old of files())
      await orFail('cannot remove the old results', outputs, rm(join(outputs, old), { force: true }));
  await removeAbandoned(outputs);
  if (before !== manifest) await orFail('cannot write', file, writeWhole(file, manifest));
}

function firstOf<T>(all: Iterable<T>, wanted: (one: T) => boolean): T | undefined {
  for (const one of all) if (wanted(one)) return one;
  return undefined;
}

async function writeWhole(file: string, text: string): Promise<void> {
  const partial = `${file}.partial`;
  try {
    await writeFile(partial, text);
    await rename(partial, file);
  } catch (error) {
    await rm(partial, { force: true }).catch(() => undefined);
    throw error;
  }
}

/** Removes what processes left half-written that were killed. */
async function removeAbandoned(outputs: string): Promise<void> {
  const entries = await orFail('cannot read the folder', outputs, readdir(outputs));
  for (const entry of entries.filter(isAbandoned))
    await orFail('cannot remove what was left half-written', outputs, rm(join(outputs, entry), { recursive: true }));
}

async function orFail<T>(what: string, file: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new OrtFlashError('file-access', `${what}: ${why}`, { file }, undefined, { cause: error });
  }
}

/** A model file's size, and the hash of its first 64 MiB, which hold the graph. */
async function fingerprint(model: string): Promise<string> {
  const handle = await open(model);
  try {
    const { size } = await handle.stat();
    const head = Buffer.alloc(Math.min(size, 64 << 20));
    await handle.read(head, 0, head.length, 0);
    return `${size}-${createHash('sha256').update(head).digest('hex')}`;
  } finally {
    await handle.close();
  }
}
