/** How the tensors of a site lie in memory, for one way to read the scores' dimensions as batch, heads and sequence. */
import type { Node, Value } from '../graph/graph.js';
import { formatLayout, isMerged, parseLayout } from '../op/layout.js';
import { type Expression, product } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import { sizeOf } from './atoms.js';
import { type BatchExpansion, expandBatch } from './broadcast.js';
import type { ScoreFormula } from './combine.js';
import { findSizes } from './emit.js';
import { type Factors, type PlacedFactor, placeFactor } from './factors.js';
import type { Joint, Side } from './joint.js';
import {
  type MaskPlacement,
  placeMask,
  placeSink,
  type ScoreAxes,
  type ScoreAxis,
  type SinkPlacement,
} from './masks.js';
import { type Candidate, mergeDimensions, type OperandAxes, placeOperand } from './operands.js';
import { isSliced, isWidthSaid, type Placed, pairOf } from './pairs.js';

/** One tensor of the operator: the value to connect, its layout, and the nodes that the layout makes unnecessary. */
export interface Connection {
  readonly value: Value;
  readonly layout: string;
  readonly absorbed: readonly Node[];
  /** Set where the layout is that of the tensor reshaped to these sizes: parts of one axis in dimensions of their own. */
  readonly merged?: readonly Expression[];
  /** Set where the layout is that of the tensor repeated so many times along a new first dimension, the heads. */
  readonly repeats?: number;
}

/** A choice of layouts for all four tensors and the masks. */
export interface Plan {
  readonly query: Connection;
  /** Set where the queries have no batch and are to be expanded. */
  readonly expansion: BatchExpansion | undefined;
  readonly key: Connection;
  readonly value: Connection;
  readonly output: Connection;
  /** Factors on the operands, in order. */
  readonly factors: Factors<PlacedFactor>;
  readonly sink: SinkPlacement | undefined;
  readonly sizes: Readonly<Record<ScoreAxis, Expression>>;
  readonly keyHeads: Expression;
  readonly headDimension: Expression;
  readonly valueDimension: Expression;
  readonly masks: readonly MaskPlacement[];
  readonly axes: ScoreAxes;
  /** Product of the scalar factors on query and key. */
  readonly factor: number;
}

/** How much a plan leaves not to be executed. */
export function saving(plan: Plan): number {
  const absorbed = [plan.query, plan.key, plan.value, plan.output].reduce((n, c) => n + c.absorbed.length, 0);
  return absorbed - 2 * plan.masks.filter((m) => m.reshape).length;
}

/**
 * Lays out a site's tensors for one way to read its scores' dimensions.
 * @returns a reason where no layout says how one lies.
 */
export function plan(
  joint: Joint,
  formula: ScoreFormula,
  { axes, factors: wanted }: { readonly axes: ScoreAxes; readonly factors: Factors },
  inference: Inference,
): Plan | string {
  const queryAxes: OperandAxes = { B: axes.B, H: axes.H, S: axes.Q };
  const keyAxes: OperandAxes = { B: axes.B, H: axes.H, S: axes.K };
  const heads = product(axes.H.map((a) => a.size));
  const masks: MaskPlacement[] = [];
  for (const term of formula.masks) {
    const placed = placeMask(term, axes, inference);
    if (typeof placed === 'string') return placed;
    masks.push(placed);
  }
  const sink = formula.sink && placeSink(formula.sink, axes, inference);
  if (typeof sink === 'string') return sink;
  const factors = placeFactors(wanted, joint, inference);
  if (typeof factors === 'string') return factors;
  const own = (s: Side) => product(s.options[0]!.alignment.own.map((a) => a.size));
  const [headDimension, valueDimension] = [own(joint.query), own(joint.value)];
  const isAsWide = headDimension.equals(valueDimension);
  const keys = placements(joint.key, keyAxes, factors.key.length > 0);
  const values = placements(joint.value, keyAxes, factors.value.length > 0).filter(
    (p) => p.factor === 1 && (isAsWide || !isSliced(p)),
  );
  const pair = pairOf(keys, values);
  if (!pair) return 'keys or values are repeated other than for groups of heads';
  const [key, value] = pair;
  const isSaid = isWidthSaid(key, value, isAsWide);
  const isUsable = (p: Placed) => p.heads.equals(heads) && (isSaid || !isSliced(p));
  const batched = placements(joint.query, queryAxes, factors.query.length > 0).find(isUsable);
  const query = batched ?? placements(joint.query, { ...queryAxes, B: [] }).find(isUsable);
  if (!query || (!batched && (factors.query.length > 0 || query.merged)))
    return 'the queries are repeated along the batch or the heads';
  const sized = [query, key, value].map((c) => ({ name: c.value.name, shape: inference.of(c.value).shape ?? [] }));
  const output = outputPlacement(joint.output, queryAxes, heads, (at, shape) => {
    const sizes = inference.of(at).shape;
    return sizes !== undefined && findSizes({ name: at.name, shape }, sizes, sized) !== undefined;
  });
  if (!output) return 'the output has its dimensions in an order that no layout says';
  const expansion = batched ? undefined : expandBatch(query.layout, key.layout);
  if (!batched && !expansion) return 'the queries are repeated along the batch';
  const fixedHeads = [query, key, value, output].every((c) => !isMerged(parseLayout(c.layout), 'H'));
  if (heads.value === undefined && !fixedHeads) return 'the number of heads is not a constant';
  return {
    query: expansion ? { ...query, layout: expansion.layout } : query,
    expansion,
    key,
    value,
    output,
    masks,
    axes,
    factors,
    sink,
    factor: query.factor * key.factor,
    sizes: {
      B: product(axes.B.map((a) => a.size)),
      H: heads,
      Q: product(axes.Q.map((a) => a.size)),
      K: product(axes.K.map((a) => a.size)),
    },
    keyHeads: key.heads,
    headDimension,
    valueDimension,
  };
}

/** Factors fitted to the operands; a reason where one does not fit. */
function placeFactors(factors: Factors, joint: Joint, inference: Inference): Factors<PlacedFactor> | string {
  const placed = { query: [], key: [], value: [] } as Record<keyof Factors, PlacedFactor[]>;
  for (const operand of ['query', 'key', 'value'] as const) {
    for (const factor of factors[operand]) {
      const found = placeFactor(factor, joint[operand].options[0]!, inference);
      if (typeof found === 'string') return found;
      placed[operand].push(found);
    }
  }
  return placed;
}

/**
 * Every candidate that has a layout, the one that absorbs the most first; those that need a Reshape last.
 * @param nearest only the operand as it is, for factors to be put on.
 */
function placements(s: Side, axes: OperandAxes, nearest = false): Placed[] {
  const found: Placed[] = [];
  const reshaped: Placed[] = [];
  for (const { candidate, alignment } of s.options) {
    if (nearest && candidate.absorbed.length > 0) continue;
    const merged = mergeDimensions(candidate, alignment, axes);
    const { root: value, absorbed, factor } = candidate;
    const add = (list: Placed[], from: Candidate, more: Partial<Placed>) => {
      const placed = placeOperand(from, alignment, axes);
      if (placed)
        list.push({ value, absorbed, factor, layout: formatLayout(placed.layout), heads: placed.heads, ...more });
    };
    add(found, candidate, {});
    const sizes = merged?.view.root.map((d) => sizeOf(d.atoms));
    const whole = candidate.view.root.map((d) => sizeOf(d.atoms));
    if (merged && sizes && !nearest && findSizes({ name: value.name, shape: whole }, sizes, []))
      add(reshaped, merged, { merged: sizes });
  }
  return [...found.reverse(), ...reshaped.reverse()];
}

/**
 * The result, where its dimensions have moved the furthest that a layout can say.
 * @param isWritable whether a tensor's sizes can be found for a Reshape from these
 */
function outputPlacement(
  s: Side,
  axes: OperandAxes,
  heads: Expression,
  isWritable: (value: Value, merged: readonly Expression[]) => boolean,
): Connection | undefined {
  const furthest = [...s.options].reverse();
  for (const merges of [false, true]) {
    for (const { candidate, alignment } of furthest) {
      const { root: value, absorbed, view } = candidate;
      // Here what is in memory are the dimensions that the view ends with.
      const whole = { ...candidate, view: { ...view, root: view.dimensions.map((atoms) => ({ atoms })) } };
      const written = merges ? mergeDimensions(whole, alignment, axes) : whole;
      const placement = written && placeOperand(written, alignment, axes);
      if (!placement?.heads.equals(heads)) continue;
      const merged = merges ? written!.view.root.map((d) => sizeOf(d.atoms)) : undefined;
      if (merged && !isWritable(value, merged)) continue;
      return { value, absorbed, layout: formatLayout(placement.layout), ...(merged ? { merged } : {}) };
    }
  }
  return undefined;
}
