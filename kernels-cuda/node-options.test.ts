/** What session options do: execution providers, ONNX Runtime's own options, external data, a missing addon. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import type { OrtFlashError } from '../graph-rewrite/errors.js';
import { bundledModel } from '../models/corpus.js';
import { InferenceSession, Tensor } from './index.js';
import { addonPath } from './node-paths.js';
import { externalModel, identityModel, makeModel, powerModel } from './test-models.js';

const withAddon = existsSync(addonPath()) ? test : test.skip;

const cpu = { executionProviders: ['cpu'], intraOpNumThreads: 1 } as const;

test('a model that cannot be opened is refused with the reason', async (t) => {
  const open = (model: string | Uint8Array) =>
    t.throwsAsync<OrtFlashError>(InferenceSession.create(model as string, cpu));
  t.regex((await open('/no/such/model.onnx'))!.message, /no\/such\/model\.onnx/);
  t.regex((await open(Uint8Array.of(1, 2, 3)))!.message, /not an ONNX model/);
  t.is((await open(new Uint8Array()))!.name, 'OrtFlashError');
  const unknown = makeModel(
    [{ name: 'x', type: 'float32', shape: [1] }],
    [{ name: 'y', type: 'float32', shape: [1] }],
    [{ op: 'NoSuchOperator', inputs: ['x'], outputs: ['y'] }],
  );
  t.regex((await open(unknown))!.message, /NoSuchOperator/);
  await t.throwsAsync(
    InferenceSession.create(identityModel('float32'), { ...cpu, graphOptimizationLevel: 'most' as 'all' }),
    { message: /most/ },
  );
});

withAddon('options reach ONNX Runtime', async (t) => {
  const model = bundledModel('bert-sdpa-dyn18');
  const free = (await InferenceSession.create(model.modelFile, cpu)).inputMetadata[0]!;
  const dimension = (free.isTensor ? free.shape : []).find((size) => typeof size === 'string') as string;
  const fixed = await InferenceSession.create(model.modelFile, { ...cpu, freeDimensionOverrides: { [dimension]: 2 } });
  const metadata = fixed.inputMetadata[0]!;
  t.true(metadata.isTensor && metadata.shape.includes(2));
  const plain = { ...cpu, enableCpuMemArena: false, enableMemPattern: false, executionMode: 'parallel' } as const;
  const doubling = await InferenceSession.create(powerModel(1), plain);
  const { y } = await doubling.run({ x: new Tensor('float32', Float32Array.of(3), [1, 1]) });
  t.deepEqual(y!.data, Float32Array.of(9));
  const wrong = { ...cpu, extra: { session: { disable_prepacking: 'perhaps' } } };
  await t.throwsAsync(InferenceSession.create(model.modelFile, { ...cpu, intraOpNumThreads: -1 }), {
    message: /intraOpNumThreads/,
  });
  await t.notThrowsAsync(InferenceSession.create(model.modelFile, wrong));
});

withAddon('external data is found beside the model, and taken from memory', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-external-'));
  const weights = Float32Array.of(10, 20, 30, 40);
  const bytes = new Uint8Array(weights.buffer);
  writeFileSync(join(folder, 'model.onnx'), externalModel());
  const check = async (session: InferenceSession) => {
    const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(1, 2, 3, 4), [4]) });
    t.deepEqual(y!.data, Float32Array.of(11, 22, 33, 44));
    await session.release();
  };
  await t.throwsAsync(InferenceSession.create(join(folder, 'model.onnx'), cpu), { message: /weights\.bin/ });
  const withData = (data: Uint8Array | Blob | string) => ({ ...cpu, externalData: [{ path: 'weights.bin', data }] });
  await check(await InferenceSession.create(externalModel(), withData(bytes)));
  await check(await InferenceSession.create(externalModel(), withData(new Blob([bytes]))));
  writeFileSync(join(folder, 'weights.bin'), bytes);
  await check(await InferenceSession.create(join(folder, 'model.onnx'), cpu));
  await check(await InferenceSession.create(externalModel(), withData(join(folder, 'weights.bin'))));
  await check(await InferenceSession.create(join(folder, 'model.onnx'), { ...cpu, externalData: ['weights.bin'] }));
  const short = withData(bytes.slice(0, 8));
  await t.throwsAsync(InferenceSession.create(externalModel(), short), { name: 'OrtFlashError' });
  const missing = withData(join(folder, 'none.bin'));
  await t.throwsAsync(InferenceSession.create(externalModel(), missing), { message: /none\.bin/ });
  rmSync(folder, { recursive: true });
});

test('without the addon, sessions go through onnxruntime-node, and what is missing is said once', (t) => {
  const program = `
    import { InferenceSession, Tensor } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
    import { identityModel } from ${JSON.stringify(new URL('./test-models.ts', import.meta.url).href)};
    for (let i = 0; i < 3; i++) {
      const session = await InferenceSession.create(identityModel('float32'));
      const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(i), [1]) });
      console.log(session.explain().engine, y.data[0], session.inputNames[0], session.outputMetadata[0].type);
      await session.release();
      await session.release();
    }`;
  const { stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', program],
    { encoding: 'utf8', env: { ...process.env, ORT_FLASH_NODE_ADDON: '/no/such/addon.node' } },
  );
  t.is(stdout.trim(), [0, 1, 2].map((i) => `onnxruntime-node ${i} x float32`).join('\n'));
  t.is(stderr.match(/npm run build:addon/g)?.length, 1, stderr);
});

test('execution providers fall through in order, with the reasons', async (t) => {
  // A GPU that no machine has, and a name that no runtime knows.
  const absent = { name: 'cuda', deviceId: 4096 } as const;
  const open = (...executionProviders: NonNullable<InferenceSession.SessionOptions['executionProviders']>) =>
    InferenceSession.create(identityModel('float32'), { executionProviders });
  const session = await open(absent, 'no-such', 'cpu');
  const { device, refused, text } = session.explain();
  t.is(device, 'cpu');
  t.deepEqual(
    refused.map(({ provider }) => provider),
    ['cuda', 'no-such'],
  );
  t.regex(text, /^runs on cpu through .*; not cuda: .*; not no-such: /);
  const none = await t.throwsAsync(open(absent, 'no-such'));
  t.regex(none!.message, /cuda: .*no-such: /);
  await session.release();
});
