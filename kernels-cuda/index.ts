/**
 * `ort-flash/node`: everything that onnxruntime-node exports, with an InferenceSession that runs attention as
 * FlashAttention; batch inference; and export for a server.
 */
export * from 'onnxruntime-node';
export { type ErrorCode, type ErrorPlace, OrtFlashError } from '../graph-rewrite/errors.js';
export { runBatch } from './node-batch.js';
export type {
  BatchDevice,
  BatchProgress,
  BatchSummary,
  FailedSample,
  RunBatchOptions,
  TensorFileFormat,
} from './node-batch-types.js';
export type { RefusedProvider, SessionExplanation, SessionOptions, SessionPlace } from './node-devices.js';
export type { CudaProvider } from './node-options.js';
export type { FlashMode } from './node-prepare.js';
export { InferenceSession } from './node-session.js';
export { createTensor, type ExtendedTensorType } from './node-tensor.js';
export { type ExportTritonOptions, type ExportTritonResult, exportTriton } from './node-triton.js';
export type { TritonConfig, TritonTensor } from './node-triton-schema.js';
