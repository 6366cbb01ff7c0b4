import { OrtFlashError } from '../../graph-rewrite/errors.js';

/** ONNX Runtime's errors as ours, with its message; ours as they are. */
export function ortError(error: unknown): OrtFlashError {
  if (error instanceof OrtFlashError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new OrtFlashError('runtime', `ONNX Runtime: ${message}`, {}, undefined, { cause: error });
}
