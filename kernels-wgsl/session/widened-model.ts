/** Models in bfloat16, which WebGPU and WebAssembly lack; loaded only when a model may be one. */
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { tryWidening } from '../../graph-rewrite/widen.js';
import { externalReader, type LoadedFile } from './external-files.js';

/** A model with its data files, and what is to be told of them. */
export interface LoadedModel {
  readonly bytes: Uint8Array;
  readonly files: readonly LoadedFile[];
  readonly reasons: readonly string[];
}

/**
 * Widens a model in place, where it has bfloat16 and that is possible.
 * @param given its bytes and data files as they are
 * @returns both as they are for it now
 * @throws OrtFlashError `unsupported` where the model would reach 2 GiB
 */
export function widenModel(model: ModelProto, given: LoadedModel): LoadedModel {
  const { widened, note } = tryWidening(model, { readExternal: externalReader(given.files) });
  const reasons = note === undefined ? given.reasons : [...given.reasons, note];
  if (widened === undefined) return { ...given, reasons };
  const files = Array.from(widened.files, ([path, data]) => ({ path, data }));
  return { bytes: encodeModel(model), files: [...given.files, ...files], reasons };
}
