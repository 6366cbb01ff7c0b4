import type { Value } from '../graph/graph.js';
import { type Axis, formatLayout, type Layout, parseLayout } from '../op/layout.js';
import { Expression, product } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { type Atom, type Dimension, leavesOf, regroup } from './atoms.js';
import { type Candidate, candidates, layoutOf, type Place } from './operands.js';
import { outputCandidates } from './output.js';
import type { Connection } from './plan.js';

/** An input of an attention operator, read from further up than the operator itself does. */
export interface ExtendedInput extends Connection {
  /** Heads in memory. */
  readonly heads: Expression;
  /** Product of the scalar factors on the way. */
  readonly factor: number;
}

/**
 * Every tensor that an operator's input of a known layout can be read from, the one that leaves the least to execute
 * first: the moves, repetitions of heads and scalar factors between the two become the layout.
 * @param heads number of heads, where the layout merges them
 */
export function extendInput(value: Value, layoutText: string, heads: number, inference: Inference): ExtendedInput[] {
  const layout = parseLayout(layoutText);
  const found: ExtendedInput[] = [];
  for (const candidate of candidates(value, inference)) {
    const axes = axesOf(candidate.view.dimensions, layout, heads);
    const extended = axes && place(candidate, axes);
    if (extended) found.push(extended);
  }
  return found.reverse();
}

/** The tensor furthest down that an operator's output of a known layout can be written as. */
export function extendOutput(value: Value, layoutText: string, heads: number, inference: Inference): Connection {
  const layout = parseLayout(layoutText);
  for (const { root, view, absorbed } of outputCandidates(value, inference).reverse()) {
    const axes = axesOf(
      view.root.map((d) => d.atoms),
      layout,
      heads,
    );
    if (!axes) continue;
    const written = view.dimensions.map((atoms) => ({ atoms }));
    const text = layoutOf(written, new Map(), placesOf(axes));
    if (text) return { value: root, layout: formatLayout(text), absorbed };
  }
  return { value, layout: layoutText, absorbed: [] };
}

type AxisLeaves = Readonly<Record<Axis, readonly Atom[]>>;

/** Sorts the leaves of dimensions by the axes that a layout gives them. */
function axesOf(dimensions: readonly Dimension[], layout: Layout, heads: number): AxisLeaves | undefined {
  const axes: Record<Axis, readonly Atom[]> = { B: [], H: [], S: [], D: [] };
  if (dimensions.length !== layout.length) return undefined;
  for (const [i, { factors }] of layout.entries()) {
    const dimension = dimensions[i]!;
    const [first, second] = factors;
    if (factors.length === 1 && typeof first === 'string') axes[first] = leavesOf(dimension);
    else if (factors.length === 2 && first === 'H' && second === 'D' && heads > 0) {
      const size = product(leavesOf(dimension).map((a) => a.size)).dividedExactlyBy(heads);
      const parts = size && regroup(dimension, [Expression.constant(heads), size]);
      if (!parts) return undefined;
      axes.H = leavesOf(parts[0]!);
      axes.D = leavesOf(parts[1]!);
    } else return undefined;
  }
  return axes;
}

function placesOf(axes: AxisLeaves): Map<Atom, Place> {
  const places = new Map<Atom, Place>();
  for (const axis of ['B', 'H', 'S', 'D'] as const)
    for (const [order, leaf] of axes[axis].entries()) if (!leaf.repeated) places.set(leaf, { axis, order });
  return places;
}

function place({ root, view, absorbed, factor }: Candidate, axes: AxisLeaves): ExtendedInput | undefined {
  if ([...axes.B, ...axes.S, ...axes.D].some((leaf) => leaf.repeated)) return undefined;
  // Query head h reads key head ⌊h / group⌋: what is shared must be the innermost part of the heads.
  const stored = axes.H.filter((leaf) => !leaf.repeated);
  if (stored.some((leaf, i) => leaf !== axes.H[i])) return undefined;
  const layout = layoutOf(view.root, view.fixed, placesOf(axes));
  if (!layout) return undefined;
  return { value: root, layout: formatLayout(layout), absorbed, factor, heads: product(stored.map((h) => h.size)) };
}
