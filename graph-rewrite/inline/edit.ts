import type { ModelProto } from '../onnx/proto.js';
import { Expansion } from './expansion.js';
import { foldBack, takeSnapshot } from './fold.js';

/** What an edit tells of itself. */
export interface Edited<Result> {
  readonly result: Result;
  readonly changed: boolean;
}

/**
 * Edits a model as if the bodies of its functions stood in the place of their calls. Calls and branches in which nothing
 * changed are as they were afterwards, and a model in which nothing changed at all is left alone.
 * @param edit is given the model itself where nothing was to be expanded
 */
export function editWithoutCalls<Result>(
  proto: ModelProto,
  edit: (model: ModelProto, expansion: Expansion | undefined) => Edited<Result>,
): Result {
  const expansion = Expansion.of(proto);
  if (!expansion) return edit(proto, undefined).result;
  const snapshot = takeSnapshot(expansion);
  const { result, changed } = edit(expansion.model, expansion);
  if (changed) {
    foldBack(expansion, snapshot, proto);
    adopt(proto, expansion.model);
  }
  return result;
}

/** Gives a model the content of another that was made from it; what both have stays the object that it is. */
function adopt(proto: ModelProto, { graph, functions, opset_import, ir_version }: ModelProto): void {
  const { node, initializer, value_info } = graph!;
  Object.assign(proto.graph!, { node, initializer, value_info });
  Object.assign(proto, { functions, opset_import, ir_version });
}
