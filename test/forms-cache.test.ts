/** KV caches written as Concat in front of the standard's Attention. */
import test from 'ava';
import { makeNode } from '../graph-rewrite/graph/builder.js';
import { readAttributes, readInputs } from '../graph-rewrite/op/node.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { Choices, dims, FuzzGraph } from './fuzz/graph.js';
import { judge } from './fuzz/run.js';

const SIZES = new Map(Object.entries({ h: 2, d: 4, g: 3 }));

interface Cache {
  /** Heads per key head. */
  readonly grouped: boolean;
  readonly mask: 'none' | 'data' | 'causal';
  /** Where the query stands by the operator's own causality. */
  readonly isCausal: boolean;
}

function cached({ grouped, mask, isCausal }: Cache) {
  const g = new FuzzGraph(23, 'float32', new Map(SIZES), new Choices([]), false);
  const heads = grouped ? 'hg' : 'h';
  g.input('Q', 'float32', dims(`b ${heads} q d`));
  g.input('K', 'float32', dims('b q hd'));
  g.input('V', 'float32', dims('b q hd'));
  g.input('past_key', 'float32', dims('b h p d'));
  g.input('past_value', 'float32', dims('b h p d'));
  const fresh = (name: string) => g.rearrange({ name, dims: dims('b q hd') }, dims('b h q d')).name;
  const key = g.op('Concat', ['past_key', fresh('K')], { axis: 2 });
  const value = g.op('Concat', ['past_value', fresh('V')], { axis: -2 });
  const inputs = ['Q', key, value];
  if (mask === 'data') {
    g.input('mask', 'bool', dims('b 1 q k'));
    inputs.push('mask');
  } else if (mask === 'causal') {
    const past = g.op('Gather', [g.op('Shape', ['past_key']), g.tensor('int64', [], [2])], { axis: 0 });
    const count = g.size(['q']);
    const total = g.op('Add', [past, count]);
    const [zero, one] = [g.tensor('int64', [], [0]), g.tensor('int64', [], [1])];
    const rows = g.unsqueeze(g.op('Add', [g.op('Range', [zero, count, one]), past]), [1]);
    inputs.push(g.op('LessOrEqual', [g.unsqueeze(g.op('Range', [zero, total, one]), [0]), rows]));
  }
  g.nodes.push(makeNode('Attention', inputs, ['result'], isCausal ? { is_causal: 1 } : {}));
  g.output('result');
  g.output(key);
  g.output(value);
  return g;
}

const CASES: readonly (Cache & { readonly name: string; readonly absorbs: boolean })[] = [
  { name: 'no mask', grouped: false, mask: 'none', isCausal: false, absorbs: true },
  { name: 'a mask of data, grouped heads', grouped: true, mask: 'data', isCausal: false, absorbs: true },
  { name: 'a mask that is causality after the past', grouped: true, mask: 'causal', isCausal: false, absorbs: true },
  // The operator counts from the first key on, and with past inputs would count from the past's end on.
  { name: 'causality from the first key on', grouped: false, mask: 'none', isCausal: true, absorbs: false },
];

for (const { name, absorbs, ...cache } of CASES) {
  test(`${name}: ${absorbs ? 'past and present' : 'the Concat stays'}`, async (t) => {
    const graph = cached(cache);
    const rest = { lengths: 'past', oddities: [], mayEmptyRows: true, isCoarse: false, keepsAll: false } as const;
    const outcome = await judge({ model: graph.model(), inputs: graph.inputs, sizes: SIZES, ...rest });
    t.deepEqual(outcome, { kind: 'fused', runs: 3 });
    const model = graph.model();
    rewriteModel(model);
    const node = model.graph!.node.find((n) => n.op_type === 'FlashAttention')!;
    const inputs = readInputs(node);
    t.deepEqual([inputs.past_key, inputs.past_value], absorbs ? ['past_key', 'past_value'] : [undefined, undefined]);
    t.is(node.output.length, absorbs ? 3 : 1);
    t.is(
      model.graph!.node.some((n) => n.op_type === 'Concat' && n.output[0] === node.output[1]),
      false,
    );
    if (absorbs) t.deepEqual([readAttributes(node).keyLayout, inputs.K], ['BS(HD)', 'K']);
    t.is(readAttributes(node).isCausal, cache.isCausal || cache.mask === 'causal');
  });
}
