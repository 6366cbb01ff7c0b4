import type { Node, Value } from '../graph/graph.js';
import type { Axis, Layout, LayoutFactor } from '../op/layout.js';
import { type Expression, product } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, align, type Dimension, leavesOf } from './atoms.js';
import { identityView, type RootDimension, stepView, type View, viewSource } from './view.js';

/** A tensor that could be an input of the operator in place of the exporter's operand, and how it is seen. */
export interface Candidate {
  readonly root: Value;
  readonly view: View;
  /** Nodes between root and operand, which the operator makes unnecessary. */
  readonly absorbed: readonly Node[];
  /** Product of the scalar factors on the way. */
  readonly factor: number;
}

/** Where a leaf stands: on which axis, at which place from outside. */
export interface Place {
  readonly axis: Axis;
  readonly order: number;
}

/** Every tensor on the way up from an operand that only moving and scaling separate from it, nearest first. */
export function candidates(operand: Value, inference: Inference): Candidate[] {
  const chain: Node[] = [];
  const found: Candidate[] = [];
  let value = operand;
  for (;;) {
    const candidate = seeFrom(value, chain, operand, inference);
    if (candidate) found.push(candidate);
    const node = value.producer;
    const source = node && (viewSource(node) ?? scaledInput(node, inference)?.value);
    if (!source || !inference.of(source).shape) return found;
    chain.unshift(node);
    value = source;
  }
}

function seeFrom(root: Value, chain: readonly Node[], operand: Value, inference: Inference): Candidate | undefined {
  const shape = inference.of(root).shape;
  if (!shape) return undefined;
  let view: View | undefined = identityView(shape);
  let factor = 1;
  for (const [at, node] of chain.entries()) {
    const scaled = scaledInput(node, inference);
    if (scaled) {
      factor *= scaled.factor;
      continue;
    }
    const next = chain[at + 1];
    const output: Value = next ? (viewSource(next) ?? scaledInput(next, inference)!.value) : operand;
    view = stepView(view, node, output, inference);
    if (!view) return undefined;
  }
  return { root, view, absorbed: [...chain], factor };
}

/** Mul or Div by a scalar. */
export function scaledInput(node: Node, inference: Inference): { value: Value; factor: number } | undefined {
  const [a, b] = node.inputs;
  if (!a || !b || !node.is('Mul', 'Div')) return undefined;
  const right = inference.scalarOf(b);
  const left = inference.scalarOf(a);
  // A scalar of higher rank than the tensor would add dimensions.
  const keepsRank = (value: Value) =>
    inference.of(value).shape?.length === inference.of(node.outputs[0]!).shape?.length;
  if (right !== undefined && left === undefined && keepsRank(a))
    return { value: a, factor: node.is('Div') ? 1 / right : right };
  if (left !== undefined && right === undefined && node.is('Mul') && keepsRank(b)) return { value: b, factor: left };
  return undefined;
}

/** Dimensions of the scores by label, which the operands' dimensions of the same label are aligned with. */
export type LabelledDimensions = ReadonlyMap<string, Dimension>;

/** Pairs of an operand's leaves with the scores' leaves; leaves of the head dimension have no partner. */
export interface Alignment {
  readonly partner: ReadonlyMap<Atom, Atom>;
  /** Leaves of the dimension that only this operand has, outermost first. */
  readonly own: readonly Atom[];
}

/** Aligns an operand's dimensions with the scores'; undefined where their sizes do not match. */
export function alignOperand(view: View, labels: readonly string[], scores: LabelledDimensions): Alignment | undefined {
  if (labels.length !== view.dimensions.length) return undefined;
  const partner = new Map<Atom, Atom>();
  let own: readonly Atom[] = [];
  for (const [i, label] of labels.entries()) {
    const dimension = view.dimensions[i]!;
    const score = scores.get(label);
    if (!score) {
      const leaves = leavesOf(dimension);
      if (own.length > 0 && leaves.length > 0) return undefined;
      if (leaves.length > 0) own = leaves;
    } else if (dimension.length > 0) {
      const pairs = align(dimension, score);
      if (!pairs) return undefined;
      for (const [mine, theirs] of pairs) partner.set(mine, theirs);
    }
  }
  return { partner, own };
}

/** An operand's layout once every leaf of the scores has its place. */
export interface Placement {
  readonly layout: Layout;
  /** Heads that are in memory; the others are repetitions of these. */
  readonly heads: Expression;
}

/** The scores' leaves that an operand's axes are made of, outermost first. */
export type OperandAxes = Readonly<Record<'B' | 'H' | 'S', readonly Atom[]>>;

/**
 * Writes a candidate as a layout. An operand may lack the innermost part of the heads: groups of heads then share it.
 * @returns undefined where no layout says it: data repeated in another way, or axes interleaved.
 */
export function placeOperand(candidate: Candidate, alignment: Alignment, axes: OperandAxes): Placement | undefined {
  const places = new Map<Atom, Place>();
  for (const axis of ['B', 'H', 'S'] as const)
    for (const [order, leaf] of axes[axis].entries()) places.set(leaf, { axis, order });
  const stored = new Map<Atom, Place>();
  const present = new Set<Atom>();
  for (const [mine, theirs] of alignment.partner) {
    if (mine.repeated) continue;
    const place = places.get(theirs);
    if (!place) return undefined;
    stored.set(mine, place);
    present.add(theirs);
  }
  for (const [order, leaf] of alignment.own.entries()) {
    if (leaf.repeated) return undefined;
    stored.set(leaf, { axis: 'D', order });
  }
  if ([...axes.B, ...axes.S].some((leaf) => !present.has(leaf))) return undefined;
  // Query head h reads key head ⌊h / group⌋: what is shared must be the innermost part of the heads.
  const kept = axes.H.filter((leaf) => present.has(leaf));
  if (kept.some((leaf, i) => leaf !== axes.H[i])) return undefined;
  const layout = layoutOf(candidate.view.root, candidate.view.fixed, stored);
  return layout && { layout, heads: product(kept.map((h) => h.size)) };
}

/**
 * The candidate with neighbouring dimensions that are parts of one axis as one dimension, as after a Reshape.
 * @returns undefined where there are none.
 */
export function mergeDimensions(candidate: Candidate, alignment: Alignment, axes: OperandAxes): Candidate | undefined {
  const { view } = candidate;
  const axisOf = (d: RootDimension) => {
    const leaves = leavesOf(d.atoms).map((leaf) => alignment.partner.get(leaf));
    if (d.slice || leaves.length === 0) return undefined;
    return (['B', 'H', 'S'] as const).find((axis) => leaves.every((leaf) => leaf && axes[axis].includes(leaf)));
  };
  const root: RootDimension[] = [];
  for (const dimension of view.root) {
    const last = root.at(-1);
    const axis = axisOf(dimension);
    if (last && axis && axisOf(last) === axis) root[root.length - 1] = { atoms: [...last.atoms, ...dimension.atoms] };
    else root.push(dimension);
  }
  return root.length < view.root.length ? { ...candidate, view: { ...view, root } } : undefined;
}

/** A tensor's layout from its dimensions' leaves and their places; undefined where it cannot be said. */
export function layoutOf(
  root: readonly RootDimension[],
  fixed: ReadonlyMap<Atom, number>,
  places: ReadonlyMap<Atom, Place>,
): Layout | undefined {
  const total = new Map<Axis, number>();
  for (const { axis } of places.values()) total.set(axis, (total.get(axis) ?? 0) + 1);
  const unused = (['B', 'H', 'S', 'D'] as const).filter((axis) => !total.has(axis));
  const seen = new Set<Axis>();
  const layout: { factors: LayoutFactor[]; slice?: { start: number; width: number } }[] = [];
  for (const { atoms, slice } of root) {
    const factors: LayoutFactor[] = [];
    let open: { axis: Axis; next: number } | undefined;
    for (const leaf of leavesOf(atoms)) {
      const part = fixed.get(leaf);
      const place = places.get(leaf);
      if (open && (part !== undefined || place?.axis !== open.axis) && open.next !== total.get(open.axis))
        return undefined;
      if (part !== undefined) {
        open = undefined;
        factors.push({ part, parts: leaf.size.value! });
      } else if (!place) return undefined;
      else if (open?.axis === place.axis) {
        if (place.order !== open.next) return undefined;
        open.next++;
      } else {
        if (place.order !== 0 || seen.has(place.axis)) return undefined;
        seen.add(place.axis);
        open = { axis: place.axis, next: 1 };
        factors.push(place.axis);
      }
    }
    if (open && open.next !== total.get(open.axis)) return undefined;
    if (factors.length === 0) factors.push(unused.shift() ?? { part: 0, parts: 1 });
    layout.push(slice ? { factors, slice } : { factors });
  }
  return layout.every(isReadable) ? layout : undefined;
}

/** Whether sizes can be read off the shape once the number of heads is known. */
function isReadable({ factors, slice }: Layout[number]): boolean {
  const axes = factors.filter((f): f is Axis => typeof f === 'string' && f !== 'H');
  return slice ? axes.every((a) => a === 'D') : axes.length <= 1;
}
