import type { InferenceSession as OrtTypes, Tensor } from '#onnxruntime-web';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { dataTypeInfo } from '../../graph-rewrite/onnx/data-type.js';
import { fitNames } from './cpu-nodes.js';
import type { SegmentStep, SplicePlan } from './cut.js';
import { type Engine, inTurn } from './engine.js';
import type { LoadedFile } from './external-files.js';
import { ortError } from './ort-error.js';
import { openOrtSession } from './ort-session.js';
import type { SegmentRunner } from './spliced-run.js';
import { isGpuType } from './tensors.js';

type SessionOptions = OrtTypes.SessionOptions;

/** A model cut into parts, with its data files, by the location that its tensors name. */
export interface LoadedModel {
  readonly plan: SplicePlan;
  readonly files: readonly LoadedFile[];
}

export interface SpliceOptions {
  readonly engine: Engine;
  /** Passed on to every part's session; what concerns the whole is set aside. */
  readonly options: SessionOptions;
  /** The WebGPU provider's own options. */
  readonly provider: Readonly<Record<string, unknown>>;
  /** Reads and cuts the model again, for parts that have to be opened anew. */
  readonly reload: () => Promise<LoadedModel>;
}

/** Where an output stays, as the session option `preferredOutputLocation` says. */
export function outputLocation({ preferredOutputLocation: all }: SessionOptions, name: string): Tensor.DataLocation {
  return (typeof all === 'object' ? all[name] : all) ?? 'cpu';
}

/** The parts of a model that run in ONNX Runtime, each a session of its own. All but `open` is to be called in turn. */
export class Segments {
  readonly #splice: SpliceOptions;
  readonly #sessions = new Map<number, OrtTypes>();
  readonly #failed = new Set<number>();

  private constructor(splice: SpliceOptions) {
    this.#splice = splice;
  }

  /**
   * Opens a session for each segment of a plan.
   * @throws OrtFlashError `runtime` where ONNX Runtime refuses one, `device` where the device is lost
   */
  static async open(model: LoadedModel, splice: SpliceOptions): Promise<Segments> {
    const segments = new Segments(splice);
    try {
      for (const index of model.plan.steps.keys()) await inTurn(() => segments.#open(index, model));
      return segments;
    } catch (error) {
      await inTurn(() => segments.release());
      throw ortError(error);
    }
  }

  get count(): number {
    return this.#sessions.size;
  }

  /**
   * Opens those parts anew in which a run failed: onnxruntime-web keeps the failed run's bindings, which point to memory
   * that was returned since, and would use them again.
   */
  async mend(): Promise<void> {
    if (this.#failed.size === 0) return;
    const model = await this.#splice.reload();
    for (const index of this.#failed) {
      const session = this.#sessions.get(index);
      this.#sessions.delete(index);
      await session?.release();
      await this.#open(index, model);
      this.#failed.delete(index);
    }
  }

  /** The segments by their place in the plan, to be run with these options. */
  runners(options: OrtTypes.RunOptions): ReadonlyMap<number, SegmentRunner> {
    const runner = (index: number, session: OrtTypes): SegmentRunner => ({
      run: async (feeds, fetches) => {
        try {
          return await session.run(feeds, fetches, options);
        } catch (error) {
          this.#splice.engine.check();
          this.#failed.add(index);
          throw ortError(error);
        }
      },
    });
    return new Map([...this.#sessions].map(([index, session]) => [index, runner(index, session)]));
  }

  async release(): Promise<void> {
    const sessions = [...this.#sessions.values()];
    this.#sessions.clear();
    for (const session of sessions) await session.release();
  }

  async #open(index: number, { plan, files }: LoadedModel): Promise<void> {
    const step = plan.steps[index]!;
    const { engine } = this.#splice;
    engine.check();
    if (step.kind !== 'segment') return;
    const bytes = encodeModel(plan.models.get(step)!);
    const opening = openOrtSession(bytes, this.#optionsOf(step, plan, files));
    this.#sessions.set(index, await Promise.race([opening, engine.lost]));
  }

  #optionsOf(step: SegmentStep, { types, attended, outputNames }: SplicePlan, files: LoadedModel['files']) {
    const { engine, options, provider } = this.#splice;
    const location = (name: string): 'cpu' | 'gpu-buffer' => {
      const type = dataTypeInfo(types.get(name))?.name ?? '';
      const wanted = outputNames.includes(name) && outputLocation(options, name) === 'gpu-buffer';
      const isFloat = type === 'float32' || type === 'float16';
      return isGpuType(type) && (isFloat || attended.has(name) || wanted) ? 'gpu-buffer' : 'cpu';
    };
    const { freeDimensionOverrides: _, enableGraphCapture: __, externalData: ___, ...rest } = options;
    const names = fitNames([...((provider.forceCpuNodeNames as string[] | undefined) ?? []), ...step.cpuNodes]);
    // An empty list is refused.
    const onCpu = names.length > 0 ? { forceCpuNodeNames: names } : {};
    const webGpu = { ...provider, name: 'webgpu', device: engine.device, ...onCpu };
    return {
      // Each part would warn anew of the nodes that it keeps on the CPU.
      logSeverityLevel: 3,
      ...rest,
      executionProviders: [webGpu as OrtTypes.ExecutionProviderConfig],
      preferredOutputLocation: Object.fromEntries(step.outputs.map((name) => [name, location(name)])),
      ...(files.length > 0 ? { externalData: files } : {}),
    } satisfies SessionOptions;
  }
}
