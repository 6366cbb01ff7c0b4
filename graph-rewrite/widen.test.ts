import test from 'ava';
import fc from 'fast-check';
import Long from 'long';
import { encodeModel } from './onnx/codec.js';
import { type DataTypeName, dataTypeOf } from './onnx/data-type.js';
import { opsetImports, tensorInfo } from './onnx/make.js';
import {
  AttributeProto,
  AttributeType,
  DataLocation,
  DataType,
  FunctionProto,
  GraphProto,
  ModelProto,
  NodeProto,
  SparseTensorProto,
  StringStringEntryProto,
  TensorProto,
  TypeProto,
  ValueInfoProto,
} from './onnx/proto.js';
import { makeTensor, tensorFloats } from './onnx/tensor.js';
import { makeAttribute } from './op/emit.js';
import { encodeHalf, halfToNumber } from './op/half.js';
import { tryWidening, widenBfloat16 } from './widen.js';

type Float = 'float32' | 'bfloat16';

/** Attributes of operators whose value is a data type: by the ONNX standard's schemas, opsets 1 to 28, and two more. */
const STANDARD: readonly (readonly [operator: string, attributes: readonly string[], domain?: string])[] = [
  ['Attention', ['softmax_precision']],
  ['Bernoulli', ['dtype']],
  ['BlackmanWindow', ['output_datatype']],
  ['Cast', ['to']],
  ['DequantizeLinear', ['output_dtype']],
  ['EyeLike', ['dtype']],
  ['FlexAttention', ['softmax_precision'], 'ai.onnx.preview'],
  ['GroupNormalization', ['stash_type']],
  ['HammingWindow', ['output_datatype']],
  ['HannWindow', ['output_datatype']],
  ['LayerNormalization', ['stash_type']],
  ['MelWeightMatrix', ['output_datatype']],
  ['Multinomial', ['dtype']],
  ['QuantizeLinear', ['precision', 'output_dtype']],
  ['RMSNormalization', ['stash_type']],
  ['RandomNormal', ['dtype']],
  ['RandomNormalLike', ['dtype']],
  ['RandomUniform', ['dtype']],
  ['RandomUniformLike', ['dtype']],
  ['Range', ['stash_type']],
  ['SequenceEmpty', ['dtype']],
  ['FlashAttention', ['softmax_precision'], 'ortflash'],
  ['SimplifiedLayerNormalization', ['stash_type']],
];

const node = (operator: string, input: string[], output: string[], attribute: AttributeProto[] = [], domain = '') =>
  new NodeProto({ op_type: operator, domain, input, output, attribute });

const model = (graph: Partial<GraphProto>, functions: FunctionProto[] = [], opset = 21) =>
  new ModelProto({
    ir_version: Long.fromNumber(10),
    opset_import: opsetImports({ '': opset, own: 1 }),
    graph: new GraphProto({ name: 'g', ...graph }),
    functions,
  });

for (const [operator, attributes, domain = ''] of STANDARD)
  test(`what data type ${operator} is told becomes float32`, (t) => {
    const build = (type: number) => {
      const all = [...attributes.map((name) => makeAttribute(name, type)), makeAttribute('axis', 16)];
      return model({ node: [node(operator, ['x'], ['y'], all, domain)] });
    };
    const widened = build(DataType.BFLOAT16);
    t.truthy(widenBfloat16(widened));
    t.deepEqual(encodeModel(widened), encodeModel(build(DataType.FLOAT)));
    const half = build(DataType.FLOAT16);
    t.is(widenBfloat16(half), undefined);
    t.deepEqual(encodeModel(half), encodeModel(build(DataType.FLOAT16)));
  });

test('a number that is no data type stays', (t) => {
  const build = () =>
    model({
      node: [
        node('Concat', ['x'], ['y'], [makeAttribute('axis', 16)]),
        node('Cast', ['x'], ['z'], [makeAttribute('to', 16)], 'another.domain'),
        node('Attention', ['x', 'x', 'x'], ['w'], [makeAttribute('q_num_heads', 16)]),
        node('Constant', [], ['c'], [makeAttribute('value_int', 16)]),
      ],
    });
  const given = build();
  t.is(widenBfloat16(given), undefined);
  t.deepEqual(encodeModel(given), encodeModel(build()));
});

/** One part of a random model: what it adds, and for what holds a graph or a function, the parts in there. */
type Part = readonly [kind: string, number: number, inner: readonly Part[]];

const parts = fc.letrec<{ parts: readonly Part[] }>((tie) => ({
  parts: fc.array(
    fc.tuple(
      fc.constantFrom(
        'weight',
        'constant',
        'filled',
        'cast',
        'round',
        'like',
        'sparse',
        'sequence',
        'if',
        'call',
        'sum',
      ),
      fc.integer({ min: 0, max: 0xff7f }),
      fc.oneof({ maxDepth: 3 }, fc.constant([]), tie('parts')),
    ) as fc.Arbitrary<Part>,
    { maxLength: 6 },
  ),
})).parts;

/** Builds the same model in one type or the other. */
class Builder {
  readonly functions: FunctionProto[] = [];
  #count = 0;

  constructor(readonly type: Float) {}

  /** A finite number that both types have. */
  number(bits: number): number {
    const number = halfToNumber(bits, 'bfloat16');
    return Number.isFinite(number) ? number : 1;
  }

  tensor(name: string, shape: number[], bits: number): TensorProto {
    const count = shape.reduce((a, b) => a * b, 1);
    return makeTensor(
      name,
      this.type,
      shape,
      Array.from({ length: count }, (_, i) => this.number((bits + i * 37) & 0xffff)),
    );
  }

  fresh(): string {
    return `v${this.#count++}`;
  }

  /** Adds the nodes of a part that computes from `x`, and returns its result. */
  part(graph: GraphProto | undefined, nodes: NodeProto[], x: string, [kind, bits, inner]: Part): string {
    const y = this.fresh();
    const add = (
      operator: string,
      input: string[],
      output: string[],
      attribute: AttributeProto[] = [],
      domain = '',
    ) => {
      nodes.push(node(operator, input, output, attribute, domain));
      return output[0]!;
    };
    const type = dataTypeOf(this.type);
    const constant = (name: string) =>
      add('Constant', [], [name], [makeAttribute('value', this.tensor('', [2], bits))]);
    switch (kind) {
      case 'weight':
        graph?.initializer.push(this.tensor(`w${y}`, [2], bits));
        return add('Add', [x, graph ? `w${y}` : x], [y]);
      case 'constant':
        return add('Mul', [x, constant(`c${y}`)], [y]);
      case 'filled': {
        add('Shape', [x], [`s${y}`]);
        return add('ConstantOfShape', [`s${y}`], [y], [makeAttribute('value', this.tensor('', [1], bits))]);
      }
      case 'cast':
        return add('Cast', [add('Cast', [x], [`f${y}`], [makeAttribute('to', 10)])], [y], [makeAttribute('to', type)]);
      case 'round':
        return add('EyeLike', [x], [y], [makeAttribute('dtype', type), makeAttribute('k', 16)]);
      case 'like':
        return add('CastLike', [add('Cast', [x], [`i${y}`], [makeAttribute('to', 7)]), x], [y]);
      case 'sparse': {
        const sparse_tensor = new SparseTensorProto({
          values: this.tensor('', [1], bits),
          indices: makeTensor('', 'int64', [1], [1]),
          dims: [Long.fromNumber(2)],
        });
        const value = new AttributeProto({ name: 'sparse_value', type: AttributeType.SPARSE_TENSOR, sparse_tensor });
        return add('Add', [x, add('Constant', [], [`c${y}`], [value])], [y]);
      }
      case 'sequence': {
        const elements = new TypeProto({ sequence_type: { elem_type: tensorInfo('', this.type, [2]).type! } });
        const type_proto = new AttributeProto({ name: 'type', type: AttributeType.TYPE_PROTO, tp: elements });
        graph?.value_info.push(new ValueInfoProto({ name: `q${y}`, type: elements }));
        graph?.value_info.push(
          new ValueInfoProto({ name: `o${y}`, type: new TypeProto({ optional_type: { elem_type: elements } }) }),
        );
        add('SequenceEmpty', [], [`e${y}`], [makeAttribute('dtype', type)]);
        add('SequenceInsert', [`e${y}`, x], [`q${y}`]);
        add('Optional', [`q${y}`], [`o${y}`], [type_proto]);
        return add('ConcatFromSequence', [`q${y}`], [y], [makeAttribute('axis', 0)]);
      }
      case 'if': {
        const branch = (): GraphProto => {
          const inside = new GraphProto({ name: this.fresh() });
          let last = x;
          for (const part of inner) last = this.part(inside, inside.node, last, part);
          inside.output.push(tensorInfo(last, this.type, [2]));
          return inside;
        };
        const branches = [makeAttribute('then_branch', branch()), makeAttribute('else_branch', branch())];
        return add('If', ['condition'], [y], branches);
      }
      case 'call':
        return this.call(nodes, x, y, inner, graph === undefined);
      default:
        return add('Add', [x, x], [y]);
    }
  }

  /** A call of a function that hands a data type on. */
  call(nodes: NodeProto[], x: string, y: string, inner: readonly Part[], fromFunction: boolean): string {
    const type = dataTypeOf(this.type);
    const handedOn = (name: string) =>
      new AttributeProto({ name, type: AttributeType.INT, ref_attr_name: 'precision' });
    const f = new FunctionProto({
      name: `f${y}`,
      domain: 'own',
      input: ['a'],
      attribute: ['axis'],
      attribute_proto: [makeAttribute('precision', type), makeAttribute('heads', 16)],
      node: [node('Cast', ['a'], ['b'], [handedOn('to')])],
      value_info: [tensorInfo('b', this.type, [2])],
      opset_import: opsetImports({ '': 21, own: 1 }),
    });
    this.functions.push(f);
    let last = 'b';
    for (const part of inner) last = this.part(undefined, f.node, last, part);
    f.output = [last];
    const precision = fromFunction ? handedOn('precision') : makeAttribute('precision', type);
    const given = [makeAttribute('axis', 16), precision];
    nodes.push(node(f.name!, [x], [y], given, 'own'));
    return y;
  }

  model(all: readonly Part[]): ModelProto {
    const graph = new GraphProto({
      name: 'g',
      input: [
        tensorInfo('x', this.type, ['n']),
        tensorInfo('own', 'float32', [16]),
        tensorInfo('condition', 'bool', []),
      ],
    });
    let last = 'x';
    for (const part of all) {
      last = this.part(graph, graph.node, last, part);
      graph.value_info.push(tensorInfo(last, this.type, [2]));
    }
    graph.output.push(tensorInfo(last, this.type, ['n']), tensorInfo('own', 'float32', [16]));
    return model(graph, this.functions);
  }
}

test('a widened model is the model that was built in float32, whatever it holds', (t) => {
  fc.assert(
    fc.property(parts, (all) => {
      const given = new Builder('bfloat16').model(all);
      const wide = new Builder('float32').model(all);
      const last = wide.graph!.output[0]!.name!;
      t.deepEqual(widenBfloat16(given), { inputs: new Set(['x']), outputs: new Set([last]), files: new Map() });
      t.deepEqual(encodeModel(given), encodeModel(wide));
      t.is(widenBfloat16(given), undefined);
    }),
    { numRuns: 300 },
  );
});

test('every bfloat16 stays the number that it is, in raw_data and in int32_data', (t) => {
  const bits = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
  const raw = new TensorProto({
    name: 'raw',
    dims: [Long.fromNumber(0x10000)],
    data_type: DataType.BFLOAT16,
    raw_data: new Uint8Array(bits.buffer),
  });
  const stored = new TensorProto({
    name: 'stored',
    dims: [Long.fromNumber(3)],
    data_type: DataType.BFLOAT16,
    // 0x3f80, 0xc000 and 0x80 as varints.
    int32_data: [Uint8Array.of(0x80, 0x7f, 0x80, 0x80, 0x03, 0x80, 0x01)],
  });
  const given = model({ initializer: [raw, stored] });
  t.truthy(widenBfloat16(given));
  const [wide, rest] = given.graph!.initializer;
  // bfloat16 is the upper half of float32: NaN keep their payloads too.
  t.deepEqual(
    new Uint32Array(wide!.raw_data!.slice().buffer),
    Uint32Array.from(bits, (b) => b << 16),
  );
  t.deepEqual(tensorFloats(rest!), [1, -2, 2 ** -126]);
  t.deepEqual([wide!.name, rest!.name, wide!.data_type], ['raw', 'stored', DataType.FLOAT]);
});

function external(name: string, type: DataTypeName): TensorProto {
  const entry = (key: string, value: string) => new StringStringEntryProto({ key, value });
  return new TensorProto({
    name,
    dims: [Long.fromNumber(4)],
    data_type: dataTypeOf(type),
    data_location: DataLocation.EXTERNAL,
    external_data: [entry('location', 'weights.bin')],
  });
}

test('weights in data files stay there, behind a Cast', (t) => {
  const inner = new GraphProto({
    name: 'inner',
    initializer: [external('v', 'bfloat16')],
    node: [node('Add', ['v', 'w_bfloat16'], ['u'])],
    output: [tensorInfo('u', 'bfloat16', [4])],
  });
  const given = model({
    input: [tensorInfo('condition', 'bool', [])],
    initializer: [external('w', 'bfloat16'), external('f', 'float32')],
    node: [
      node('Neg', ['w'], ['w_bfloat16']),
      node('If', ['condition'], ['y'], [makeAttribute('then_branch', inner), makeAttribute('else_branch', inner)]),
    ],
    output: [tensorInfo('y', 'bfloat16', [4])],
  });
  // The same graph twice, as a builder may have it: once read from a file, they are two.
  given.graph!.node[1]!.attribute.pop();
  t.truthy(widenBfloat16(given));
  const { initializer, node: nodes } = given.graph!;
  const [cast] = nodes;
  t.is(cast!.op_type, 'Cast');
  t.deepEqual([cast!.input, cast!.output], [['w_bfloat16_'], ['w']]);
  t.deepEqual(
    initializer.map(({ name, data_type: type }) => [name, type]),
    [
      ['w_bfloat16_', DataType.BFLOAT16],
      ['f', DataType.FLOAT],
    ],
  );
  const body = nodes[2]!.attribute[0]!.g!;
  t.deepEqual(
    body.node.map(({ op_type: type, input, output }) => [type, ...input, ...output]),
    [
      ['Cast', 'v_bfloat16', 'v'],
      ['Add', 'v', 'w_bfloat16', 'u'],
    ],
  );
});

test('where data files can be read, weights are widened into files of their own', (t) => {
  const tied = external('v', 'bfloat16');
  const other = external('u', 'bfloat16');
  other.external_data.push(new StringStringEntryProto({ key: 'offset', value: '8' }));
  const value = makeAttribute('value', external('', 'bfloat16'));
  const given = model({
    input: [tensorInfo('w', 'bfloat16', [4])],
    initializer: [external('w', 'bfloat16'), tied, other, external('f', 'float32')],
    node: [node('Constant', [], ['c'], [value])],
  });
  const reads: number[] = [];
  const bits = encodeHalf([1, -2, 3, 4, 5, 6, 7, 0.5], 'bfloat16');
  const readExternal = (location: string, offset: number, length: number) => {
    t.is(location, 'weights.bin');
    reads.push(offset);
    return new Uint8Array(bits.buffer, offset, length);
  };
  const widened = widenBfloat16(given, { readExternal })!;
  t.deepEqual(reads, [0, 8]);
  const read = (tensor: TensorProto) =>
    tensorFloats(tensor, {
      readExternal: (location, offset, length) => widened.files.get(location)!.subarray(offset, offset + length),
    });
  const [w, v, u, f] = given.graph!.initializer;
  for (const tensor of [w!, v!, value.t!]) t.deepEqual(read(tensor), [1, -2, 3, 4]);
  t.deepEqual(read(u!), [5, 6, 7, 0.5]);
  t.is(widened.files.size, 2);
  t.deepEqual(f, external('f', 'float32'));
  const missing = model({ initializer: [external('w', 'bfloat16')] });
  const before = encodeModel(missing);
  const nothing = { readExternal: () => new Uint8Array() };
  t.throws(() => tryWidening(missing, nothing), { message: /gave 0 of 8 bytes/ });
  t.deepEqual(encodeModel(missing), before);
});

test('what float32 cannot stand for is refused, and the model left as it is', (t) => {
  const weight = makeTensor('w', 'bfloat16', [1], [1]);
  const values = (name: string) => tensorInfo(name, 'bfloat16', [1]);
  const refused: [RegExp, () => ModelProto][] = [
    ...['uint16', 'int16', 'float16', 'bfloat16'].map((type): [RegExp, () => ModelProto] => {
      const to = makeAttribute('to', dataTypeOf(type as DataTypeName));
      return [
        /BitCast sees the bits/,
        () => model({ input: [values('x')], node: [node('BitCast', ['x'], ['y'], [to])] }),
      ];
    }),
    [
      /data is in a file, and it is an input too/,
      () => model({ input: [values('w')], initializer: [external('w', 'bfloat16')] }),
    ],
    [/opset 12 has no Cast/, () => model({ initializer: [weight, external('e', 'bfloat16')] }, [], 12)],
    [
      /it is no weight of a graph/,
      () => model({ node: [node('Constant', [], ['c'], [makeAttribute('value', external('', 'bfloat16'))])] }),
    ],
    [
      /holds 1 bytes/,
      () =>
        model({ initializer: [weight, new TensorProto({ name: 's', data_type: 16, raw_data: new Uint8Array(1) })] }),
    ],
  ];
  for (const [message, build] of refused) {
    const given = build();
    t.throws(() => widenBfloat16(given), { name: 'OrtFlashError', message });
    t.deepEqual(encodeModel(given), encodeModel(build()));
    t.regex(tryWidening(given).note!, message);
    t.is(tryWidening(given).widened, undefined);
  }
  const elsewhere = model({ node: [node('BitCast', ['x'], ['y'], [makeAttribute('to', DataType.UINT16)])] });
  t.is(widenBfloat16(elsewhere), undefined);
  const words = [node('BitCast', ['i'], ['f'], [makeAttribute('to', DataType.FLOAT)])];
  t.truthy(widenBfloat16(model({ input: [values('x')], node: words })));
});

test('a function that calls itself ends nothing', (t) => {
  const f = new FunctionProto({ name: 'f', domain: 'own', node: [node('f', ['a'], ['b'], [], 'own')] });
  t.is(widenBfloat16(model({}, [f])), undefined);
});
