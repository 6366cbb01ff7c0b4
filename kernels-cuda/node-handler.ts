import type { InferenceSession, InferenceSessionHandler, SessionHandler, Tensor } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { type NativeSession, type NativeValueDescription, toOrtFlashError } from './node-addon.js';
import { nativeRunOptions } from './node-options.js';
import { feedOf, fillTensor, tensorOf } from './node-tensor.js';

/**
 * How many runs this JavaScript environment gives to Node's thread pool at a time. One thread of the pool stays free,
 * so that files are still read and names looked up while models run. UV_THREADPOOL_SIZE sets the pool's size.
 */
export const MOST_RUNS = Math.max(1, (Number(process.env.UV_THREADPOOL_SIZE) || 4) - 1);

let running = 0;
const waiting: (() => void)[] = [];

/** Waits for its turn, in order, and runs `work`. */
async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (running >= MOST_RUNS) await new Promise<void>((turn) => waiting.push(turn));
  else running++;
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next === undefined) running--;
    else next();
  }
}

function metadataOf({ name, isTensor, type, shape }: NativeValueDescription): InferenceSession.ValueMetadata {
  if (!isTensor) return { name, isTensor: false };
  return { name, isTensor: true, type: type as Tensor.Type, shape: shape ?? [] };
}

type OutputLocations = InferenceSession.SessionOptions['preferredOutputLocation'];

/** onnxruntime-common's interface to a session, over a session of the addon. Runs do not block the event loop. */
export class AddonSessionHandler implements InferenceSessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly outputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly #session: NativeSession;
  readonly #outputLocations: OutputLocations;
  readonly #file: string | undefined;
  readonly #runs = new Set<Promise<unknown>>();
  #released: Promise<void> | undefined;

  /**
   * @param outputLocations which outputs stay on the GPU (`gpu-buffer`)
   * @param file the model's path, for errors
   */
  constructor(session: NativeSession, outputLocations: OutputLocations, file: string | undefined) {
    this.#session = session;
    this.#outputLocations = outputLocations;
    this.#file = file;
    this.inputMetadata = session.inputs.map(metadataOf);
    this.outputMetadata = session.outputs.map(metadataOf);
    this.inputNames = this.inputMetadata.map((input) => input.name);
    this.outputNames = this.outputMetadata.map((output) => output.name);
  }

  /**
   * @throws OrtFlashError `invalid-tensor` where an input does not fit the model, `runtime` with ONNX Runtime's message
   */
  async run(
    feeds: SessionHandler.FeedsType,
    fetches: SessionHandler.FetchesType,
    options: InferenceSession.RunOptions,
  ): Promise<SessionHandler.ReturnType> {
    if (this.#released !== undefined) throw new OrtFlashError('invalid-argument', 'the session was released');
    const run = inTurn(() => this.#run(feeds, fetches, options));
    this.#runs.add(run);
    try {
      return await run;
    } catch (error) {
      throw toOrtFlashError(error, this.#file);
    } finally {
      this.#runs.delete(run);
    }
  }

  async #run(
    feeds: SessionHandler.FeedsType,
    fetches: SessionHandler.FetchesType,
    options: InferenceSession.RunOptions,
  ): Promise<SessionHandler.ReturnType> {
    const names = Object.keys(fetches);
    const native = await this.#session.run(
      Object.entries(feeds).map(([name, tensor]) => feedOf(name, tensor)),
      names.map((name) => ({ name, onDevice: fetches[name] == null && this.#locationOf(name) === 'gpu-buffer' })),
      nativeRunOptions(options),
    );
    const results: SessionHandler.ReturnType = {};
    for (const name of names) {
      const target = fetches[name];
      const result = native[name]!;
      results[name] = target == null ? tensorOf(result) : fillTensor(name, target as Tensor, result);
    }
    return results;
  }

  #locationOf(name: string): Tensor.DataLocation | undefined {
    const locations = this.#outputLocations;
    return typeof locations === 'object' ? locations[name] : locations;
  }

  /** Ends when the runs under way have ended and the session's memory is returned. May be called again. */
  dispose(): Promise<void> {
    this.#released ??= this.#dispose();
    return this.#released;
  }

  async #dispose(): Promise<void> {
    await Promise.allSettled(this.#runs);
    await this.#session.release();
  }

  /** Does nothing, as in onnxruntime-node: the session option `enableProfiling` starts profiling. */
  startProfiling(): void {}

  endProfiling(): void {
    try {
      this.#session.endProfiling();
    } catch (error) {
      throw toOrtFlashError(error, this.#file);
    }
  }
}
