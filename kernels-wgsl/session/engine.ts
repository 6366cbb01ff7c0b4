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

/** One GPUDevice with what all sessions on it share. */
export class Engine {
  readonly device: GPUDevice;
  readonly flash: FlashAttention;
  readonly pool: BufferPool;
  /** Never resolves; rejects when the device is lost. */
  readonly lost: Promise<never>;
  #loss: OrtFlashError | undefined;

  private constructor(device: GPUDevice) {
    this.device = device;
    this.flash = FlashAttention.create(device);
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

  get isLost(): boolean {
    return this.#loss !== undefined;
  }

  /** The engine of a device: one, however many sessions. */
  static of(device: GPUDevice): Engine {
    let engine = engines.get(device);
    if (engine === undefined) {
      engine = new Engine(device);
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
    opened ??= openDevice().then((device) => Engine.of(device));
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
async function openDevice(): Promise<GPUDevice> {
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
    return device;
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
