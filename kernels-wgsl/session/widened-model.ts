/** Models in bfloat16, which WebGPU and WebAssembly lack; loaded only when a model may be one. */
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { tryWidening } from '../../graph-rewrite/widen.js';

/**
 * Widens a model in place, where it has bfloat16 and that is possible.
 * @returns its bytes where it is another now, and what is to be told of it
 * @throws OrtFlashError `unsupported` where the model would reach 2 GiB
 */
export function widenModel(model: ModelProto): { readonly bytes?: Uint8Array; readonly reasons: readonly string[] } {
  const { widened, note } = tryWidening(model);
  const reasons = note === undefined ? [] : [note];
  return widened === undefined ? { reasons } : { bytes: encodeModel(model), reasons };
}
