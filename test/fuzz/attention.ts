/** Random attention: the same computation in the many ways that exporters write it, or something that only resembles it. */
import type { DataTypeName } from '../../graph-rewrite/onnx/data-type.js';
import { dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { Choices, type Dims, dims, FuzzGraph, type FuzzInput, type Piece, sameAxes } from './graph.js';
import { maskScores, type ScoreState, scaleSomewhere } from './scores.js';
import { normalise } from './softmax.js';

/** Everything a graph is made from: for each part of it a list of choices. */
export type Spec = Readonly<
  Record<'shape' | 'query' | 'key' | 'value' | 'scores' | 'softmax' | 'output', readonly number[]>
>;

export interface FuzzModel {
  readonly model: ModelProto;
  readonly inputs: readonly FuzzInput[];
  /** Fixed sizes of axes. */
  readonly sizes: ReadonlyMap<string, number>;
  readonly lengths: 'self' | 'cross' | 'past';
  /** What was put in that is not plain attention; a graph without must be fused. */
  readonly oddities: readonly string[];
  /** Whether −∞ may mask every key of a row, which is NaN as it stands and zeros in the operator. */
  readonly mayEmptyRows: boolean;
  /** Whether −10⁴ is added to all scores of a row, which keep three digits behind the point. */
  readonly isCoarse: boolean;
  /**
   * Whether −10⁹ and other numbers may all be added to the scores of a row: float32 rounds these to multiples of 64, up
   * or down as the order of the additions has it, so that such a row's result is rounding alone. No key is masked then.
   */
  readonly keepsAll: boolean;
}

/** What all parts share. */
export interface Plan {
  readonly graph: FuzzGraph;
  readonly lengths: FuzzModel['lengths'];
  readonly batch: readonly string[];
  readonly queries: readonly string[];
  readonly keys: readonly string[];
  readonly hasWindows: boolean;
  readonly oddities: string[];
  readonly mostOddities: number;
  mayEmptyRows: boolean;
  isCoarse: boolean;
  /** Numbers added to scores. */
  readonly added: Set<number>;
  /** Masks that add the lowest number of the type. */
  lowestMasks: number;
  /** What the product with the values is to be divided by. */
  late?: Piece;
  /** Masks that put a number in place of scores. */
  readonly selections: { readonly condition: string; readonly inverted: boolean; readonly dims: Dims }[];
}

export function buildAttention(spec: Spec): FuzzModel {
  const c = new Choices(spec.shape);
  const opset = c.pick(17, 11, 13, 14, 18, 23);
  const type: DataTypeName = c.rarely(12) ? 'float64' : 'float32';
  const lengths = c.pick('self', 'cross', 'past', 'self');
  const hasWindows = lengths !== 'past' && c.rarely(6);
  const isStatic = c.rarely(3);
  const sizes = new Map([
    ['h', c.pick(2, 1, 3, 4)],
    ['g', c.pick(1, 1, 2, 3)],
    ['d', c.pick(4, 2, 3, 8)],
    ['e', 4],
  ]);
  sizes.set('e', c.rarely(3) ? c.pick(2, 3, 5) : sizes.get('d')!);
  const grid: [string, number][] = [
    ['w', 2],
    ['y', 2],
    ['x', 3],
    ['Y', 2],
    ['X', 3],
  ];
  if (hasWindows) for (const [label, size] of grid) sizes.set(label, size);
  if (isStatic || c.rarely(4)) sizes.set('b', c.pick(2, 1, 3));
  if (isStatic && !hasWindows) {
    sizes.set('q', c.pick(3, 2, 4, 5, 2, 3, 4, 1));
    const past = lengths === 'past' ? c.pick(2, 1, 4) : 0;
    if (past > 0) sizes.set('p', past);
    sizes.set('k', lengths === 'cross' ? c.pick(4, 2, 3, 5, 2, 3, 4, 1) : sizes.get('q')! + past);
  }
  const ownNames = !isStatic && c.rarely(8);
  const graph = new FuzzGraph(opset, type, sizes, c, ownNames);
  if (lengths === 'self') graph.aliases.set('k', 'q');
  const plan: Plan = {
    graph,
    lengths,
    batch: hasWindows ? ['b', 'w'] : ['b'],
    queries: hasWindows ? ['y', 'x'] : ['q'],
    keys: hasWindows ? ['Y', 'X'] : ['k'],
    hasWindows,
    oddities: [],
    mostOddities: c.pick(1, 0, 0, 2),
    mayEmptyRows: false,
    isCoarse: false,
    added: new Set(),
    lowestMasks: 0,
    selections: [],
  };
  if (sizes.get('k') === 1) plan.oddities.push('a single key');
  if (ownNames) plan.oddities.push('dimensions without common names');
  emit(plan, spec);
  return {
    model: graph.model(),
    inputs: graph.inputs,
    sizes,
    lengths,
    oddities: plan.oddities,
    mayEmptyRows: plan.mayEmptyRows,
    isCoarse: plan.isCoarse,
    keepsAll: plan.added.has(-1e9) && plan.added.size > 1,
  };
}

/** How the scores' dimensions are grouped. */
interface Form {
  readonly query: Dims;
  readonly key: Dims;
  readonly value: Dims;
  readonly scores: Dims;
  readonly result: Dims;
  readonly operator: 'MatMul' | 'Einsum' | 'swapped' | 'FusedMatMul';
}

function emit(plan: Plan, spec: Spec): void {
  const { graph: g } = plan;
  const sources = makeSources(plan, new Choices(spec.query), new Choices(spec.key));
  const first = pickForm(plan, new Choices(spec.scores));
  const qc = new Choices(spec.query.slice(8));
  const kc = new Choices(spec.key.slice(8));
  const sc = new Choices(spec.scores.slice(4));
  let query = scaleSomewhere(plan, sources.query, qc, 3);
  query = scaleSomewhere(plan, detour(g, query, first.query, qc), qc, 4);
  let key = scaleSomewhere(plan, sources.key, kc, 6);
  key = scaleSomewhere(plan, operand(g, key, first.key, kc), kc, 6);
  if (kc.rarely(12)) g.output(key.name);
  let scores = contract(plan, first.operator, query, key, first.scores, sc);
  scores = scaleSomewhere(plan, scores, sc, 2);
  if (sc.rarely(12)) attendBack(plan, scores);
  const state: ScoreState = maskScores(plan, scores, sc);
  const probabilities = normalise(plan, state, new Choices(spec.softmax), new Choices(spec.softmax.slice(20)));
  const vc = new Choices(spec.value);
  const second = pickForm(plan, vc);
  const oc = new Choices(spec.output);
  const p = detour(g, probabilities, second.scores, oc);
  const value = operand(g, sources.value, second.value, vc);
  let result = contract(plan, second.operator, p, value, second.result, oc, true);
  if (plan.late) {
    const divisor = detour(
      g,
      plan.late,
      result.dims.map((d) => (sameAxes(d, ['e']) ? [] : d)),
      oc,
    );
    const quotient = oc.rarely(3)
      ? g.op('Mul', [g.op('Reciprocal', [divisor.name]), result.name])
      : g.op('Div', [result.name, divisor.name]);
    result = { name: quotient, dims: result.dims };
  }
  if (oc.rarely(20)) {
    plan.oddities.push('probabilities are an output');
    g.output(p.name);
  }
  const { batch: B, queries: Q } = plan;
  const wanted: Dims = oc.pick(
    [B, Q, ['h', 'g', 'e']],
    [B, ['h', 'g'], Q, ['e']],
    [Q, B, ['h', 'g', 'e']],
    [
      [...B, ...Q],
      ['h', 'g', 'e'],
    ],
    [B, ['h', 'g', 'e'], Q],
    [B, Q, ['h', 'g'], ['e']],
    [B, Q, ['e', 'h', 'g']],
    [B, ['h'], ['g'], Q, ['e']],
  );
  if (oc.rarely(15)) g.output(result.name);
  result = detour(g, result, wanted, oc);
  if (oc.rarely(15)) g.output(g.op('Shape', [result.name]));
  g.output(oc.rarely(3) ? result.name : g.op('Relu', [result.name]));
}

/** Attention of the keys to the queries, from the same scores, as of images and texts to one another. */
function attendBack(plan: Plan, scores: Piece): void {
  const { graph: g, queries: Q, keys: K } = plan;
  const [rows, columns] = [scores.dims.length - 2, scores.dims.length - 1];
  if (!sameAxes(scores.dims[rows], Q) || !sameAxes(scores.dims[columns], K)) return;
  const lead = scores.dims.slice(0, -2);
  const turned = g.transpose(scores, [...lead.keys(), columns, rows]);
  const p = g.op('Softmax', [turned.name], { axis: columns });
  const inMemory: Dims = lead.every((d) => d.length < 2 || g.hasFixedSize(d)) ? lead : lead.flat().map((l) => [l]);
  const value = g.rearrange(g.input('VQ', g.type, [...inMemory, Q, ['e']]), [...lead, Q, ['e']]);
  g.output(g.op('MatMul', [p, value.name]));
}

/** The inputs as (batch, heads, sequence, dimension) tensors in whatever layout, packed or not, cached or not. */
function makeSources(plan: Plan, qc: Choices, kc: Choices): Record<'query' | 'key' | 'value', Piece> {
  const { graph: g, batch: B, queries: Q, keys: K, lengths } = plan;
  const layouts = (c: Choices, sequence: readonly string[], heads: readonly string[], last: string): Dims =>
    c.pick<Dims>(
      [B, sequence, [...heads, last]],
      [B, heads, sequence, [last]],
      [B, sequence, heads, [last]],
      [sequence, B, [...heads, last]],
      [B, [...heads, last], sequence],
      g.hasFixedSize(B) ? [[...B, ...heads], sequence, [last]] : [B, sequence, [...heads, last]],
      [B, sequence, [last, ...heads]],
      [heads, B, sequence, [last]],
      ...heads.map((h) => [B, [h], ...heads.filter((o) => o !== h).map((o) => [o]), sequence, [last]]),
    );
  const query = (): Piece => g.input('Q', g.type, layouts(qc, Q, ['h', 'g'], 'd'));
  const style = kc.below(5);
  const samePlace = lengths === 'self' && !plan.hasWindows;
  const simple = !plan.hasWindows || g.hasFixedSize(B);
  if (style === 1 && simple && g.fixedSize(['d']) === g.fixedSize(['e'])) {
    const packed = packedInput(plan, samePlace && g.fixedSize(['g']) === 1 ? ['Q', 'K', 'V'] : ['K', 'V'], kc);
    return { query: packed.Q ?? query(), key: packed.K!, value: packed.V! };
  }
  const q = query();
  if (lengths === 'past') {
    const fresh = (name: string, last: string) => {
      const shape = layouts(kc, ['q'], ['h'], last);
      return g.rearrange(g.input(name, g.type, shape), target(last, 'q'));
    };
    const order = kc.below(3);
    const target = (last: string, label: string): Dims =>
      order < 2 ? [B, ['h'], [label], [last]] : [B, [label], ['h'], [last]];
    const join = (name: string, last: string): Piece => {
      const past = g.input(`past_${name}`, g.type, target(last, 'p'));
      const joined = g.op('Concat', [past.name, fresh(name, last).name], { axis: order < 2 ? 2 : 1 });
      if (kc.below(3) > 0) g.output(joined);
      return { name: joined, dims: target(last, 'k') };
    };
    const key = join('K', 'd');
    if (!g.hasFixedSize(['k'])) g.setHome('k', key);
    return { query: q, key, value: join('V', 'e') };
  }
  const key = g.input('K', g.type, layouts(kc, K, ['h'], 'd'));
  return { query: q, key, value: g.input('V', g.type, layouts(kc, K, ['h'], 'e')) };
}

/** Queries, keys and values as parts of one tensor. */
function packedInput(plan: Plan, parts: readonly string[], c: Choices): Partial<Record<'Q' | 'K' | 'V', Piece>> {
  const { graph: g, batch: B, keys: K } = plan;
  const count = parts.length;
  const d = g.fixedSize(['d'])!;
  const h = g.fixedSize(['h'])!;
  const kinds = c.below(4);
  const [atoms, axis]: [string[], number] =
    kinds === 0
      ? [['P', 'h', 'd'], 2]
      : kinds === 1
        ? [['h', 'P', 'd'], 3]
        : kinds === 2
          ? [['P', 'h', 'd'], -1]
          : [['h', 'd', 'P'], 4];
  // The packed axis is no axis of the attention: the tensor is declared by hand.
  const sizeOf = (l: string) => (l === 'P' ? count : l === 'h' ? h : d);
  const width = atoms.reduce((n, l) => n * sizeOf(l), 1);
  g.setSize('P', width);
  const input = g.input('packed', g.type, [B, parts[0] === 'Q' ? plan.queries : K, ['P']]);
  if (parts[0] === 'Q' && !g.hasFixedSize(K)) g.setHome('k', input, plan.queries);
  const order = c.shuffle(parts.map((_, i) => i));
  const result: Partial<Record<'Q' | 'K' | 'V', Piece>> = {};
  const label = (i: number, x: string, shape: Dims): Piece => ({
    name: x,
    dims:
      parts[i] === 'Q'
        ? shape.map((s) => s.map((l) => (l === 'k' ? 'q' : l)))
        : parts[i] === 'V'
          ? shape.map((s) => s.map((l) => (l === 'd' ? 'e' : l)))
          : shape,
  });
  const keep = (i: number, piece: Piece) => {
    result[parts[i] as 'Q' | 'K' | 'V'] = piece;
  };
  if (axis === -1) {
    const wide = width / count;
    const names = g.splitEvenly(input.name, 2, count, wide, c.below(3));
    for (const [i, at] of order.entries()) keep(i, label(i, names[at]!, [B, K, ['h', 'd']]));
    return result;
  }
  const split = g.op('Reshape', [input.name, g.ints([0, 0, ...atoms.map(sizeOf)])]);
  const rest = atoms.filter((l) => l !== 'P').map((l) => [l]);
  if (c.rarely(2)) {
    // PyTorch's qkv.reshape(…).permute(2, 0, 3, 1, 4).unbind(0)
    const axes = [...Array(5).keys()].filter((a) => a !== axis);
    const shape: string[][] = [[...B], [...K], ...rest.map((r) => [...r])];
    const [first, second, third, fourth] = c.pick<number[]>([0, 2, 1, 3], [0, 1, 2, 3], [2, 0, 1, 3]) as [
      number,
      number,
      number,
      number,
    ];
    const perm = [first, second, third, fourth];
    const moved = g.op('Transpose', [split], { perm: [axis, ...perm.map((p) => axes[p]!)] });
    for (const [i, at] of order.entries())
      keep(
        i,
        label(
          i,
          g.part(moved, 0, at, count, c),
          perm.map((p) => shape[p]!),
        ),
      );
    return result;
  }
  for (const [i, at] of order.entries()) keep(i, label(i, g.part(split, axis, at, count, c), [B, K, ...rest]));
  return result;
}

function pickForm(plan: Plan, c: Choices): Form {
  const { graph: g, batch: B, queries: Q, keys: K } = plan;
  const kind = c.below(8);
  const operator = c.pick('MatMul', 'MatMul', 'swapped', 'FusedMatMul') as Form['operator'];
  const H = ['h', 'g'];
  const make = (lead: Dims, keyLead: Dims, q: readonly string[], op: Form['operator'] = operator): Form => ({
    query: [...lead, q, ['d']],
    key: [...keyLead, ['d'], K],
    value: [...keyLead, K, ['e']],
    scores: [...lead, q, K],
    result: [...lead, q, ['e']],
    operator: op,
  });
  const one = g.fixedSize(['g']) === 1;
  switch (kind) {
    case 1:
      return make([[...B, ...H]], [[...B, ...H]], Q);
    case 2:
      return make([B, ['h']], [B, ['h']], ['g', ...Q]);
    case 3:
      return make([B, ['h'], ['g']], [B, ['h'], []], Q, operator === 'FusedMatMul' ? 'MatMul' : operator);
    case 4:
    case 5:
      if (g.opset >= 12) {
        const shuffled = (list: Dims) => c.shuffle(list);
        const grouped = kind === 5 && !one;
        const lead: Dims = grouped ? [B, ['h'], ['g']] : [B, H];
        const keyLead: Dims = grouped ? [B, ['h']] : [B, H];
        return {
          query: shuffled([...lead, Q, ['d']]),
          key: shuffled([...keyLead, K, ['d']]),
          value: shuffled([...keyLead, K, ['e']]),
          scores: c.rarely(2) ? shuffled([...lead, Q, K]) : [...lead, Q, K],
          result: shuffled([...lead, Q, ['e']]),
          operator: 'Einsum',
        };
      }
      return make([B, H], [B, H], Q);
    case 6:
      return make([B, ['h']], [B, ['h']], [...Q, 'g']);
    default:
      return make([B, H], [B, H], Q);
  }
}

/** Rearranges, now and then over another arrangement on the way. */
function detour(g: FuzzGraph, t: Piece, target: Dims, c: Choices): Piece {
  let from = t;
  if (c.rarely(6)) from = g.rearrange(t, c.shuffle(t.dims.flat().map((l) => [l])));
  if (c.rarely(10)) from = { ...from, name: g.op('Identity', [from.name]) };
  return g.rearrange(from, target);
}

/** A key or value operand: repeated for the groups of heads where the form asks for it. */
function operand(g: FuzzGraph, t: Piece, target: Dims, c: Choices): Piece {
  if (!target.flat().includes('g')) return detour(g, t, target, c);
  if (g.fixedSize(['g']) === 1 && c.below(4) > 0) {
    const without = target.map((d) => d.filter((l) => l !== 'g'));
    const moved = detour(g, t, without, c);
    return { name: moved.name, dims: target };
  }
  const atHead = (list: Dims) => list.findIndex((d) => d.includes('h'));
  // Where the heads are an axis of their own before they are merged with others, the repeat follows them.
  const base: Dims = c.pick<Dims>(
    target
      .flat()
      .filter((l) => l !== 'g')
      .map((l) => [l]),
    t.dims.flatMap((d) => (d.includes('h') ? d.map((l) => [l]) : [d])),
  );
  const ready = detour(g, t, base, c);
  return detour(g, g.repeat(ready, atHead(ready.dims) + 1, 'g'), target, c);
}

function contract(
  plan: Plan,
  operator: Form['operator'],
  left: Piece,
  right: Piece,
  result: Dims,
  c: Choices,
  isSecond = false,
): Piece {
  const { graph: g } = plan;
  if (operator === 'Einsum') {
    const letters = new Map<string, string>();
    const term = (list: Dims) =>
      list
        .map((d) => {
          const id = d.join('');
          if (!letters.has(id)) letters.set(id, 'abcdefgh'[letters.size]!);
          return letters.get(id)!;
        })
        .join('');
    const operands = c.rarely(3) ? [right, left] : [left, right];
    const all = [...operands.map((o) => o.dims), result];
    const lead = c.rarely(3) ? result.findIndex((d, i) => !all.every((o) => sameAxes(o[i], d))) : 0;
    const dots = lead > 0 ? '...' : '';
    const terms = all.map((list) => `${dots}${term(list.slice(Math.max(lead, 0)))}`);
    const equation = `${terms[0]},${terms[1]}->${terms[2]}`;
    const spaced = c.rarely(3) ? equation.replace(',', ', ').replace('->', ' -> ') : equation;
    return {
      name: g.op(
        'Einsum',
        operands.map((o) => o.name),
        { equation: spaced },
      ),
      dims: result,
    };
  }
  const swap = (p: Piece): Piece =>
    g.transpose(
      p,
      [...p.dims.keys()].map((a, _, all) => (a < all.length - 2 ? a : all.length * 2 - 3 - a)),
    );
  if (operator === 'swapped') {
    const flipped = {
      name: g.op('MatMul', [swap(right).name, swap(left).name]),
      dims: [...result.slice(0, -2), result.at(-1)!, result.at(-2)!],
    };
    return isSecond || c.rarely(2) ? swap(flipped) : flipped;
  }
  if (operator === 'FusedMatMul' && g.type === 'float32') {
    const transB = c.below(2);
    const transA = c.rarely(3) ? 1 : 0;
    const alpha = c.pick(1, 0.5, 0.3);
    const inputs = [transA ? swap(left).name : left.name, transB ? swap(right).name : right.name];
    if (isSecond && alpha !== 1) plan.oddities.push('the result is scaled');
    const name = g.op('FusedMatMul', inputs, { alpha: { float: alpha }, transA, transB }, 1, 'com.microsoft');
    return { name, dims: result };
  }
  return { name: g.op('MatMul', [left.name, right.name]), dims: result };
}

export const castTo = (g: FuzzGraph, x: string, type: DataTypeName): string =>
  g.op('Cast', [x], { to: dataTypeOf(type) });
export { dims };
