import type { InferenceSession as OrtTypes } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import type { ExternalDataReader } from '../../graph-rewrite/onnx/external.js';

/** A data file of a model, in memory, under the location that the model's tensors name. */
export interface LoadedFile {
  readonly path: string;
  readonly data: Uint8Array;
}

type FileSource = string | Blob | ArrayBufferLike | Uint8Array;

/**
 * Reads a file: an address in browsers and with a scheme (`https:`, `blob:`, `data:`), otherwise in Node a path.
 * @throws OrtFlashError `file-access`
 */
export async function loadFile(source: FileSource): Promise<Uint8Array> {
  if (source instanceof Uint8Array) return source;
  if (typeof Blob !== 'undefined' && source instanceof Blob) return new Uint8Array(await source.arrayBuffer());
  if (typeof source !== 'string') return new Uint8Array(source as ArrayBuffer);
  try {
    const readFile = isAddress(source) ? undefined : nodeReadFile();
    if (readFile) return new Uint8Array(await readFile(source));
    const response = await fetch(source);
    if (!response.ok) throw new Error(`the server answers ${response.status} ${response.statusText}`.trim());
    return new Uint8Array(await response.arrayBuffer());
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new OrtFlashError('file-access', `the file cannot be read: ${why}`, { file: source }, undefined, { cause });
  }
}

/** Whether a text names a file of this machine, as only Node can open it. */
export function isPath(text: string): boolean {
  return !isAddress(text) && nodeReadFile() !== undefined;
}

const isAddress = (text: string) => /^[a-z][a-z0-9+.-]+:/i.test(text);

interface NodeProcess {
  readonly getBuiltinModule?: (name: string) => { readFile(path: string): Promise<Uint8Array> } | undefined;
}

/** Node's `readFile`, found without an import that a bundler for browsers would follow. */
function nodeReadFile(): ((path: string) => Promise<Uint8Array>) | undefined {
  const { process } = globalThis as { process?: NodeProcess };
  return process?.getBuiltinModule?.('node:fs/promises')?.readFile;
}

/** Reads the data files named in session options, each once, however many parts the model is cut into. */
export function loadExternalFiles(files: OrtTypes.SessionOptions['externalData'] = []): Promise<LoadedFile[]> {
  return Promise.all(
    files.map(async (file) =>
      typeof file === 'string'
        ? { path: file.split(/[\\/]/).at(-1)!, data: await loadFile(file) }
        : { path: file.path, data: await loadFile(file.data) },
    ),
  );
}

/** Gives tensors their data out of loaded files. */
export function externalReader(files: readonly LoadedFile[]): ExternalDataReader {
  const normal = (path: string) => path.replace(/^\.\//, '');
  return (location, offset, length) => {
    const file = files.find(({ path }) => normal(path) === normal(location));
    if (file === undefined)
      throw new OrtFlashError(
        'external-data',
        'a data file of the model is not given',
        { file: location },
        'name it in the option externalData',
      );
    return file.data.subarray(offset, offset + length);
  };
}
