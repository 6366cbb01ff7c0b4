/**
 * `ort-flash run --device webgpu`, in Node over Dawn. With ORT_FLASH_WEB=all every float32 export with dynamic shapes of the
 * corpus, with ORT_FLASH_WEB=bundled those of the selection; ORT_FLASH_RUN_RESULTS=FILE is as ORT_FLASH_WEB_RESULTS in
 * web-models.test.ts. Those in bfloat16 always.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import anyTest from 'ava';
import { runBatch } from '../kernels-cuda/node-batch.js';
import { bundledModel, type ModelExample, readTestData } from '../models/corpus.js';
import { checkBatch } from './batches.js';
import { relativeDifference, toNumbers } from './runtime.js';
import { root, withFolder } from './web-browser.js';
import { bfloat16Models, dynamicModels, judge, OutcomeLog, type RunExample, type WebRun } from './web-outcomes.js';
import { counts, feedsOf, hasWebGpu, loadWeb, type Ort, useTestAdapter } from './web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;

const readOutputs = (folder: string) =>
  readTestData(folder).outputs.map(({ name, type, data }) => ({
    name,
    numbers: toNumbers(type, data as ArrayLike<number>),
  }));

test('ort-flash run --device webgpu', async (t) => {
  t.timeout(900_000);
  useTestAdapter();
  const { modelFile, dataFolder, tolerance } = bundledModel('bert-sdpa-dyn18');
  await withFolder(async (folder) => {
    const outputs = join(folder, 'outputs');
    const args = ['run', modelFile, '--inputs', dataFolder, '--outputs', outputs, '--device', 'webgpu'];
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      // As useTestAdapter sets for this process.
      ['--liftoff-only', '--import=tsx', join(root, 'cli', 'main.ts'), ...args],
      { encoding: 'utf8' },
    );
    t.is(status, 0, stderr);
    t.regex(stdout, /runs on webgpu.*2 attentions in FlashAttention kernels/);
    const [expected] = readTestData(dataFolder).outputs;
    t.true(relativeDifference(readOutputs(outputs)[0]!.numbers, expected!) <= tolerance);
  });
});

let ort: Ort | undefined;

/** What `ort-flash run` calls; in one process, so that models share what was compiled. */
async function runOurs(example: ModelExample): Promise<WebRun> {
  return withFolder(async (folder) => {
    const outputs = join(folder, 'outputs');
    counts.maps = 0;
    const { modelFile: model, dataFolder: inputs } = example;
    const { explanation, failed } = await runBatch({ model, inputs, outputs, device: 'webgpu' });
    if (failed[0]) throw failed[0].error;
    const [attentions = 0, segments = 1] = [...(/(\d+) attentions in .* between (\d+) parts/.exec(explanation) ?? [])]
      .slice(1)
      .map(Number);
    return { attentions, segments, text: explanation, outputs: readOutputs(outputs), maps: counts.maps };
  });
}

const run: RunExample = async (example, flash) => {
  ort ??= await loadWeb();
  if (flash === 'auto') return runOurs(example);
  const session = await ort.InferenceSession.create(example.modelFile, { flash, logSeverityLevel: 4 });
  try {
    counts.maps = 0;
    const results = await session.run(feedsOf(ort, session, example));
    const outputs = session.outputNames.map((name) => {
      const { type, data } = results[name]!;
      return { name, numbers: toNumbers(type, data as ArrayLike<number>) };
    });
    return { ...session.explain(), outputs, maps: counts.maps };
  } finally {
    await session.release();
  }
};

for (const example of bfloat16Models())
  test(`${example.name}: PyTorch's outputs, in bfloat16, through ort-flash run --device webgpu`, async (t) => {
    t.timeout(900_000);
    useTestAdapter();
    const explanation = await checkBatch(t, example, 'webgpu');
    t.regex(explanation, new RegExp(`^runs on webgpu.*${example.sites} attentions in FlashAttention kernels`));
    t.regex(explanation, /bfloat16 is computed in float32 here/);
  });

const log = new OutcomeLog(process.env.ORT_FLASH_RUN_RESULTS);
for (const example of process.env.ORT_FLASH_WEB ? dynamicModels() : []) {
  if (log.has(example)) continue;
  test(`${example.name}: PyTorch's outputs through ort-flash run --device webgpu`, async (t) => {
    t.timeout(1_800_000);
    const outcome = await judge(run, example);
    log.add(outcome);
    t.log(JSON.stringify(outcome));
    t.not(outcome.outcome, 'failed');
    if (outcome.outcome === 'right') t.is(outcome.attentions, example.sites);
  });
}
