/**
 * ONNX models and tensors from and to bytes, without loss and without copying tensor data.
 *
 * What is read is written back: fields that the schema does not know are kept at every level (protobufjs holds them as
 * `$unknowns`), tensor data stays a view of the bytes that it was read from, and text that is no valid UTF-8 survives.
 * Fields come out in the schema's order, so the same message always gives the same bytes.
 */
import { OrtFlashError } from '../errors.js';
import { ModelProto, TensorProto } from './proto.js';
import { MessageReader, MessageWriter } from './wire.js';

/** A protobuf message may not reach 2 GiB: other readers refuse it. */
const LARGEST_MESSAGE = 2 ** 31 - 1;

interface MessageType<T> {
  decode(reader: MessageReader): T;
  encode(message: T, writer: MessageWriter): unknown;
}

/**
 * Reads a model. Tensor data stays views of `bytes`, which must not change while the model is in use.
 * @param file the name that errors give
 * @throws OrtFlashError `malformed-model` with the byte offset where the bytes stop making sense
 */
export function decodeModel(bytes: Uint8Array, file?: string): ModelProto {
  const model = decodeMessage<ModelProto>(ModelProto, bytes, 'an ONNX model', file);
  if (model.graph === null || model.graph === undefined) {
    throw new OrtFlashError('malformed-model', 'the model holds no graph', place(file), hintFor(bytes));
  }
  return model;
}

/**
 * Writes a model into one array. {@link encodeModelChunks} spares the copy of its tensor data.
 * @throws OrtFlashError `unsupported` where the model would reach 2 GiB, `malformed-model` where it nests too deep
 */
export function encodeModel(model: ModelProto): Uint8Array {
  return concatenate(encodeModelChunks(model));
}

/**
 * Writes a model as a list of arrays that are to be written one after the other. Large tensor data is not copied: the
 * list holds the very arrays that the model holds.
 * @throws OrtFlashError as {@link encodeModel}
 */
export function encodeModelChunks(model: ModelProto): Uint8Array[] {
  return encodeMessage<ModelProto>(ModelProto, model, 'the model');
}

/**
 * Reads one tensor, as ONNX's test data files (`input_0.pb`) hold it.
 * @throws OrtFlashError `malformed-model`
 */
export function decodeTensor(bytes: Uint8Array, file?: string): TensorProto {
  return decodeMessage<TensorProto>(TensorProto, bytes, 'an ONNX tensor', file);
}

/** Writes one tensor, as ONNX's test data files hold it. */
export function encodeTensor(tensor: TensorProto): Uint8Array {
  return concatenate(encodeMessage<TensorProto>(TensorProto, tensor, 'the tensor'));
}

function decodeMessage<T>(type: MessageType<T>, bytes: Uint8Array, what: string, file?: string): T {
  if (bytes.length === 0) throw new OrtFlashError('malformed-model', 'the file is empty', place(file));
  const reader = new MessageReader(bytes);
  try {
    return type.decode(reader);
  } catch (cause) {
    if (!(cause instanceof Error)) throw cause;
    const where = `at byte ${Math.min(reader.pos, bytes.length)} of ${bytes.length}`;
    const isCut = cause.message.startsWith('index out of range');
    // protobufjs names the offset in some of its messages.
    const why = isCut ? 'a field reaches past its end' : cause.message.replace(/ at offset \d+$/, '');
    const hint = hintFor(bytes) ?? (isCut ? 'it may have been cut short: copy or download it again' : undefined);
    throw new OrtFlashError('malformed-model', `not ${what}: ${why} ${where}`, place(file), hint, { cause });
  }
}

function encodeMessage<T>(type: MessageType<T>, message: T, what: string): Uint8Array[] {
  const writer = new MessageWriter();
  try {
    type.encode(message, writer);
  } catch (cause) {
    if (!(cause instanceof Error)) throw cause;
    throw new OrtFlashError('malformed-model', `${what} cannot be written: ${cause.message}`, {}, undefined, { cause });
  }
  const chunks = writer.chunks();
  const size = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  if (size > LARGEST_MESSAGE) {
    const hint = 'keep its weights as external data';
    throw new OrtFlashError('unsupported', `${what} takes ${size} bytes; protobuf ends at 2 GiB`, {}, hint);
  }
  return chunks;
}

function concatenate(chunks: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let position = 0;
  for (const chunk of chunks) {
    whole.set(chunk, position);
    position += chunk.length;
  }
  return whole;
}

function place(file: string | undefined): { file?: string } {
  return file === undefined ? {} : { file };
}

/** What a file that is no model is instead, where its first bytes tell. */
function hintFor(bytes: Uint8Array): string | undefined {
  const start = String.fromCharCode(...bytes.subarray(0, 64));
  if (start.startsWith('version https://git-lfs')) {
    return 'this is a Git LFS pointer: fetch the file itself with "git lfs pull"';
  }
  if (start.slice(4, 8) === 'ORTM') return 'this is an ORT-format model: give the .onnx file that it was made from';
  if (start.startsWith('PK')) return 'this is a ZIP archive: unpack it first';
  if (/^[\t\n\r -~]+$/.test(start)) return 'this is text, perhaps an error page saved in place of the model';
  return undefined;
}
