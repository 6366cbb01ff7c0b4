/** Batch inference and sessions in WebAssembly under Node, over the bundled exports. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { InferenceSession, Tensor } from '../kernels-cuda/index.js';
import { externalModel, identityModel } from '../kernels-cuda/test-models.js';
import { bundledModels } from '../models/corpus.js';
import { checkBatch } from './batches.js';

const folder = mkdtempSync(join(tmpdir(), 'ort-flash-wasm-'));
test.after.always(() => rmSync(folder, { recursive: true, force: true }));

for (const model of bundledModels())
  test(`runBatch on wasm gives PyTorch's outputs: ${model.name}`, async (t) => {
    await checkBatch(t, model, 'wasm');
  });

test('a session on wasm fills tensors that are given, and may be released twice', async (t) => {
  const session = await InferenceSession.create(identityModel('float32'), { executionProviders: ['wasm'] });
  t.like(session.explain(), { device: 'wasm', engine: 'onnxruntime-web' });
  const target = new Tensor('float32', new Float32Array(2), [2]);
  const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(3, 4), [2]) }, { y: target });
  t.is(y, target);
  t.deepEqual(target.data, Float32Array.of(3, 4));
  const own = await session.run({ x: new Tensor('float32', Float32Array.of(5), [1]) });
  t.true(own.y instanceof Tensor);
  await t.throwsAsync(session.run({ x: new Tensor('int32', Int32Array.of(5), [1]) }), { name: 'OrtFlashError' });
  await session.release();
  await session.release();
});

test('sessions on wasm that are opened at the same time have each its own data files', async (t) => {
  const places = Array.from({ length: 4 }, () => mkdtempSync(join(folder, 'data-')));
  for (const [i, place] of places.entries()) {
    writeFileSync(join(place, 'model.onnx'), externalModel());
    writeFileSync(join(place, 'weights.bin'), new Uint8Array(Float32Array.of(i, i, i, i).buffer));
  }
  const open = (place: string) => InferenceSession.create(join(place, 'model.onnx'), { executionProviders: ['wasm'] });
  for (const [i, session] of (await Promise.all(places.map(open))).entries()) {
    const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(1, 1, 1, 1), [4]) });
    t.deepEqual(y!.data, Float32Array.of(i + 1, i + 1, i + 1, i + 1));
    await session.release();
  }
});

test('sessions on wasm may be opened, run and released while others run', async (t) => {
  const lives = Array.from({ length: 6 }, async (_, i) => {
    const session = await InferenceSession.create(identityModel('float32'), { executionProviders: ['wasm'] });
    for (let run = 0; run <= 10 * i; run++) {
      const x = Float32Array.from({ length: run % 5 === 0 ? 60_000 : run }, () => i + run);
      const { y } = await session.run({ x: new Tensor('float32', x, [x.length]) });
      t.deepEqual(y!.data, x);
    }
    await session.release();
  });
  await Promise.all(lives);
});

test('a session on wasm finds data files beside the model, and says which is missing', async (t) => {
  const open = () => InferenceSession.create(join(folder, 'model.onnx'), { executionProviders: ['wasm'] });
  writeFileSync(join(folder, 'model.onnx'), externalModel());
  const missing = await t.throwsAsync(open(), { name: 'OrtFlashError' });
  t.regex(missing!.message, /weights\.bin/);
  writeFileSync(join(folder, 'weights.bin'), new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer));
  const session = await open();
  const { y } = await session.run({ x: new Tensor('float32', Float32Array.of(1, 1, 1, 1), [4]) });
  t.deepEqual(y!.data, Float32Array.of(2, 3, 4, 5));
  await session.release();
});
