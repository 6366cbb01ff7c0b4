import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { env } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { addonPath, buildCommand, onnxRuntimePath } from './node-paths.js';

/** A model's input or output, as the addon describes it. */
export interface NativeValueDescription {
  readonly name: string;
  readonly isTensor: boolean;
  /** Only for tensors. */
  readonly type?: string;
  /** Only for tensors; a dimension that is not fixed is its name, which may be empty. */
  readonly shape?: readonly (number | string)[];
}

/** Session options in the form that the addon takes; see onnxruntime-common's SessionOptions for what they mean. */
export interface NativeSessionOptions {
  /** ONNX Runtime's number: 0 none, 1 basic, 2 extended, 3 layout, 99 all. */
  graphOptimizationLevel?: number;
  intraOpNumThreads?: number;
  interOpNumThreads?: number;
  parallelExecution?: boolean;
  enableCpuMemArena?: boolean;
  enableMemPattern?: boolean;
  logSeverityLevel?: number;
  logId?: string;
  optimizedModelFilePath?: string;
  /** Profiles the session into a file whose name begins with this. */
  profileFilePrefix?: string;
  freeDimensionOverrides?: Readonly<Record<string, number>>;
  /** ONNX Runtime's session config entries. */
  configEntries?: Readonly<Record<string, string>>;
  /** Paths of libraries with custom ops. */
  customOpLibraries?: readonly string[];
  externalData?: readonly { readonly path: string; readonly data: Uint8Array }[];
  /** Puts the session on ONNX Runtime's CUDA provider, with these of its options. */
  cuda?: Readonly<Record<string, string>>;
}

/**
 * One input of a run: name, type, dims, and the tensor's bytes or its strings; or name and a tensor that an earlier run
 * left on the GPU. Inputs and results are arrays, because objects' properties would be much of what a small run costs.
 */
export type NativeFeed =
  | readonly [name: string, type: string, dims: readonly number[], data: Uint8Array | readonly string[]]
  | readonly [name: string, device: NativeDeviceTensor];

/** A tensor on the GPU. */
export interface NativeDeviceTensor {
  download(): Promise<ArrayBuffer>;
  dispose(): void;
}

/** One output of a run: its elements, or where it stays on the GPU, what stands for it. */
export type NativeResult = readonly [type: string, dims: number[], data: ArrayBuffer | string[] | NativeDeviceTensor];

/** Run options in the form that the addon takes. */
export interface NativeRunOptions {
  logSeverityLevel?: number;
  logVerbosityLevel?: number;
  tag?: string;
  configEntries?: Readonly<Record<string, string>>;
}

/** A session of the addon. Errors carry an ErrorCode of this package in `code`, and ONNX Runtime's message. */
export interface NativeSession {
  readonly inputs: readonly NativeValueDescription[];
  readonly outputs: readonly NativeValueDescription[];
  /**
   * Runs the model on another thread. Where the last run took no time worth speaking of, this one is waited for, some
   * microseconds at the most, and its results are returned if it is over by then; else a promise of them.
   * @param fetches names of the outputs that are wanted; the results are in their order
   * @param onDevice those that stay on the GPU
   */
  run(
    feeds: readonly NativeFeed[],
    fetches: readonly string[],
    onDevice: readonly string[],
    options?: NativeRunOptions,
  ): readonly NativeResult[] | Promise<readonly NativeResult[]>;
  /** Ends profiling and returns the file that holds the profile. */
  endProfiling(): string;
  /** May be called more than once, and while runs are under way: these end first. */
  release(): Promise<void>;
}

/** What `kernels-cuda/addon` exports. */
export interface NativeAddon {
  /** See INTERFACE_VERSION. */
  readonly interfaceVersion: number;
  initialize(library: string, logSeverityLevel: number): { version: string; providers: string[] };
  createSession(model: string | Uint8Array, options: NativeSessionOptions): Promise<NativeSession>;
}

/** The addon, or why there is none. */
export type AddonState =
  | { readonly addon: NativeAddon; readonly providers: readonly string[]; readonly version: string }
  | { readonly addon: undefined; readonly why: string };

const LOG_LEVELS = ['verbose', 'info', 'warning', 'error', 'fatal'];

/** What the addon's interface is counted by: one more with each change of it. An addon built before does not fit. */
const INTERFACE_VERSION = 2;

let state: AddonState | undefined;

/** Loads the addon on first use. Never throws: without the addon, sessions go through onnxruntime-node. */
export function loadAddon(): AddonState {
  state ??= tryLoadAddon();
  return state;
}

function tryLoadAddon(): AddonState {
  const path = addonPath();
  const build = buildCommand('build:addon');
  if (!existsSync(path)) return { addon: undefined, why: `the addon is not built (${build} builds it)` };
  try {
    const addon = createRequire(import.meta.url)(path) as NativeAddon;
    if (addon.interfaceVersion !== INTERFACE_VERSION)
      return { addon: undefined, why: `the addon was built for another version; ${build} builds it anew` };
    const level = LOG_LEVELS.indexOf(env.logLevel ?? 'warning');
    return { addon, ...addon.initialize(onnxRuntimePath(), level < 0 ? 2 : level) };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { addon: undefined, why: `the addon cannot be loaded (${why}); ${build} builds it anew` };
  }
}

const NATIVE_CODES = ['invalid-tensor', 'invalid-argument', 'file-access', 'malformed-model', 'unsupported', 'device'];

/** An error of the addon's, or of onnxruntime-node's, as this package's. */
export function toOrtFlashError(error: unknown, file?: string): OrtFlashError {
  if (error instanceof OrtFlashError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const code = (error as { code?: unknown } | null)?.code;
  const known = NATIVE_CODES.find((c) => c === code) as OrtFlashError['code'] | undefined;
  return new OrtFlashError(known ?? 'runtime', message, file === undefined ? {} : { file }, undefined, {
    cause: error,
  });
}
