import type { InferenceSessionHandler, InferenceSession as OrtTypes } from 'onnxruntime-node';
import { InferenceSession as OrtSession } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { type SessionOptions as FlashSessionOptions, openSession, type SessionExplanation } from './node-devices.js';

/** onnxruntime-common's session, which turns the arguments of `run` into those of a handler. */
const HandlerSession = OrtSession as unknown as new (handler: InferenceSessionHandler) => OrtTypes;

/**
 * onnxruntime-node's InferenceSession, with attention as this package carries it out.
 *
 * Same options, methods and metadata. Besides:
 * - Models are rewritten as they are loaded, unless `flash` is 'off' among the options: attention runs in our kernels on
 *   CUDA, and elsewhere by ONNX Runtime's own fused operators, where these can express it.
 * - `executionProviders: ['cuda', 'webgpu', 'cpu']` falls through in order; `explain()` says which it took and why.
 * - Where the addon is built (`npm run build:addon`), `run` does not block the event loop and takes every ONNX type;
 *   see createTensor. Inputs must stay as they are until the promise settles.
 * - `preferredOutputLocation: 'gpu-buffer'` keeps outputs on a CUDA device; such a tensor can be fed again as it is.
 * - `release` waits for runs under way, and may be called more than once.
 * - Errors are OrtFlashError with ONNX Runtime's message.
 */
export class InferenceSession extends HandlerSession {
  readonly #explanation: SessionExplanation;

  private constructor(handler: InferenceSessionHandler, explanation: SessionExplanation) {
    super(handler);
    this.#explanation = explanation;
  }

  /** What the session runs on, and why not on the execution providers asked for before it. */
  explain(): SessionExplanation {
    return this.#explanation;
  }

  /**
   * Opens a model from a file or from memory.
   * @throws OrtFlashError where no execution provider takes it, with the reason of each
   */
  static create(uri: string, options?: InferenceSession.SessionOptions): Promise<InferenceSession>;
  static create(
    buffer: ArrayBufferLike | Uint8Array,
    options?: InferenceSession.SessionOptions,
  ): Promise<InferenceSession>;
  static create(
    buffer: ArrayBufferLike,
    byteOffset: number,
    byteLength?: number,
    options?: InferenceSession.SessionOptions,
  ): Promise<InferenceSession>;
  static async create(
    source: string | ArrayBufferLike | Uint8Array,
    ...rest: readonly unknown[]
  ): Promise<InferenceSession> {
    const { model, options } = readArguments(source, rest);
    const { handler, explanation } = await openSession(model, options);
    return new InferenceSession(handler, explanation);
  }
}

/** onnxruntime-node's types of sessions, under the names that they have there. */
export declare namespace InferenceSession {
  type SessionOptions = FlashSessionOptions;
  type RunOptions = OrtTypes.RunOptions;
  type FeedsType = OrtTypes.FeedsType;
  type FetchesType = OrtTypes.FetchesType;
  type ReturnType = OrtTypes.ReturnType;
  type OnnxValueMapType = OrtTypes.OnnxValueMapType;
  type NullableOnnxValueMapType = OrtTypes.NullableOnnxValueMapType;
  type ExecutionProviderConfig = OrtTypes.ExecutionProviderConfig;
  type ValueMetadata = OrtTypes.ValueMetadata;
}

/** The arguments of {@link InferenceSession.create}, which are onnxruntime-common's. */
function readArguments(source: unknown, rest: readonly unknown[]) {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-argument', `InferenceSession.create: ${why}`);
  };
  const optionsOf = (value: unknown): FlashSessionOptions => {
    if (value === undefined) return {};
    return typeof value === 'object' && value !== null ? value : fail('options must be an object');
  };
  if (typeof source === 'string' || source instanceof Uint8Array) return { model: source, options: optionsOf(rest[0]) };
  if (!(source instanceof ArrayBuffer) && !(source instanceof SharedArrayBuffer))
    return fail('the model must be a path, a Uint8Array or an ArrayBuffer');
  if (typeof rest[0] !== 'number') return { model: new Uint8Array(source), options: optionsOf(rest[0]) };
  const [offset, length = source.byteLength - offset] = rest as [number, number | undefined];
  const fits = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length > 0;
  if (!fits || offset + length > source.byteLength) fail('byteOffset and byteLength leave the buffer');
  return { model: new Uint8Array(source, offset, length), options: optionsOf(rest[2]) };
}
