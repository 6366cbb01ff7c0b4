import { InferenceSession as OrtSession, type InferenceSession as OrtTypes } from '#onnxruntime-web';
import { defineSession, type ExplainedSession } from './session/shell.js';
import { openWebSession, type WebSessionExplanation, type WebSessionOptions } from './web-open.js';

/**
 * onnxruntime-web's InferenceSession, with attention in FlashAttention kernels. Same options, methods and metadata.
 * Besides:
 * - `flash: 'auto' | 'on' | 'off'` among the options; `explain()` says what came of it, and why.
 * - Without `executionProviders`, sessions run on WebGPU, and on WebAssembly where there is none.
 * - Models are rewritten as they are loaded; files written by `ort-flash rewrite` need not be.
 * - In Node, `create` takes a path too.
 * - `run` may be called again before the last one ended: its work is queued behind on the GPU, without waiting.
 * - `release` waits for runs under way, and may be called more than once.
 * - Errors are OrtFlashError. A lost device rejects the runs under way; a session created after that gets a new one.
 */
export const InferenceSession = /* @__PURE__ */ defineSession<WebSessionOptions, WebSessionExplanation>(
  OrtSession,
  openWebSession,
);
export type InferenceSession = ExplainedSession<WebSessionExplanation>;

/** onnxruntime-web's types of sessions, under the names that they have there. */
export declare namespace InferenceSession {
  type SessionOptions = WebSessionOptions;
  type RunOptions = OrtTypes.RunOptions;
  type FeedsType = OrtTypes.FeedsType;
  type FetchesType = OrtTypes.FetchesType;
  type ReturnType = OrtTypes.ReturnType;
  type OnnxValueMapType = OrtTypes.OnnxValueMapType;
  type NullableOnnxValueMapType = OrtTypes.NullableOnnxValueMapType;
  type ExecutionProviderConfig = OrtTypes.ExecutionProviderConfig;
  type WebGpuExecutionProviderOption = OrtTypes.WebGpuExecutionProviderOption;
  type WebAssemblyExecutionProviderOption = OrtTypes.WebAssemblyExecutionProviderOption;
  type ValueMetadata = OrtTypes.ValueMetadata;
}
