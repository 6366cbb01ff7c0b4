/** `ort-flash run --device cpu`: every export. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { allModels, bundledModel } from '../models/corpus.js';
import { checkBatch, checkOutputs } from './batches.js';

test.serial('ort-flash run --device cpu', (t) => {
  const model = bundledModel('bert-ts11');
  const outputs = mkdtempSync(join(tmpdir(), 'ort-flash-run-'));
  t.teardown(() => rmSync(outputs, { recursive: true, force: true }));
  const main = fileURLToPath(new URL('../cli/main.ts', import.meta.url));
  const args = ['run', model.modelFile, '--inputs', model.dataFolder, '--outputs', outputs, '--device', 'cpu'];
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--import=tsx', main, ...args], { encoding: 'utf8' });
  t.is(status, 0, stderr);
  t.regex(stdout, /runs on cpu.*2 attentions a block of queries at a time/);
  checkOutputs(t, model, outputs);
});

// What `ort-flash run` calls, in one process.
for (const model of allModels())
  test.serial(`runBatch on cpu gives PyTorch's outputs: ${model.name}`, async (t) => {
    const explanation = await checkBatch(t, model, 'cpu');
    t.is(/\d attentions? (by|a block)/.test(explanation), model.sites > 0, explanation);
    t.is(/bfloat16 is computed in float32/.test(explanation), model.unrunnableOnCpu === true, explanation);
  });
