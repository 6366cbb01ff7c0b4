/** Batch inference over exports of the corpus, compared with PyTorch's outputs. */
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { type RunBatchOptions, runBatch } from '../kernels-cuda/index.js';
import { type ModelExample, readTestData } from '../models/corpus.js';
import { relativeDifference, toNumbers } from './runtime.js';

/**
 * Runs a model's reference inputs as `ort-flash run` does, and checks what it writes.
 * @returns how attention was carried out, for people
 */
export async function checkBatch(
  t: ExecutionContext,
  model: ModelExample,
  device: NonNullable<RunBatchOptions['device']>,
): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-batch-'));
  try {
    const inputs = join(folder, 'in');
    const outputs = join(folder, 'out');
    cpSync(model.dataFolder, join(inputs, 'test_data_set_0'), { recursive: true });
    const summary = await runBatch({ model: model.modelFile, inputs, outputs, device });
    t.like(summary, { finished: 1, failed: [], devices: [device] });
    checkOutputs(t, model, join(outputs, 'test_data_set_0'));
    return summary.explanation;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Compares the outputs in a folder with PyTorch's: types, shapes, and numbers within the model's tolerance. */
export function checkOutputs(t: ExecutionContext, model: ModelExample, folder: string): void {
  const actual = readTestData(folder).outputs;
  const expected = readTestData(model.dataFolder).outputs;
  t.is(actual.length, expected.length);
  for (const [i, output] of expected.entries()) {
    const { type, dims, data } = actual[i]!;
    t.deepEqual([type, dims], [output.type, output.dims]);
    const worst = relativeDifference(toNumbers(type, data as ArrayLike<number>), output);
    t.true(worst <= model.tolerance, `${model.name}: output ${i} is off by ${worst}`);
  }
}
