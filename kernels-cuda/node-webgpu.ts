import type { InferenceSession, InferenceSessionHandler } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';

/**
 * Opens a session of `ort-flash/web` over Dawn.
 *
 * The one place where the Node session meets the web session.
 * @throws OrtFlashError `device` or `unsupported` with the reason, where there is none
 */
export async function openWebGpuSession(
  _model: string | Uint8Array,
  _options: InferenceSession.SessionOptions,
): Promise<InferenceSessionHandler> {
  throw new OrtFlashError('unsupported', 'sessions over WebGPU are not part of this build');
}
