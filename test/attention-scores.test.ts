/** Attentions whose scores are an output, written in operators: against the standard's own data and ONNX Runtime's CPU. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { expandScores } from '../graph-rewrite/expand-scores.js';
import { makeNode } from '../graph-rewrite/graph/builder.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { opsetImports } from '../graph-rewrite/onnx/make.js';
import { DataType, FunctionProto, type ModelProto, NodeProto } from '../graph-rewrite/onnx/proto.js';
import { validateModel } from '../graph-rewrite/onnx/validate.js';
import type { AttributeValue } from '../graph-rewrite/op/emit.js';
import { encodeHalf } from '../graph-rewrite/op/half.js';
import { isRefusal } from '../graph-rewrite/op/site.js';
import { readScoresSite, type StandardAttentionFacts } from '../graph-rewrite/op/standard-attention.js';
import { readTestData, standardAttentionCases } from '../models/corpus.js';
import { buildModel, difference, runModel } from './attention-problems.js';
import { bundledCaseFolder } from './web-standard.js';

const bundled = () =>
  readdirSync(bundledCaseFolder).map((name) => ({
    name,
    modelFile: join(bundledCaseFolder, name, 'model.onnx'),
    dataFolder: join(bundledCaseFolder, name, 'test_data_set_0'),
  }));
const cases = standardAttentionCases() ?? bundled();

/** Every node, with those of its bodies. */
const operators = ({ graph, functions }: ModelProto) =>
  [graph!, ...functions].flatMap(({ node }) => node.map(({ op_type: type }) => type));

function expanded(bytes: Uint8Array): { model: Uint8Array; count: number } {
  const proto = decodeModel(bytes);
  const count = expandScores(proto, (site) => site);
  validateModel(proto);
  return { model: encodeModel(proto), count };
}

for (const { name, modelFile, dataFolder } of cases) {
  const file = readFileSync(modelFile);
  const { graph } = decodeModel(file);
  const givesScores = Boolean(graph!.node[0]!.output[3]);
  if (!givesScores) continue;
  test(`${name}: the operators give the standard's outputs`, async (t) => {
    const { model, count } = expanded(file);
    t.is(count, 1);
    t.false(operators(decodeModel(model)).includes('Attention'));
    const { inputs, outputs } = readTestData(dataFolder);
    const feeds = inputs.map(
      ({ type, dims, data }, i) => [graph!.input[i]!.name!, { type, shape: dims, data }] as const,
    );
    const results = await runModel(model, Object.fromEntries(feeds));
    for (const [i, { type, dims, data }] of outputs.entries()) {
      const { shape, data: actual } = results[graph!.output[i]!.name!]!;
      t.is(type, 'float32');
      t.deepEqual([...shape], [...dims]);
      t.is(difference(actual, data as Float32Array, { absolute: 1e-7, relative: 1e-3 }), undefined);
    }
  });
}

test('an attention whose scores nothing uses is left as it is', (t) => {
  const plain = cases.filter(({ modelFile }) => !decodeModel(readFileSync(modelFile)).graph!.node[0]!.output[3]);
  t.true(plain.length > 10);
  for (const { name, modelFile } of plain) {
    const model = decodeModel(readFileSync(modelFile));
    const before = encodeModel(model);
    t.is(
      expandScores(model, (site) => site),
      0,
      name,
    );
    t.deepEqual(encodeModel(model), before, name);
  }
});

interface Tensor {
  readonly type: 'float32' | 'float16' | 'bool' | 'int64';
  readonly shape: readonly number[];
  readonly data: Float32Array | Uint16Array | Uint8Array | BigInt64Array;
}

interface Drawn {
  readonly opset: number;
  readonly attributes: Readonly<Record<string, AttributeValue>>;
  /** In the operator's order; an absent one is undefined. */
  readonly inputs: readonly (Tensor | undefined)[];
  /** Whether the model leaves sizes that it can leave open. */
  readonly isOpen: boolean;
}

const INPUTS = ['Q', 'K', 'V', 'attn_mask', 'past_key', 'past_value', 'nonpad_kv_seqlen'];
const OUTPUTS = ['Y', 'present_key', 'present_value', 'qk_matmul_output'];

/** A problem that ONNX Runtime's CPU kernel understands as the standard does. */
function draw(pick: fc.GeneratorValue): Drawn {
  const int = (least: number, most: number) => pick(fc.integer, { min: least, max: most });
  const maybe = () => pick(fc.boolean);
  const of = <T>(...values: T[]): T => pick(fc.constantFrom<T[]>, ...values);
  const type = of('float32', 'float32', 'float16');
  const random = (shape: readonly number[]): Tensor => {
    const count = shape.reduce((a, b) => a * b, 1);
    let state = int(1, 0x7ffffffe);
    const next = () => {
      state = (state * 48271) % 0x7fffffff;
      return (state / 0x7fffffff) * 4 - 2;
    };
    const values = Float32Array.from({ length: count }, next);
    return { type, shape, data: type === 'float16' ? encodeHalf(values, type) : values };
  };
  const [opset, B, keyHeads, S, newKeys, D, valueD] = [
    of(23, 24),
    int(1, 3),
    int(1, 3),
    int(1, 5),
    int(1, 6),
    int(1, 9),
    int(1, 9),
  ];
  const heads = keyHeads * int(1, 3);
  const isMerged = maybe();
  // One causal query sees every key in ONNX Runtime 1.29 after a past, those after its own position, too.
  const pastKeys = maybe() && (S > 1 || newKeys === 1) ? int(0, 4) : undefined;
  const keys = newKeys + (pastKeys ?? 0);
  const rows = (H: number, T: number, size: number) => random(isMerged ? [B, T, H * size] : [B, H, T, size]);
  const past = (size: number) => (pastKeys === undefined ? undefined : random([B, keyHeads, pastKeys, size]));
  const mask = (): Tensor | undefined => {
    if (maybe()) return undefined;
    const rank = int(2, 4);
    const shape = [B, heads, S, keys].slice(4 - rank).map((size, i) => (i < rank - 2 && maybe() ? 1 : size));
    if (maybe()) return random(shape);
    // A query always has its first key: what is left without one, ONNX Runtime does not treat as the standard does.
    const kept = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) =>
      i % keys === 0 || maybe() ? 1 : 0,
    );
    return { type: 'bool', shape, data: Uint8Array.from(kept) };
  };
  return {
    opset,
    attributes: {
      qk_matmul_output_mode: int(0, 3),
      is_causal: int(0, 1),
      ...(isMerged ? { q_num_heads: heads, kv_num_heads: keyHeads } : {}),
      ...(maybe() ? { scale: { float: of(1, 0.5, 0.3) } } : {}),
      ...(maybe() ? { softcap: { float: of(2, 0.75) } } : {}),
      ...(maybe() ? { softmax_precision: DataType.FLOAT } : {}),
    },
    inputs: [
      rows(heads, S, D),
      rows(keyHeads, newKeys, D),
      rows(keyHeads, newKeys, valueD),
      mask(),
      past(D),
      past(valueD),
    ],
    isOpen: isMerged && maybe(),
  };
}

function modelOf({ opset, attributes, inputs, isOpen }: Drawn) {
  const given = inputs.flatMap((tensor, i) => (tensor ? [[INPUTS[i]!, tensor] as const] : []));
  const hasPast = inputs[4] !== undefined;
  const outputs = OUTPUTS.map((name, i) => (hasPast || i === 0 || i === 3 ? name : ''));
  const names = INPUTS.slice(0, inputs.length).map((name, i) => (inputs[i] ? name : ''));
  const tensors = Object.fromEntries(given);
  const node = makeNode('Attention', names, outputs, attributes);
  const types = Object.fromEntries(outputs.filter((name) => name !== '').map((name) => [name, inputs[0]!.type]));
  const model = buildModel({ nodes: [node], inputs: tensors, outputs: types, opset, domains: [] }, isOpen);
  return { model, tensors };
}

const TOLERANCE = { float32: { absolute: 2e-5, relative: 2e-5 }, float16: { absolute: 2e-2, relative: 1e-2 } };

/** The CPU kernel adds the lowest number, and not −∞, where a key is taken out. */
const withInfinity = (data: ArrayLike<number>, type: string) =>
  Array.from(data, (x) => (x < (type === 'float16' ? -6e4 : -1e37) ? Number.NEGATIVE_INFINITY : x));

test('the operators give what ONNX Runtime’s CPU kernel gives, for random problems', async (t) => {
  t.timeout(300_000);
  const property = fc.asyncProperty(fc.gen(), async (pick) => {
    const drawn = draw(pick);
    const type = drawn.inputs[0]!.type as 'float32' | 'float16';
    const { model, tensors } = modelOf(drawn);
    const own = expanded(model);
    if (own.count !== 1) throw new Error('not expanded');
    const [expected, actual] = [await runModel(model, tensors), await runModel(own.model, tensors)];
    for (const [name, { shape, data }] of Object.entries(expected)) {
      const result = actual[name]!;
      const found =
        result.shape.join() === shape.join()
          ? difference(result.data, withInfinity(data, type), TOLERANCE[type])
          : `shape ${result.shape}, expected ${shape}`;
      const inputs = drawn.inputs.map((tensor) => tensor && `${tensor.type}(${tensor.shape})`);
      if (found) throw new Error(`${name}: ${found}: ${drawn.opset} ${inputs} ${JSON.stringify(drawn.attributes)}`);
    }
  });
  await t.notThrowsAsync(
    fc.assert(property, { numRuns: 200, seed: 23, endOnFailure: true, includeErrorInReport: true }),
  );
});

test('a mask that is shorter than the keys and lengths take keys out, and a row without keys is zero', async (t) => {
  const [B, heads, S, T, D] = [2, 2, 3, 5, 4];
  const tensor = (shape: readonly number[], at: (i: number) => number): Tensor => ({
    type: 'float32',
    shape,
    data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => at(i)),
  });
  const shape = [B, heads, S, D];
  const lengths: Tensor = { type: 'int64', shape: [B], data: BigInt64Array.of(3n, 2n) };
  const mask: Tensor = { type: 'bool', shape: [S, 4], data: Uint8Array.of(1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1) };
  const inputs = [
    tensor(shape, (i) => Math.sin(i)),
    tensor([B, heads, T, D], (i) => Math.cos(i)),
    tensor([B, heads, T, D], (i) => i / 7),
    mask,
    undefined,
    undefined,
    lengths,
  ];
  const attributes = { qk_matmul_output_mode: 3, scale: { float: 1 } };
  const { model, tensors } = modelOf({ opset: 24, attributes, inputs, isOpen: false });
  const results = await runModel(expanded(model).model, tensors);
  // Keys that a row of each batch keeps: those of the mask that are not past the length.
  const kept = [
    [[0, 1, 2], [1, 2], [2]],
    [[0, 1], [1], []],
  ];
  const [query, key, value] = [inputs[0]!.data, inputs[1]!.data, inputs[2]!.data] as Float32Array[];
  for (let row = 0; row < B * heads * S; row++) {
    const head = Math.floor(row / S);
    const keys = kept[Math.floor(row / S / heads)]![row % S]!;
    const dot = (k: number) =>
      Array.from({ length: D }, (_, d) => query![row * D + d]! * key![(head * T + k) * D + d]!).reduce((a, b) => a + b);
    const weights = keys.map((k) => Math.exp(dot(k)));
    const sum = weights.reduce((a, b) => a + b, 0);
    const expected = Array.from({ length: T }, (_, k) => (keys.includes(k) ? weights[keys.indexOf(k)]! / sum : 0));
    const actual = Array.from(results.qk_matmul_output!.data).slice(row * T, (row + 1) * T);
    t.is(difference(actual, expected, TOLERANCE.float32), undefined, `row ${row}`);
    const output = Array.from({ length: D }, (_, d) =>
      expected.reduce((total, p, k) => total + p * value![(head * T + k) * D + d]!, 0),
    );
    const found = Array.from(results.Y!.data).slice(row * D, (row + 1) * D);
    t.is(difference(found, output, TOLERANCE.float32), undefined, `row ${row}`);
  }
});

/** A case with the node in a function that the graph calls. */
function inFunction(bytes: Uint8Array): ModelProto {
  const model = decodeModel(bytes);
  const [node] = model.graph!.node;
  const outputs = node!.output.filter((name) => name !== '');
  const body = FunctionProto.create({
    name: 'Attend',
    domain: 'local',
    input: node!.input,
    output: outputs,
    node: [node!],
    opset_import: model.opset_import,
  });
  const call = NodeProto.create({
    op_type: 'Attend',
    domain: 'local',
    name: 'call',
    input: node!.input,
    output: outputs,
  });
  model.graph!.node = [call];
  model.functions = [body];
  model.opset_import = [...model.opset_import, ...opsetImports({ local: 1 })];
  return model;
}

const scoresCase = () => cases.find(({ name }) => name === 'test_attention_4d_with_qk_matmul_bias')!;

test('an attention in a function is found, and its values keep apart from others of their names', async (t) => {
  const { modelFile, dataFolder } = scoresCase();
  const file = readFileSync(modelFile);
  const called = inFunction(file);
  const clash = decodeModel(file);
  const [attention] = clash.graph!.node;
  // The first name that values between would have.
  const taken = decodeModel(expanded(file).model).graph!.node[0]!.output[0]!;
  clash.graph!.node.unshift(makeNode('Identity', [attention!.input[0]!], [taken]));
  const { inputs, outputs } = readTestData(dataFolder);
  for (const model of [called, clash]) {
    const own = expanded(encodeModel(model));
    t.is(own.count, 1);
    const proto = decodeModel(own.model);
    t.false(operators(proto).includes('Attention'));
    const names = proto.graph!.input.map(({ name }) => name!);
    const feeds = inputs.map(({ type, dims, data }, i) => [names[i]!, { type, shape: dims, data }] as const);
    const results = await runModel(own.model, Object.fromEntries(feeds));
    for (const [i, { data }] of outputs.entries()) {
      const { data: actual } = results[proto.graph!.output[i]!.name!]!;
      t.is(difference(actual, data as Float32Array, { absolute: 1e-7, relative: 1e-3 }), undefined);
    }
  }
});

test('what is not certain is left alone, with the reason', (t) => {
  const known: StandardAttentionFacts = {
    opset: 24,
    rankOf: () => 4,
    typeOf: () => DataType.FLOAT,
    isUsed: () => true,
    dimensionOf: () => 4,
    maskKeys: 'all',
  };
  const reason = (
    node: Partial<NodeProto> & { ints?: Record<string, AttributeValue> },
    facts: Partial<StandardAttentionFacts> = {},
  ) => {
    const { ints = {}, input = ['q', 'k', 'v'], output = ['y', '', '', 'scores'] } = node;
    const read = readScoresSite(makeNode('Attention', input, output, ints), { ...known, ...facts });
    return isRefusal(read) ? read.reason : undefined;
  };
  const masked = ['q', 'k', 'v', 'm'];
  t.is(reason({}), undefined);
  t.is(reason({ input: masked }), undefined);
  t.regex(reason({ output: ['y'] })!, /not used/);
  t.regex(reason({}, { isUsed: (value) => value !== 'scores' })!, /not used/);
  t.regex(reason({}, { opset: 26 })!, /versions 23 to 25/);
  t.regex(reason({ ints: { unheard_of: 1 } })!, /unheard_of/);
  t.regex(reason({ ints: { qk_matmul_output_mode: 4 } })!, /mode is 4/);
  t.regex(reason({ ints: { softmax_precision: 7 } })!, /softmax_precision is 7/);
  t.regex(reason({ ints: { scale: { float: -1 } } })!, /scale is -1/);
  t.regex(reason({ ints: { softcap: { float: -1 } } })!, /softcap is -1/);
  t.regex(reason({ ints: { left_window_size: 2 } })!, /window/);
  t.is(reason({ ints: { left_window_size: 2 } }, { opset: 25 }), undefined);
  t.regex(reason({ ints: { q_num_heads: 4, kv_num_heads: 4 } })!, /beside rank 4/);
  t.regex(reason({}, { rankOf: () => 3 })!, /numbers of heads/);
  t.regex(reason({}, { rankOf: (value) => (value === 'k' ? undefined : 4) })!, /rank 3 or rank 4/);
  t.regex(reason({}, { dimensionOf: () => undefined })!, /numbers of heads/);
  t.regex(reason({}, { dimensionOf: (value) => (value === 'k' ? 3 : 4) })!, /multiple/);
  t.regex(reason({}, { typeOf: (value) => (value === 'v' ? DataType.DOUBLE : DataType.FLOAT) })!, /one float type/);
  t.regex(reason({ input: ['q', 'k', 'v', '', 'past'] })!, /alone/);
  t.regex(reason({ input: ['q', 'k', 'v', '', 'past', 'past', 'lengths'] })!, /beside a past/);
  t.regex(reason({ input: masked }, { rankOf: (value) => (value === 'm' ? undefined : 4) })!, /rank 1 to 4/);
  t.regex(reason({ input: masked }, { typeOf: (v) => (v === 'm' ? DataType.INT64 : DataType.FLOAT) })!, /boolean/);
  t.regex(reason({ input: masked }, { maskKeys: 'one' })!, /shorter/);
  t.is(reason({ input: masked }, { maskKeys: 'one', opset: 23 }), undefined);
});
