import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest, { type TestFn } from 'ava';
import { allModels, bundledModel } from '../models/corpus.js';
import { exportTriton } from './node-triton.js';
import { parseTritonConfig } from './node-triton-schema.js';
import { makeModel } from './test-models.js';

const test = anyTest as TestFn<{ repository: string }>;

test.beforeEach((t) => {
  t.context.repository = mkdtempSync(join(tmpdir(), 'ort-flash-triton-'));
});
test.afterEach.always((t) => rmSync(t.context.repository, { recursive: true, force: true }));

const encoder = bundledModel('bert-sdpa-dyn18').modelFile;

test('a batched model with our kernels', async (t) => {
  const { repository } = t.context;
  const library = join(repository, 'libkernels.so');
  writeFileSync(library, 'library');
  const { folder, files, config } = await exportTriton({
    model: encoder,
    repository,
    name: 'encoder',
    version: 3,
    customOpLibrary: library,
    repositoryOnServer: '/models',
    maxBatchSize: 16,
    maxQueueDelay: 250,
    instances: 2,
    gpus: [0, 1],
  });
  t.is(folder, join(repository, 'encoder'));
  t.deepEqual([...files].sort(), ['3/libkernels.so', '3/model.onnx', 'config.pbtxt']);
  t.deepEqual(readFileSync(join(folder, '3', 'model.onnx')), readFileSync(encoder));
  t.is(readFileSync(join(folder, '3', 'libkernels.so'), 'utf8'), 'library');
  mkdirSync(join(repository, 'usual'));
  // The server may run as somebody else.
  t.is(statSync(folder).mode, statSync(join(repository, 'usual')).mode);
  const parsed = parseTritonConfig(readFileSync(join(folder, 'config.pbtxt'), 'utf8'));
  t.deepEqual(parsed, config);
  t.deepEqual(parsed, {
    name: 'encoder',
    backend: 'onnxruntime',
    max_batch_size: 16,
    input: [
      { name: 'input_ids', data_type: 'TYPE_INT64', dims: [-1] },
      { name: 'attention_mask', data_type: 'TYPE_INT64', dims: [-1] },
    ],
    output: [{ name: 'output', data_type: 'TYPE_FP32', dims: [-1, 32] }],
    instance_group: [{ count: 2, kind: 'KIND_GPU', gpus: [0, 1] }],
    default_model_filename: 'model.onnx',
    dynamic_batching: { preferred_batch_size: [16], max_queue_delay_microseconds: 250 },
    model_operations: { op_library_filename: ['/models/encoder/3/libkernels.so'] },
  });
});

test('config.pbtxt reads as Triton’s examples do, and what is not in the schema is refused', async (t) => {
  const { repository } = t.context;
  const { folder } = await exportTriton({ model: encoder, repository, name: 'e', device: 'cpu' });
  const text = readFileSync(join(folder, 'config.pbtxt'), 'utf8');
  t.regex(text, /^name: "e"$/m);
  t.regex(text, /^max_batch_size: 8$/m);
  t.regex(text, /^instance_group\s*\{$/m);
  t.regex(text, /kind: KIND_CPU/);
  t.throws(() => parseTritonConfig(`${text}\nmax_batch: 4`));
  t.throws(() => parseTritonConfig(text.replace('TYPE_FP32', 'TYPE_FLOAT')));
  t.throws(() => parseTritonConfig(text.replace('max_batch_size: 8', 'max_batch_size: "eight"')));
});

test('fixed first axes and tensors without an axis', async (t) => {
  const { repository } = t.context;
  const value = (name: string, shape: (number | string)[]) => ({ name, type: 'float16' as const, shape });
  const save = (file: string, shape: (number | string)[]) => {
    const nodes = [{ op: 'Identity', inputs: ['x'], outputs: ['y'] }];
    writeFileSync(join(repository, file), makeModel([value('x', shape)], [value('y', shape)], nodes));
    return join(repository, file);
  };
  const fixed = await exportTriton({ model: save('fixed.onnx', [1, 'n']), repository });
  t.like(fixed.config, { name: 'fixed', max_batch_size: 0 });
  t.is(fixed.config.dynamic_batching, undefined);
  t.deepEqual(fixed.config.input[0], { name: 'x', data_type: 'TYPE_FP16', dims: [1, -1] });
  const batch = await exportTriton({ model: save('batch.onnx', ['n']), repository });
  t.deepEqual(batch.config.output[0], { name: 'y', data_type: 'TYPE_FP16', dims: [1], reshape: { shape: [] } });
  t.deepEqual(parseTritonConfig(readFileSync(join(batch.folder, 'config.pbtxt'), 'utf8')).output[0]!.dims, [1]);
  await t.throwsAsync(exportTriton({ model: join(repository, 'fixed.onnx'), repository, name: 'b', maxBatchSize: 4 }), {
    message: /maxBatchSize must be 0/,
  });
});

test('every model of the corpus is exported, with all its inputs and outputs', async (t) => {
  for (const { name, modelFile, inputs } of allModels()) {
    const { folder, config } = await exportTriton({ model: modelFile, repository: t.context.repository, name });
    t.deepEqual(
      config.input.map((input) => input.name),
      [...inputs],
      name,
    );
    t.deepEqual(parseTritonConfig(readFileSync(join(folder, 'config.pbtxt'), 'utf8')).input.length, inputs.length);
    rmSync(folder, { recursive: true });
  }
});

test('what cannot be exported leaves nothing behind', async (t) => {
  const repository = join(t.context.repository, 'models');
  const refused = (changes: object, message: RegExp) =>
    t.throwsAsync(exportTriton({ model: encoder, repository, ...changes }), { name: 'OrtFlashError', message });
  await refused({ name: '../up' }, /no name for a model/);
  await refused({ version: 0 }, /version must be/);
  await refused({ maxBatchSize: -1 }, /maxBatchSize must be/);
  await refused({ gpus: [0], device: 'cpu' }, /gpus are for/);
  await refused({ model: '/no/such.onnx' }, /cannot be read: there is no such file or folder \[\/no\/such\.onnx\]/);
  await refused(
    { customOpLibrary: '/no/such.so' },
    /cannot be read: there is no such file or folder \[\/no\/such\.so\]/,
  );
  await refused({ customOpLibrary: t.context.repository }, /the custom-op library is no file/);
  await refused({ repository: join(encoder, 'models') }, /cannot be written: part of its path is no folder/);
  t.false(existsSync(repository));
  await exportTriton({ model: encoder, repository });
  t.deepEqual(readdirSync(repository), ['model']);
  await refused({}, /has this model already/);
  const int4 = { name: 'x', type: 'int4' as const, shape: ['n'] };
  writeFileSync(
    join(t.context.repository, 'int4.onnx'),
    makeModel([int4], [{ ...int4, name: 'y' }], [{ op: 'Identity', inputs: ['x'], outputs: ['y'] }]),
  );
  await refused({ model: join(t.context.repository, 'int4.onnx') }, /Triton has no int4/);
});
