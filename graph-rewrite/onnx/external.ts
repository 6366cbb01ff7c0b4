/** Tensors whose data lies in another file: the reference, and the rules for it (ONNX, docs/ExternalData.md). */
import { OrtFlashError } from '../errors.js';
import { DataLocation, type TensorProto } from './proto.js';

/**
 * Reads `length` bytes from `offset` on of the data file at `location`, a path relative to the model's folder.
 * Given by whoever knows where the model lies (files.ts in Node, a fetch in a browser).
 */
export type ExternalDataReader = (location: string, offset: number, length: number) => Uint8Array;

/** Where an external tensor's data is. */
export interface ExternalReference {
  /** Relative to the model's folder, with `/` between its parts. */
  readonly location: string;
  /** Bytes from the start of the file. */
  readonly offset: number;
  /** Bytes; absent where the model does not say: then the tensor's own size. */
  readonly length?: number;
}

/** Whether the tensor's data lies in another file. */
export function isExternal(tensor: TensorProto): boolean {
  return tensor.data_location === DataLocation.EXTERNAL;
}

/**
 * Where the tensor's data is, with the location checked by {@link checkLocation}.
 * @throws OrtFlashError `external-data` where the reference is incomplete, no number, or leaves the model's folder
 */
export function externalReference(tensor: TensorProto): ExternalReference {
  const entries = new Map(tensor.external_data.map((entry) => [entry.key, entry.value ?? '']));
  const location = entries.get('location');
  const fail = (what: string): never => {
    throw new OrtFlashError('external-data', what, { tensor: tensor.name ?? '' });
  };
  if (location === undefined || location === '') return fail('the external tensor names no file');
  const number = (key: string): number | undefined => {
    const text = entries.get(key);
    if (text === undefined) return undefined;
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    return Number.isSafeInteger(value) ? value : fail(`the external tensor's ${key} "${text}" is no number of bytes`);
  };
  checkLocation(location, tensor.name ?? '');
  const length = number('length');
  return { location, offset: number('offset') ?? 0, ...(length === undefined ? {} : { length }) };
}

/**
 * Refuses a location that is absolute or leaves the model's folder, on whatever system the model is read: `..`, a
 * leading slash, a drive letter, a backslash (a separator on Windows), a URL scheme, a control character.
 * @throws OrtFlashError `external-data`
 */
export function checkLocation(location: string, tensor: string): void {
  const parts = location.split('/');
  const why = location.startsWith('/')
    ? 'is absolute'
    : location.includes('\\')
      ? 'has a backslash'
      : /^[a-z][a-z0-9+.-]*:/i.test(location)
        ? 'starts with a drive or scheme'
        : parts.includes('..')
          ? "leaves the model's folder"
          : parts.at(-1) === '.' || parts.at(-1) === ''
            ? 'names a folder'
            : hasControlCharacter(location)
              ? 'has a control character'
              : undefined;
  if (why === undefined) return;
  const hint = 'data files must lie in the folder of the model or below it';
  throw new OrtFlashError('external-data', `the location "${printable(location)}" ${why}`, { tensor }, hint);
}

function hasControlCharacter(text: string): boolean {
  return [...text].some((character) => character < ' ' || character === '\x7f');
}

function printable(text: string): string {
  return [...text.slice(0, 200)].map((c) => (hasControlCharacter(c) ? '\ufffd' : c)).join('');
}

/**
 * The reference of an external tensor of this many bytes, with its length checked against them.
 * @param size undefined where the data type does not tell it
 * @throws OrtFlashError `external-data` as {@link externalReference}, or where the lengths differ
 */
export function checkedReference(tensor: TensorProto, size: number | undefined): ExternalReference {
  const reference = externalReference(tensor);
  if (size !== undefined && reference.length !== undefined && reference.length !== size) {
    const what = `${reference.length} external bytes for a tensor of ${size}`;
    throw new OrtFlashError('external-data', what, { tensor: tensor.name ?? '' });
  }
  return reference;
}

/**
 * Reads an external tensor of this many bytes.
 * @throws OrtFlashError `external-data` where there is no reader, the reference is wrong, or the data is too short
 */
export function readExternalTensor(tensor: TensorProto, size: number, read?: ExternalDataReader): Uint8Array {
  const { location, offset } = checkedReference(tensor, size);
  const place = { tensor: tensor.name ?? '' };
  if (read === undefined) {
    throw new OrtFlashError('external-data', `the tensor's data is in ${location} and cannot be read here`, place);
  }
  const bytes = read(location, offset, size);
  if (bytes.length === size) return bytes;
  throw new OrtFlashError('external-data', `${location} gave ${bytes.length} of ${size} bytes`, place);
}
