/** Attention inside the branches of an If, and the bodies of a Loop and a Scan. */

import test from 'ava';
import Long from 'long';
import { makeNode } from '../graph-rewrite/graph/builder.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { type DataTypeName, dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import {
  AttributeProto,
  AttributeType,
  GraphProto,
  type ModelProto,
  TensorShapeProto,
  TypeProto,
  ValueInfoProto,
} from '../graph-rewrite/onnx/proto.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { Choices, dims, FuzzGraph } from './fuzz/graph.js';
import { judge, type Outcome } from './fuzz/run.js';

const SIZES = new Map(Object.entries({ h: 2, d: 4, e: 4 }));

/** Attention on inputs named Q, K and V (the values weighted with w of the graph outside), of which `scale` is one. */
function attention(scale: number): { graph: FuzzGraph; result: string } {
  const g = new FuzzGraph(17, 'float32', SIZES, new Choices([]), false);
  const q = g.rearrange({ name: 'Q', dims: dims('b q hd') }, dims('b h q d')).name;
  const k = g.rearrange({ name: 'K', dims: dims('b k hd') }, dims('b h d k')).name;
  const v = g.rearrange({ name: 'V', dims: dims('b k he') }, dims('b h k e')).name;
  const p = g.op('Softmax', [g.op('Mul', [g.op('MatMul', [q, k]), g.float(scale)])], { axis: -1 });
  const y = g.rearrange({ name: g.op('MatMul', [p, v]), dims: dims('b h q e') }, dims('b q he'));
  g.output(y.name);
  return { graph: g, result: y.name };
}

/** A graph of attention as an attribute; its names get a prefix, those of the inputs outside excepted. */
function body(scale: number, prefix: string, inputs: readonly ValueInfoProto[] = []): GraphProto {
  const graph = attention(scale).graph.model().graph as GraphProto;
  const own = (name: string) => (name === '' || ['Q', 'K', 'V'].includes(name) ? name : `${prefix}${name}`);
  for (const node of graph.node) {
    node.input = node.input.map(own);
    node.output = node.output.map(own);
    node.name = own(node.name ?? '');
  }
  for (const tensor of graph.initializer) tensor.name = own(tensor.name ?? '');
  for (const output of graph.output) output.name = own(output.name ?? '');
  graph.input = [...inputs];
  return graph;
}

function described(name: string, type: DataTypeName, shape: readonly (string | number)[]): ValueInfoProto {
  const dim = shape.map(
    (d) => new TensorShapeProto.Dimension(typeof d === 'string' ? { dim_param: d } : { dim_value: Long.fromNumber(d) }),
  );
  const tensor = new TypeProto.Tensor({ elem_type: dataTypeOf(type), shape: new TensorShapeProto({ dim }) });
  return new ValueInfoProto({ name, type: new TypeProto({ tensor_type: tensor }) });
}

const graphAttribute = (name: string, g: GraphProto) => AttributeProto.create({ name, type: AttributeType.GRAPH, g });

function outer(): FuzzGraph {
  const g = new FuzzGraph(17, 'float32', new Map(SIZES), new Choices([]), false);
  g.input('Q', 'float32', dims('b q hd'));
  g.input('K', 'float32', dims('b k hd'));
  g.input('V', 'float32', dims('b k he'));
  return g;
}

function judged(g: FuzzGraph, model: ModelProto): Promise<Outcome> {
  const rest = { lengths: 'cross', oddities: [], mayEmptyRows: false, isCoarse: false, keepsAll: false } as const;
  return judge({ model, inputs: g.inputs, sizes: SIZES, ...rest });
}

test('both branches of an If, as in merged decoders', async (t) => {
  const g = outer();
  const condition = g.op('Greater', [g.size(['q']), g.tensor('int64', [], [2])]);
  const node = makeNode('If', [condition], ['result']);
  node.attribute.push(
    graphAttribute('then_branch', body(0.5, 'then_')),
    graphAttribute('else_branch', body(0.25, 'else_')),
  );
  g.nodes.push(node);
  g.output('result');
  t.deepEqual(await judged(g, g.model()), { kind: 'fused', runs: 3 });
});

test('the body of a Loop', async (t) => {
  const g = outer();
  const inputs = [
    described('step', 'int64', []),
    described('go', 'bool', []),
    described('state', 'float32', ['b', 'q', 8]),
  ];
  const inner = body(0.5, 'loop_', inputs);
  const [result] = inner.output;
  inner.node.push(makeNode('Add', ['state', result!.name ?? ''], ['next']), makeNode('Identity', ['go'], ['again']));
  inner.output = ['again', 'next'].map((name) => ValueInfoProto.create({ name }));
  const start = g.op('Mul', ['Q', g.tensor('float32', [], [0])]);
  const node = makeNode('Loop', [g.tensor('int64', [], [2]), g.tensor('bool', [], [1]), start], ['result']);
  node.attribute.push(graphAttribute('body', inner));
  g.nodes.push(node);
  g.output('result');
  t.deepEqual(await judged(g, g.model()), { kind: 'fused', runs: 3 });
});

test('the body of a Scan', async (t) => {
  const g = outer();
  const inputs = [described('state', 'float32', ['b', 'q', 8]), described('factor', 'float32', [])];
  const inner = body(0.5, 'scan_', inputs);
  const result = inner.output[0]!.name ?? '';
  inner.node.push(
    makeNode('Mul', [result, 'factor'], ['scaled']),
    makeNode('Add', ['state', 'scaled'], ['next']),
    makeNode('Identity', ['scaled'], ['each']),
  );
  inner.output = ['next', 'each'].map((name) => ValueInfoProto.create({ name }));
  const start = g.op('Mul', ['Q', g.tensor('float32', [], [0])]);
  const node = makeNode('Scan', [start, g.tensor('float32', [3], [1, -2, 0.5])], ['last', 'all'], {
    num_scan_inputs: 1,
  });
  node.attribute.push(graphAttribute('body', inner));
  g.nodes.push(node);
  g.output('last');
  g.output('all');
  t.deepEqual(await judged(g, g.model()), { kind: 'fused', runs: 3 });
});

test('an If that always takes one branch: gone where attention is, and else as it was', async (t) => {
  const g = outer();
  const always = g.op('Equal', [g.op('Size', [g.op('Shape', ['Q'])]), g.tensor('int64', [], [3])]);
  const choose = (value: string, name: string) => {
    const node = makeNode('If', [always], [name]);
    for (const [branch, op] of [
      ['then_branch', 'Identity'],
      ['else_branch', 'Neg'],
    ] as const)
      node.attribute.push(
        graphAttribute(
          branch,
          GraphProto.create({
            name: branch,
            node: [makeNode(op, [value], [`${name}_inner`])],
            output: [ValueInfoProto.create({ name: `${name}_inner` })],
          }),
        ),
      );
    g.nodes.push(node);
    return name;
  };
  const q = g.rearrange({ name: 'Q', dims: dims('b q hd') }, dims('b h q d')).name;
  const k = g.rearrange({ name: 'K', dims: dims('b k hd') }, dims('b h d k')).name;
  const v = g.rearrange({ name: 'V', dims: dims('b k he') }, dims('b h k e')).name;
  const p = g.op('Softmax', [choose(g.op('MatMul', [q, k]), 'chosen_scores')], { axis: -1 });
  g.output(g.op('MatMul', [p, v]));
  g.output(choose('V', 'chosen_values'));
  t.deepEqual(await judged(g, g.model()), { kind: 'fused', runs: 3 });
  const model = g.model();
  const before = encodeModel(model);
  rewriteModel(model);
  const left = model.graph!.node.filter((node) => node.op_type === 'If');
  t.deepEqual(
    left.map((node) => node.output),
    [['chosen_values']],
  );
  const same = decodeModel(before).graph!.node.find((node) => node.output[0] === 'chosen_values')!;
  t.deepEqual(left[0], same);
});
