import type { InferenceSessionHandler, InferenceSession as OrtTypes, SessionHandler } from 'onnxruntime-common';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { ortError } from './ort-error.js';

export type Feeds = SessionHandler.FeedsType;
export type Fetches = SessionHandler.FetchesType;
export type Results = SessionHandler.ReturnType;

/** A model's inputs and outputs, in its order. */
export interface ModelMetadata {
  readonly inputs: readonly OrtTypes.ValueMetadata[];
  readonly outputs: readonly OrtTypes.ValueMetadata[];
}

/**
 * onnxruntime-common's interface to a session, as far as all of this package's sessions are alike, in browsers and in
 * Node: names after the metadata, errors of one type, memory returned once, after the last run.
 */
export abstract class FlashSessionHandler implements InferenceSessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly OrtTypes.ValueMetadata[];
  readonly outputMetadata: readonly OrtTypes.ValueMetadata[];
  readonly #runs = new Set<Promise<unknown>>();
  #released: Promise<void> | undefined;

  constructor({ inputs, outputs }: ModelMetadata) {
    this.inputMetadata = inputs;
    this.outputMetadata = outputs;
    this.inputNames = inputs.map(({ name }) => name);
    this.outputNames = outputs.map(({ name }) => name);
  }

  /** Runs the model once; may be called again before it ends. */
  protected abstract runModel(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results>;

  /** Returns all memory; called once, when no run is under way. */
  protected abstract free(): Promise<void>;

  /** The error to tell of one that the runtime threw. */
  protected toError(error: unknown): OrtFlashError {
    return ortError(error);
  }

  /** @throws OrtFlashError `invalid-argument` after the release, `invalid-tensor`, `runtime` or `device` */
  async run(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results> {
    if (this.#released !== undefined) throw new OrtFlashError('invalid-argument', 'the session was released');
    const run = this.runModel(feeds, fetches, options);
    this.#runs.add(run);
    try {
      return await run;
    } catch (error) {
      throw this.toError(error);
    } finally {
      this.#runs.delete(run);
    }
  }

  /** Ends when the runs under way have ended and memory is returned. May be called again. */
  dispose(): Promise<void> {
    this.#released ??= Promise.allSettled(this.#runs).then(() => this.free());
    return this.#released;
  }

  /** Does nothing, as in ONNX Runtime's own packages: the session option `enableProfiling` starts profiling. */
  startProfiling(): void {}

  endProfiling(): void {}
}

/** A session of ONNX Runtime's own that has the model whole. */
export class WholeSessionHandler extends FlashSessionHandler {
  readonly #session: OrtTypes;
  readonly #inTurn: <T>(work: () => Promise<T>) => Promise<T>;

  /** @param inTurn carries out a call to the runtime when that may be called */
  constructor(session: OrtTypes, inTurn: <T>(work: () => Promise<T>) => Promise<T> = (work) => work()) {
    super({ inputs: session.inputMetadata, outputs: session.outputMetadata });
    this.#session = session;
    this.#inTurn = inTurn;
  }

  protected override runModel(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results> {
    return this.#inTurn(() => this.#session.run(feeds, fetches, options));
  }

  protected override free(): Promise<void> {
    return this.#inTurn(() => this.#session.release());
  }

  override startProfiling(): void {
    this.#session.startProfiling();
  }

  override endProfiling(): void {
    this.#session.endProfiling();
  }
}
