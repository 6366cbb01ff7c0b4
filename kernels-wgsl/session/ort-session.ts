import { InferenceSession as OrtSession, type InferenceSession as OrtTypes, Tensor } from '#onnxruntime-web';
import { inTurn } from './engine.js';

type Results = OrtTypes.ReturnType;

/** Opens a session of ONNX Runtime's whose outputs on the GPU may outlive its release. */
export async function openOrtSession(model: string | Uint8Array, options: OrtTypes.SessionOptions): Promise<OrtTypes> {
  const session = typeof model === 'string' ? OrtSession.create(model, options) : OrtSession.create(model, options);
  return new OutlivedSession(await session);
}

/**
 * A session of ONNX Runtime's that is released when the last of its outputs on the GPU is disposed of: their memory is the
 * session's, and onnxruntime-web ends in an access out of bounds where one is disposed of after it.
 */
class OutlivedSession implements OrtTypes {
  readonly #session: OrtTypes;
  readonly #outputs = new Set<Tensor>();
  #isReleased = false;

  constructor(session: OrtTypes) {
    this.#session = session;
  }

  get inputNames() {
    return this.#session.inputNames;
  }

  get outputNames() {
    return this.#session.outputNames;
  }

  get inputMetadata() {
    return this.#session.inputMetadata;
  }

  get outputMetadata() {
    return this.#session.outputMetadata;
  }

  async run(
    feeds: OrtTypes.FeedsType,
    fetches: OrtTypes.FetchesType | OrtTypes.RunOptions = {},
    options: OrtTypes.RunOptions = {},
  ): Promise<Results> {
    const results = await this.#session.run(feeds, fetches as OrtTypes.FetchesType, options);
    const given = new Set<unknown>(Array.isArray(fetches) ? [] : Object.values(fetches));
    const entries = Object.entries(results).map(([name, value]) => {
      const tensor = value as Tensor;
      const isOwn = tensor.location === 'gpu-buffer' && !given.has(tensor);
      return [name, isOwn ? this.#watch(tensor) : tensor] as const;
    });
    return Object.fromEntries(entries);
  }

  /** The caller's tensor for one of the session's. */
  #watch(output: Tensor): Tensor {
    this.#outputs.add(output);
    return Tensor.fromGpuBuffer(output.gpuBuffer, {
      dataType: output.type as 'float32',
      dims: output.dims,
      download: () => output.getData() as Promise<Float32Array>,
      dispose: () => {
        output.dispose();
        if (this.#outputs.delete(output) && this.#outputs.size === 0 && this.#isReleased)
          inTurn(() => this.#session.release()).catch(() => undefined);
      },
    });
  }

  /** Ends at once where outputs are left, which keep the session's memory. */
  async release(): Promise<void> {
    if (this.#isReleased) return;
    this.#isReleased = true;
    if (this.#outputs.size === 0) await this.#session.release();
  }

  startProfiling(): void {
    this.#session.startProfiling();
  }

  endProfiling(): void {
    this.#session.endProfiling();
  }
}
