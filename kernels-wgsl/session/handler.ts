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

/** How a runtime's session is to be handled. */
export interface WholeSessionOptions {
  /** Carries out a call to the runtime when that may be called; at once where left out. */
  readonly inTurn?: <T>(work: () => Promise<T>) => Promise<T>;
  /** Opens the session anew after a run failed, where the runtime would go on from the failed run's state. */
  readonly reopen?: () => Promise<OrtTypes>;
}

/** A session of ONNX Runtime's own that has the model whole. */
export class WholeSessionHandler extends FlashSessionHandler {
  readonly #inTurn: NonNullable<WholeSessionOptions['inTurn']>;
  readonly #reopen: WholeSessionOptions['reopen'];
  /** Undefined from when a failed run's session was closed until another is open. */
  #session: OrtTypes | undefined;
  #hasFailed = false;

  constructor(session: OrtTypes, { inTurn = (work) => work(), reopen }: WholeSessionOptions = {}) {
    super({ inputs: session.inputMetadata, outputs: session.outputMetadata });
    this.#session = session;
    this.#inTurn = inTurn;
    this.#reopen = reopen;
  }

  protected override runModel(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results> {
    return this.#inTurn(async () => {
      const session = await this.#usable();
      try {
        return await session.run(feeds, fetches, options);
      } catch (error) {
        this.#hasFailed = true;
        throw error;
      }
    });
  }

  protected override free(): Promise<void> {
    return this.#inTurn(async () => this.#session?.release());
  }

  async #usable(): Promise<OrtTypes> {
    if (this.#session !== undefined && !(this.#hasFailed && this.#reopen)) return this.#session;
    const failed = this.#session;
    this.#session = undefined;
    await failed?.release();
    this.#session = await this.#reopen!();
    this.#hasFailed = false;
    return this.#session;
  }

  override startProfiling(): void {
    this.#session?.startProfiling();
  }

  override endProfiling(): void {
    this.#session?.endProfiling();
  }
}
