import test from 'ava';
import Long from 'long';
import { Model } from '../../graph-rewrite/graph/graph.js';
import { AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto } from '../../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../../graph-rewrite/onnx/tensor.js';
import { Inference } from '../../graph-rewrite/shape/inference.js';
import { findCpuNodes, fitNames, nameNodes } from './cpu-nodes.js';

const INT64 = 7;
const FLOAT = 1;
const info = (name: string, elem_type: number) =>
  new ValueInfoProto({ name, type: { tensor_type: { elem_type, shape: { dim: [{ dim_param: 'length' }] } } } });
const node = (op_type: string, input: string[], output: string, name = output) =>
  new NodeProto({ op_type, input, output: [output], name });
const cast = (input: string, output: string, to: number) =>
  new NodeProto({
    op_type: 'Cast',
    input: [input],
    output: [output],
    name: output,
    attribute: [new AttributeProto({ name: 'to', type: 2, i: Long.fromNumber(to) })],
  });

function modelOf(nodes: readonly NodeProto[], output: string, type: number, opset = 17) {
  const weight = makeTensor('weight', 'float32', [1000], new Float32Array(1000));
  const scalar = makeTensor('scalar', 'float32', [], Float32Array.of(2));
  const graph = new GraphProto({
    name: 'test',
    node: [...nodes],
    input: [info('ids', INT64), info('hidden', FLOAT)],
    output: [info(output, type)],
    initializer: [weight, scalar],
  });
  const model = new Model(
    new ModelProto({
      ir_version: Long.fromNumber(8),
      opset_import: [{ domain: '', version: Long.fromNumber(opset) }],
      graph,
    }),
  );
  return { model, inference: new Inference(model) };
}

const namesOf = (nodes: readonly NodeProto[], output: string, type: number, opset?: number) => {
  const { model, inference } = modelOf(nodes, output, type, opset);
  return [...findCpuNodes(model, inference)].map(({ proto }) => proto.name).sort();
};

test('what stands between integers and is made of them alone is kept on the CPU', (t) => {
  const nodes = [
    node('Abs', ['ids'], 'distance'),
    cast('distance', 'real', FLOAT),
    node('Log', ['real'], 'log'),
    node('Mul', ['log', 'scalar'], 'scaled'),
    cast('scaled', 'bucket', INT64),
    node('Add', ['bucket', 'ids'], 'index'),
  ];
  t.deepEqual(namesOf(nodes, 'index', INT64), ['bucket', 'distance', 'index', 'log', 'real', 'scaled']);
});

test('angles of positions are kept on the CPU where ONNX Runtime has them there only', (t) => {
  const nodes = [
    cast('ids', 'positions', FLOAT),
    node('Mul', ['positions', 'scalar'], 'angles'),
    node('Cos', ['angles'], 'cosines'),
    node('Mul', ['hidden', 'cosines'], 'rotated'),
  ];
  t.deepEqual(namesOf(nodes, 'rotated', FLOAT, 21), []);
  t.deepEqual(namesOf(nodes, 'rotated', FLOAT, 22), ['angles', 'cosines', 'positions']);
});

test("the model's own work is not", (t) => {
  // An index into weights, a float made of integers that no integer needs, and integers made of hidden states.
  const nodes = [
    node('Neg', ['ids'], 'negative'),
    node('Gather', ['weight', 'negative'], 'embedded'),
    cast('ids', 'bias', FLOAT),
    node('Add', ['embedded', 'bias'], 'biased'),
    node('Add', ['biased', 'hidden'], 'sum'),
    cast('sum', 'rounded', INT64),
    node('Add', ['rounded', 'ids'], 'index'),
  ];
  t.deepEqual(namesOf(nodes, 'index', INT64), ['index', 'negative']);
});

test('long lists of names are made to fit', (t) => {
  const long = (i: number) => `value ${i} ${'x'.repeat(50)}`;
  const count = 1000;
  const nodes = Array.from({ length: count }, (_, i) => node('Neg', [i === 0 ? 'ids' : long(i - 1)], long(i)));
  const { model, inference } = modelOf(nodes, long(count - 1), INT64);
  const found = findCpuNodes(model, inference);
  t.is(found.size, count);
  nameNodes(found);
  const names = [...found].map(({ proto }) => proto.name!);
  t.is(new Set(names).size, count);
  t.deepEqual(fitNames(names), names);
  const tooMany = Array.from({ length: count }, (_, i) => long(i));
  const fitting = fitNames(tooMany);
  t.true(fitting.length > 0 && fitting.join('\n').length < 8192);
});
