import { readFileSync } from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import Long from 'long';
import { allModels, standardAttentionCases } from '../../models/corpus.js';
import { OrtFlashError } from '../errors.js';
import { decodeModel } from './codec.js';
import {
  AttributeProto,
  FunctionProto,
  GraphProto,
  ModelProto,
  NodeProto,
  OperatorSetIdProto,
  ValueInfoProto,
} from './proto.js';
import { makeTensor } from './tensor.js';
import { validateModel } from './validate.js';

const failure = (model: ModelProto): string => {
  try {
    validateModel(model);
    return 'valid';
  } catch (error) {
    return error instanceof OrtFlashError ? `${error.code}: ${error.message}` : String(error);
  }
};

const node = (op_type: string, input: string[], output: string[], attribute: AttributeProto[] = [], domain = '') =>
  NodeProto.create({ op_type, input, output, attribute, domain });
const info = (name: string) => ValueInfoProto.create({ name });
const graph = (nodes: NodeProto[], outputs: string[], inputs: string[] = []) =>
  GraphProto.create({ node: nodes, input: inputs.map(info), output: outputs.map(info) });
const opset = (domain: string, version: number) =>
  OperatorSetIdProto.create({ domain, version: Long.fromInt(version) });
const model = (main: GraphProto, functions: FunctionProto[] = [], opset_import = [opset('', 17), opset('own', 1)]) =>
  ModelProto.create({ ir_version: Long.fromInt(10), graph: main, functions, opset_import });
const subgraph = (name: string, g: GraphProto) => AttributeProto.create({ name, g });

test('every export and every case of the standard is valid', (t) => {
  const files = [...allModels(), ...(standardAttentionCases() ?? [])];
  for (const { modelFile, name } of files) t.is(failure(decodeModel(readFileSync(modelFile))), 'valid', name);
});

test('a value must be computed once, and before it is read', (t) => {
  const x = ['x'];
  t.is(failure(model(graph([node('Relu', x, ['y'])], ['y'], x))), 'valid');
  t.regex(
    failure(model(graph([node('Relu', ['z'], ['y'])], ['y'], x))),
    /reads a value that does not exist .*node Relu → y, tensor z/,
  );
  const swapped = [node('Relu', ['a'], ['y']), node('Abs', x, ['a'])];
  t.regex(failure(model(graph(swapped, ['y'], x))), /before node Abs → a computes it .*node Relu → y, tensor a/);
  const cycle = [node('Add', ['x', 'c'], ['a']), node('Abs', ['a'], ['b']), node('Neg', ['b'], ['c'])];
  t.regex(failure(model(graph(cycle, ['c'], x))), /nodes form a cycle: Add → a → Abs → b → Neg → c → Add → a/);
  t.regex(failure(model(graph([node('Relu', x, ['x'])], x, x))), /computed twice .*tensor x/);
  t.regex(
    failure(model(graph([node('Relu', x, ['y']), node('Abs', x, ['y'])], ['y'], x))),
    /computed twice .*node Abs → y/,
  );
  t.regex(failure(model(graph([node('Relu', x, ['y'])], ['z'], x))), /graph output is not computed .*tensor z/);
  t.regex(failure(model(graph([], x, ['x', 'x']))), /two graph inputs/);
});

test('a subgraph reads what its node may read, and nothing else reads what it computes', (t) => {
  const branch = (read: string) => graph([node('Relu', [read], ['inner'])], ['inner']);
  const when = (read: string, after: NodeProto[] = []) => {
    const attributes = [subgraph('then_branch', branch(read)), subgraph('else_branch', branch('x'))];
    return model(graph([node('Abs', ['x'], ['a']), node('If', ['c'], ['y'], attributes), ...after], ['y'], ['x', 'c']));
  };
  t.is(failure(when('a')), 'valid');
  t.regex(failure(when('y')), /node Relu → inner, tensor y/);
  t.regex(failure(when('later', [node('Neg', ['x'], ['later'])])), /tensor later/);
  t.regex(failure(when('a', [node('Neg', ['inner'], ['z'])])), /does not exist .*tensor inner/);
});

test('operator sets must be imported, once', (t) => {
  const main = graph([node('Relu', ['x'], ['y'])], ['y'], ['x']);
  t.regex(failure(model(main, [], [])), /imports no operator set/);
  t.regex(failure(model(main, [], [opset('own', 1)])), /"ai.onnx" is not imported .*node Relu/);
  t.is(failure(model(main, [], [opset('ai.onnx', 17)])), 'valid');
  t.regex(failure(model(main, [], [opset('', 17), opset('ai.onnx', 18)])), /in versions 17 and 18/);
  t.regex(failure(model(main, [], [opset('', 0)])), /without a version/);
});

test('functions are defined once, complete, and never call themselves', (t) => {
  const define = (name: string, calls: string, overload = '') =>
    FunctionProto.create({
      name,
      overload,
      domain: 'own',
      input: ['a'],
      output: ['b'],
      node: [node(calls, ['a'], ['b'], [], calls === 'Relu' ? '' : 'own')],
      opset_import: [opset('', 17), opset('own', 1)],
    });
  const main = graph([node('F', ['x'], ['y'], [], 'own')], ['y'], ['x']);
  t.is(failure(model(main, [define('F', 'G'), define('G', 'Relu')])), 'valid');
  t.is(failure(model(main, [define('F', 'Relu'), define('F', 'Relu', 'other')])), 'valid');
  t.regex(failure(model(main, [define('F', 'Relu'), define('F', 'Relu')])), /own::F is defined twice/);
  t.regex(failure(model(main, [define('F', 'F')])), /own::F calls itself/);
  t.regex(failure(model(main, [define('F', 'G'), define('G', 'F')])), /own::F calls itself/);
  const incomplete = define('F', 'Relu');
  incomplete.output = ['c'];
  t.regex(failure(model(main, [incomplete])), /an output of function own::F is not computed .*tensor c/);
});

test('tensors are checked wherever they are', (t) => {
  const wrong = makeTensor('w', 'float32', [2], [1, 2]);
  wrong.dims = [Long.fromInt(3)];
  const constant = node('Constant', [], ['y'], [AttributeProto.create({ name: 'value', t: wrong })]);
  t.regex(failure(model(graph([constant], ['y']))), /holds 8 bytes, its dimensions say 12 .*tensor w/);
  const inner = subgraph('body', graph([constant], ['y']));
  t.regex(failure(model(graph([node('Loop', [], ['y'], [inner])], ['y']))), /holds 8 bytes/);
  const main = graph([], ['w']);
  main.initializer = [makeTensor('w', 'float32', [1], [1]), makeTensor('w', 'float32', [1], [1])];
  t.regex(failure(model(main)), /two initializers have one name .*tensor w/);
});

test('a random graph is valid in topological order, and in another order refused or still topological', (t) => {
  const layers = fc.array(fc.array(fc.nat(), { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 30 });
  fc.assert(
    fc.property(layers, fc.nat(), fc.nat(), (picks, from, to) => {
      // Node i reads values among x and the outputs of earlier nodes.
      const reads = picks.map((inputs, i) => inputs.map((pick) => pick % (i + 1)));
      const nodes = reads.map((inputs, i) =>
        node(
          'Op',
          inputs.map((v) => `v${v}`),
          [`v${i + 1}`],
        ),
      );
      const outputs = nodes.map((_, i) => `v${i + 1}`);
      t.is(failure(model(graph(nodes, outputs, ['v0']))), 'valid');
      const order = nodes.map((_, i) => i);
      order.splice(to % order.length, 0, ...order.splice(from % order.length, 1));
      const position = new Map(order.map((i, place) => [i + 1, place]));
      const sorted = order.every((i) => reads[i]!.every((v) => v === 0 || position.get(v)! < position.get(i + 1)!));
      const moved = failure(
        model(
          graph(
            order.map((i) => nodes[i]!),
            outputs,
            ['v0'],
          ),
        ),
      );
      if (sorted) t.is(moved, 'valid');
      else t.regex(moved, /^malformed-model: a node reads a value before node/);
    }),
  );
});

test('long chains and long cycles are no matter of the stack', (t) => {
  const chain = Array.from({ length: 20_000 }, (_, i) => node('Op', [`v${i}`], [`v${i + 1}`]));
  t.is(failure(model(graph(chain, ['v1'], ['v0']))), 'valid');
  t.regex(failure(model(graph(chain.toReversed(), ['v1'], ['v0']))), /before node/);
  t.regex(failure(model(graph([...chain, node('Op', ['v20000'], ['v0'])], ['v1']))), /form a cycle/);
});
