/**
 * Every float32 export with dynamic shapes through `ort-flash/web` in Chromium: the bundled selection, and with
 * ORT_FLASH_WEB=all the whole corpus. With ORT_FLASH_WEB_RESULTS=FILE each outcome is added to FILE as a line of JSON, and
 * models that FILE has already are left out; web-models-table.ts makes docs/web-models.md of it. Those in bfloat16 always.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import anyTest from 'ava';
import { type ModelExample, readTestData } from '../models/corpus.js';
import { asFloat32, relativeDifference, toNumbers } from './runtime.js';
import { hasChromium, type OpenedPage, openPage, ortFolder, WITH_WEBGPU } from './web-browser.js';
import type { PageTensor, RunModel } from './web-harness.js';
import { buildHarness } from './web-harness-page.js';
import { bfloat16Models, dynamicModels, judge, OutcomeLog, type RunExample } from './web-outcomes.js';

const test = hasChromium ? anyTest.serial : anyTest.skip;

/** A model that takes longer has failed; SwiftShader compiles some shaders for a minute. */
const LIMIT_SECONDS = 600;

/** Keeps a page open over many models, and opens another after one that hung or crashed. */
class Runner {
  private opened: OpenedPage | undefined;
  private readonly folders: Readonly<Record<string, string>>;

  constructor(pageFolder: string, modelsFolder: string) {
    this.folders = { '/models/': modelsFolder, '/onnxruntime-web/': ortFolder, '/': pageFolder };
  }

  readonly run: RunExample = async (example, flash) => {
    this.opened ??= await openPage(this.folders, WITH_WEBGPU);
    await this.opened.page.getByText('ready').waitFor();
    const running = this.evaluate(this.opened, example, flash);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not done in ${LIMIT_SECONDS} s`)), LIMIT_SECONDS * 1000);
    });
    try {
      return await Promise.race([running, late]);
    } catch (error) {
      running.catch(() => {});
      await this.close();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  };

  private async evaluate({ page }: OpenedPage, example: ModelExample, flash: 'auto' | 'off') {
    const inputs: readonly PageTensor[] = readTestData(example.dataFolder).inputs.map(asFloat32);
    const { outputs, ...facts } = await page.evaluate(
      ([address, given, mode]) =>
        (globalThis as unknown as { runModel: RunModel }).runModel(address, given, { flash: mode }),
      [`/models/${example.name}/model.onnx`, inputs, flash] as const,
    );
    const numeric = outputs.map(({ name, type, data }) => ({
      name,
      numbers: toNumbers(type as 'float32', data as ArrayLike<number>),
    }));
    return { ...facts, outputs: numeric };
  }

  async close() {
    await this.opened?.close();
    this.opened = undefined;
  }
}

const models = dynamicModels();
const log = new OutcomeLog(process.env.ORT_FLASH_WEB_RESULTS);
const folder = mkdtempSync(join(tmpdir(), 'ort-flash-models-'));
let runner: Runner | undefined;

async function openRunner(models: string): Promise<Runner> {
  await buildHarness(folder);
  return new Runner(folder, models);
}

const folderOf = ({ modelFile }: ModelExample) => dirname(dirname(modelFile));

anyTest.after.always(async () => {
  await runner?.close();
  rmSync(folder, { recursive: true });
});

for (const example of bfloat16Models())
  test(`${example.name}: PyTorch's outputs through ort-flash/web in Chromium, in float32`, async (t) => {
    t.timeout(2 * LIMIT_SECONDS * 1000);
    const own = await openRunner(folderOf(example));
    t.teardown(() => own.close());
    const { text, attentions, outputs } = await own.run(example, 'auto');
    for (const [i, expected] of readTestData(example.dataFolder).outputs.entries())
      t.true(relativeDifference(outputs[i]!.numbers, expected) <= example.tolerance);
    t.is(attentions, example.sites);
    t.regex(text, /bfloat16 is computed in float32 here/);
  });

for (const example of models) {
  if (log.has(example)) continue;
  test(`${example.name}: PyTorch's outputs through ort-flash/web in Chromium`, async (t) => {
    t.timeout(3 * LIMIT_SECONDS * 1000);
    runner ??= await openRunner(folderOf(example));
    const outcome = await judge(runner.run, example);
    log.add(outcome);
    t.log(JSON.stringify(outcome));
    t.not(outcome.outcome, 'failed');
    if (outcome.outcome !== 'right') return;
    t.is(outcome.attentions, example.sites);
    // ONNX Runtime reads back by itself what an operator needs that only its CPU provider has.
    const readbacks = Math.max(outcome.outputs!, outcome.mapsUntouched ?? 0);
    t.true(outcome.maps! <= readbacks, 'nothing is read back but the outputs, and what ONNX Runtime itself reads back');
  });
}
