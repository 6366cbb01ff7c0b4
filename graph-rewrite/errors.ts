/** What kind of fault an {@link OrtFlashError} reports; callers branch on this, people read the message. */
export type ErrorCode =
  /** The bytes are no ONNX model, or break a rule of the ONNX standard (truncated, cyclic, undefined value, …). */
  | 'malformed-model'
  /** External tensor data is missing, too short, or its location leaves the model's folder. */
  | 'external-data'
  /** A shape or data type does not fit the operator. */
  | 'invalid-tensor'
  /** An option or argument of the caller's is wrong. */
  | 'invalid-argument'
  /** A file cannot be read or written. */
  | 'file-access'
  /** The model is valid, and asks for something that this build does not do. */
  | 'unsupported'
  /** The device asked for is absent, was lost, or is out of memory. */
  | 'device'
  /** ONNX Runtime refused the model or failed while running it. */
  | 'runtime';

/** Where the fault is; every part is optional. */
export interface ErrorPlace {
  readonly file?: string;
  /** The node's name, or its operator and first output where it has none. */
  readonly node?: string;
  /** The tensor's or value's name. */
  readonly tensor?: string;
  readonly shape?: readonly (number | string)[];
}

/**
 * The one error type of this package: what was wrong, where, and what to do about it.
 *
 * `message` is a single line: `what [file, node, tensor, shape]; hint`.
 */
export class OrtFlashError extends Error {
  override readonly name = 'OrtFlashError';
  readonly code: ErrorCode;
  readonly place: ErrorPlace;
  /** What the user can do, where there is something to do. */
  readonly hint: string | undefined;

  constructor(code: ErrorCode, what: string, place: ErrorPlace = {}, hint?: string, options?: ErrorOptions) {
    super(formatMessage(what, place, hint), options);
    this.code = code;
    this.place = place;
    this.hint = hint;
  }
}

function formatMessage(what: string, place: ErrorPlace, hint?: string): string {
  const parts: string[] = [];
  if (place.file !== undefined) parts.push(place.file);
  if (place.node !== undefined) parts.push(`node ${place.node}`);
  if (place.tensor !== undefined) parts.push(`tensor ${place.tensor}`);
  if (place.shape !== undefined) parts.push(`shape (${place.shape.join(', ')})`);
  const where = parts.length > 0 ? ` [${parts.join(', ')}]` : '';
  return `${what}${where}${hint === undefined ? '' : `; ${hint}`}`.replace(/\s*\n\s*/g, ' ');
}
