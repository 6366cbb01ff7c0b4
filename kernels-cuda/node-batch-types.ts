import type { OrtFlashError } from '../graph-rewrite/errors.js';

/**
 * What runs a batch: ONNX Runtime on the CPU, natively or in WebAssembly; on CUDA with our kernels; or the web session
 * over WebGPU.
 */
export type BatchDevice = 'cpu' | 'wasm' | 'webgpu' | 'cuda';

/** How a result is written: ONNX TensorProto (`output_N.pb`) or NumPy (`NAME.npy`). */
export type TensorFileFormat = 'pb' | 'npy';

/** What to run, over what, and where the results go. */
export interface RunBatchOptions {
  /** Path of the `.onnx` file. */
  readonly model: string;
  /**
   * The samples:
   * - a folder of samples `test_data_set_*`, each holding `input_N.pb` or `NAME.npy`; or one such sample itself;
   * - a `.npz` file whose arrays are named after the model's inputs, the first axis counting samples;
   * - a `.jsonl` file, one sample a line: an object from input name to nested arrays.
   */
  readonly inputs: string;
  /** Folder for the results, one folder a sample, made where it is absent. */
  readonly outputs: string;
  /** Default `cpu`. */
  readonly device?: BatchDevice;
  /** GPUs to use, one worker each; default the first. Only for `cuda`. */
  readonly deviceIds?: readonly number[];
  /** The most samples that one run takes together; default 1. */
  readonly batch?: number;
  /** Leave out the samples whose results are already there, whole; default true. */
  readonly resume?: boolean;
  /** Default: `npy` for samples that came as `.npy`, `.npz` or `.jsonl`, else `pb`. */
  readonly format?: TensorFileFormat;
  /** Called after each batch, and once at the end. */
  readonly onProgress?: (progress: BatchProgress) => void;
  /** Called for each sample that could not be read, run or written. */
  readonly onFailure?: (failure: FailedSample) => void;
  /** Ends the batch early: what is running is finished and written, nothing new is started. */
  readonly signal?: AbortSignal;
}

/** How far a batch has come. */
export interface BatchProgress {
  /** Samples found. */
  readonly total: number;
  /** Samples run and written in this call. */
  readonly finished: number;
  /** Samples whose results were there before. */
  readonly skipped: number;
  readonly failed: number;
  /** Seconds since the first sample was read. */
  readonly seconds: number;
  /** Finished samples a second. */
  readonly samplesPerSecond: number;
}

/** A sample that was left out, and why. */
export interface FailedSample {
  /** The sample's name: its folder's, or its index in the file. */
  readonly sample: string;
  readonly error: OrtFlashError;
}

/** What a batch did. */
export interface BatchSummary extends Omit<BatchProgress, 'failed'> {
  readonly failed: readonly FailedSample[];
  /** Where it ran, one entry a worker: `cpu`, `cuda:0`, … */
  readonly devices: readonly string[];
  /** Why these devices were taken, for people. */
  readonly explanation: string;
  /** Runs of the model; fewer than finished samples where samples were batched. */
  readonly runs: number;
  /** Set where `signal` ended the batch before all samples were done. */
  readonly interrupted: boolean;
}
