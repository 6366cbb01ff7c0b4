import type { InferenceSessionHandler, InferenceSession as OrtTypes, SessionHandler, Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { inTurn } from './engine.js';
import { checkFeeds } from './feeds.js';
import type { ModelMetadata } from './metadata.js';
import { ortError } from './ort-error.js';
import type { SplicedSession } from './spliced-session.js';

type Feeds = SessionHandler.FeedsType;
type Fetches = SessionHandler.FetchesType;
type Results = SessionHandler.ReturnType;

const released = () => new OrtFlashError('invalid-argument', 'the session was released');

/** onnxruntime-common's interface to a session, over a model that runs in parts. */
export class SplicedHandler implements InferenceSessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly OrtTypes.ValueMetadata[];
  readonly outputMetadata: readonly OrtTypes.ValueMetadata[];
  readonly #session: SplicedSession;
  readonly #metadata: ModelMetadata;
  #released: Promise<void> | undefined;

  constructor(session: SplicedSession, metadata: ModelMetadata) {
    this.#session = session;
    this.#metadata = metadata;
    this.inputMetadata = metadata.inputs;
    this.outputMetadata = metadata.outputs;
    this.inputNames = metadata.inputs.map(({ name }) => name);
    this.outputNames = metadata.outputs.map(({ name }) => name);
  }

  /** @throws OrtFlashError `invalid-tensor`, `runtime` or `device` */
  async run(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results> {
    if (this.#released !== undefined) throw released();
    const tensors = feeds as Record<string, Tensor>;
    checkFeeds(this.#metadata, tensors);
    return this.#session.run(tensors, fetches as Record<string, Tensor | null>, options);
  }

  /** Ends when the runs under way have ended and memory is returned. May be called again. */
  dispose(): Promise<void> {
    this.#released ??= this.#session.release();
    return this.#released;
  }

  /** Does nothing, as in onnxruntime-web: the session option `enableProfiling` starts profiling. */
  startProfiling(): void {}

  endProfiling(): void {}
}

/** A session of ONNX Runtime's own, that takes its turn with the others and may be released twice. */
export class PlainHandler implements InferenceSessionHandler {
  readonly #session: OrtTypes;
  #released: Promise<void> | undefined;

  constructor(session: OrtTypes) {
    this.#session = session;
  }

  get inputNames(): readonly string[] {
    return this.#session.inputNames;
  }

  get outputNames(): readonly string[] {
    return this.#session.outputNames;
  }

  get inputMetadata(): readonly OrtTypes.ValueMetadata[] {
    return this.#session.inputMetadata;
  }

  get outputMetadata(): readonly OrtTypes.ValueMetadata[] {
    return this.#session.outputMetadata;
  }

  /** @throws OrtFlashError `runtime` with ONNX Runtime's message */
  async run(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results> {
    if (this.#released !== undefined) throw released();
    try {
      return await inTurn(() => this.#session.run(feeds, fetches, options));
    } catch (error) {
      throw ortError(error);
    }
  }

  dispose(): Promise<void> {
    this.#released ??= inTurn(() => this.#session.release());
    return this.#released;
  }

  startProfiling(): void {
    this.#session.startProfiling();
  }

  endProfiling(): void {
    this.#session.endProfiling();
  }
}
