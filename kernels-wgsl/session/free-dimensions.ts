import Long from 'long';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';

/** Gives named dimensions of a model's inputs and outputs their numbers, as the option freeDimensionOverrides says. */
export function fixDimensions(model: ModelProto, sizes: Readonly<Record<string, number>> = {}): void {
  if (Object.keys(sizes).length === 0) return;
  const { input = [], output = [], value_info = [] } = model.graph ?? {};
  for (const { type } of [...input, ...output, ...value_info]) {
    for (const dimension of type?.tensor_type?.shape?.dim ?? []) {
      const size = dimension.dim_param ? sizes[dimension.dim_param] : undefined;
      if (size === undefined) continue;
      dimension.dim_param = null;
      dimension.dim_value = Long.fromNumber(size);
    }
  }
}
