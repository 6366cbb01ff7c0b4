import test from 'ava';
import { Choices, dims, FuzzGraph } from '../../../test/fuzz/graph.js';
import { Model } from '../../graph/graph.js';
import { Expression } from '../../shape/expression.js';
import { Inference } from '../../shape/inference.js';
import { Affine, IndexVariable } from './affine.js';
import { movedIndices } from './movement.js';

/** Where the elements of a mask (b, k) stand that is repeated three times along its last axis. */
function tiled(output: (size: Expression) => readonly Affine[]) {
  const g = new FuzzGraph(17, 'float32', new Map(), new Choices([]), false);
  const mask = g.input('mask', 'float32', dims('b k')).name;
  g.output(g.op('Tile', [mask, g.ints([1, 3])]));
  const model = new Model(g.model());
  const inference = new Inference(model);
  const node = model.graph.nodes.find((n) => n.is('Tile'))!;
  const size = inference.of(model.graph.value('mask')!).shape![1]!;
  return movedIndices(node, node.outputs[0]!, output(size), inference);
}

test('Tile is read at the remainder where the index is taken apart', (t) => {
  const batch = Affine.variable(new IndexVariable('B', Expression.symbol('b')));
  const group = new IndexVariable('H', Expression.constant(3));
  let inner: Affine | undefined;
  const found = tiled((size) => {
    inner = Affine.variable(new IndexVariable('K', size));
    return [batch, Affine.variable(group).times(size).plus(inner)];
  });
  t.true(found?.[1]?.minus(inner!).value === 0);
});

test('Tile is not followed where the index is one of all copies, which gets no size of a single one', (t) => {
  const batch = Affine.variable(new IndexVariable('B', Expression.symbol('b')));
  let key: IndexVariable | undefined;
  const found = tiled((size) => {
    key = new IndexVariable('K', size.times(3));
    return [batch, Affine.variable(key)];
  });
  t.is(found, undefined);
  t.is(key?.sizes.length, 1);
});
