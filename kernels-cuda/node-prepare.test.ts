import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type ExecutionContext, type TestFn } from 'ava';
import { decodeModel, encodeModel, rewriteModel } from '../graph-rewrite/index.js';
import { DataLocation, type ModelProto, StringStringEntryProto } from '../graph-rewrite/onnx/proto.js';
import { allModels, bundledModel, bundledModels, type ModelExample, readTestData } from '../models/corpus.js';
import { toNumbers } from '../test/runtime.js';
import { bundledCaseFolder } from '../test/web-standard.js';
import { createTensor, type FlashMode, InferenceSession, type Tensor } from './index.js';
import { addonPath } from './node-paths.js';
import { prepareModel } from './node-prepare.js';

const test = anyTest as TestFn<{ folder: string }>;
const withAddon = existsSync(addonPath()) ? test : test.skip;

test.beforeEach((t) => {
  t.context.folder = mkdtempSync(join(tmpdir(), 'ort-flash-prepare-'));
});
test.afterEach.always((t) => rmSync(t.context.folder, { recursive: true, force: true }));

function rewritten(model: ModelExample): ModelProto {
  const proto = decodeModel(new Uint8Array(readFileSync(model.modelFile)));
  rewriteModel(proto);
  return proto;
}

/** Runs the model's reference inputs and compares with PyTorch's outputs. */
async function checkOutputs(t: ExecutionContext, session: InferenceSession, model: ModelExample): Promise<void> {
  const { inputs, outputs } = readTestData(model.dataFolder);
  const feeds = inputs.map(({ name, type, dims, data }, i) => {
    return [name || session.inputNames[i]!, createTensor(type as Tensor.Type, data, dims)] as const;
  });
  const results = await session.run(Object.fromEntries(feeds));
  for (const [i, { type, data, dims }] of outputs.entries()) {
    const actual = results[session.outputNames[i]!]!;
    t.deepEqual([...actual.dims], [...dims]);
    t.is(actual.type, type as Tensor.Type);
    if (type !== 'float32' && type !== 'bfloat16') continue;
    const [a, b] = [actual.data, data].map((elements) => Array.from(toNumbers(type, elements as Float32Array)));
    const worst = b!.reduce((most, value, j) => Math.max(most, Math.abs(a![j]! - value) / (1 + Math.abs(value))), 0);
    t.true(worst <= model.tolerance, `${model.name}: output ${i} is off by ${worst}`);
  }
}

withAddon('rewritten models run on the CPU by fused operators, with PyTorch’s outputs', async (t) => {
  let fused = 0;
  for (const model of bundledModels()) {
    const session = await InferenceSession.create(encodeModel(rewritten(model)), { executionProviders: ['cpu'] });
    await checkOutputs(t, session, model);
    if (/by (MultiHead|GroupQuery)Attention/.test(session.explain().text)) fused++;
    await session.release();
  }
  t.log(`${fused} models by fused operators`);
  t.true(fused >= 10);
});

withAddon('every model gives PyTorch’s outputs when it is fused as it is loaded', async (t) => {
  const models = allModels();
  let fused = 0;
  let inBlocks = 0;
  for (const model of models) {
    const session = await InferenceSession.create(model.modelFile, { executionProviders: ['cpu'] });
    await checkOutputs(t, session, model);
    if (/by (MultiHead|GroupQuery)Attention/.test(session.explain().text)) fused++;
    if (/a block of queries at a time/.test(session.explain().text)) inBlocks++;
    await session.release();
  }
  t.log(`${models.length} models, ${fused} by fused operators, ${inBlocks} a block of queries at a time`);
  t.true(fused >= 10);
  t.true(inBlocks >= 10);
});

withAddon('a masked model takes its queries a block at a time, and is lowered once', async (t) => {
  const model = bundledModel('bert-sdpa-dyn18');
  const proto = decodeModel(new Uint8Array(readFileSync(model.modelFile)));
  const { lowered } = rewriteModel(proto, { target: 'ort' });
  t.deepEqual(
    lowered?.map(({ operator, inBlocks }) => [operator, inBlocks]),
    [
      ['FlashAttention', true],
      ['FlashAttention', true],
    ],
  );
  const once = encodeModel(proto);
  rewriteModel(proto, { target: 'ort' });
  t.deepEqual(encodeModel(proto), once);
  const session = await InferenceSession.create(once, { executionProviders: ['cpu'] });
  t.regex(session.explain().text, /2 attentions a block of queries at a time/);
  await checkOutputs(t, session, model);
  await session.release();
});

test('each device is given attention that suits it', async (t) => {
  const notes = (model: string) => {
    const { modelFile } = bundledModel(model);
    const carriers = ['kernels', 'cpu', 'cuda'] as const;
    return Promise.all(carriers.map(async (carrier) => (await prepareModel(modelFile, carrier, 'auto')).note));
  };
  const plain = '2 attentions by MultiHeadAttention';
  t.deepEqual(await notes('vit-sdpa-ts17'), ['2 attentions by our kernels', plain, plain]);
  // CUDA's GroupQueryAttention takes no float32.
  t.deepEqual(await notes('whisper_dec-sdpa-dyn18'), [
    '4 attentions by our kernels',
    '2 attentions by GroupQueryAttention, 2 attentions by MultiHeadAttention',
    '4 attentions by MultiHeadAttention',
  ]);
  // A Loop would make a GPU wait for the CPU in each turn.
  const blocks = '2 attentions a block of queries at a time';
  for (const masked of ['bert-sdpa-dyn18', 'bert-ts11'])
    t.deepEqual(await notes(masked), ['2 attentions by our kernels', blocks, undefined], masked);
});

test('an attention whose scores are an output becomes operators where CUDA is to give them', async (t) => {
  const file = (name: string) => join(bundledCaseFolder, name, 'model.onnx');
  const operatorsOf = ({ model }: { model: string | Uint8Array }) =>
    typeof model === 'string' ? undefined : decodeModel(model).graph!.node.map(({ op_type: type }) => type);
  for (const name of ['test_attention_4d_with_qk_matmul_bias', 'test_attention_local_window_gqa_rank4_mask']) {
    for (const carrier of ['kernels', 'cuda'] as const) {
      const prepared = await prepareModel(file(name), carrier, 'auto');
      t.is(prepared.note, '1 attention by plain operators', name);
      t.true(operatorsOf(prepared)!.includes('Softmax'));
      t.false(operatorsOf(prepared)!.includes('Attention'));
      await t.throwsAsync(prepareModel(file(name), carrier, 'on'), {
        message: /no attention of the model can be fused/,
      });
      t.is((await prepareModel(file(name), carrier, 'off')).model, file(name));
    }
    t.is((await prepareModel(file(name), 'cpu', 'auto')).model, file(name));
  }
  // What ONNX Runtime's operator gives on CUDA stays with it: the products, and no window.
  const products = decodeModel(new Uint8Array(readFileSync(file('test_attention_4d_with_qk_matmul_bias'))));
  const [node] = products.graph!.node;
  node!.attribute = node!.attribute.filter(({ name }) => name !== 'qk_matmul_output_mode');
  const bytes = encodeModel(products);
  t.is((await prepareModel(bytes, 'kernels', 'auto')).model, bytes);
});

test('flash says whether a model is fused', async (t) => {
  const vit = bundledModel('vit-sdpa-ts17').modelFile;
  const plain = bundledModels().find(
    ({ sites, unrunnableOnCpu }) => sites === 0 && unrunnableOnCpu !== true,
  )!.modelFile;
  const open = (model: string, flash: FlashMode) =>
    InferenceSession.create(model, { executionProviders: ['cpu'], flash });
  const explain = async (model: string, flash: FlashMode) => {
    const session = await open(model, flash);
    await session.release();
    return session.explain().text;
  };
  t.regex(await explain(vit, 'auto'), /MultiHeadAttention/);
  t.regex(await explain(vit, 'on'), /MultiHeadAttention/);
  t.notRegex(await explain(vit, 'off'), /attention/);
  t.notRegex(await explain(plain, 'auto'), /attention/);
  await t.throwsAsync(open(plain, 'on'), { name: 'OrtFlashError', message: /no attention of the model can be fused/ });
  await t.throwsAsync(open(vit, 'yes' as 'on'), { message: /flash is 'auto', 'on' or 'off'/ });
});

/** Moves the large initializers into a file. */
function saveWithExternalData(proto: ModelProto, folder: string): string {
  const chunks: Uint8Array[] = [];
  let offset = 0;
  for (const tensor of proto.graph!.initializer) {
    const bytes = tensor.raw_data;
    if (bytes == null || bytes.length < 256) continue;
    const entry = (key: string, value: string | number) => StringStringEntryProto.create({ key, value: String(value) });
    tensor.external_data = [entry('location', 'weights.bin'), entry('offset', offset), entry('length', bytes.length)];
    tensor.data_location = DataLocation.EXTERNAL;
    tensor.raw_data = null;
    chunks.push(bytes);
    offset += bytes.length;
  }
  writeFileSync(join(folder, 'weights.bin'), Buffer.concat(chunks));
  writeFileSync(join(folder, 'model.onnx'), encodeModel(proto));
  return join(folder, 'model.onnx');
}

withAddon('external data is found for a model that was lowered', async (t) => {
  const model = bundledModel('vit-sdpa-ts17');
  const file = saveWithExternalData(rewritten(model), t.context.folder);
  const session = await InferenceSession.create(file, { executionProviders: ['cpu'] });
  t.regex(session.explain().text, /\d attentions? by MultiHeadAttention/);
  await checkOutputs(t, session, model);
  await session.release();
});

test('without the addon, a rewritten model runs, too', (t) => {
  const model = bundledModel('vit-sdpa-ts17');
  const plain = join(t.context.folder, 'plain.onnx');
  writeFileSync(plain, encodeModel(rewritten(model)));
  const external = saveWithExternalData(rewritten(model), t.context.folder);
  const program = `
    import { InferenceSession } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
    for (const file of ${JSON.stringify([plain, external])}) {
      const session = await InferenceSession.create(file);
      console.log(session.explain().text);
    }`;
  const { stdout } = spawnSync(
    process.execPath,
    ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', program],
    { encoding: 'utf8', env: { ...process.env, ORT_FLASH_NODE_ADDON: '/no/such/addon.node' } },
  );
  const [first, second] = stdout.split('\n');
  t.regex(first!, /onnxruntime-node; \d attentions? by MultiHeadAttention/);
  t.regex(second!, /onnxruntime-node; the model is left as it is: .* needs the addon/);
});
