import { checkedReference, isExternal } from './external.js';
import type { ModelProto } from './proto.js';
import { tensorByteSize } from './tensor.js';
import { forEachTensor } from './walk.js';

/** A data file that a model refers to. */
export interface DataFile {
  readonly location: string;
  /** How long it must be at least. */
  readonly needed: number;
  /** The tensor that needs it that long. */
  readonly tensor: string;
}

/** The data files that the model's external tensors need; their locations are checked. */
export function dataFiles(model: ModelProto): DataFile[] {
  const files = new Map<string, DataFile>();
  forEachTensor(model, (tensor) => {
    if (!isExternal(tensor)) return;
    const size = tensorByteSize(tensor);
    const { location, offset, length } = checkedReference(tensor, size);
    const needed = offset + (length ?? size ?? 0);
    if (needed >= (files.get(location)?.needed ?? -1)) {
      files.set(location, { location, needed, tensor: tensor.name ?? '' });
    }
  });
  return [...files.values()];
}
