import { DataType } from '../../graph-rewrite/onnx/proto.js';

/**
 * Whether a part of a model may name bfloat16: as a tensor's type, or as an attribute, whose 16 may be something else. A
 * quick look: most models then need not load what deals with it.
 */
export function mayHaveBfloat16(part: unknown): boolean {
  if (typeof part !== 'object' || part === null || ArrayBuffer.isView(part)) return false;
  return Object.entries(part).some(([field, value]) => {
    const type = field === 'elem_type' || field === 'data_type' ? value : field === 'i' ? value?.low : undefined;
    return type === DataType.BFLOAT16 || mayHaveBfloat16(value);
  });
}
