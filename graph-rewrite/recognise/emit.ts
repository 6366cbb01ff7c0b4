import type { NodeList } from '../graph/builder.js';
import type { Node, Value } from '../graph/graph.js';
import { type DataTypeName, dataTypeName, dataTypeOf } from '../onnx/data-type.js';
import { DataType } from '../onnx/proto.js';
import { Expression } from '../shape/expression.js';
import { broadcastShapes } from '../shape/facts.js';
import type { Inference } from '../shape/inference.js';
import { hasBand } from './mask/bands.js';
import type { ElementStep } from './mask/derived.js';
import { absorbingFill, absorbs, isSmallBeside } from './mask/magnitude.js';
import { HIGHEST_ADDED_FILL } from './mask/terms.js';
import type { UnderstoodMasks } from './mask/understand.js';
import { insertedAxes, type MaskPlacement } from './masks.js';
import { DEPENDS_ON_BOTH, refuse } from './refusal.js';

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

/** Where nodes are added. */
export interface EmissionPlace {
  readonly list: NodeList;
  /** The node in whose place they will be. */
  readonly anchor: Node;
  readonly inference: Inference;
}

/**
 * Adds the nodes that bring what is left of a site's masks into the one that the operator takes. Boolean masks stay
 * boolean where nothing is added to the scores; else they become a part of what is added.
 */
export function emitMask(masks: UnderstoodMasks, type: DataTypeName, place: EmissionPlace): EmittedMask | undefined {
  const { rest } = masks;
  const [first] = rest;
  if (!first) return undefined;
  const periods = new Set(rest.filter((m) => !m.shape.at(-4)?.equals(1) && m.shape.length === 4).map((m) => m.period));
  if (periods.size > 1) return refuse('masks with different periods along the batch', first.term.value);
  const shape = broadcastShapes(rest.map((m) => m.shape)) as readonly Expression[];
  const common = { rank: shape.length, period: [...periods][0] ?? 0, shape };
  const booleans = rest.filter((m) => m.term.kind === 'boolean');
  const fill = booleans[0]?.term.fill ?? Number.NEGATIVE_INFINITY;
  const oneFill = booleans.every((m) => m.term.fill === fill);
  if (booleans.length === rest.length && oneFill && (!hasBand(masks) || masks.maskedValue === fill))
    return { name: conjunction(booleans, place), kind: 'boolean', maskedValue: fill, ...common };
  return { name: added(rest, type, place), kind: 'additive', maskedValue: masks.maskedValue, ...common };
}

/** Where all boolean masks keep the key, true. */
function conjunction(masks: readonly MaskPlacement[], place: EmissionPlace): string {
  const { list } = place;
  const kept = masks.map((mask) => {
    const shaped = reshaped(mask, place);
    return mask.term.keepWhere ? shaped : list.add('Not', [shaped]);
  });
  return kept.reduce((a, b) => list.add('And', [a, b]));
}

/**
 * What the masks, applied in order, add to a score; a boolean one or a floor puts its fill in place of it. A scale behind
 * several of them multiplies their sum, as in the model: what was −∞ in that sum, as two of −3.4e38 are, has to stay it.
 */
function added(masks: readonly MaskPlacement[], type: DataTypeName, place: EmissionPlace): string {
  const { list } = place;
  const scaled = (name: string, factor: number) =>
    factor === 1 ? name : list.add('Mul', [name, list.scalar(factor, type)]);
  let sum: string | undefined;
  // What the sum is still to be multiplied with.
  let pending = 1;
  for (const [at, mask] of masks.entries()) {
    const { term } = mask;
    const behind = masks.length === 1 ? 1 : term.scaledBy;
    if (sum !== undefined) sum = scaled(sum, pending / behind);
    pending = behind;
    if (term.kind === 'additive') {
      const own = scaled(reshaped(mask, place), term.factor / behind);
      sum = sum === undefined ? own : list.add('Add', [sum, own]);
      continue;
    }
    if (term.kind === 'floor' && sum === undefined) continue;
    const lowered = masks.length > 1 ? loweredFill(masks, at, type, place.inference) : term.fill;
    if (lowered === undefined)
      refuse(
        `a boolean mask that puts ${term.fill} in place of scores is combined with another mask: ${DEPENDS_ON_BOTH}`,
        term.value,
      );
    const kept = sum ?? list.scalar(0, type);
    const fill = list.scalar(lowered / behind, type);
    if (term.kind === 'floor') {
      sum = list.add('Max', [kept, fill]);
      continue;
    }
    sum = list.add('Where', [reshaped(mask, place), ...(term.keepWhere ? [kept, fill] : [fill, kept])]);
  }
  return scaled(sum ?? list.scalar(0, type), pending);
}

/**
 * What to add to a score in place of which one of several masks puts its fill: the fill, where nothing is left of the
 * score in the sum. Any other low fill takes all weight from its keys too, as long as a row keeps a key; and where it
 * keeps none, all scores that are not −∞ are equal, whatever the fill. So a lower one does the same, if no other mask says
 * otherwise: what is there before are biases, and nothing but the same fill or −∞ comes behind.
 */
function loweredFill(
  masks: readonly MaskPlacement[],
  at: number,
  type: DataTypeName,
  inference: Inference,
): number | undefined {
  const { fill, scaledBy } = masks[at]!.term;
  const lower = absorbingFill(dataTypeOf(type), scaledBy);
  if (absorbs(fill, dataTypeOf(type))) return fill;
  if (fill > HIGHEST_ADDED_FILL || lower === undefined) return undefined;
  const isSame = ({ term }: MaskPlacement) =>
    term.kind === 'boolean' && (term.fill === fill || term.fill === Number.NEGATIVE_INFINITY);
  const isBias = ({ term }: MaskPlacement) =>
    term.kind === 'additive' && (term.steps ?? []).every(isWidening) && isSmallBeside(fill, term, inference);
  const before = masks.slice(0, at).every((mask) => isSame(mask) || isBias(mask));
  return before && masks.slice(at).every(isSame) ? lower : undefined;
}

/** A cast of a 16-bit number to float32, which leaves the number as it is. */
function isWidening({ opType, from, to }: ElementStep): boolean {
  const isNarrow = from === DataType.FLOAT16 || from === DataType.BFLOAT16;
  return opType === 'Cast' && isNarrow && to === DataType.FLOAT;
}

/** The mask in the shape that it was placed in, and as the elements that it is. */
function reshaped(mask: MaskPlacement, place: EmissionPlace): string {
  const { list } = place;
  return (mask.term.steps ?? []).reduce(
    (name, { opType, constant, from, to }) => {
      if (opType === 'Cast') return list.add('Cast', [name], { to });
      const other = constant && list.scalar(constant.value, dataTypeName(from) as DataTypeName);
      if (!constant || !other) return list.add(opType, [name]);
      return list.add(opType, constant.isFirst ? [other, name] : [name, other]);
    },
    shaped(mask, place),
  );
}

function shaped({ term, transpose, expand, reshape }: MaskPlacement, place: EmissionPlace): string {
  if (!transpose && !expand) return reshape ? emitReshape(term.value, reshape, place) : term.value.name;
  const shape = place.inference.of(term.value).shape!;
  let source = transpose?.map((axis) => shape[axis]!) ?? shape;
  let name = transpose ? place.list.add('Transpose', [term.value.name], { perm: transpose }) : term.value.name;
  if (expand) {
    const split = reshapeTo(name, source, expand.split, place);
    name = place.list.add('Expand', [split, place.list.ints(expand.counts)]);
    source = expand.split.map((size, i) => (expand.counts[i] === 1 ? size : Expression.constant(expand.counts[i]!)));
  }
  return reshape ? reshapeTo(name, source, reshape, place) : name;
}

/** Reshapes a value to sizes each of which is a constant, one of the value's own, or the one that is left. */
export function emitReshape(value: Value, sizes: readonly Expression[], place: EmissionPlace): string {
  const source = place.inference.of(value).shape!;
  const inserted = insertedAxes(source, sizes);
  return inserted ? place.list.unsqueeze(value, inserted, place.anchor) : reshapeTo(value.name, source, sizes, place);
}

/** A tensor in the graph whose sizes may be read. */
export interface SizedTensor {
  readonly name: string;
  readonly shape: readonly Expression[];
}

/** Where the sizes of a Reshape come from: numbers, −1 for the one that is left, or an axis of a tensor. */
type SizeSource = number | { readonly tensor: string; readonly axis: number };

/**
 * Finds sizes that a tensor is to be reshaped to among its own and those of other tensors.
 * @returns undefined where more than one is that of none.
 */
export function findSizes(
  tensor: SizedTensor,
  sizes: readonly Expression[],
  others: readonly SizedTensor[],
): readonly SizeSource[] | undefined {
  const open = sizes.filter((s) => s.value === undefined);
  if (open.length <= 1) return sizes.map((s) => s.value ?? -1);
  const found = sizes.map((size): SizeSource => {
    if (size.value !== undefined) return size.value;
    for (const { name, shape } of [tensor, ...others]) {
      const axis = shape.findIndex((s) => s.equals(size));
      if (axis >= 0) return { tensor: name, axis };
    }
    return -1;
  });
  return found.filter((s) => s === -1).length <= 1 ? found : undefined;
}

/** Reshapes a tensor of this shape, as {@link emitReshape}; sizes may also be those of the other tensors. */
export function reshapeTo(
  name: string,
  source: readonly Expression[],
  sizes: readonly Expression[],
  { list, anchor }: EmissionPlace,
  others: readonly SizedTensor[] = [],
): string {
  const found = findSizes({ name, shape: source }, sizes, others);
  if (!found) return refuse('sizes that a Reshape needs are not those of any tensor at hand', anchor);
  const numbers = found.filter((s) => typeof s === 'number');
  if (numbers.length === found.length) return list.add('Reshape', [name, list.ints(numbers)]);
  const shapes = new Map<string, string>();
  const parts = found.map((size) => {
    if (typeof size === 'number') return list.ints([size]);
    const shape = shapes.get(size.tensor) ?? list.add('Shape', [size.tensor]);
    shapes.set(size.tensor, shape);
    return list.add('Gather', [shape, list.ints([size.axis])], { axis: 0 });
  });
  return list.add('Reshape', [name, list.add('Concat', parts, { axis: 0 })]);
}
