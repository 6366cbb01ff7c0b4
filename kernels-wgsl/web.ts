/**
 * `ort-flash/web`: everything that `onnxruntime-web/webgpu` exports, with an InferenceSession that runs attention as
 * FlashAttention on the GPU. Works in browsers, and in Node over Dawn (web-node.ts).
 */
import * as ort from '#onnxruntime-web';
import { InferenceSession } from './web-session.js';

export * from '#onnxruntime-web';
export { type ErrorCode, type ErrorPlace, OrtFlashError } from '../graph-rewrite/errors.js';
export type { SiteReport } from '../graph-rewrite/report.js';
export type { FormChoice } from './session/auto-session.js';
export type { AttentionCost, AttentionCosts, FormCosts, FormMilliseconds, SessionForm } from './session/forms.js';
export type { FlashMode, WebSessionExplanation, WebSessionOptions } from './web-open.js';
export { InferenceSession };

/** As onnxruntime-web's default export, with this package's InferenceSession. */
export default /* @__PURE__ */ Object.assign({}, ort, { InferenceSession });
