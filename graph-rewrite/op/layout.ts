import { OrtFlashError } from '../errors.js';

/**
 * How a tensor's dimensions spell (batch, heads, sequence, head dimension).
 *
 * A layout is a string, one term a dimension, outermost first:
 *
 *     B H S D      an axis of its own: batch, heads, sequence, head dimension
 *     (HD)         a dimension that merges axes, outermost first
 *     [1/3]        one part of a packed axis: part 1 of an axis of size 3
 *     (HD@64/96)   the merged axes are elements 64 and on of a dimension of size 96
 *
 * `BHSD` is the standard's rank 4, `BS(HD)` its rank 3, `BHDS` transposed keys, `BS([1/3]HD)` the keys of a packed
 * projection, `SB(HD)` PyTorch's sequence-first form. An axis that is not named has size 1. Every layout is a set of
 * strides, so a kernel reads it without a copy.
 */
export type Axis = 'B' | 'H' | 'S' | 'D';

/** One part of a packed axis. */
export interface PackedPart {
  readonly part: number;
  readonly parts: number;
}

/** What a dimension is a product of: an axis, or one part of a projection that packs several. */
export type LayoutFactor = Axis | PackedPart;

/** One dimension of the tensor. */
export interface LayoutDimension {
  /** Outermost first; never empty. */
  readonly factors: readonly LayoutFactor[];
  /** Set where the factors cover only a part of the dimension: first element, and size of the whole. */
  readonly slice?: { readonly start: number; readonly width: number };
}

/** How a tensor's dimensions hold batch, heads, sequence and head dimension, outermost first. */
export type Layout = readonly LayoutDimension[];

const AXES: readonly Axis[] = ['B', 'H', 'S', 'D'];
const FACTOR = /^(?:([BHSD])|\[(\d+)\/(\d+)\])/;

function isAxis(factor: LayoutFactor): factor is Axis {
  return typeof factor === 'string';
}

/**
 * Reads a layout.
 * @throws OrtFlashError `invalid-argument` where the text is no layout or names an axis twice.
 */
export function parseLayout(text: string): Layout {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-argument', `"${text}" is no tensor layout: ${why}`);
  };
  let rest = text;
  const takeFactor = (): LayoutFactor => {
    const match = FACTOR.exec(rest) ?? fail(`cannot read "${rest}"`);
    rest = rest.slice(match[0].length);
    if (match[1] !== undefined) return match[1] as Axis;
    const packed = { part: Number(match[2]), parts: Number(match[3]) };
    if (packed.part >= packed.parts) fail(`there is no part ${packed.part} of ${packed.parts}`);
    return packed;
  };
  const layout: LayoutDimension[] = [];
  while (rest.length > 0) {
    if (!rest.startsWith('(')) {
      layout.push({ factors: [takeFactor()] });
      continue;
    }
    rest = rest.slice(1);
    const factors: LayoutFactor[] = [];
    while (rest.length > 0 && !/^[)@]/.test(rest)) factors.push(takeFactor());
    const end = /^(?:@(\d+)\/(\d+))?\)/.exec(rest) ?? fail('a parenthesis is not closed');
    rest = rest.slice(end[0].length);
    if (factors.length === 0) fail('a pair of parentheses is empty');
    layout.push(
      end[1] === undefined ? { factors } : { factors, slice: { start: Number(end[1]), width: Number(end[2]) } },
    );
  }
  for (const axis of AXES) {
    if (layout.filter((d) => d.factors.includes(axis)).length > 1) fail(`axis ${axis} stands in two dimensions`);
    if (layout.some((d) => d.factors.indexOf(axis) !== d.factors.lastIndexOf(axis))) fail(`axis ${axis} stands twice`);
  }
  return layout;
}

/** Writes a layout; the inverse of {@link parseLayout}. */
export function formatLayout(layout: Layout): string {
  return layout
    .map(({ factors, slice }) => {
      const inner = factors.map((f) => (isAxis(f) ? f : `[${f.part}/${f.parts}]`)).join('');
      if (slice !== undefined) return `(${inner}@${slice.start}/${slice.width})`;
      return factors.length === 1 ? inner : `(${inner})`;
    })
    .join('');
}

/** Whether some dimension merges the axis with another, so that its size cannot be read off the shape alone. */
export function isMerged(layout: Layout, axis: Axis): boolean {
  return layout.some((d) => d.factors.includes(axis) && (d.slice !== undefined || d.factors.filter(isAxis).length > 1));
}

/** Sizes and strides, in elements, of a tensor seen as (batch, heads, sequence, head dimension). */
export interface StridedTensor {
  readonly size: Readonly<Record<Axis, number>>;
  readonly stride: Readonly<Record<Axis, number>>;
  /** Index of element (0, 0, 0, 0). */
  readonly offset: number;
}

/**
 * Sees a tensor of this shape through a layout.
 * @param known sizes that the shape does not give: heads where they are merged, and head dimension where a slice
 *   leaves it open.
 * @throws OrtFlashError `invalid-tensor` where the shape does not fit.
 */
export function resolveLayout(
  layout: Layout,
  shape: readonly number[],
  known: Partial<Record<Axis, number>> = {},
): StridedTensor {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-tensor', `${why} for layout ${formatLayout(layout)}`, { shape });
  };
  if (shape.length !== layout.length) fail(`rank ${layout.length} expected`);
  const size: Record<Axis, number> = { B: 1, H: 1, S: 1, D: 1 };
  const stride: Record<Axis, number> = { B: 0, H: 0, S: 0, D: 0 };
  let offset = 0;
  let dimensionStride = 1;
  for (let d = layout.length - 1; d >= 0; d--) {
    const { factors, slice } = layout[d]!;
    const extent = shape[d]!;
    if (slice !== undefined) {
      if (slice.width !== extent) fail(`dimension ${d} is ${extent}, expected ${slice.width}`);
      offset += slice.start * dimensionStride;
    }
    const sizes = factorSizes(factors, slice === undefined ? extent : undefined, known, () =>
      fail(`dimension ${d} (${extent}) does not split into its axes`),
    );
    let factorStride = dimensionStride;
    for (let f = factors.length - 1; f >= 0; f--) {
      const factor = factors[f]!;
      if (isAxis(factor)) {
        size[factor] = sizes[f]!;
        stride[factor] = factorStride;
      } else {
        offset += factor.part * factorStride;
      }
      factorStride *= sizes[f]!;
    }
    if (slice !== undefined && slice.start + factorStride / dimensionStride > slice.width)
      fail(`dimension ${d} is too short for its slice`);
    dimensionStride *= extent;
  }
  return { size, stride, offset };
}

/** Sizes of one dimension's factors: known ones as given, at most one other from what remains of the extent. */
function factorSizes(
  factors: readonly LayoutFactor[],
  extent: number | undefined,
  known: Partial<Record<Axis, number>>,
  fail: () => never,
): number[] {
  const alone = extent !== undefined && factors.filter(isAxis).length === 1;
  const sizes = factors.map((f) => (isAxis(f) ? (alone ? undefined : known[f]) : f.parts));
  const open = sizes.filter((s) => s === undefined).length;
  const product = sizes.reduce<number>((a, s) => a * (s ?? 1), 1);
  if (open > 1 || (open === 1 && (extent === undefined || product === 0 || extent % product !== 0))) fail();
  if (open === 0 && extent !== undefined && product !== extent) fail();
  return sizes.map((s) => s ?? extent! / product);
}

/**
 * The shape of a tensor with these sizes in this layout; packed axes get their full size.
 * @throws OrtFlashError `invalid-argument` for a layout with slices, which no output has.
 */
export function layoutShape(layout: Layout, size: Readonly<Record<Axis, number>>): number[] {
  return layout.map(({ factors, slice }) => {
    if (slice !== undefined) {
      throw new OrtFlashError('invalid-argument', `${formatLayout(layout)} has a slice and cannot be an output layout`);
    }
    return factors.reduce<number>((product, f) => product * (isAxis(f) ? size[f] : f.parts), 1);
  });
}
