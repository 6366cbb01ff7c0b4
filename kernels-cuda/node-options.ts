import { readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { accessError } from '../graph-rewrite/whole-files.js';
import type { NativeRunOptions, NativeSessionOptions } from './node-addon.js';

type SessionOptions = InferenceSession.SessionOptions;

const OPTIMIZATION_LEVELS = { disabled: 0, basic: 1, extended: 2, layout: 3, all: 99 } as const;

/**
 * Session options as the addon takes them; without execution providers, which the caller chooses.
 * @param model a path lets names of external data files be found beside it
 * @throws OrtFlashError `invalid-argument` or `file-access`
 */
export async function nativeSessionOptions(
  model: string | Uint8Array,
  options: SessionOptions,
): Promise<NativeSessionOptions> {
  const level = options.graphOptimizationLevel;
  if (level !== undefined && !(level in OPTIMIZATION_LEVELS))
    throw new OrtFlashError('invalid-argument', `graphOptimizationLevel "${level}" is not known`);
  const mode = options.executionMode;
  if (mode !== undefined && mode !== 'sequential' && mode !== 'parallel')
    throw new OrtFlashError('invalid-argument', `executionMode "${mode}" is not known`);
  const native: NativeSessionOptions = {
    ...defined({
      graphOptimizationLevel: level && OPTIMIZATION_LEVELS[level],
      intraOpNumThreads: options.intraOpNumThreads,
      interOpNumThreads: options.interOpNumThreads,
      parallelExecution: mode && mode === 'parallel',
      enableCpuMemArena: options.enableCpuMemArena,
      enableMemPattern: options.enableMemPattern,
      logSeverityLevel: options.logSeverityLevel,
      logId: options.logId,
      optimizedModelFilePath: options.optimizedModelFilePath,
      freeDimensionOverrides: options.freeDimensionOverrides,
      configEntries: options.extra && configEntries(options.extra),
    }),
  };
  if (options.enableProfiling === true) native.profileFilePrefix = options.profileFilePrefix ?? 'onnxruntime_profile_';
  if (options.externalData !== undefined && options.externalData.length > 0)
    native.externalData = await Promise.all(options.externalData.map((file) => readExternalData(model, file)));
  return native;
}

/** Run options as the addon takes them. */
export function nativeRunOptions({ logSeverityLevel, logVerbosityLevel, tag, extra }: InferenceSession.RunOptions) {
  const entries = extra && configEntries(extra);
  return defined({ logSeverityLevel, logVerbosityLevel, tag, configEntries: entries }) satisfies NativeRunOptions;
}

function defined<T extends object>(fields: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given) as { [K in keyof T]: Exclude<T[K], undefined> };
}

/** `{session: {set_denormal_as_zero: '1'}}` as ONNX Runtime's `session.set_denormal_as_zero`. */
function configEntries(extra: Record<string, unknown>, prefix = ''): Record<string, string> {
  const entries: Record<string, string> = {};
  for (const [key, value] of Object.entries(extra)) {
    if (typeof value === 'object' && value !== null)
      Object.assign(entries, configEntries(value as Record<string, unknown>, `${prefix}${key}.`));
    else if (typeof value === 'boolean') entries[prefix + key] = value ? '1' : '0';
    else entries[prefix + key] = String(value);
  }
  return entries;
}

type ExternalFile = NonNullable<SessionOptions['externalData']>[number];

/** A data file that session options name: its path as the model's tensors say it, and its bytes. */
export async function readExternalData(model: string | Uint8Array, file: ExternalFile) {
  const folder = typeof model === 'string' ? dirname(model) : '.';
  const { path, data } = typeof file === 'string' ? { path: basename(file), data: file } : file;
  if (typeof data === 'string')
    return { path, data: await readWhole(typeof file === 'string' ? join(folder, data) : data, 'external-data') };
  if (data instanceof Uint8Array) return { path, data };
  if (data instanceof Blob) return { path, data: new Uint8Array(await data.arrayBuffer()) };
  return { path, data: new Uint8Array(data) };
}

/** @throws OrtFlashError of this code, with the file's name and the system's reason */
export async function readWhole(file: string, code: 'file-access' | 'external-data'): Promise<Uint8Array> {
  try {
    return await readFile(file);
  } catch (error) {
    throw accessError('read', file, error, code);
  }
}

/**
 * The CUDA provider's options, by their ONNX Runtime names, from `{name: 'cuda', deviceId, providerOptions}` and the
 * session option `enableGraphCapture`.
 */
export function cudaOptions(
  provider: InferenceSession.ExecutionProviderConfig,
  { enableGraphCapture }: SessionOptions,
): Record<string, string> {
  const capture: Record<string, string> = enableGraphCapture === true ? { enable_cuda_graph: '1' } : {};
  if (typeof provider === 'string') return { device_id: '0', ...capture };
  const { deviceId = 0, providerOptions = {} } = provider as CudaProvider;
  if (!Number.isInteger(deviceId) || deviceId < 0)
    throw new OrtFlashError('invalid-argument', `deviceId ${deviceId} is no device's number`);
  return { device_id: String(deviceId), ...capture, ...providerOptions };
}

/** The CUDA provider, with any of ONNX Runtime's own options for it. */
export interface CudaProvider {
  readonly name: 'cuda';
  /** Default 0. */
  readonly deviceId?: number;
  /** ONNX Runtime's CUDA provider options by name, for instance `{gpu_mem_limit: '8589934592'}`. */
  readonly providerOptions?: Readonly<Record<string, string>>;
}
