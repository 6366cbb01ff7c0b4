/** Small graphs of attention as some architecture's export has it, and what must become of each. */
import test from 'ava';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import type { ModelProto } from '../graph-rewrite/onnx/proto.js';
import type { SiteReport } from '../graph-rewrite/report.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { Choices, dims, FuzzGraph, type Piece } from './fuzz/graph.js';
import { judge } from './fuzz/run.js';

export interface Form {
  readonly name: string;
  readonly build: (g: FuzzGraph) => void;
  readonly opset?: number;
  readonly type?: DataTypeName;
  readonly sizes?: Readonly<Record<string, number>>;
  /** As many keys as queries. */
  readonly self?: boolean;
  /** Keys are `p` past ones and one for each query. */
  readonly past?: boolean;
  /**
   * The dimensions of every input have names of their own: always, or never, where the form rests on what they have in
   * common; else it is tried both ways.
   */
  readonly ownNames?: boolean;
  readonly mayEmptyRows?: boolean;
  /** What the masks of each site become, and its heads where keys share them: see {@link describeSite}. */
  readonly becomes?: string;
  /** The same where no dimension has a name in common, if less is found then. */
  readonly becomesApart?: string;
  /** Part of the reason, where the form must be left alone. */
  readonly refused?: string;
}

export const LOWEST = -3.4028234663852886e38;

/** Declares an input and brings it into the dimensions asked for. */
export function read(g: FuzzGraph, name: string, stored: string, wanted: string): Piece {
  return g.rearrange(g.input(name, g.type, dims(stored)), dims(wanted));
}

/** The same of what all heads share, once for each: 1 stands for the heads. */
export function readShared(g: FuzzGraph, name: string, stored: string, wanted: string): string {
  const one = g.rearrange(g.input(name, g.type, dims(stored)), dims(wanted));
  return g.rearrange(g.widen(one, 1, ['h']), dims(wanted.replace('1', 'h'))).name;
}

export const to = (g: FuzzGraph, x: string, type: DataTypeName) => g.op('Cast', [x], { to: dataTypeOf(type) });
export const last = (g: FuzzGraph, x: string, axis = -1) => g.op('Softmax', [x], { axis });
export const move = (g: FuzzGraph, x: string, is: string, wanted: string) =>
  g.rearrange({ name: x, dims: dims(is) }, dims(wanted)).name;
export const write = (g: FuzzGraph, x: string, is: string, wanted: string) => g.output(move(g, x, is, wanted));
export const slice = (g: FuzzGraph, x: string, axis: number, start: string, end: string) =>
  g.op('Slice', [x, g.unsqueeze(start, [0]), g.unsqueeze(end, [0]), g.ints([axis])]);
export const zero = (g: FuzzGraph) => g.tensor('int64', [], [0]);
/** 0, 1, … as (n). */
export const count = (g: FuzzGraph, label: string) =>
  g.op('Range', [zero(g), g.size([label]), g.tensor('int64', [], [1])]);
export const plain = (g: FuzzGraph): [string, string, string] => [
  read(g, 'Q', 'b q hd', 'b h q d').name,
  read(g, 'K', 'b k hd', 'b h d k').name,
  read(g, 'V', 'b k he', 'b h k e').name,
];

/** Attributes, the mask that is left with the axes that it spans, and key heads where there are fewer than of queries. */
function describeSite({ attributes, mask, keyHeads, queryHeads }: SiteReport): string {
  const { isCausal, leftWindow, rightWindow } = attributes!;
  const axes = ['b', 'h', 'q', 'k'].slice(-(mask?.shape?.length ?? 0));
  const parts = [
    isCausal ? 'causal' : [],
    leftWindow >= 0 ? `left=${leftWindow}` : [],
    rightWindow >= 0 ? `right=${rightWindow}` : [],
    mask?.kind === 'none' ? [] : `${mask?.kind}(${axes.filter((_, i) => mask?.shape?.[i] !== 1)})`,
    keyHeads === queryHeads ? [] : `heads=${queryHeads}/${keyHeads}`,
  ].flat();
  return parts.join(' ') || '-';
}

function describeSites(model: ModelProto): string {
  const proto = decodeModel(encodeModel(model));
  const { sites } = rewriteModel(proto);
  return sites.map((site) => (site.fused ? describeSite(site) : `refused: ${site.refusal?.reason}`)).join('; ');
}

/** Tests of a form: fused, and equal to the graph as it was in stock onnxruntime for several sizes; or refused. */
export function testForms(forms: readonly Form[]): void {
  for (const form of forms) {
    testForm(form, form.ownNames ?? false);
    if (form.ownNames !== undefined || form.refused !== undefined) continue;
    const becomes = form.becomesApart ?? form.becomes;
    const name = `${form.name}; no dimension has a name in common`;
    testForm(becomes === undefined ? { ...form, name } : { ...form, name, becomes }, true);
  }
}

function testForm({ name, build, becomes, refused, ...form }: Form, ownNames: boolean): void {
  const { opset = 17, type = 'float32', sizes = {}, self = false, past = false, mayEmptyRows = false } = form;
  test(name, async (t) => {
    const all = new Map(Object.entries({ h: 2, d: 4, e: 4, t: 3, ...sizes }));
    const g = new FuzzGraph(opset, type, all, new Choices([]), ownNames);
    if (self) g.aliases.set('k', 'q');
    build(g);
    const model = g.model();
    const outcome = await judge({
      model,
      inputs: g.inputs,
      sizes: all,
      lengths: self ? 'self' : past ? 'past' : 'cross',
      oddities: [],
      mayEmptyRows,
      isCoarse: false,
      keepsAll: false,
    });
    if (refused === undefined) t.deepEqual(outcome, { kind: 'fused', runs: 3 }, describeSites(model));
    else t.true(outcome.kind === 'refused' && outcome.reason.includes(refused), JSON.stringify(outcome));
    if (becomes !== undefined) t.is(describeSites(model), becomes);
  });
}
