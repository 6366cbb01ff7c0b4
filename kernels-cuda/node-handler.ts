import type { InferenceSession, Tensor } from 'onnxruntime-node';
import type { OrtFlashError } from '../graph-rewrite/errors.js';
import { type Feeds, type Fetches, FlashSessionHandler, type Results } from '../kernels-wgsl/session/handler.js';
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
export class AddonSessionHandler extends FlashSessionHandler {
  readonly #session: NativeSession;
  readonly #outputLocations: OutputLocations;
  readonly #file: string | undefined;

  /**
   * @param outputLocations which outputs stay on the GPU (`gpu-buffer`)
   * @param file the model's path, for errors
   */
  constructor(session: NativeSession, outputLocations: OutputLocations, file: string | undefined) {
    super({ inputs: session.inputs.map(metadataOf), outputs: session.outputs.map(metadataOf) });
    this.#session = session;
    this.#outputLocations = outputLocations;
    this.#file = file;
  }

  protected override toError(error: unknown): OrtFlashError {
    return toOrtFlashError(error, this.#file);
  }

  protected override runModel(feeds: Feeds, fetches: Fetches, options: InferenceSession.RunOptions): Promise<Results> {
    return inTurn(() => this.#run(feeds, fetches, options));
  }

  async #run(feeds: Feeds, fetches: Fetches, options: InferenceSession.RunOptions): Promise<Results> {
    const names = Object.keys(fetches);
    const native = await this.#session.run(
      Object.entries(feeds).map(([name, tensor]) => feedOf(name, tensor)),
      names.map((name) => ({ name, onDevice: fetches[name] == null && this.#locationOf(name) === 'gpu-buffer' })),
      nativeRunOptions(options),
    );
    const results: Results = {};
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

  protected override free(): Promise<void> {
    return this.#session.release();
  }

  override endProfiling(): void {
    try {
      this.#session.endProfiling();
    } catch (error) {
      throw this.toError(error);
    }
  }
}
