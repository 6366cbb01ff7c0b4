/** What happens to scores before the softmax: scales, caps, biases and masks, and what only looks like them. */

import { dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import type { Plan } from './attention.js';
import { type Choices, type Dims, FuzzGraph, type Piece } from './graph.js';

export interface ScoreState {
  readonly scores: Piece;
  /** The scores' dimension that holds the keys. */
  readonly keyAxis: number;
  /** A column put after the keys, to be dropped from the probabilities. */
  readonly sink: 'none' | 'first' | 'last';
}

const LOWEST = -3.4028234663852886e38;

/** Multiplies by a constant, spelled in one of many ways, once in so many times. */
export function scaleSomewhere(plan: Plan, t: Piece, c: Choices, times: number): Piece {
  const { graph: g } = plan;
  if (!c.rarely(times)) return t;
  const d = g.fixedSize(['d'])!;
  const root = Math.sqrt(d);
  const cast = (x: string) => g.op('Cast', [x], { to: dataTypeOf(g.type) });
  const measured = () => g.op('Sqrt', [cast(g.size(['d'], t))]);
  const op = (name: string, ...inputs: string[]): Piece => ({ name: g.op(name, inputs), dims: t.dims });
  switch (c.below(9)) {
    case 1:
      return op('Div', t.name, g.float(root));
    case 2:
      return op('Mul', g.float(0.5), t.name);
    case 3:
      return op('Div', t.name, measured());
    case 4:
      return op('Mul', t.name, g.op('Sqrt', [g.op('Div', [g.float(1), measured()])]));
    case 5:
      return op('Mul', t.name, g.op('Div', [g.float(1), g.op('Sqrt', [cast(g.tensor('int64', [], [d]))])]));
    case 6:
      return op('Div', t.name, g.op('Pow', [cast(g.size(['d'], t)), g.float(0.5)]));
    case 7:
      return op('Mul', t.name, g.op('Expand', [g.float(0.7), g.ints([1])]));
    case 8:
      return op('Mul', t.name, g.float(-0.4));
    default:
      return op('Mul', t.name, g.float(1 / root));
  }
}

/** Applies up to five random steps. */
export function maskScores(plan: Plan, scores: Piece, c: Choices): ScoreState {
  let state: ScoreState = { scores, keyAxis: scores.dims.findIndex((d) => d[0] === plan.keys[0]), sink: 'none' };
  const count = c.pick(1, 2, 3, 0, 1, 5);
  for (let n = 0; n < count; n++) {
    const dims = state.scores.dims;
    const next = step(plan, state.scores, c);
    state = { ...state, scores: next, keyAxis: next.dims.findIndex((d) => d[0] === plan.keys[0]) };
    if (next.dims !== dims && state.keyAxis < 0) throw new Error('the keys are gone');
  }
  if (c.rarely(8)) return joinSink(plan, state, c);
  return state;
}

function step(plan: Plan, t: Piece, c: Choices): Piece {
  const { graph: g } = plan;
  const same = (name: string): Piece => ({ name, dims: t.dims });
  const odd = (what: string, name: string): Piece => {
    plan.oddities.push(what);
    return same(name);
  };
  const axis = () => c.below(t.dims.length);
  // Most graphs are plain, or have one oddity.
  const kind = c.below(26);
  const isOdd = kind === 9 || (kind >= 14 && kind <= 24 && kind !== 17);
  switch (isOdd && plan.oddities.length >= plan.mostOddities ? 25 : kind) {
    case 0:
    case 1:
    case 2:
      return addMask(plan, t, c);
    case 3:
    case 4:
    case 5:
      return whereMask(plan, t, c);
    case 6:
    case 7:
      return addBias(plan, t, c);
    case 8:
      return scaleSomewhere(plan, t, c, 1);
    case 9: {
      const cap = c.pick(5, 2);
      const pre = c.rarely(3) ? t.name : g.op('Div', [t.name, g.float(cap)]);
      return odd('soft cap among masks', g.op('Mul', [g.op('Tanh', [pre]), g.float(cap)]));
    }
    case 10:
      return same(g.op('Identity', [t.name]));
    case 11:
      return same(g.op('Dropout', [t.name]));
    case 12:
      return g.rearrange(t, c.shuffle(t.dims));
    case 13: {
      // One dimension split, or all merged that stand before the last two.
      const split = t.dims.flatMap((d) => (d.length > 1 ? d.map((l) => [l]) : [d]));
      return g.reshape(t, split);
    }
    case 14: {
      const at = t.dims.findIndex((d) => d[0] === plan.keys[0]);
      const max = g.op(
        'ReduceMax',
        g.opset >= 18 ? [t.name, g.ints([at])] : [t.name],
        g.opset >= 18 ? { keepdims: 1 } : { axes: [at], keepdims: 1 },
      );
      return odd('row maximum', g.op('Sub', [t.name, max]));
    }
    case 15: {
      const at = axis();
      const max = g.op(
        'ReduceMax',
        g.opset >= 18 ? [t.name, g.ints([at])] : [t.name],
        g.opset >= 18 ? { keepdims: 1 } : { axes: [at], keepdims: 1 },
      );
      return odd('maximum over another axis', g.op('Sub', [t.name, max]));
    }
    case 16:
      return odd('shift', g.op(c.pick('Add', 'Sub'), [t.name, g.float(c.pick(1.5, -3, 40))]));
    case 17: {
      const wide = g.op('Cast', [t.name], { to: dataTypeOf('float64') });
      return same(g.op('Cast', [wide], { to: dataTypeOf(g.type) }));
    }
    case 18: {
      const narrow = g.op('Cast', [t.name], { to: dataTypeOf(c.pick('float16', 'int32')) });
      return odd('narrow cast', g.op('Cast', [narrow], { to: dataTypeOf(g.type) }));
    }
    case 19:
      return odd('clip', g.op('Clip', [t.name, g.tensor(g.type, [], [-1]), g.tensor(g.type, [], [c.pick(1, 1e4)])]));
    case 20:
      return odd('maximum with the lowest number', g.op('Max', [t.name, g.float(c.pick(LOWEST, -1, -1e4))]));
    case 21: {
      const factor = side(
        plan,
        'factor',
        'float32',
        c.pick(['h', 'g'], [...plan.queries], ['h'], [...plan.batch], []),
        t.dims,
      );
      return odd(
        'factor of its own',
        g.op(c.pick('Mul', 'Div'), c.rarely(2) ? [t.name, factor.name] : [t.name, factor.name]),
      );
    }
    case 22: {
      const factor = side(
        plan,
        'keyFactor',
        'float32',
        c.pick([...plan.keys], [...plan.queries, ...plan.keys], ['h', ...plan.keys]),
        t.dims,
      );
      return odd('factor a key', g.op('Mul', c.rarely(2) ? [factor.name, t.name] : [t.name, factor.name]));
    }
    case 23: {
      const odds = c.pick('Relu', 'Sigmoid', 'Abs', 'Neg', 'Sqrt');
      return odd(odds, g.op(odds, [t.name]));
    }
    case 24:
      return odd('scores reused', g.op(c.pick('Add', 'Sub', 'Mul'), [t.name, t.name]));
    default: {
      if (c.rarely(2)) {
        g.output(t.name);
        return t;
      }
      // Several additive masks at different ends of one sum.
      return addBias(plan, addMask(plan, t, c), c);
    }
  }
}

/** A tensor over some axes, brought to where it broadcasts against the scores. */
function side(
  plan: Plan,
  name: string,
  type: 'float32' | 'bool' | 'int64',
  labels: readonly string[],
  target: Dims,
): Piece {
  const { graph: g } = plan;
  const typed = type === 'float32' ? g.type : type;
  const unique = `${name}_${g.inputs.length}`;
  if (labels.length === 0) return { name: g.input(unique, typed, []).name, dims: [] };
  return g.broadcast(g.input(unique, typed, groups(plan, labels)), target);
}

/** Axes as an input has them: batch, queries and keys each one dimension. */
function groups(plan: Plan, labels: readonly string[]): Dims {
  const known = [plan.batch, ['h', 'g'], plan.queries, plan.keys];
  const found = known.map((group) => group.filter((l) => labels.includes(l))).filter((d) => d.length > 0);
  return found;
}

function maskLabels(plan: Plan, c: Choices): string[] {
  const { batch: B, queries: Q, keys: K } = plan;
  if (plan.hasWindows && c.rarely(2)) return ['w', ...Q, ...K];
  return c.pick<string[]>(
    [...B, ...K],
    [...Q, ...K],
    [...B, ...Q, ...K],
    ['h', 'g', ...Q, ...K],
    [...K],
    [...B, 'h', 'g', ...Q, ...K],
    ['h', 'g', ...K],
  );
}

/** True where a key takes part. */
function keepMask(plan: Plan, c: Choices, target: Dims): Piece {
  const { graph: g, lengths, queries, keys } = plan;
  const kind = c.below(6);
  const [query, key] = [queries[0]!, keys[0]!];
  if (kind < 2 && !plan.hasWindows) {
    const count = (label: string) =>
      g.op('Range', [g.tensor('int64', [], [0]), g.size([label]), g.tensor('int64', [], [1])]);
    const column: Piece = { name: count(key), dims: [[key]] };
    let rows = count(query);
    if (lengths !== 'self' && c.below(4) > 0) rows = g.op('Add', [rows, g.op('Sub', [g.size([key]), g.size([query])])]);
    const place = (name: string, label: string) => g.broadcast({ name, dims: [[label]] }, [[query], [key]]);
    const row = place(rows, query).name;
    const seen = g.op('Not', [g.op('Greater', [place(column.name, key).name, row])]);
    let mask: Piece = { name: seen, dims: [[query], [key]] };
    if (c.rarely(3)) {
      const start = g.op('Sub', [row, g.tensor('int64', [], [c.pick(1, 2, 0)])]);
      mask = { ...mask, name: g.op('And', [seen, g.op('Less', [start, place(column.name, key).name])]) };
      plan.oddities.push('window');
    }
    return g.broadcast(mask, target);
  }
  const labels = maskLabels(plan, c);
  if (kind === 2) {
    const mask = side(plan, 'mask', 'int64', labels, target);
    return { ...mask, name: g.op('Cast', [mask.name], { to: dataTypeOf('bool') }) };
  }
  return side(plan, 'keep', 'bool', labels, target);
}

function addMask(plan: Plan, t: Piece, c: Choices): Piece {
  const { graph: g } = plan;
  const add = (mask: string): Piece => ({
    name: g.op('Add', c.rarely(3) ? [mask, t.name] : [t.name, mask]),
    dims: t.dims,
  });
  const fill = c.pick(LOWEST, Number.NEGATIVE_INFINITY, -1e9, -1e4, -10);
  if (fill === Number.NEGATIVE_INFINITY) plan.mayEmptyRows = true;
  if (fill === -1e4) plan.isCoarse = true;
  // Two of the lowest numbers make −∞.
  if (fill === LOWEST && plan.lowestMasks++ > 0) plan.mayEmptyRows = true;
  const lowest = g.tensor(g.type, [], [fill]);
  const zero = g.tensor(g.type, [], [0]);
  const keep = keepMask(plan, c, t.dims);
  if (c.below(2) === 0) return add(g.op('Where', [keep.name, zero, lowest]));
  const number = g.op('Cast', [keep.name], { to: dataTypeOf(g.type) });
  const rest = g.op('Sub', [g.tensor(g.type, [], [1]), number]);
  if (fill === Number.NEGATIVE_INFINITY) return add(g.op('Where', [g.op('Not', [keep.name]), lowest, zero]));
  return add(g.op('Mul', [rest, lowest]));
}

function whereMask(plan: Plan, t: Piece, c: Choices): Piece {
  const { graph: g } = plan;
  const fill = c.pick(Number.NEGATIVE_INFINITY, LOWEST, -1e9, -1e4, -10, 0);
  if (fill === Number.NEGATIVE_INFINITY) plan.mayEmptyRows = true;
  // A lowest number that is added after it makes −∞ of it.
  if (fill === LOWEST) plan.lowestMasks++;
  if (fill > -1e4) plan.oddities.push('fill that is no mask');
  const keep = keepMask(plan, c, t.dims).name;
  const constant = g.tensor(g.type, c.pick<number[]>([], [1]), [fill]);
  const name = c.rarely(2)
    ? g.op('Where', [g.op('Not', [keep]), constant, t.name])
    : g.op('Where', [keep, t.name, constant]);
  return { name, dims: t.dims };
}

function addBias(plan: Plan, t: Piece, c: Choices): Piece {
  const { graph: g, queries: Q, keys: K, batch: B } = plan;
  const labels = c.pick<string[]>(
    ['h', 'g', ...Q, ...K],
    [...Q, ...K],
    [...B, 'h', 'g', ...Q, ...K],
    ['h', 'g', ...K],
    [...B, 'h', ...Q, ...K],
    ['h', 'g'],
    [...Q],
  );
  const bias = side(plan, 'bias', 'float32', labels, t.dims);
  const op = c.rarely(4) ? 'Sub' : 'Add';
  return { name: g.op(op, op === 'Add' && c.rarely(2) ? [bias.name, t.name] : [t.name, bias.name]), dims: t.dims };
}

function joinSink(plan: Plan, state: ScoreState, c: Choices): ScoreState {
  const { graph: g } = plan;
  const { scores, keyAxis } = state;
  const first = c.rarely(3);
  const sink = g.input('sink', g.type, [['h', 'g']]);
  const rows = scores.dims.map((d, i) => (i === keyAxis ? [] : d));
  let column = g.broadcast(sink, rows);
  const missing = rows.length - column.dims.length;
  if (missing > 0) column = g.reshape(column, [...Array<string[]>(missing).fill([]), ...column.dims]);
  const shape = g.op(
    'Concat',
    rows.map((d) => g.unsqueeze(g.size(d, scores), [0])),
    { axis: 0 },
  );
  const wide = g.op('Expand', [column.name, shape]);
  if (c.rarely(4)) plan.oddities.push('sink of another kind');
  const parts = first ? [wide, scores.name] : [scores.name, wide];
  return {
    ...state,
    scores: { name: g.op('Concat', parts, { axis: keyAxis }), dims: scores.dims },
    sink: first ? 'first' : 'last',
  };
}

export { FuzzGraph };
