/** Masks and biases on scores, in the ways that exporters write them. */
import { dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import type { Plan } from './attention.js';
import type { Choices, Dims, FuzzGraph, Piece } from './graph.js';

export const LOWEST = -3.4028234663852886e38;

/** A tensor over some axes, brought to where it broadcasts against the scores. */
export function side(
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

const count = (g: FuzzGraph, size: string) =>
  g.op('Range', [g.tensor('int64', [], [0]), size, g.tensor('int64', [], [1])]);

/** True on and below a diagonal, from a buffer, Trilu, or positions added up. */
function triangle(plan: Plan, c: Choices): Piece {
  const { graph: g, lengths } = plan;
  const [query, key] = [plan.queries[0]!, plan.keys[0]!];
  const made: Dims = [[query], [key]];
  const sizes = [g.size([query]), g.size([key])] as const;
  const shape = () =>
    g.op(
      'Concat',
      sizes.map((s) => g.unsqueeze(s, [0])),
      { axis: 0 },
    );
  const style = c.below(3);
  if (style === 0 || (style === 1 && g.opset < 14)) {
    const n = 12;
    const buffer = g.tensor(
      'bool',
      [n, n],
      Array.from({ length: n * n }, (_, i) => (i % n <= Math.floor(i / n) ? 1 : 0)),
    );
    const zero = g.tensor('int64', [], [0]);
    const start = lengths === 'past' ? g.op('Sub', [sizes[1], sizes[0]]) : zero;
    const end = lengths === 'past' ? sizes[1] : sizes[0];
    const cut = (x: string, axis: number, from: string, to: string) =>
      g.op('Slice', [x, g.unsqueeze(from, [0]), g.unsqueeze(to, [0]), g.ints([axis])]);
    return { name: cut(cut(buffer, 0, start, end), 1, zero, sizes[1]), dims: made };
  }
  if (style === 1) {
    const ones = g.op('Expand', [g.tensor('float32', [], [1]), shape()]);
    const upper = c.below(2);
    const kept = g.op('Trilu', [ones, g.tensor('int64', [], [upper])], { upper });
    const mask = g.op('Cast', [kept], { to: dataTypeOf('bool') });
    return { name: upper ? g.op('Not', [mask]) : mask, dims: made };
  }
  const ones = g.op('Expand', [g.tensor('int64', [], [1]), g.unsqueeze(sizes[1], [0])]);
  const positions = g.op('Sub', [g.op('CumSum', [ones, g.tensor('int64', [], [0])]), g.tensor('int64', [], [1])]);
  const rows = g.unsqueeze(count(g, sizes[0]), [1]);
  return { name: g.op('Not', [g.op('Less', [rows, g.unsqueeze(positions, [0])])]), dims: made };
}

/** True where a key takes part. */
function keepMask(plan: Plan, c: Choices, target: Dims): Piece {
  const { graph: g, lengths, queries, keys } = plan;
  const kind = c.below(8);
  const [query, key] = [queries[0]!, keys[0]!];
  const [rowCount, columnCount] = [g.size([query]), g.size([key])];
  if (kind < 2 && !plan.hasWindows) {
    const column: Piece = { name: count(g, columnCount), dims: [[key]] };
    let rows = count(g, rowCount);
    if (lengths !== 'self' && c.below(4) > 0) rows = g.op('Add', [rows, g.op('Sub', [columnCount, rowCount])]);
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
  if (kind === 6 && !plan.hasWindows) return g.broadcast(triangle(plan, c), target);
  if (kind === 7 && !plan.hasWindows) {
    // (causal · mask) of integers, as BERT's decoders have it.
    const causal = g.broadcast(triangle(plan, c), target);
    const mask = side(plan, 'mask', 'int64', [...plan.batch, key], target);
    const both = g.op('Mul', [g.op('Cast', [causal.name], { to: dataTypeOf('int64') }), mask.name]);
    return { name: g.op('Cast', [both], { to: dataTypeOf('bool') }), dims: [] };
  }
  const labels = maskLabels(plan, c);
  if (kind === 2) {
    const mask = side(plan, 'mask', 'int64', labels, target);
    if (c.rarely(3)) return { ...mask, name: g.op('Not', [g.op('Equal', [mask.name, g.tensor('int64', [], [0])])]) };
    return { ...mask, name: g.op('Cast', [mask.name], { to: dataTypeOf('bool') }) };
  }
  return side(plan, 'keep', 'bool', labels, target);
}

export function addMask(plan: Plan, t: Piece, c: Choices): Piece {
  const { graph: g } = plan;
  const add = (mask: string): Piece => ({
    name: g.op('Add', c.rarely(3) ? [mask, t.name] : [t.name, mask]),
    dims: t.dims,
  });
  const fill = c.pick(LOWEST, Number.NEGATIVE_INFINITY, -1e9, -1e4, -10);
  if (fill === Number.NEGATIVE_INFINITY) plan.mayEmptyRows = true;
  if (fill === -1e4) plan.isCoarse = true;
  if (fill > LOWEST) plan.added.add(fill);
  // Two of the lowest numbers make −∞.
  if (fill === LOWEST && plan.lowestMasks++ > 0) plan.mayEmptyRows = true;
  const lowest = g.tensor(g.type, [], [fill]);
  const zero = g.tensor(g.type, [], [0]);
  const keep = keepMask(plan, c, t.dims);
  const style = c.below(6);
  if (style < 2) return add(g.op('Where', [keep.name, zero, lowest]));
  if (style === 5) {
    // The smaller of two: of a mask and a bias that is none.
    const mask = g.op('Where', [keep.name, zero, lowest]);
    return add(g.op('Min', [mask, g.tensor(g.type, [], [c.pick(0, 0, 1)])]));
  }
  const number = g.op('Cast', [keep.name], { to: dataTypeOf(g.type) });
  const rest = g.op('Sub', [g.tensor(g.type, [], [1]), number]);
  if (fill === Number.NEGATIVE_INFINITY) return add(g.op('Where', [g.op('Not', [keep.name]), lowest, zero]));
  if (style === 3) return add(g.op('Where', [g.op('Cast', [rest], { to: dataTypeOf('bool') }), lowest, rest]));
  if (style === 4) return { ...t, name: g.op('Sub', [t.name, g.op('Mul', [rest, g.tensor(g.type, [], [-fill])])]) };
  return add(g.op('Mul', [rest, lowest]));
}

export function whereMask(plan: Plan, t: Piece, c: Choices): Piece {
  const { graph: g } = plan;
  const fill = c.pick(Number.NEGATIVE_INFINITY, LOWEST, -1e9, -1e4, -10, 0);
  if (fill === Number.NEGATIVE_INFINITY) plan.mayEmptyRows = true;
  // A lowest number that is added after it makes −∞ of it.
  if (fill === LOWEST) plan.lowestMasks++;
  if (fill > -1e4) plan.oddities.push('fill that is no mask');
  const keep = keepMask(plan, c, t.dims).name;
  const constant = g.tensor(g.type, c.pick<number[]>([], [1]), [fill]);
  const inverted = c.rarely(2);
  const condition = inverted ? g.op('Not', [keep]) : keep;
  plan.selections.push({ condition, inverted, dims: t.dims });
  const name = g.op('Where', inverted ? [condition, constant, t.name] : [condition, t.name, constant]);
  return { name, dims: t.dims };
}

export function addBias(plan: Plan, t: Piece, c: Choices): Piece {
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
