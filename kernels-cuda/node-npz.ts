/** NumPy's `.npz`: a ZIP archive with one `.npy` an array, compressed (savez_compressed) or not (savez). */
import type { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { type Entry, open, type ZipFile } from 'yauzl';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { type ArrayTensor, decodeNpyElements, NPY_HEADER_BYTES, type NpyHeader, readNpyHeader } from './node-npy.js';

const openZip = promisify<string, { lazyEntries: boolean; autoClose: boolean }, ZipFile>(open);

interface StoredArray {
  readonly entry: Entry;
  readonly header: NpyHeader;
  /** The whole array, kept where its rows cannot be read alone: compressed, or in Fortran's order. */
  whole?: Promise<ArrayTensor>;
}

/** An open `.npz` file whose arrays are read row by row. */
export class NpzFile {
  readonly #zip: ZipFile;
  readonly #file: string;
  readonly #arrays: ReadonlyMap<string, StoredArray>;

  private constructor(zip: ZipFile, file: string, arrays: ReadonlyMap<string, StoredArray>) {
    this.#zip = zip;
    this.#file = file;
    this.#arrays = arrays;
  }

  /** @throws OrtFlashError `file-access` or `invalid-tensor` */
  static async open(file: string): Promise<NpzFile> {
    let zip: ZipFile;
    try {
      zip = await openZip(file, { lazyEntries: true, autoClose: false });
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new OrtFlashError('file-access', `cannot read the .npz file: ${why}`, { file }, undefined, {
        cause: error,
      });
    }
    try {
      const arrays = new Map<string, StoredArray>();
      for (const entry of await readEntries(zip)) {
        if (!entry.fileName.endsWith('.npy')) continue;
        const header = await readHeader(zip, entry, `${file}:${entry.fileName}`);
        arrays.set(entry.fileName.slice(0, -'.npy'.length), { entry, header });
      }
      return new NpzFile(zip, file, arrays);
    } catch (error) {
      zip.close();
      throw asOrtFlashError(error, file);
    }
  }

  /** The arrays' headers by their names. */
  headers(): ReadonlyMap<string, NpyHeader> {
    return new Map(Array.from(this.#arrays, ([name, { header }]) => [name, header]));
  }

  /** Row `row` of an array, as a tensor whose first axis is 1. */
  async readRow(name: string, row: number): Promise<ArrayTensor> {
    const array = this.#arrays.get(name)!;
    const { header, entry } = array;
    const [, ...rest] = header.dims;
    const place = `${this.#file}:${name}`;
    const rowBytes = rest.reduce((product, size) => product * size, header.elementBytes);
    try {
      if (entry.compressionMethod !== 0 || header.fortranOrder) {
        array.whole ??= this.#readWhole(array, place);
        return rowOf(await array.whole, row);
      }
      const start = header.dataOffset + row * rowBytes;
      const bytes = rowBytes === 0 ? new Uint8Array() : await readBytes(this.#zip, entry, start, start + rowBytes);
      return decodeNpyElements(header, bytes, [1, ...rest], place);
    } catch (error) {
      throw asOrtFlashError(error, place);
    }
  }

  async #readWhole({ entry, header }: StoredArray, place: string): Promise<ArrayTensor> {
    const bytes = await readBytes(this.#zip, entry);
    return decodeNpyElements(header, bytes.subarray(header.dataOffset), header.dims, place);
  }

  close(): void {
    this.#zip.close();
  }
}

function asOrtFlashError(error: unknown, file: string): OrtFlashError {
  if (error instanceof OrtFlashError) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new OrtFlashError('file-access', `cannot read the .npz file: ${why}`, { file }, undefined, { cause: error });
}

function readEntries(zip: ZipFile): Promise<Entry[]> {
  const entries: Entry[] = [];
  return new Promise((resolve, reject) => {
    zip.on('entry', (entry: Entry) => {
      entries.push(entry);
      zip.readEntry();
    });
    zip.once('end', () => resolve(entries));
    zip.once('error', reject);
    zip.readEntry();
  });
}

/** Reads an entry's bytes; a part of it only where it is stored uncompressed. */
async function readBytes(zip: ZipFile, entry: Entry, start?: number, end?: number): Promise<Uint8Array> {
  const stream = await new Promise<Readable>((resolve, reject) => {
    const done = (error: Error | null, opened: Readable) => (error ? reject(error) : resolve(opened));
    if (start === undefined || end === undefined) zip.openReadStream(entry, done);
    else zip.openReadStream(entry, { decompress: null, decrypt: null, start, end }, done);
  });
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** Reads the header of an entry, and no more of it than that takes. */
async function readHeader(zip: ZipFile, entry: Entry, place: string): Promise<NpyHeader> {
  const stored = entry.compressionMethod === 0;
  for (let length = NPY_HEADER_BYTES; ; length *= 16) {
    const end = Math.min(length, entry.uncompressedSize);
    const bytes = stored ? await readBytes(zip, entry, 0, end) : await readBytes(zip, entry);
    const header = readNpyHeader(bytes, place);
    if (header !== undefined) return header;
    if (!stored || end === entry.uncompressedSize)
      throw new OrtFlashError('invalid-tensor', 'the NumPy array ends in its header', { file: place });
  }
}

function rowOf({ type, dims, data }: ArrayTensor, row: number): ArrayTensor {
  const [, ...rest] = dims;
  const length = rest.reduce((product, size) => product * size, 1);
  return { type, dims: [1, ...rest], data: data.slice(row * length, (row + 1) * length) };
}
