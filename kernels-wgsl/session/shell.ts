/** What the `InferenceSession` of `ort-flash/web` and that of `ort-flash/node` have in common. */
import type { InferenceSessionHandler, InferenceSession as OrtTypes } from 'onnxruntime-common';
import { OrtFlashError } from '../../graph-rewrite/errors.js';

/** An open session: what runs it, and what is to be told of it. */
export interface OpenedSession<Explanation> {
  readonly handler: InferenceSessionHandler;
  /** As it is now: it may change from run to run. */
  readonly explanation: Explanation;
}

/** A session that says what it runs on, how attention is carried out, and why so. */
export interface ExplainedSession<Explanation> extends OrtTypes {
  explain(): Explanation;
}

/** onnxruntime-common's ways to open a session. */
export interface SessionClass<Session, Options> {
  readonly prototype: Session;
  /**
   * Opens a model from an address or a path.
   * @throws OrtFlashError
   */
  create(uri: string, options?: Options): Promise<Session>;
  /** Opens a model from memory, which must not change while the session is made. */
  create(buffer: ArrayBufferLike | Uint8Array, options?: Options): Promise<Session>;
  create(buffer: ArrayBufferLike, byteOffset: number, byteLength?: number, options?: Options): Promise<Session>;
}

type HandlerSession = new (handler: InferenceSessionHandler) => OrtTypes;

/**
 * Makes an InferenceSession.
 * @param ortSession the runtime's own, which turns the arguments of `run` into those of a handler, and knows the
 *   runtime's tensors from other objects
 */
export function defineSession<Options extends object, Explanation>(
  ortSession: unknown,
  open: (model: string | Uint8Array, options: Options) => Promise<OpenedSession<Explanation>>,
): SessionClass<ExplainedSession<Explanation>, Options> {
  class InferenceSession extends (ortSession as HandlerSession) implements ExplainedSession<Explanation> {
    readonly #opened: OpenedSession<Explanation>;

    constructor(opened: OpenedSession<Explanation>) {
      super(opened.handler);
      this.#opened = opened;
    }

    explain(): Explanation {
      return this.#opened.explanation;
    }

    override async run(
      feeds: OrtTypes.FeedsType,
      fetchesOrOptions?: OrtTypes.FetchesType | OrtTypes.RunOptions,
      options?: OrtTypes.RunOptions,
    ): Promise<OrtTypes.ReturnType> {
      try {
        return await super.run(feeds, fetchesOrOptions as OrtTypes.FetchesType, options);
      } catch (error) {
        // Handlers throw OrtFlashErrors alone; the rest is what onnxruntime-common says of the arguments.
        if (error instanceof OrtFlashError || !(error instanceof Error)) throw error;
        throw new OrtFlashError('invalid-argument', `InferenceSession.run: ${error.message}`, {}, undefined, {
          cause: error,
        });
      }
    }

    static async create(source: unknown, ...rest: readonly unknown[]): Promise<ExplainedSession<Explanation>> {
      const { model, options } = readArguments<Options>(source, rest);
      return new InferenceSession(await open(model, options));
    }
  }
  return InferenceSession;
}

/** The arguments of `create`. */
function readArguments<Options extends object>(source: unknown, rest: readonly unknown[]) {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-argument', `InferenceSession.create: ${why}`);
  };
  const optionsOf = (value: unknown): Options => {
    if (value === undefined) return {} as Options;
    return typeof value === 'object' && value !== null ? (value as Options) : fail('options must be an object');
  };
  if (typeof source === 'string' || source instanceof Uint8Array) return { model: source, options: optionsOf(rest[0]) };
  const isShared = typeof SharedArrayBuffer !== 'undefined' && source instanceof SharedArrayBuffer;
  if (!(source instanceof ArrayBuffer) && !isShared)
    return fail('the model must be an address, a path, a Uint8Array or an ArrayBuffer');
  const buffer = source as ArrayBuffer;
  if (typeof rest[0] !== 'number') return { model: new Uint8Array(buffer), options: optionsOf(rest[0]) };
  const [offset, length = buffer.byteLength - offset] = rest as [number, number | undefined];
  const fits = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length > 0;
  if (!fits || offset + length > buffer.byteLength) fail('byteOffset and byteLength leave the buffer');
  return { model: new Uint8Array(buffer, offset, length), options: optionsOf(rest[2]) };
}
