/** The view operations between a tensor's layout and (batch, heads, sequence, head dimension). */
import { OrtFlashError } from '../errors.js';
import type { NodeEmitter, Size } from './emit.js';
import { type Axis, formatLayout, type Layout, type LayoutFactor } from './layout.js';

/** Sizes known apart from the tensor's own shape: heads where they are merged, head dimensions where they are fixed. */
export type KnownSizes = Readonly<Partial<Record<Axis, number>>>;

const isAxis = (factor: LayoutFactor): factor is Axis => typeof factor === 'string';

/** One axis of a reshape's result: a fixed size, or the product of the source's axes from `start` to `end` over `by`. */
type Target = number | { readonly start: number; readonly end: number; readonly by: number };

/** Reshapes with as little arithmetic on sizes as the targets allow. */
function reshapeTo(e: NodeEmitter, x: string, targets: readonly Target[], label: string): string {
  let inferred = false;
  const shape = targets.map((target, i): Size => {
    if (typeof target === 'number') return target;
    const single = target.end === target.start + 1 && target.by === 1;
    if (single && target.start === i) return 0;
    if (!inferred) {
      inferred = true;
      return -1;
    }
    let size = e.sizes(x, target.start, target.start + 1);
    for (let axis = target.start + 1; axis < target.end; axis++) size = e.op('Mul', [size, e.sizes(x, axis, axis + 1)]);
    return target.by === 1 ? size : e.op('Div', [size, e.ints([target.by])]);
  });
  const isSame = shape.every((size) => size === 0);
  return isSame ? x : e.reshape(x, shape, label);
}

/**
 * A tensor as its layout describes it, with its axes in the order asked for, as one slice, reshape and transpose at
 * most each.
 * @param headDimension the size of axis D as a vector of one, asked for where a slice leaves it open
 */
export function fromLayout(
  e: NodeEmitter,
  x: string,
  layout: Layout,
  order: readonly Axis[],
  known: KnownSizes,
  headDimension: () => string,
  label = x.toLowerCase(),
): string {
  let whole = x;
  layout.forEach(({ factors, slice }, axis) => {
    if (slice === undefined) return;
    const fixed = factors.reduce((product, f) => product * (isAxis(f) ? (known[f] ?? 1) : f.parts), 1);
    const open = factors.filter((f) => isAxis(f) && known[f] === undefined);
    if (open.some((f) => f !== 'D')) {
      throw new OrtFlashError('unsupported', `the size of the slice in ${formatLayout(layout)} is not known`);
    }
    const width = open.length === 0 ? undefined : e.op('Mul', [headDimension(), e.ints([fixed])]);
    const end = width === undefined ? slice.start + fixed : e.op('Add', [width, e.ints([slice.start])]);
    whole = e.slice(whole, axis, slice.start, end, `${label}_slice`);
  });
  const split = reshapeTo(e, whole, splitTargets(layout, known), `${label}_split`);
  return orderAxes(
    e,
    split,
    layout.flatMap((d) => d.factors),
    order,
    label,
  );
}

/** The size of an axis, read from the tensor as it is; undefined where that takes sizes that are not known. */
export function axisSize(e: NodeEmitter, x: string, layout: Layout, axis: Axis, known: KnownSizes): Size | undefined {
  const dimension = layout.findIndex(({ factors }) => factors.includes(axis));
  if (known[axis] !== undefined || dimension < 0) return known[axis] ?? 1;
  const { factors, slice } = layout[dimension]!;
  const others = factors.filter((f) => f !== axis).map((f) => (isAxis(f) ? known[f] : f.parts));
  if (slice !== undefined || others.includes(undefined)) return undefined;
  const by = others.reduce<number>((product, size) => product * size!, 1);
  const size = e.sizes(x, dimension, dimension + 1);
  return by === 1 ? size : e.op('Div', [size, e.ints([by])]);
}

/** The sizes of a layout's factors, each an axis of its own. */
function splitTargets(layout: Layout, known: KnownSizes): Target[] {
  return layout.flatMap(({ factors }, dimension) => {
    const whole = { start: dimension, end: dimension + 1 };
    if (factors.length === 1) return [{ ...whole, by: 1 }];
    const sizes = factors.map((f) => (isAxis(f) ? known[f] : f.parts));
    const by = sizes.reduce<number>((product, size) => product * (size ?? 1), 1);
    if (sizes.filter((size) => size === undefined).length > 1) {
      throw new OrtFlashError(
        'invalid-argument',
        `${formatLayout(layout)} merges axes, and the number of heads is not given`,
      );
    }
    return sizes.map((size) => size ?? { ...whole, by });
  });
}

/** Takes the packed part out, puts the axes in order and adds those that have size 1. */
function orderAxes(
  e: NodeEmitter,
  x: string,
  factors: readonly LayoutFactor[],
  order: readonly Axis[],
  label: string,
): string {
  let result = x;
  for (let axis = factors.length - 1; axis >= 0; axis--) {
    const factor = factors[axis]!;
    if (isAxis(factor)) continue;
    const name = { attributes: { axis }, label: `${label}_part` };
    result = e.op('Gather', [result, e.int(factor.part)], name);
  }
  const axes = factors.filter(isAxis);
  const present = order.filter((axis) => axes.includes(axis));
  result = e.transpose(
    result,
    present.map((axis) => axes.indexOf(axis)),
    `${label}_heads`,
  );
  const absent = order.flatMap((axis, i) => (axes.includes(axis) ? [] : [i]));
  return absent.length === 0 ? result : e.unsqueeze(result, absent, `${label}_axes`);
}

const CANONICAL: readonly Axis[] = ['B', 'H', 'S', 'D'];

const isOne = (factor: LayoutFactor): boolean => !isAxis(factor) && factor.parts === 1;

/**
 * A tensor whose axes stand in the order `from`, in the output's layout.
 * @throws OrtFlashError `invalid-argument` for a layout of which the tensor would be only a part
 */
export function toLayout(
  e: NodeEmitter,
  x: string,
  layout: Layout,
  known: KnownSizes,
  from: readonly Axis[] = CANONICAL,
): string {
  // The one part of an axis of size 1 is all of it.
  const factors = layout.flatMap((d) => d.factors).filter((f) => !isOne(f));
  if (layout.some((d) => d.slice !== undefined) || !factors.every(isAxis)) {
    throw new OrtFlashError('invalid-argument', `${formatLayout(layout)} is only a part of a tensor, and no output`);
  }
  const absent = from.flatMap((axis, i) => (factors.includes(axis) ? [] : [i]));
  const present = from.filter((axis) => factors.includes(axis));
  const squeezed = absent.length === 0 ? x : e.squeeze(x, absent);
  const ordered = e.transpose(
    squeezed,
    factors.map((axis) => present.indexOf(axis)),
    'output_ordered',
  );
  let start = 0;
  const targets = layout.map(({ factors: all }, at): Target => {
    const merged = all.filter((f) => !isOne(f));
    if (merged.length === 0) return 1;
    const end = start + merged.length;
    const sizes = merged.map((axis) => (isAxis(axis) ? known[axis] : undefined));
    const target = { start, end, by: 1 };
    const stays = merged.length === 1 && start === at;
    start = end;
    // A size that is known is a number: ONNX Runtime 1.29 to 1.30 do not load a model in which a Reshape to a computed
    // shape is followed by a view of fixed sizes.
    if (stays || sizes.includes(undefined)) return target;
    return sizes.reduce<number>((product, size) => product * size!, 1);
  });
  return reshapeTo(e, ordered, targets, 'output_merged');
}
