import { InferenceSession as OrtSession, type InferenceSession as OrtTypes } from 'onnxruntime-node';
import { defineSession, type ExplainedSession } from '../kernels-wgsl/session/shell.js';
import { type SessionOptions as FlashSessionOptions, openSession, type SessionExplanation } from './node-devices.js';

/**
 * onnxruntime-node's InferenceSession, with attention as this package carries it out.
 *
 * Same options, methods and metadata. Besides:
 * - Models are rewritten as they are loaded, unless `flash` is 'off' among the options: attention runs in our kernels on
 *   CUDA, and elsewhere by ONNX Runtime's own fused operators, where these can express it.
 * - `executionProviders: ['cuda', 'webgpu', 'cpu']` falls through in order; `explain()` says which it took and why.
 * - Where the addon is built (`npm run build:addon`), `run` does not block the event loop and takes every ONNX type;
 *   see createTensor. Inputs must stay as they are until the promise settles.
 * - `preferredOutputLocation: 'gpu-buffer'` keeps outputs on a CUDA device; such a tensor can be fed again as it is.
 * - `release` waits for runs under way, and may be called more than once.
 * - Errors are OrtFlashError with ONNX Runtime's message.
 */
export const InferenceSession = defineSession<FlashSessionOptions, SessionExplanation>(OrtSession, openSession);
export type InferenceSession = ExplainedSession<SessionExplanation>;

/** onnxruntime-node's types of sessions, under the names that they have there. */
export declare namespace InferenceSession {
  type SessionOptions = FlashSessionOptions;
  type RunOptions = OrtTypes.RunOptions;
  type FeedsType = OrtTypes.FeedsType;
  type FetchesType = OrtTypes.FetchesType;
  type ReturnType = OrtTypes.ReturnType;
  type OnnxValueMapType = OrtTypes.OnnxValueMapType;
  type NullableOnnxValueMapType = OrtTypes.NullableOnnxValueMapType;
  type ExecutionProviderConfig = OrtTypes.ExecutionProviderConfig;
  type ValueMetadata = OrtTypes.ValueMetadata;
}
