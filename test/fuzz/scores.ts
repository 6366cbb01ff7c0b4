/** What happens to scores before the softmax: scales, caps, biases and masks, and what only looks like them. */

import { dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import type { Plan } from './attention.js';
import type { Choices, FuzzGraph, Piece } from './graph.js';
import { addBias, addMask, LOWEST, side, whereMask } from './masks.js';

export interface ScoreState {
  readonly scores: Piece;
  /** The scores' dimension that holds the keys. */
  readonly keyAxis: number;
  /** A column put after the keys, to be dropped from the probabilities. */
  readonly sink: 'none' | 'first' | 'last';
}

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
  const kind = c.below(30);
  const isOdd = kind === 9 || (kind >= 14 && kind <= 24 && kind !== 17) || kind === 27;
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
    case 14:
      plan.added.add(Number.NaN);
      return odd(
        'row maximum',
        g.op('Sub', [
          t.name,
          maximum(
            g,
            t.name,
            t.dims.findIndex((d) => d[0] === plan.keys[0]),
          ),
        ]),
      );
    case 15:
      return odd('maximum over another axis', g.op('Sub', [t.name, maximum(g, t.name, axis())]));
    case 16:
      return odd('shift', g.op(c.pick('Add', 'Sub'), [t.name, g.float(c.pick(1.5, -3, 40))]));
    case 17: {
      const wide = g.op('Cast', [t.name], { to: dataTypeOf('float64') });
      return same(g.op('Cast', [wide], { to: dataTypeOf(g.type) }));
    }
    case 18: {
      // The lowest float32 is −∞ in float16.
      plan.mayEmptyRows = true;
      const narrow = g.op('Cast', [t.name], { to: dataTypeOf(c.pick('float16', 'int32')) });
      return odd('narrow cast', g.op('Cast', [narrow], { to: dataTypeOf(g.type) }));
    }
    case 19:
      if (g.type !== 'float32') return t;
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
    case 26:
      if (g.type !== 'float32') return t;
      return same(g.op('Clip', [t.name, g.float0(-5e4), g.float0(5e4)]));
    case 27: {
      plan.added.add(Number.NaN);
      // CogView's: the maximum is taken off scores made small for it.
      const small = g.op('Div', [t.name, g.float(32)]);
      const top = maximum(
        g,
        small,
        t.dims.findIndex((d) => d[0] === plan.keys[0]),
      );
      return odd('row maximum', g.op('Mul', [g.op('Sub', [small, top]), g.float(32)]));
    }
    case 28: {
      // baddbmm with an empty input and beta = 0.
      if (g.type !== 'float32') return t;
      const empty = g.op('ConstantOfShape', [g.op('Shape', [t.name])]);
      return same(g.op('Add', [g.op('Mul', [empty, g.float(0)]), t.name]));
    }
    case 29:
      return addProduct(plan, t, c);
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

function maximum(g: FuzzGraph, x: string, axis: number): string {
  const [inputs, attributes] = g.opset >= 18 ? [[x, g.ints([axis])], {}] : [[x], { axes: [axis] }];
  return g.op('ReduceMax', inputs, { ...attributes, keepdims: 1 });
}

/** A term that is a product itself, as of queries with relative positions, before or after the scores. */
function addProduct(plan: Plan, t: Piece, c: Choices): Piece {
  const { graph: g, batch: B, queries: Q, keys: K } = plan;
  if (plan.hasWindows || !g.hasFixedSize(['h', 'g'])) return t;
  const n = g.inputs.length;
  const wide = c.rarely(2);
  const left = g.input(`position_${n}`, g.type, [...(wide ? [B] : []), ['h', 'g'], Q, ['d']]);
  const right = g.input(`distance_${n}`, g.type, [...(wide ? [B] : []), ['h', 'g'], ['d'], K]);
  const lead = wide ? [B, ['h', 'g']] : [['h', 'g']];
  const term = g.broadcast({ name: g.op('MatMul', [left.name, right.name]), dims: [...lead, Q, K] }, t.dims);
  return { name: g.op('Add', c.rarely(2) ? [term.name, t.name] : [t.name, term.name]), dims: t.dims };
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
