/** The softmax in its spellings, and what happens to the probabilities. */
import { type DataTypeName, dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import type { Plan } from './attention.js';
import { type Choices, type Piece, sameAxes, sameDims } from './graph.js';
import type { ScoreState } from './scores.js';

/** @param late choices of a division behind the product with the values, which takes the place of that before it */
export function normalise(plan: Plan, { scores, keyAxis, sink }: ScoreState, c: Choices, late: Choices): Piece {
  const { graph: g } = plan;
  const isWhole = sameAxes(scores.dims[keyAxis], plan.keys);
  if (sink === 'none' && late.rarely(3) && isWhole) return exponentials(plan, scores, keyAxis, late);
  let axis = keyAxis;
  if (c.rarely(30)) {
    plan.oddities.push('softmax over another axis');
    axis = c.below(scores.dims.length);
  }
  let x = scores.name;
  const last = axis === scores.dims.length - 1;
  const style = c.below(6);
  if (style === 5 || c.rarely(6)) {
    const other = c.rarely(20);
    if (other) {
      plan.oddities.push('maximum over another axis');
      // Of a single key, that of another row may be taken off: one of a low fill is 0/0 then.
      plan.mayEmptyRows = true;
    }
    x = g.op('Sub', [x, reduce(plan, 'ReduceMax', x, other ? c.below(scores.dims.length) : axis, 18)]);
  }
  if (style === 4 && g.type !== 'float64') plan.oddities.push('softmax in double');
  if (style === 4) x = g.op('Cast', [x], { to: dataTypeOf('float64') });
  let p: string;
  const flattens = g.opset < 13;
  if (style === 2 || style === 3 || style === 5 || (flattens && !last && c.below(8) > 0)) {
    // Without the maximum taken off, rows of low fills are 0/0.
    if (style !== 5) plan.mayEmptyRows = true;
    const e = g.op('Exp', [x]);
    const sum = reduce(plan, 'ReduceSum', e, axis, 13);
    p =
      style === 3
        ? g.op('Mul', c.rarely(2) ? [g.op('Reciprocal', [sum]), e] : [e, g.op('Reciprocal', [sum])])
        : g.op('Div', [e, sum]);
  } else {
    if (flattens && !last) plan.oddities.push('softmax over all that follows');
    p = g.op('Softmax', [x], { axis: c.rarely(2) ? axis : axis - scores.dims.length });
  }
  if (style === 4) p = g.op('Cast', [p], { to: dataTypeOf(g.type) });
  if (sink !== 'none') p = dropSink(plan, p, keyAxis, sink, scores, c);
  return follow(
    plan,
    { name: p, dims: scores.dims },
    { scores: sink === 'none' ? x : undefined, type: style === 4 ? 'float64' : g.type, axis },
    c,
  );
}

/** Exponentials, whose product with the values is to be divided by their sum. */
function exponentials(plan: Plan, scores: Piece, axis: number, c: Choices): Piece {
  const { graph: g } = plan;
  const isRelative = c.below(3) > 0;
  // Without the maximum taken off, rows of low fills are 0/0.
  if (!isRelative) plan.mayEmptyRows = true;
  const x = isRelative ? g.op('Sub', [scores.name, reduce(plan, 'ReduceMax', scores.name, axis, 18)]) : scores.name;
  const plain: Piece = { name: g.op('Exp', [x]), dims: scores.dims };
  const isMasked = c.rarely(3);
  const e = isMasked ? { ...plain, name: maskedBehind(plan, plain, c) } : plain;
  const moved = c.rarely(4) ? g.rearrange(e, c.shuffle(e.dims)) : e;
  const at = moved.dims.indexOf(scores.dims[axis]!);
  let total = reduce(plan, 'ReduceSum', moved.name, at, 13);
  if (c.rarely(4)) {
    if (!isRelative || isMasked) plan.oddities.push('a sum that is kept from being zero');
    total = g.op('Max', [total, g.tensor(g.type, [], [1e-6])]);
  }
  plan.late = { name: total, dims: moved.dims.map((d, i) => (i === at ? [] : d)) };
  return c.rarely(4) ? { name: g.op('Identity', [moved.name]), dims: moved.dims } : moved;
}

/** Exponentials with zeros for the keys that a mask takes out. */
function maskedBehind(plan: Plan, e: Piece, c: Choices): string {
  const { graph: g } = plan;
  plan.mayEmptyRows = true;
  const axes = c.pick<Piece['dims']>([plan.keys], [plan.batch, plan.keys], [plan.queries, plan.keys]);
  const keep = g.input('late_keep', 'bool', axes);
  const aligned = g.broadcast(keep, e.dims).name;
  if (c.rarely(3)) return g.op('Where', [g.op('Not', [aligned]), g.tensor(g.type, [], [0]), e.name]);
  const early = c.rarely(2);
  const to = { to: dataTypeOf(g.type) };
  const numbers = early
    ? g.broadcast({ name: g.op('Cast', [keep.name], to), dims: keep.dims }, e.dims).name
    : g.op('Cast', [aligned], to);
  return g.op('Mul', c.rarely(2) ? [numbers, e.name] : [e.name, numbers]);
}

/** What guards may test: the softmax's input, and its axis. */
interface Tested {
  /** Undefined where they have one column more. */
  readonly scores: string | undefined;
  readonly type: DataTypeName;
  readonly axis: number;
}

/** Where with some test of the probabilities or of their scores, which may leave them as they are or not. */
function guard(plan: Plan, p: string, { scores, axis, type }: Tested, c: Choices): string {
  const { graph: g } = plan;
  const number = (value: number) => g.tensor(g.type, [], [value]);
  const compared = (x: string) =>
    g.op(c.pick('Less', 'Greater', 'Equal'), [x, number(c.pick(0, 1, 0.5, -1, Infinity))]);
  const ofProbabilities = () =>
    c.pick(
      () => g.op('IsNaN', [p]),
      () => g.op('Equal', [p, p]),
      () => g.op('IsInf', [p]),
      () => compared(p),
      () => compared(g.op('Abs', [p])),
    )();
  const rows = (x: string, at: number) => {
    const as = (name: 'int64' | 'bool') => ({ to: dataTypeOf(name) });
    return g.op(
      'Cast',
      [reduce(plan, c.pick('ReduceMin', 'ReduceMax'), g.op('Cast', [x], as('int64')), at, 18)],
      as('bool'),
    );
  };
  const ofScores = (x: string) => {
    const least = g.op('Equal', [x, g.tensor(type, [], [-Infinity])]);
    const test = c.rarely(2) ? g.op('Not', [least]) : least;
    return rows(test, c.rarely(6) ? 0 : axis);
  };
  const one = () => (scores === undefined || c.rarely(2) ? ofProbabilities() : ofScores(scores));
  const test = c.rarely(3) ? g.op(c.pick('Or', 'And'), [one(), one()]) : one();
  const condition = c.rarely(3) ? g.op('Not', [test]) : test;
  const other = number(c.rarely(6) ? 1 : 0);
  return g.op('Where', c.rarely(3) ? [condition, p, other] : [condition, other, p]);
}

function reduce(plan: Plan, op: string, x: string, axis: number, inputSince: number): string {
  const { graph: g } = plan;
  return g.opset >= inputSince
    ? g.op(op, [x, g.ints([axis])], { keepdims: 1 })
    : g.op(op, [x], { axes: [axis], keepdims: 1 });
}

function dropSink(plan: Plan, p: string, axis: number, sink: 'first' | 'last', scores: Piece, c: Choices): string {
  const { graph: g } = plan;
  const keys = g.fixedSize(scores.dims[axis]!);
  const slice = (start: number, end: number) => g.op('Slice', [p, g.ints([start]), g.ints([end]), g.ints([axis])]);
  if (c.rarely(20) && keys === undefined) {
    plan.oddities.push('a key in place of the sink is dropped');
    return sink === 'first' ? slice(0, -1) : slice(1, 2 ** 31);
  }
  if (keys !== undefined && c.rarely(2) && g.opset >= 13) {
    const sizes = sink === 'first' ? [1, keys] : [keys, 1];
    const split = g.op('Split', [p, g.ints(sizes)], { axis }, 2);
    return sink === 'first' ? `${split}_1` : split;
  }
  return sink === 'first' ? slice(1, 2 ** 31) : slice(0, -1);
}

function follow(plan: Plan, p: Piece, tested: Tested, c: Choices): Piece {
  const { graph: g } = plan;
  const same = (name: string): Piece => ({ name, dims: p.dims });
  const odd = (what: string, name: string): Piece => {
    plan.oddities.push(what);
    return same(name);
  };
  const zero = () => g.tensor(g.type, [], [0]);
  const kind = c.below(22);
  switch (kind >= 5 && kind !== 13 && plan.oddities.length >= plan.mostOddities ? 0 : kind) {
    case 1:
      return same(g.op('Identity', [p.name]));
    case 2:
      return same(g.op('Dropout', [p.name]));
    case 3:
      return same(g.op('Where', [g.op('IsNaN', [p.name]), zero(), p.name]));
    case 4:
      return g.rearrange(p, c.shuffle(p.dims));
    case 5:
      g.output(g.op('Shape', [p.name]));
      plan.oddities.push('the probabilities’ shape is an output');
      return p;
    case 6:
      return odd('probabilities scaled', g.op('Mul', [p.name, g.float(0.5)]));
    case 7: {
      const weight = g.broadcast(g.input('weight', g.type, [plan.keys]), p.dims);
      return odd('probabilities reweighted', g.op('Mul', [p.name, weight.name]));
    }
    case 8:
      return odd('guard of another value', g.op('Where', [g.op('IsNaN', [p.name]), g.tensor(g.type, [], [1]), p.name]));
    case 9: {
      const other = g.broadcast(g.input('doubt', g.type, [plan.keys]), p.dims);
      return odd('guard against another NaN', g.op('Where', [g.op('IsNaN', [other.name]), zero(), p.name]));
    }
    case 10: {
      const type = dataTypeOf(c.pick('int64', 'float16', 'bool'));
      return odd(
        'probabilities rounded',
        g.op('Cast', [g.op('Cast', [p.name], { to: type })], { to: dataTypeOf(g.type) }),
      );
    }
    case 11: {
      g.output(g.op('ReduceMax', [p.name], { keepdims: 0 }));
      return odd('probabilities read twice', p.name);
    }
    case 12:
      return odd('probabilities squared', g.op('Mul', [p.name, p.name]));
    case 13: {
      if (g.opset < 12) return p;
      const ratio = g.tensor('float32', [], [0]);
      const dropped = g.op('Dropout', [p.name, ratio, g.tensor('bool', [], [c.below(2)])]);
      plan.oddities.push('dropout');
      return same(dropped);
    }
    case 15:
    case 16:
      return odd('a guard', guard(plan, p.name, tested, c));
    case 17: {
      const once = guard(plan, p.name, tested, c);
      return odd('two guards', guard(plan, once, tested, c));
    }
    case 20:
    case 21: {
      const found = plan.selections.findLast((s) => sameDims(s.dims, p.dims));
      if (!found) return p;
      const [condition, inverted] =
        kind === 20 ? [found.condition, found.inverted] : [found.condition, !found.inverted];
      return odd(
        'zeros after the softmax',
        g.op('Where', inverted ? [condition, zero(), p.name] : [condition, p.name, zero()]),
      );
    }
    case 14: {
      const heads = g.fixedSize(p.dims[0]!);
      const at = p.dims.findIndex((d) => d.includes('h'));
      if (heads === undefined || at !== 0 || g.opset < 12) return p;
      const mix = g.tensor(
        g.type,
        [heads, heads],
        Array.from({ length: heads * heads }, (_, i) => i / heads),
      );
      const letters = 'bcdef'.slice(0, p.dims.length - 1);
      return odd('talking heads', g.op('Einsum', [p.name, mix], { equation: `a${letters},az->z${letters}` }));
    }
    default:
      return p;
  }
}
