import {
  type InferenceSessionHandler,
  InferenceSession as OrtSession,
  type InferenceSession as OrtTypes,
} from '#onnxruntime-web';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { openWebSession, type WebSessionExplanation, type WebSessionOptions } from './web-open.js';

/** onnxruntime-common's session, which turns the arguments of `run` into those of a handler. */
const HandlerSession = OrtSession as unknown as new (handler: InferenceSessionHandler) => OrtTypes;

/**
 * onnxruntime-web's InferenceSession, with attention in FlashAttention kernels. Same options, methods and metadata.
 * Besides:
 * - `flash: 'auto' | 'on' | 'off'` among the options; `explain()` says what came of it, and why.
 * - Without `executionProviders`, sessions run on WebGPU, and on WebAssembly where there is none.
 * - Models are rewritten as they are loaded; files written by `ort-flash rewrite` need not be.
 * - `run` may be called again before the last one ended: its work is queued behind on the GPU, without waiting.
 * - `release` waits for runs under way, and may be called more than once.
 * - Errors are OrtFlashError. A lost device rejects the runs under way; a session created after that gets a new one.
 */
export class InferenceSession extends HandlerSession {
  readonly #explanation: WebSessionExplanation;

  private constructor(handler: InferenceSessionHandler, explanation: WebSessionExplanation) {
    super(handler);
    this.#explanation = explanation;
  }

  /** What the session runs on, how attention is carried out, and why so. */
  explain(): WebSessionExplanation {
    return this.#explanation;
  }

  /**
   * Opens a model from an address (in Node also a path) or from memory, which must not change while the session is made.
   * @throws OrtFlashError
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
    const { handler, explanation } = await openWebSession(model, options);
    return new InferenceSession(handler, explanation);
  }
}

/** onnxruntime-web's types of sessions, under the names that they have there. */
export declare namespace InferenceSession {
  type SessionOptions = WebSessionOptions;
  type RunOptions = OrtTypes.RunOptions;
  type FeedsType = OrtTypes.FeedsType;
  type FetchesType = OrtTypes.FetchesType;
  type ReturnType = OrtTypes.ReturnType;
  type OnnxValueMapType = OrtTypes.OnnxValueMapType;
  type NullableOnnxValueMapType = OrtTypes.NullableOnnxValueMapType;
  type ExecutionProviderConfig = OrtTypes.ExecutionProviderConfig;
  type WebGpuExecutionProviderOption = OrtTypes.WebGpuExecutionProviderOption;
  type WebAssemblyExecutionProviderOption = OrtTypes.WebAssemblyExecutionProviderOption;
  type ValueMetadata = OrtTypes.ValueMetadata;
}

/** The arguments of {@link InferenceSession.create}, which are onnxruntime-common's. */
function readArguments(source: unknown, rest: readonly unknown[]) {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-argument', `InferenceSession.create: ${why}`);
  };
  const optionsOf = (value: unknown): WebSessionOptions => {
    if (value === undefined) return {};
    return typeof value === 'object' && value !== null ? value : fail('options must be an object');
  };
  if (typeof source === 'string' || source instanceof Uint8Array) return { model: source, options: optionsOf(rest[0]) };
  const isShared = typeof SharedArrayBuffer !== 'undefined' && source instanceof SharedArrayBuffer;
  if (!(source instanceof ArrayBuffer) && !isShared)
    return fail('the model must be an address, a Uint8Array or an ArrayBuffer');
  const buffer = source as ArrayBuffer;
  if (typeof rest[0] !== 'number') return { model: new Uint8Array(buffer), options: optionsOf(rest[0]) };
  const [offset, length = buffer.byteLength - offset] = rest as [number, number | undefined];
  const fits = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length > 0;
  if (!fits || offset + length > buffer.byteLength) fail('byteOffset and byteLength leave the buffer');
  return { model: new Uint8Array(buffer, offset, length), options: optionsOf(rest[2]) };
}
