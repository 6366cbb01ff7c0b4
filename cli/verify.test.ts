import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import Long from 'long';
import { decodeModel, encodeModel, encodeTensor } from '../graph-rewrite/onnx/codec.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { opsetImports, tensorInfo } from '../graph-rewrite/onnx/make.js';
import {
  DataLocation,
  DataType,
  GraphProto,
  type ModelProto,
  ModelProto as ModelType,
  type NodeProto,
  NodeProto as NodeType,
  StringStringEntryProto,
} from '../graph-rewrite/onnx/proto.js';
import { makeTensor, tensorNumbers } from '../graph-rewrite/onnx/tensor.js';
import { makeAttribute } from '../graph-rewrite/op/emit.js';
import { allModels, bundledModel } from '../models/corpus.js';
import { Random } from './verify/inputs.js';
import { readSignature } from './verify/signature.js';
import { hypotheses, planSizes } from './verify/sizes.js';
import { makeFeeds } from './verify/values.js';
import { verifyModels } from './verify.js';

/** A bundled model, changed and written again. */
async function changed(name: string, change: (model: ModelProto) => void): Promise<Uint8Array> {
  const file = bundledModel(name).modelFile;
  const model = decodeModel(await readFile(file), file);
  change(model);
  return encodeModel(model);
}

const original = (name: string) => bundledModel(name).modelFile;

const node = (op_type: string, input: string[], output: string[]): NodeProto =>
  NodeType.create({ op_type, input, output });

/** Lets every reader of `name` read `replacement` instead. */
function redirect(model: ModelProto, name: string, replacement: string): void {
  for (const reader of model.graph!.node) reader.input = reader.input.map((one) => (one === name ? replacement : one));
}

test('every model agrees with itself, at several sizes wherever its shapes are dynamic', async (t) => {
  for (const model of allModels()) {
    const report = await verifyModels(model.modelFile, model.modelFile);
    t.true(report.holds, `${model.name}: ${report.failures[0]}`);
    const enough = model.static ? 1 : 3;
    t.true(report.compared >= enough, `${model.name}: ${report.compared} runs compared, ${report.refused} refused`);
  }
});

test('a model in bfloat16 is run in float32, and a softmax scale that is off does not pass', async (t) => {
  const untouched = original('bf16_attn-dyn18');
  const model = await changed('bf16_attn-dyn18', ({ graph }) => {
    const softmax = graph!.node.find((one) => one.op_type === 'Softmax')!;
    graph!.initializer.push(makeTensor('fifth', 'bfloat16', [], [1.2]));
    graph!.node.splice(graph!.node.indexOf(softmax), 0, node('Mul', [softmax.input[0]!, 'fifth'], ['scaled']));
    softmax.input[0] = 'scaled';
  });
  const same = await verifyModels(untouched, untouched);
  t.true(same.holds);
  t.deepEqual(same.notes, ['bfloat16 is computed in float32 here']);
  t.false((await verifyModels(untouched, model)).holds);
});

test('bfloat16 between casts is run as it is, also beside weights in a data file', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'ort-flash-verify-'));
  try {
    const weight = makeTensor('w', 'float32', [4], [1, 2, 3, 4]);
    const cast = (input: string, output: string, to: number) =>
      NodeType.create({ op_type: 'Cast', input: [input], output: [output], attribute: [makeAttribute('to', to)] });
    const model = ModelType.create({
      ir_version: Long.fromNumber(8),
      opset_import: opsetImports({ '': 17 }),
      graph: GraphProto.create({
        name: 'g',
        input: [tensorInfo('x', 'float32', ['n', 4])],
        output: [tensorInfo('y', 'float32', ['n', 4])],
        initializer: [weight],
        node: [node('Add', ['x', 'w'], ['s']), cast('s', 'b', DataType.BFLOAT16), cast('b', 'y', DataType.FLOAT)],
      }),
    });
    const whole = encodeModel(model);
    await writeFile(join(folder, 'w.bin'), weight.raw_data!);
    weight.raw_data = new Uint8Array();
    weight.data_location = DataLocation.EXTERNAL;
    weight.external_data = [StringStringEntryProto.create({ key: 'location', value: 'w.bin' })];
    const file = join(folder, 'model.onnx');
    await writeFile(file, encodeModel(model));
    for (const source of [whole, file]) {
      const report = await verifyModels(source, source);
      t.true(report.holds);
      t.deepEqual(report.notes, []);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('a softmax scale that is off by a fifth does not pass', async (t) => {
  const model = await changed('vit-sdpa-ts17', ({ graph }) => {
    const softmax = graph!.node.find((one) => one.op_type === 'Softmax')!;
    graph!.initializer.push(makeTensor('fifth', 'float32', [], [1.2]));
    graph!.node.splice(graph!.node.indexOf(softmax), 0, node('Mul', [softmax.input[0]!, 'fifth'], ['scaled']));
    softmax.input[0] = 'scaled';
  });
  const report = await verifyModels(original('vit-sdpa-ts17'), model);
  t.false(report.holds);
  t.regex(report.failures[0]!, /^output \S+ differs by \S+ of its largest value at /);
});

test('a padding mask that is ignored does not pass', async (t) => {
  const model = await changed('bert-ts11', (proto) => {
    redirect(proto, 'attention_mask', 'all_ones');
    const graph = proto.graph!;
    graph.initializer.push(makeTensor('zero', 'int64', [], [0]), makeTensor('one', 'int64', [], [1]));
    const ignore = [
      node('Mul', ['attention_mask', 'zero'], ['all_zeros']),
      node('Add', ['all_zeros', 'one'], ['all_ones']),
    ];
    graph.node.unshift(...ignore);
  });
  const report = await verifyModels(original('bert-ts11'), model);
  t.false(report.holds);
  t.true(report.failures.every((failure) => !failure.includes('mask full;')));
});

test('a sliding window that is one key wider does not pass: lengths reach past the window', async (t) => {
  const widened = await changed('mistral-sdpa-dyn18', ({ graph }) => {
    const window = graph!.node.find((one) => one.op_type === 'Greater')!.input[1]!;
    const size = graph!.node.find((one) => one.output.includes(window))!.input[1]!;
    const index = graph!.initializer.findIndex((tensor) => tensor.name === size);
    const [before] = tensorNumbers(graph!.initializer[index]!);
    graph!.initializer[index] = makeTensor(size, 'int64', [], [before! + 1]);
  });
  t.false((await verifyModels(original('mistral-sdpa-dyn18'), widened)).holds);
});

test('a past that is read in the wrong order does not pass', async (t) => {
  const model = await changed('llama_past-dyn18', (proto) => {
    redirect(proto, 'past.0.key', 'swapped');
    redirect(proto, 'past.0.value', 'past.0.key');
    redirect(proto, 'swapped', 'past.0.value');
  });
  t.false((await verifyModels(original('llama_past-dyn18'), model)).holds);
});

test('a model that does not load, or lacks an output, does not pass', async (t) => {
  const broken = await changed('bert-ts11', ({ graph }) => {
    graph!.node[0]!.op_type = 'NoSuchOperator';
  });
  const refused = await verifyModels(original('bert-ts11'), broken);
  t.false(refused.holds);
  t.regex(refused.failures[0]!, /onnxruntime refuses the rewritten model/);

  const renamed = await changed('bert-ts11', ({ graph }) => {
    const output = graph!.output[0]!;
    graph!.node.push(node('Identity', [output.name!], ['other']));
    output.name = 'other';
  });
  const lacking = await verifyModels(original('bert-ts11'), renamed);
  t.regex(lacking.failures[0]!, /has no output/);
});

/** softmax(x + (mask ? 0 : −∞)), and with `zeros` 0 in place of NaN. */
function maskedSoftmax(zeros: boolean): Uint8Array {
  const value = (name: string, type: DataTypeName) => tensorInfo(name, type, ['batch', 'seq']);
  const nodes = [
    node('Where', ['mask', 'zero', 'minus'], ['added']),
    node('Add', ['x', 'added'], ['scores']),
    node('Softmax', ['scores'], [zeros ? 'p' : 'y']),
  ];
  if (zeros) nodes.push(node('IsNaN', ['p'], ['nan']), node('Where', ['nan', 'zero', 'p'], ['y']));
  const graph = GraphProto.create({
    name: 'masked softmax',
    node: nodes,
    input: [value('x', 'float32'), value('mask', 'bool')],
    output: [value('y', 'float32')],
    initializer: [
      makeTensor('zero', 'float32', [], [0]),
      makeTensor('minus', 'float32', [], [Number.NEGATIVE_INFINITY]),
    ],
  });
  const opset_import = opsetImports({ '': 17 });
  return encodeModel(ModelType.create({ ir_version: Long.fromNumber(8), opset_import, graph }));
}

test('zeros for the NaN of a row without keys are noted, NaN for numbers is a failure', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'ort-flash-verify-'));
  try {
    const x = makeTensor('x', 'float32', [2, 3], [1, 2, 3, 4, 5, 6]);
    await writeFile(join(folder, 'input_0.pb'), encodeTensor(x));
    const mask = makeTensor('mask', 'bool', [2, 3], [1, 1, 0, 0, 0, 0]);
    await writeFile(join(folder, 'input_1.pb'), encodeTensor(mask));
    const noted = await verifyModels(maskedSoftmax(false), maskedSoftmax(true), { inputs: folder });
    t.true(noted.holds);
    t.regex(noted.notes[0]!, /^3 output elements are NaN in the untouched model/);
    const lost = await verifyModels(maskedSoftmax(true), maskedSoftmax(false), { inputs: folder });
    t.false(lost.holds);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('a model that runs at no size is an error, not a success', async (t) => {
  // None of the sizes tried has as many elements.
  const model = await changed('bert-ts11', ({ graph }) => {
    graph!.initializer.push(makeTensor('unfit', 'int64', [2], [7919, -1]));
    redirect({ graph } as ModelProto, 'input_ids', 'reshaped');
    graph!.node.unshift(node('Reshape', ['input_ids', 'unfit'], ['reshaped']));
  });
  const error = await t.throwsAsync(verifyModels(model, model));
  t.regex(error!.message, /gives no result at any of \d+ sizes tried.*--inputs/);
});

test('the same seed gives the same inputs, another seed gives others', (t) => {
  const signature = readSignature(decodeModel(readFileSync(original('gpt2_past-ts11'))));
  const [sizes] = planSizes(signature);
  const binding = hypotheses(signature, undefined)[0]!.bind(sizes!);
  const feeds = (seed: number) => makeFeeds(signature, binding, sizes!, new Random(seed));
  t.deepEqual(feeds(5), feeds(5));
  t.notDeepEqual(feeds(5), feeds(6));
});
