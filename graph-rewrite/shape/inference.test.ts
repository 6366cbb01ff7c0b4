import { readFileSync } from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import Long from 'long';
import { bundledModels } from '../../models/corpus.js';
import { MUTATIONS, mutate } from '../../test/mutations.js';
import { OrtFlashError } from '../errors.js';
import { Model } from '../graph/graph.js';
import { decodeModel } from '../onnx/codec.js';
import { tensorInfo } from '../onnx/make.js';
import { FunctionProto, OperatorSetIdProto } from '../onnx/proto.js';
import { makeTensor } from '../onnx/tensor.js';
import { Inference, type ValueFacts } from './inference.js';
import { type GraphText, graphProto, ints, model, modelProto, type NodeText, nodeProto } from './testing/build.js';

const node = (op: string, inputs: string[], outputs: string[], attributes: NodeText['attributes'] = {}): NodeText => ({
  op,
  inputs,
  outputs,
  attributes,
});

type Facts = ValueFacts & { readonly scalar: number | undefined };

function factsOf(built: Model): (name: string) => Facts {
  const inference = new Inference(built);
  return (name) => {
    const value = built.graph.value(name)!;
    const { type, shape, elements, constant, uniform } = inference.of(value);
    return { type, shape, elements, constant, uniform, scalar: inference.scalarOf(value) };
  };
}

const infer = (text: GraphText, opset = 17) => factsOf(model(text, opset));
const shapeOf = (facts: ValueFacts) => facts.shape?.map(String);
const elementsOf = (facts: ValueFacts) => facts.elements?.map(String);
const scalarInt = (name: string, value: number) => ints(name, [value], []);
const float = (name: string, value: number) => makeTensor(name, 'float32', [], [value]);
const hidden = { x: ['float32', ['batch', 'seq', 768]] } as const;

test('a reshape by sizes of the tensor itself splits its heads, and another merges them', (t) => {
  const of = infer({
    inputs: hidden,
    constants: [
      scalarInt('zero', 0),
      scalarInt('one', 1),
      ints('axis', [0]),
      ints('tail', [12, 64]),
      ints('rest', [-1]),
    ],
    nodes: [
      node('Shape', ['x'], ['shape']),
      node('Gather', ['shape', 'zero'], ['b']),
      node('Gather', ['shape', 'one'], ['s']),
      node('Unsqueeze', ['b', 'axis'], ['b1']),
      node('Unsqueeze', ['s', 'axis'], ['s1']),
      node('Concat', ['b1', 's1', 'tail'], ['split'], { axis: 0 }),
      node('Reshape', ['x', 'split'], ['heads']),
      node('Transpose', ['heads'], ['y'], { perm: [0, 2, 1, 3] }),
      node('Transpose', ['y'], ['back'], { perm: [0, 2, 1, 3] }),
      node('Concat', ['b1', 's1', 'rest'], ['merge'], { axis: 0 }),
      node('Reshape', ['back', 'merge'], ['z']),
    ],
    outputs: ['z'],
  });
  t.deepEqual(elementsOf(of('split')), ['batch', 'seq', '12', '64']);
  t.deepEqual(shapeOf(of('y')), ['batch', '12', 'seq', '64']);
  t.deepEqual(shapeOf(of('z')), ['batch', 'seq', '768']);
});

test('the expand idiom of TorchScript keeps sizes: Where(Equal(shape, -1), ones, shape)', (t) => {
  const of = infer({
    inputs: { x: ['float32', ['batch', 'kv', 1, 'seq', 64]] },
    constants: [ints('0', [0]), ints('2', [2]), ints('3', [3]), ints('4', [4]), ints('5', [5]), scalarInt('minus', -1)],
    nodes: [
      node('Shape', ['x'], ['shape']),
      node('Slice', ['shape', '0', '2'], ['front']),
      node('Slice', ['shape', '3', '5'], ['back']),
      node('Concat', ['front', '4', 'back'], ['wanted'], { axis: 0 }),
      node('Shape', ['wanted'], ['count']),
      node('ConstantOfShape', ['count'], ['ones'], { value: ints('', [1]) }),
      node('Mul', ['ones', 'minus'], ['minuses']),
      node('Equal', ['wanted', 'minuses'], ['open']),
      node('Where', ['open', 'ones', 'wanted'], ['target']),
      node('Expand', ['x', 'target'], ['y']),
    ],
    outputs: ['y'],
  });
  t.deepEqual(elementsOf(of('open')), ['0', '0', '0', '0', '0']);
  t.deepEqual(shapeOf(of('y')), ['batch', 'kv', '4', 'seq', '64']);
});

test('a softmax scale computed from the head dimension is a known number, rounded like the tensor', (t) => {
  const scale = (to: number) =>
    infer({
      inputs: { q: ['float32', ['batch', 12, 'seq', 80]] },
      constants: [scalarInt('last', -1), makeTensor('one', to === 1 ? 'float32' : 'float16', [], [1])],
      nodes: [
        node('Shape', ['q'], ['shape']),
        node('Gather', ['shape', 'last'], ['d']),
        node('Cast', ['d'], ['df'], { to }),
        node('Sqrt', ['df'], ['root']),
        node('Div', ['one', 'root'], ['scale']),
        node('Sqrt', ['scale'], ['half']),
      ],
      outputs: ['half'],
    });
  t.is(scale(1)('scale').scalar, Math.fround(1 / Math.fround(Math.sqrt(80))));
  // 1/√80 between the two nearest float16 numbers, 2⁻¹³ apart at this magnitude.
  const half = scale(10)('scale').scalar!;
  t.true(half !== scale(1)('scale').scalar && Math.abs(half - 1 / Math.sqrt(80)) < 2 ** -13);
  t.is(half * 2 ** 14, Math.round(half * 2 ** 14));
});

test('a scale that depends on an open size is not known', (t) => {
  const of = infer({
    inputs: { q: ['float32', ['batch', 'seq', 'dim']] },
    constants: [scalarInt('last', -1)],
    nodes: [
      node('Shape', ['q'], ['shape']),
      node('Gather', ['shape', 'last'], ['d']),
      node('Cast', ['d'], ['df'], { to: 1 }),
      node('Sqrt', ['df'], ['root']),
    ],
    outputs: ['root'],
  });
  t.is(of('root').scalar, undefined);
  t.deepEqual(elementsOf(of('d')), ['dim']);
});

test('what is filled with one number is known to be, whatever its size', (t) => {
  const of = infer({
    inputs: { x: ['float32', ['batch', 'seq']] },
    constants: [float('beta', 0.125)],
    nodes: [
      node('Shape', ['x'], ['shape']),
      node('ConstantOfShape', ['shape'], ['ones'], { value: makeTensor('', 'float32', [1], [1]) }),
      node('Mul', ['ones', 'beta'], ['filled']),
      node('Add', ['filled', 'x'], ['y']),
    ],
    outputs: ['y'],
  });
  t.is(of('filled').uniform, 0.125);
  t.is(of('filled').scalar, undefined);
  t.is(of('y').uniform, undefined);
});

test('a size clamped by a table and broadcast with itself is itself', (t) => {
  const of = infer({
    inputs: { x: ['float32', ['batch', 'seq', 8]] },
    constants: [makeTensor('table', 'float32', [1, 64, 8], new Array(512).fill(0.5)), ints('0', [0]), ints('1', [1])],
    nodes: [
      node('Shape', ['x'], ['shape'], { start: 1, end: 2 }),
      node('Slice', ['table', '0', 'shape', '1'], ['positions']),
      node('Add', ['x', 'positions'], ['y']),
    ],
    outputs: ['y'],
  });
  t.deepEqual(shapeOf(of('positions')), ['1', 'min(64, seq)', '8']);
  t.deepEqual(shapeOf(of('y')), ['batch', 'seq', '8']);
});

test('sizes that need not be equal broadcast to neither', (t) => {
  const of = infer({
    inputs: { x: ['float32', ['a']], y: ['float32', ['b']], z: ['float32', [null]], one: ['float32', [1]] },
    nodes: [
      node('Add', ['x', 'y'], ['xy']),
      node('Add', ['y', 'x'], ['yx']),
      node('Add', ['z', 'one'], ['z1']),
      node('Add', ['xy', 'x'], ['again']),
    ],
    outputs: ['xy', 'yx', 'z1', 'again'],
  });
  t.deepEqual(shapeOf(of('xy')), ['broadcast(a, b)']);
  t.deepEqual(shapeOf(of('yx')), ['broadcast(a, b)']);
  t.deepEqual(shapeOf(of('again')), ['broadcast(a, b)']);
  t.deepEqual(shapeOf(of('z1')), shapeOf(of('z')));
});

test('stated facts fill what is not derived, and never contradict what is', (t) => {
  const of = infer({
    inputs: { x: ['float32', ['batch', 4]], p: ['float32', ['past', 'seq']] },
    nodes: [
      { op: 'Mystery', domain: 'example', inputs: ['x'], outputs: ['a'] },
      { op: 'Mystery', domain: 'example', inputs: ['x'], outputs: ['b'] },
      node('Relu', ['x'], ['c']),
      { op: 'Mystery', domain: 'example', inputs: ['x'], outputs: ['d'] },
    ],
    outputs: ['a', 'b', 'c', 'd'],
    stated: {
      a: ['float16', ['batch', 'past + 2*seq', 'past - seq-len', 7, -1, 'min(past, seq)', '?a:4']],
      c: ['float32', ['other', 'width']],
      d: ['float32', undefined],
    },
  });
  t.deepEqual(shapeOf(of('a')), ['batch', 'past + 2·seq', 'past - seq-len', '7', '?a:4', "'min(past, seq)", "'?a:4"]);
  t.is(of('a').type, 10);
  t.is(of('b').shape, undefined);
  t.deepEqual(shapeOf(of('c')), ['batch', '4']);
  t.is(of('d').shape, undefined);
});

test('inputs of unknown integers stay symbols that arithmetic keeps apart', (t) => {
  const of = infer({
    inputs: { n: ['int64', []], x: ['float32', ['batch', 8]] },
    constants: [ints('axis', [0]), ints('eight', [8]), ints('minus', [-1])],
    nodes: [
      node('Unsqueeze', ['n', 'axis'], ['n1']),
      node('Concat', ['n1', 'eight'], ['target'], { axis: 0 }),
      node('Reshape', ['x', 'target'], ['y']),
      node('Equal', ['n1', 'minus'], ['open']),
      node('Range', ['n', 'n', 'n'], ['r']),
    ],
    outputs: ['y', 'open', 'r'],
  });
  t.deepEqual(elementsOf(of('target')), ['?n[0]', '8']);
  // Whether n is −1, 0 or the size itself, 8·batch elements in rows of 8 are batch rows.
  t.deepEqual(shapeOf(of('y')), ['batch', '8']);
  t.deepEqual(elementsOf(of('open')), ['equal(-1, ?n[0])']);
});

test('constants: initializers that are no inputs, Constant nodes in every form, Identity of one', (t) => {
  const text: GraphText = {
    inputs: { fixed: ['int64', [2]] },
    constants: [ints('fixed', [5, 6]), ints('plain', [7, 8])],
    nodes: [
      node('Constant', [], ['tensor'], { value: makeTensor('', 'float16', [2], [0.5, 2]) }),
      node('Constant', [], ['int'], { value_int: 9 }),
      node('Constant', [], ['ints'], { value_ints: [1, 2, 3] }),
      node('Constant', [], ['float'], { value_float: { float: 0.25 } }),
      node('Constant', [], ['text'], { value_string: 'abc' }),
      node('Identity', ['plain'], ['copy']),
      node('Add', ['fixed', 'plain'], ['sum']),
    ],
    outputs: ['sum'],
  };
  const of = infer(text);
  t.is(of('fixed').constant, undefined);
  t.deepEqual(shapeOf(of('fixed')), ['2']);
  t.deepEqual(Array.from(of('copy').constant!.numbers()!), [7, 8]);
  t.deepEqual(Array.from(of('tensor').constant!.numbers()!), [0.5, 2]);
  t.is(of('int').constant!.scalar(), 9);
  t.deepEqual(elementsOf(of('ints')), ['1', '2', '3']);
  t.is(of('float').scalar, 0.25);
  t.is(of('text').constant!.numbers(), undefined);
});

test('a large constant is not decoded', (t) => {
  const weight = makeTensor('weight', 'float32', [1024, 1024], new Float32Array(1 << 20));
  const bytes = weight.raw_data!;
  let reads = 0;
  Object.defineProperty(weight, 'raw_data', { get: () => [reads++, bytes][1] });
  const of = infer({
    inputs: hidden,
    constants: [weight],
    nodes: [node('MatMul', ['x', 'weight'], ['y'])],
    outputs: ['y'],
  });
  t.deepEqual(shapeOf(of('weight')), ['1024', '1024']);
  t.is(reads, 0);
});

test('branches of If give what they have in common, or the one that is taken', (t) => {
  const branch = (name: string, width: number) =>
    graphProto({
      constants: [ints(`${name}axes`, [0])],
      nodes: [
        node('Unsqueeze', ['x', `${name}axes`], [`${name}wide`]),
        node('Constant', [], [`${name}reps`], { value_ints: [width, 1, 1] }),
        node('Tile', [`${name}wide`, `${name}reps`], [name]),
      ],
      outputs: [name],
    });
  const text = (inputs: GraphText['inputs'], first: readonly NodeText[]): GraphText => ({
    inputs: { x: ['float32', ['batch', 4]], ...inputs },
    nodes: [...first, node('If', ['condition'], ['y'], { then_branch: branch('a', 2), else_branch: branch('b', 3) })],
    outputs: ['y'],
  });
  t.deepEqual(shapeOf(infer(text({ condition: ['bool', []] }, []))('y')), ['?y:0', 'batch', '4']);
  const no = makeTensor('', 'bool', [], [0]);
  t.deepEqual(shapeOf(infer(text({}, [node('Constant', [], ['condition'], { value: no })]))('y')), ['3', 'batch', '4']);
});

test('a loop keeps the sizes that every round keeps', (t) => {
  const body = graphProto({
    inputs: {
      step: ['int64', undefined],
      go: ['bool', undefined],
      state: ['float32', undefined],
      grown: ['float32', undefined],
    },
    nodes: [
      node('Identity', ['go'], ['goOn']),
      node('Add', ['state', 'x'], ['next']),
      node('Concat', ['grown', 'x'], ['longer'], { axis: 0 }),
      node('Relu', ['next'], ['each']),
    ],
    outputs: ['goOn', 'next', 'longer', 'each'],
  });
  const of = infer({
    inputs: { x: ['float32', ['batch', 4]], trips: ['int64', []] },
    nodes: [node('Loop', ['trips', '', 'x', 'x'], ['last', 'all', 'steps'], { body })],
    outputs: ['last', 'all', 'steps'],
  });
  t.deepEqual(shapeOf(of('last')), ['batch', '4']);
  t.deepEqual(shapeOf(of('all')), ['?all:0', '4']);
  t.deepEqual(elementsOf(of('trips')), ['?trips[0]']);
  // A negative trip count runs as none, so the count itself is not the size.
  t.deepEqual(shapeOf(of('steps')), ['?steps:0', 'batch', '4']);
  const counted = infer({
    inputs: { x: ['float32', ['batch', 4]] },
    constants: [makeTensor('yes', 'bool', [], [1])],
    nodes: [
      node('Size', ['x'], ['trips']),
      node('Loop', ['trips', 'yes', 'x', 'x'], ['last', 'all', 'steps'], { body }),
    ],
    outputs: ['last', 'all', 'steps'],
  });
  t.deepEqual(shapeOf(counted('steps')), ['4·batch', 'batch', '4']);
});

test('a scan takes slices of its inputs and stacks its outputs', (t) => {
  const body = graphProto({
    inputs: { state: ['float32', undefined], slice: ['float32', undefined] },
    nodes: [node('Add', ['state', 'slice'], ['next']), node('Relu', ['next'], ['each'])],
    outputs: ['next', 'each'],
  });
  const of = infer({
    inputs: { start: ['float32', ['batch', 4]], x: ['float32', ['batch', 'seq', 4]] },
    nodes: [
      node('Scan', ['start', 'x'], ['last', 'steps'], {
        body,
        num_scan_inputs: 1,
        scan_input_axes: [1],
        scan_output_axes: [1],
      }),
    ],
    outputs: ['last', 'steps'],
  });
  t.deepEqual(shapeOf(of('last')), ['batch', '4']);
  t.deepEqual(shapeOf(of('steps')), ['batch', 'seq', '4']);
});

test('FlashAttention’s shapes follow from its layouts', (t) => {
  const flash = (
    inputs: NonNullable<GraphText['inputs']>,
    names: string[],
    attributes: NonNullable<NodeText['attributes']>,
    outputs = ['y'],
  ) =>
    infer({
      inputs,
      nodes: [{ op: 'FlashAttention', domain: 'ortflash', inputs: names, outputs, attributes }],
      outputs,
    });
  const packed = flash({ qkv: ['float16', ['batch', 'seq', 2304]] }, ['qkv', 'qkv', 'qkv'], {
    q_num_heads: 12,
    kv_num_heads: 12,
    q_layout: 'BS([0/3]HD)',
    k_layout: 'BS([1/3]HD)',
    v_layout: 'BS([2/3]HD)',
    y_layout: 'BS(HD)',
  });
  t.deepEqual(shapeOf(packed('y')), ['batch', 'seq', '768']);
  t.is(packed('y').type, 10);
  const sliced = flash(
    { q: ['float32', ['batch', 'seq', 8, 64]], kv: ['float32', ['batch', 'keys', 8, 96]] },
    ['q', 'kv', 'kv'],
    { q_layout: 'BSHD', k_layout: 'BSH(D@0/96)', v_layout: 'BSH(D@32/96)', y_layout: 'BHSD' },
  );
  t.deepEqual(shapeOf(sliced('y')), ['batch', '8', 'seq', '64']);
  const cached = flash(
    {
      q: ['float32', ['batch', 'seq', 8, 64]],
      k: ['float32', ['batch', 2, 64, 'seq']],
      v: ['float32', ['batch', 'seq', 64]],
      pk: ['float32', ['batch', 2, 'past', 64]],
      pv: ['float32', ['batch', 2, 'past', 32]],
    },
    ['q', 'k', 'v', '', 'pk', 'pv'],
    { kv_num_heads: 2, q_layout: 'BSHD', k_layout: 'BHDS', v_layout: 'BS(HD)', y_layout: 'BS(HD)' },
    ['y', 'presentKey', 'presentValue'],
  );
  t.deepEqual(shapeOf(cached('y')), ['batch', 'seq', '256']);
  t.deepEqual(shapeOf(cached('presentKey')), ['batch', '2', 'past + seq', '64']);
  t.deepEqual(shapeOf(cached('presentValue')), ['batch', '2', 'past + seq', '32']);
});

test('calls of model-local functions are followed, attributes included', (t) => {
  const proto = modelProto(
    {
      inputs: hidden,
      nodes: [{ op: 'SwapLast', domain: 'local', inputs: ['x'], outputs: ['y'], attributes: { order: [0, 2, 1] } }],
      outputs: ['y'],
    },
    17,
  );
  const body = nodeProto(node('Transpose', ['t'], ['u'], { perm: [0] }));
  body.attribute[0]!.ref_attr_name = 'order';
  body.attribute[0]!.ints = [];
  proto.functions.push(
    FunctionProto.create({
      domain: 'local',
      name: 'SwapLast',
      input: ['t'],
      output: ['u'],
      attribute: ['order'],
      node: [body],
      opset_import: [OperatorSetIdProto.create({ domain: '', version: Long.fromNumber(17) })],
    }),
  );
  t.deepEqual(shapeOf(factsOf(new Model(proto))('y')), ['batch', '768', 'seq']);
});

test('a function that calls itself ends', (t) => {
  const proto = modelProto(
    { inputs: hidden, nodes: [{ op: 'Again', domain: 'local', inputs: ['x'], outputs: ['y'] }], outputs: ['y'] },
    17,
  );
  const again = nodeProto({ op: 'Again', domain: 'local', inputs: ['t'], outputs: ['u'] });
  const twice = nodeProto({ op: 'Again', domain: 'local', inputs: ['u'], outputs: ['v'] });
  proto.functions.push(
    FunctionProto.create({ domain: 'local', name: 'Again', input: ['t'], output: ['v'], node: [again, twice] }),
  );
  t.is(factsOf(new Model(proto))('y').shape, undefined);
});

test('nodes added after the pass are inferred when asked for', (t) => {
  const built = model({ inputs: hidden, nodes: [node('Relu', ['x'], ['y'])], outputs: ['y'] });
  const inference = new Inference(built);
  const added = nodeProto(node('Transpose', ['x'], ['added'], { perm: [2, 0, 1] }));
  built.graph.replace(built.graph.nodes[0]!, [added, nodeProto(node('Relu', ['x'], ['y']))]);
  t.deepEqual(inference.of(built.graph.value('added')!).shape?.map(String), ['768', 'batch', 'seq']);
});

test('a chain that squares its sizes stays small', (t) => {
  const count = 64;
  const nodes = Array.from({ length: count }, (_, i) => node('Mul', [`v${i}`, `v${i}`], [`v${i + 1}`]));
  const sums = Array.from({ length: count }, (_, i) => node('Max', [`v${i}`, `m${i}`, 'n'], [`m${i + 1}`]));
  const of = infer({
    inputs: { v0: ['int64', []], m0: ['int64', []], n: ['int64', []] },
    nodes: [...nodes, ...sums],
    outputs: [`v${count}`, `m${count}`],
  });
  t.true(of(`v${count}`).elements![0]!.key.length < 3000);
  t.true(of(`m${count}`).elements![0]!.key.length < 3000);
});

test('damaged models are inferred without an exception', (t) => {
  const small = bundledModels()
    .map((m) => new Uint8Array(readFileSync(m.modelFile)))
    .filter((bytes) => bytes.length < 60_000);
  let inferred = 0;
  fc.assert(
    fc.property(fc.constantFrom(...small), fc.constantFrom(...MUTATIONS), fc.nat(), (bytes, kind, seed) => {
      let damaged: Model;
      try {
        damaged = new Model(decodeModel(mutate(bytes, kind, seed)));
      } catch (error) {
        return error instanceof OrtFlashError;
      }
      const inference = new Inference(damaged);
      for (const graph of damaged.graphs())
        for (const value of graph.values) void [inference.of(value).elements, inference.scalarOf(value)];
      inferred++;
      return true;
    }),
    { numRuns: 500 },
  );
  t.true(inferred > 100, `only ${inferred} were models still`);
});

test('absurd dimensions are survived', (t) => {
  const built = modelProto({ inputs: hidden, nodes: [node('Shape', ['x'], ['y'])], outputs: ['y'] }, 17);
  const dims = tensorInfo('', 'float32', [0, 0, 0]).type!.tensor_type!.shape!;
  dims.dim[0]!.dim_value = Long.fromNumber(-5);
  dims.dim[1]!.dim_value = Long.MAX_VALUE;
  dims.dim[2]!.dim_value = Long.MIN_VALUE;
  built.graph!.input[0]!.type!.tensor_type!.shape = dims;
  t.deepEqual(shapeOf(factsOf(new Model(built))('x')), ['?x:0', '?x:1', '?x:2']);
});
