import type { NodeList } from '../graph/builder.js';
import type { Value } from '../graph/graph.js';
import type { DataTypeName } from '../onnx/data-type.js';
import type { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import type { MaskPlacement } from './masks.js';
import { refuse } from './refusal.js';

/** The operator's mask input, and the attributes that say how it is read. */
export interface EmittedMask {
  readonly name: string;
  readonly kind: 'boolean' | 'additive';
  /** Rank of the tensor. */
  readonly rank: number;
  /** Score of a key that a boolean mask takes out. */
  readonly maskedValue: number;
  readonly period: number;
  readonly shape: readonly Expression[];
}

/** A value so far down that adding a score to it does not change it, in float32 and bfloat16. */
const BOTTOMLESS = -1e30;

/**
 * Adds the nodes that bring a site's masks into the one that the operator takes. One mask stays what it is, boolean or
 * additive, in the shape that it has; several are added up.
 */
export function emitMask(
  masks: readonly MaskPlacement[],
  type: DataTypeName,
  list: NodeList,
  inference: Inference,
): EmittedMask | undefined {
  const [first, ...rest] = masks;
  if (!first) return undefined;
  const periods = new Set(masks.filter((m) => !m.shape.at(-4)?.equals(1) && m.shape.length === 4).map((m) => m.period));
  if (periods.size > 1) return refuse('masks with different periods along the batch', first.term.value);
  const period = [...periods][0] ?? 0;
  if (rest.length === 0 && first.term.kind === 'boolean') {
    const shaped = reshaped(first, list, inference);
    const name = first.term.keepWhere ? shaped : list.add('Not', [shaped]);
    return {
      name,
      kind: 'boolean',
      rank: first.shape.length,
      maskedValue: first.term.fill,
      period,
      shape: first.shape,
    };
  }
  let sum = '';
  for (const mask of masks) {
    const term = additive(mask, type, masks.length > 1, list, inference);
    sum = sum === '' ? term : list.add('Add', [sum, term]);
  }
  const widest = masks.reduce((a, b) => (b.shape.length > a.shape.length ? b : a)).shape;
  return {
    name: sum,
    kind: 'additive',
    rank: widest.length,
    maskedValue: Number.NEGATIVE_INFINITY,
    period,
    shape: widest,
  };
}

function additive(
  mask: MaskPlacement,
  type: DataTypeName,
  joined: boolean,
  list: NodeList,
  inference: Inference,
): string {
  const { term } = mask;
  if (term.kind === 'additive') {
    const scaled =
      term.factor === 1 ? term.value.name : list.add('Mul', [term.value.name, list.scalar(term.factor, type)]);
    return reshaped(mask, list, inference, scaled);
  }
  if (joined && term.fill > BOTTOMLESS)
    refuse(`a boolean mask that puts ${term.fill} in place of scores is combined with another mask`, term.value);
  const zero = list.scalar(0, type);
  const fill = list.scalar(term.fill, type);
  return list.add('Where', [reshaped(mask, list, inference), ...(term.keepWhere ? [zero, fill] : [fill, zero])]);
}

/** The mask in the shape that it was placed in; `name` where something was done to its values already. */
function reshaped(mask: MaskPlacement, list: NodeList, inference: Inference, name = mask.term.value.name): string {
  return mask.reshape ? emitReshape(mask.term.value, name, mask.reshape, list, inference) : name;
}

/** Reshapes a value to sizes each of which is a constant, one of the value's own, or the one that is left. */
function emitReshape(
  value: Value,
  name: string,
  sizes: readonly Expression[],
  list: NodeList,
  inference: Inference,
): string {
  const source = inference.of(value).shape!;
  const open = sizes.filter((s) => s.value === undefined);
  if (open.length <= 1) return list.add('Reshape', [name, list.ints(sizes.map((s) => s.value ?? -1))]);
  const shape = list.add('Shape', [name]);
  let inferred = 0;
  const parts = sizes.map((size) => {
    if (size.value !== undefined) return list.ints([size.value]);
    const at = source.findIndex((s) => s.equals(size));
    if (at >= 0) return list.add('Gather', [shape, list.ints([at])], { axis: 0 });
    if (inferred++ > 0) refuse('the shape of a mask cannot be written for the operator', value);
    return list.ints([-1]);
  });
  return list.add('Reshape', [name, list.add('Concat', parts, { axis: 0 })]);
}
