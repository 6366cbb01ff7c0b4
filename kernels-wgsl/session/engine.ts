import { env } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { FlashAttention } from '../flash-attention.js';
import { BufferPool } from './buffer-pool.js';

/** What ONNX Runtime and the kernels make use of, where the adapter has it. */
const WANTED_FEATURES = [
  'shader-f16',
  'subgroups',
  'timestamp-query',
  'chromium-experimental-subgroup-matrix',
  'chromium-experimental-timestamp-query-inside-passes',
] as const;

/** Limits that ONNX Runtime and the kernels want as high as the adapter allows. */
const WANTED_LIMITS = [
  'maxBindGroups',
  'maxBufferSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxComputeWorkgroupSizeY',
  'maxComputeWorkgroupSizeZ',
  'maxComputeWorkgroupStorageSize',
  'maxComputeWorkgroupsPerDimension',
  'maxStorageBufferBindingSize',
  'maxStorageBuffersPerShaderStage',
] as const;

/** Attention problems that the kernels keep in mind between runs: a model's own at some lengths. */
const KEPT_PROBLEMS = 128;

/** One GPUDevice with what all sessions on it share. */
export class Engine {
  readonly device: GPUDevice;
  readonly pool: BufferPool;
  /** Never resolves; rejects when the device is lost. */
  readonly lost: Promise<never>;
  #flash: FlashAttention;
  #loss: OrtFlashError | undefined;

  readonly #adapterInfo: GPUAdapterInfo | undefined;

  private constructor(device: GPUDevice, adapterInfo?: GPUAdapterInfo) {
    this.device = device;
    this.#adapterInfo = adapterInfo;
    this.#flash = this.#createFlash();
    this.pool = new BufferPool(device);
    this.lost = device.lost.then((info) => {
      this.#loss = lossError(info);
      engines.delete(device);
      throw this.#loss;
    });
    // Runs that wait for it are told; when none does, the loss is no unhandled rejection.
    this.lost.catch(() => undefined);
  }

  /** @throws OrtFlashError `device` once the device is lost. */
  check(): void {
    if (this.#loss) throw this.#loss;
  }

  /** The kernels; others after the device refused work, with nothing kept that was made for it. */
  get flash(): FlashAttention {
    return this.#flash;
  }

  /**
   * Carries out work that submits to the device.
   * @returns what came of it, and the error that the device has to tell of it, undefined where it has none
   */
  async watch<T>(work: () => Promise<T>): Promise<{ result: T; refusal: Promise<OrtFlashError | undefined> }> {
    for (const kind of ['out-of-memory', 'validation'] as const) this.device.pushErrorScope(kind);
    // Both are popped, whatever comes of the work. A lost device tells its loss, and nothing here.
    const pop = () => this.device.popErrorScope().catch(() => null);
    const [outcome] = await Promise.allSettled([work()]);
    const refusal = this.#refusal(pop(), pop());
    if (outcome.status === 'rejected') throw outcome.reason;
    return { result: outcome.value, refusal };
  }

  async #refusal(...scopes: readonly Promise<GPUError | null>[]): Promise<OrtFlashError | undefined> {
    const error = (await Promise.all(scopes)).find((found) => found !== null);
    if (!error || this.isLost) return undefined;
    // Buffers may be among what was refused, and would be used again. The kernels' own go with them, unreferenced: a
    // run may be about to submit them.
    this.pool.clear();
    this.#flash = this.#createFlash();
    const isMemory = typeof GPUOutOfMemoryError !== 'undefined' && error instanceof GPUOutOfMemoryError;
    const what = isMemory ? 'the GPU is out of memory' : 'the GPU refused a run';
    const hint = isMemory ? 'release sessions and tensors, or use shorter inputs' : undefined;
    return new OrtFlashError('device', `${what}: ${error.message}`, {}, hint, { cause: error });
  }

  #createFlash(): FlashAttention {
    return FlashAttention.create(this.device, this.#adapterInfo ? { adapterInfo: this.#adapterInfo } : {});
  }

  /** Marks the end of a run, all of which is submitted: frees what the last few did not use. */
  endRun(): void {
    this.pool.endRun();
    this.#flash.prune(KEPT_PROBLEMS);
  }

  get isLost(): boolean {
    return this.#loss !== undefined;
  }

  /**
   * The engine of a device: one, however many sessions.
   * @param adapterInfo of its adapter, which may tell more than the device's own: Dawn lists subgroup matrices there
   */
  static of(device: GPUDevice, adapterInfo?: GPUAdapterInfo): Engine {
    let engine = engines.get(device);
    if (engine === undefined) {
      engine = new Engine(device, adapterInfo);
      engines.set(device, engine);
    }
    return engine;
  }

  /**
   * The engine of the device that sessions use unless told otherwise: opened on first use, and anew after it was lost.
   * @throws OrtFlashError `device` where there is no WebGPU or no adapter
   */
  static async default(): Promise<Engine> {
    if (opened !== undefined && (await opened.catch(() => undefined))?.isLost !== false) opened = undefined;
    opened ??= openDevice().then(({ device, adapterInfo }) => Engine.of(device, adapterInfo));
    return opened;
  }
}

const engines = new Map<GPUDevice, Engine>();
let opened: Promise<Engine> | undefined;

function lossError({ reason, message }: GPUDeviceLostInfo): OrtFlashError {
  const why = [reason === 'destroyed' ? 'destroyed' : '', message].filter(Boolean).join(': ');
  const what = `the GPU device was lost${why === '' ? '' : ` (${why})`}`;
  return new OrtFlashError('device', what, {}, 'create the session again');
}

/** The parts of `env.webgpu` that say which adapter to take. */
async function openDevice(): Promise<{ device: GPUDevice; adapterInfo: GPUAdapterInfo }> {
  const gpu: GPU | undefined = typeof navigator === 'undefined' ? undefined : navigator.gpu;
  const given = env.webgpu.adapter as GPUAdapter | undefined;
  if (gpu === undefined && !given)
    throw new OrtFlashError('device', 'there is no WebGPU here', {}, 'use a browser that has it, over https');
  const { powerPreference, forceFallbackAdapter } = env.webgpu;
  const adapter =
    given ??
    (await gpu!.requestAdapter({
      powerPreference: powerPreference ?? 'high-performance',
      ...(forceFallbackAdapter === undefined ? {} : { forceFallbackAdapter }),
    }));
  if (!adapter) throw new OrtFlashError('device', 'WebGPU has no adapter here');
  try {
    const device = await adapter.requestDevice({
      label: 'ort-flash',
      requiredFeatures: WANTED_FEATURES.filter((feature) => adapter.features.has(feature)) as GPUFeatureName[],
      requiredLimits: Object.fromEntries(WANTED_LIMITS.map((limit) => [limit, adapter.limits[limit]])),
    });
    return { device, adapterInfo: adapter.info };
  } catch (cause) {
    throw new OrtFlashError('device', `the GPU gives no device: ${(cause as Error).message}`, {}, undefined, { cause });
  }
}

let turn: Promise<unknown> = Promise.resolve();

/**
 * Runs `work` alone: ONNX Runtime's WebAssembly module does one thing at a time, and a run's submissions stay together.
 * Turns are taken in the order in which they were asked for.
 */
export function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const result = turn.then(work);
  turn = result.catch(() => undefined);
  return result;
}
