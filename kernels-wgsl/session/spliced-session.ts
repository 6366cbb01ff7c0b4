import { InferenceSession as OrtSession, type InferenceSession as OrtTypes, Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { dataTypeInfo } from '../../graph-rewrite/onnx/data-type.js';
import type { TensorProto } from '../../graph-rewrite/onnx/proto.js';
import { tensorData, tensorShape } from '../../graph-rewrite/onnx/tensor.js';
import { AttentionRunner, bufferBytes, gpuTensor } from './attention.js';
import { fitNames } from './cpu-nodes.js';
import type { AttentionCall, SegmentStep, SplicePlan } from './cut.js';
import { type Engine, inTurn } from './engine.js';
import { externalReader, type LoadedFile } from './external-files.js';
import { checkFeeds } from './feeds.js';
import { type Feeds, FlashSessionHandler, type ModelMetadata } from './handler.js';
import { ortError } from './ort-error.js';
import { type ScheduledStep, scheduleSteps } from './schedule.js';
import { type SegmentRunner, SplicedRun } from './spliced-run.js';
import { cpuBytes, isGpuType } from './tensors.js';

type SessionOptions = OrtTypes.SessionOptions;
type Tensors = Readonly<Record<string, Tensor>>;
type Fetches = Readonly<Record<string, Tensor | null>>;
type OutputLocation = SessionOptions['preferredOutputLocation'];

export interface SpliceOptions {
  readonly engine: Engine;
  /** Passed on to every part's session; what concerns the whole is set aside. */
  readonly options: SessionOptions;
  /** The WebGPU provider's own options. */
  readonly provider: Readonly<Record<string, unknown>>;
  /** The model's data files, by the location that its tensors name. */
  readonly files: readonly LoadedFile[];
}

/** A model that runs in parts: those between attentions in ONNX Runtime, attention in our kernels, on one queue. */
export class SplicedSession extends FlashSessionHandler {
  readonly #metadata: ModelMetadata;
  readonly #engine: Engine;
  readonly #plan: SplicePlan;
  readonly #locations: OutputLocation;
  readonly #segments = new Map<number, OrtTypes>();
  readonly #attentions = new Map<AttentionCall, AttentionRunner>();
  readonly #constants: Record<string, Tensor> = {};
  readonly #schedules = new Map<string, readonly ScheduledStep[]>();
  #failed: OrtFlashError | undefined;

  private constructor(plan: SplicePlan, metadata: ModelMetadata, { engine, options }: SpliceOptions) {
    super(metadata);
    this.#metadata = metadata;
    this.#plan = plan;
    this.#engine = engine;
    this.#locations = options.preferredOutputLocation;
  }

  /**
   * Opens a session for each part of the model.
   * @throws OrtFlashError `runtime` where ONNX Runtime refuses a part, `device` where the device is lost
   */
  static async create(plan: SplicePlan, metadata: ModelMetadata, splice: SpliceOptions): Promise<SplicedSession> {
    const { engine } = splice;
    const session = new SplicedSession(plan, metadata, splice);
    try {
      for (const [index, step] of plan.steps.entries()) {
        engine.check();
        if (step.kind === 'segment') session.#segments.set(index, await session.#openSegment(step, splice));
        else for (const call of step.calls) session.#attentions.set(call, new AttentionRunner(call, engine));
      }
      session.#uploadConstants(splice.files);
      return session;
    } catch (error) {
      await session.dispose();
      throw ortError(error);
    }
  }

  get segmentCount(): number {
    return this.#segments.size;
  }

  get attentionCount(): number {
    return this.#attentions.size;
  }

  /**
   * Runs the model. Submissions of a run stay together; the next one's follow at once, and outputs that are read back
   * come when the GPU is done with them.
   */
  protected override async runModel(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions) {
    const tensors = feeds as Tensors;
    checkFeeds(this.#metadata, tensors);
    return this.#run(tensors, fetches, options);
  }

  protected override async free(): Promise<void> {
    await inTurn(async () => {
      for (const segment of this.#segments.values()) await segment.release();
    });
    this.#segments.clear();
    for (const tensor of Object.values(this.#constants)) (tensor.gpuBuffer as GPUBuffer).destroy();
    this.#engine.pool.clear();
  }

  async #run(feeds: Tensors, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Record<string, Tensor>> {
    const work = inTurn(() => {
      this.#engine.check();
      if (this.#failed) throw this.#failed;
      return Promise.race([this.#submit(feeds, fetches, options), this.#engine.lost]);
    });
    // A promise of an object, so that the turn ends when all is submitted, and not when it is read back.
    const { outputs } = await work;
    try {
      return await Promise.race([outputs, this.#engine.lost]);
    } catch (error) {
      this.#engine.check();
      throw ortError(error);
    }
  }

  async #submit(feeds: Tensors, fetches: Fetches, options: OrtTypes.RunOptions) {
    const names = Object.keys(fetches);
    const key = names.join('\n');
    let steps = this.#schedules.get(key);
    if (steps === undefined) {
      steps = scheduleSteps(this.#plan, names);
      this.#schedules.set(key, steps);
    }
    const run = new SplicedRun(
      {
        engine: this.#engine,
        plan: this.#plan,
        segments: this.#runners(options),
        attentions: this.#attentions,
        constants: this.#constants,
      },
      feeds,
      fetches,
    );
    await run.submit(steps);
    const outputs = run.collect((name) => this.#locationOf(name));
    // Told through the run's own promise.
    outputs.catch(() => undefined);
    this.#engine.pool.endRun();
    return { outputs };
  }

  #runners(options: OrtTypes.RunOptions): ReadonlyMap<number, SegmentRunner> {
    const run = async (session: OrtTypes, feeds: Tensors, fetches: Fetches) => {
      try {
        return await session.run(feeds, fetches, options);
      } catch (cause) {
        this.#engine.check();
        // The runtime keeps a failed run's bindings and would use them again: wrong results, silently.
        const error = ortError(cause);
        this.#failed = new OrtFlashError(
          'runtime',
          `an earlier run of this session failed (${error.message})`,
          {},
          'create the session again',
          { cause: error },
        );
        throw error;
      }
    };
    return new Map(
      [...this.#segments].map(([index, session]) => [
        index,
        { run: (feeds: Tensors, fetches: Fetches) => run(session, feeds, fetches) },
      ]),
    );
  }

  #locationOf(name: string): Tensor.DataLocation {
    const locations = this.#locations;
    return (typeof locations === 'object' ? locations[name] : locations) ?? 'cpu';
  }

  #openSegment(step: SegmentStep, { engine, options, provider, files }: SpliceOptions): Promise<OrtTypes> {
    const { types, attended, outputNames } = this.#plan;
    const location = (name: string): 'cpu' | 'gpu-buffer' => {
      const type = dataTypeInfo(types.get(name))?.name ?? '';
      const wanted = outputNames.includes(name) && this.#locationOf(name) === 'gpu-buffer';
      const isFloat = type === 'float32' || type === 'float16';
      return isGpuType(type) && (isFloat || attended.has(name) || wanted) ? 'gpu-buffer' : 'cpu';
    };
    const { freeDimensionOverrides: _, enableGraphCapture: __, ...rest } = options;
    const bytes = encodeModel(step.model);
    const names = fitNames([...((provider.forceCpuNodeNames as string[] | undefined) ?? []), ...step.cpuNodes]);
    // An empty list is refused.
    const onCpu = names.length > 0 ? { forceCpuNodeNames: names } : {};
    return inTurn(() =>
      Promise.race([
        OrtSession.create(bytes, {
          // Each part would warn anew of the nodes that it keeps on the CPU.
          logSeverityLevel: 3,
          ...rest,
          executionProviders: [
            {
              ...provider,
              name: 'webgpu',
              device: engine.device,
              ...onCpu,
            } as OrtTypes.ExecutionProviderConfig,
          ],
          preferredOutputLocation: Object.fromEntries(step.outputs.map((name) => [name, location(name)])),
          ...(files.length > 0 ? { externalData: files } : {}),
        }),
        engine.lost,
      ]),
    );
  }

  #uploadConstants(files: readonly LoadedFile[]): void {
    for (const [name, proto] of this.#plan.constants) this.#constants[name] = this.#upload(proto, files);
  }

  #upload(proto: TensorProto, files: readonly LoadedFile[]): Tensor {
    const type = dataTypeInfo(proto.data_type)!.name as Tensor.Type;
    const dims = tensorShape(proto);
    const data = tensorData(proto, { readExternal: externalReader(files) });
    const bytes = cpuBytes(new Tensor(type, data as Tensor.DataType, dims));
    const buffer = this.#engine.device.createBuffer({
      label: `ort-flash constant ${proto.name}`,
      size: Math.ceil(bufferBytes(type, dims) / 16) * 16,
      usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
    });
    this.#engine.device.queue.writeBuffer(buffer, 0, bytes);
    return gpuTensor({ type, dims, buffer });
  }
}
