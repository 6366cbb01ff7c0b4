import type { InferenceSession, Tensor } from 'onnxruntime-node';
import type { OrtFlashError } from '../graph-rewrite/errors.js';
import { type Feeds, type Fetches, FlashSessionHandler, type Results } from '../kernels-wgsl/session/handler.js';
import { type NativeSession, type NativeValueDescription, toOrtFlashError } from './node-addon.js';
import { nativeRunOptions } from './node-options.js';
import { feedOf, fillTensor, tensorOf } from './node-tensor.js';

/** Until the event loop has gone round once, as it does during any other run: timers and files get their turn. */
const nextTurn = () => new Promise<void>((done) => setImmediate(done));

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

  protected override async runModel(
    feeds: Feeds,
    fetches: Fetches,
    options: InferenceSession.RunOptions,
  ): Promise<Results> {
    const names = Object.keys(fetches);
    const native = this.#session.run(
      Object.keys(feeds).map((name) => feedOf(name, feeds[name])),
      names,
      names.filter((name) => fetches[name] == null && this.#locationOf(name) === 'gpu-buffer'),
      nativeRunOptions(options),
    );
    if (!(native instanceof Promise)) await nextTurn();
    const values = await native;
    const results: Results = {};
    for (const [i, name] of names.entries()) {
      const target = fetches[name];
      results[name] = target == null ? tensorOf(values[i]!) : await fillTensor(name, target as Tensor, values[i]!);
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
