import { type InferenceSession as OrtTypes, Tensor } from '#onnxruntime-web';
import { dataTypeInfo } from '../../graph-rewrite/onnx/data-type.js';
import type { TensorProto } from '../../graph-rewrite/onnx/proto.js';
import { tensorData, tensorShape } from '../../graph-rewrite/onnx/tensor.js';
import { AttentionRunner, bufferBytes, gpuTensor } from './attention.js';
import type { AttentionCall, SplicePlan } from './cut.js';
import { type Engine, inTurn } from './engine.js';
import { externalReader, type LoadedFile } from './external-files.js';
import { checkFeeds } from './feeds.js';
import { type Feeds, FlashSessionHandler, type ModelMetadata } from './handler.js';
import { ortError } from './ort-error.js';
import { type ScheduledStep, scheduleSteps } from './schedule.js';
import { type LoadedModel, outputLocation, Segments, type SpliceOptions } from './segments.js';
import { SplicedRun } from './spliced-run.js';
import { cpuBytes } from './tensors.js';

type Tensors = Readonly<Record<string, Tensor>>;
type Fetches = Readonly<Record<string, Tensor | null>>;
type Results = Record<string, Tensor>;

/** A model that runs in parts: those between attentions in ONNX Runtime, attention in our kernels, on one queue. */
export class SplicedSession extends FlashSessionHandler {
  readonly #metadata: ModelMetadata;
  readonly #engine: Engine;
  readonly #options: OrtTypes.SessionOptions;
  /** What the model's tensors hold is left out: ONNX Runtime and the GPU have it. */
  readonly #plan: SplicePlan;
  readonly #segments: Segments;
  readonly #attentions: ReadonlyMap<AttentionCall, AttentionRunner>;
  readonly #constants: Tensors;
  readonly #schedules = new Map<string, readonly ScheduledStep[]>();

  private constructor(model: LoadedModel, metadata: ModelMetadata, splice: SpliceOptions, segments: Segments) {
    super(metadata);
    const { engine, options } = splice;
    this.#metadata = metadata;
    this.#engine = engine;
    this.#options = options;
    this.#segments = segments;
    this.#plan = { ...model.plan, models: new Map(), constants: new Map() };
    const calls = model.plan.steps.flatMap((step) => (step.kind === 'attention' ? step.calls : []));
    this.#attentions = new Map(calls.map((call) => [call, new AttentionRunner(call, engine)]));
    const constants = [...model.plan.constants];
    this.#constants = Object.fromEntries(
      constants.map(([name, tensor]) => [name, upload(engine.device, tensor, model.files)]),
    );
  }

  /**
   * Opens a session for each part of the model.
   * @throws OrtFlashError `runtime` where ONNX Runtime refuses a part, `device` where the device is lost
   */
  static async create(model: LoadedModel, metadata: ModelMetadata, splice: SpliceOptions): Promise<SplicedSession> {
    const segments = await Segments.open(model, splice);
    try {
      return new SplicedSession(model, metadata, splice, segments);
    } catch (error) {
      await inTurn(() => segments.release());
      throw error;
    }
  }

  get segmentCount(): number {
    return this.#segments.count;
  }

  get attentionCount(): number {
    return this.#attentions.size;
  }

  /**
   * Runs the model. Submissions of a run stay together; the next one's follow at once, and outputs that are read back
   * come when the GPU is done with them.
   */
  protected override async runModel(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results> {
    const tensors = feeds as Tensors;
    checkFeeds(this.#metadata, tensors);
    const work = inTurn(() => {
      this.#engine.check();
      return Promise.race([this.#submit(tensors, fetches, options), this.#engine.lost]);
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

  protected override async free(): Promise<void> {
    await inTurn(() => this.#segments.release());
    for (const tensor of Object.values(this.#constants)) (tensor.gpuBuffer as GPUBuffer).destroy();
    this.#engine.pool.clear();
  }

  async #submit(feeds: Tensors, fetches: Fetches, options: OrtTypes.RunOptions) {
    await this.#segments.mend();
    const run = new SplicedRun(
      {
        engine: this.#engine,
        segments: this.#segments.runners(options),
        attentions: this.#attentions,
        constants: this.#constants,
        location: (name) => outputLocation(this.#options, name),
      },
      feeds,
      fetches,
    );
    const steps = this.#stepsFor(Object.keys(fetches));
    const outputs = await run.carryOut(steps);
    this.#engine.endRun();
    return outputs;
  }

  #stepsFor(names: readonly string[]): readonly ScheduledStep[] {
    const key = names.join('\n');
    const steps = this.#schedules.get(key) ?? scheduleSteps(this.#plan, names);
    this.#schedules.set(key, steps);
    return steps;
  }
}

function upload(device: GPUDevice, proto: TensorProto, files: readonly LoadedFile[]): Tensor {
  const type = dataTypeInfo(proto.data_type)!.name as Tensor.Type;
  const dims = tensorShape(proto);
  const data = tensorData(proto, { readExternal: externalReader(files) });
  const bytes = cpuBytes(new Tensor(type, data as Tensor.DataType, dims));
  const buffer = device.createBuffer({
    label: `ort-flash constant ${proto.name}`,
    size: Math.ceil(bufferBytes(type, dims) / 16) * 16,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
  });
  device.queue.writeBuffer(buffer, 0, bytes);
  return gpuTensor({ type, dims, buffer });
}
