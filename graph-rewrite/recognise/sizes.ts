/** Sizes in the reasons of refusals. */
import type { Value } from '../graph/graph.js';
import type { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type Dimension, sizeOf } from './atoms.js';

/** What to do where a number stands for a size that other tensors have a name for. */
const FIXED =
  'a batch or a length that is a number here was fixed when the model was exported: make it a dynamic axis, and let the model take sizes from the shapes of tensors';

/** A shape as people write it. */
function written(shape: readonly Expression[] | undefined): string {
  return shape ? `(${shape.map((size) => size.key).join(', ')})` : '(of unknown rank)';
}

/** What a Reshape or the like makes of a tensor, where that cannot be followed. */
export function unfollowed(opType: string, what: string, from: Value, to: Value, inference: Inference): string {
  const [before, after] = [from, to].map((value) => inference.of(value).shape);
  const isLost = (size: Expression) => size.value === undefined && !after?.some((other) => other.equals(size));
  const isFixed = before?.some(isLost) && after?.some((size) => size.value !== undefined);
  return `what ${opType} does to the ${what} is not understood: it makes ${written(after)} of ${written(before)}${isFixed ? `; ${FIXED}` : ''}`;
}

/** Sizes of an operand that are not those of the scores: where they meet, and what may be the cause. */
export function unmatched(
  operand: Value,
  labels: readonly string[],
  scores: ReadonlyMap<string, Dimension>,
  inference: Inference,
): string {
  const shape = inference.of(operand).shape;
  const pairs = labels.flatMap((label, i) => {
    const [own, dimension] = [shape?.[i], scores.get(label)];
    return own && dimension ? [[own, sizeOf(dimension)] as const] : [];
  });
  const apart = pairs.filter(([own, other]) => !own.equals(1) && !own.equals(other));
  const isNumber = (size: Expression) => size.value !== undefined || /broadcast\(\d+, /.test(size.key);
  const fixed = apart.filter((pair) => pair.some(isNumber));
  const isFixed = fixed.length > 0;
  const facing = (isFixed ? fixed : apart).map(([own, other]) => `${own.key} meets ${other.key}`).join(', ');
  return `the sizes of an operand, ${written(shape)}, cannot be matched with those of the scores${facing ? `: ${facing}` : ''}${isFixed ? `; ${FIXED}` : ''}`;
}
