/**
 * Every float32 export with dynamic shapes through `ort-flash/web` in Chromium: the bundled selection, and with
 * ORT_FLASH_WEB=all the whole corpus. With ORT_FLASH_WEB_RESULTS=FILE each outcome is added to FILE as a line of JSON, and
 * models that FILE has already are left out; web-models-table.ts makes docs/web-models.md of it.
 */
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import anyTest from 'ava';
import { build } from 'esbuild';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { DataType } from '../graph-rewrite/onnx/proto.js';
import { forEachTensor } from '../graph-rewrite/onnx/walk.js';
import { bundledModels, type ModelExample, readTestData, wholeCorpus } from '../models/corpus.js';
import { relativeDifference, toNumbers } from './runtime.js';
import { hasChromium, type OpenedPage, openPage, ortFolder, root, WITH_WEBGPU } from './web-browser.js';
import type { PageResult, PageTensor, RunModel } from './web-harness.js';

const test = hasChromium ? anyTest.serial : anyTest.skip;

/** How a model fared. */
export interface WebOutcome {
  readonly name: string;
  readonly sites: number;
  /**
   * `right`: PyTorch's outputs. `not runnable`: onnxruntime-web fails on the untouched model. `not right`:
   * onnxruntime-web's own outputs for the untouched model are not PyTorch's. `failed`: neither, the fault is ours.
   */
  readonly outcome: 'right' | 'not runnable' | 'not right' | 'failed';
  /** Attentions in kernels; sites that are not are explained in `why`. */
  readonly attentions: number;
  readonly segments: number;
  /** Largest difference from PyTorch's outputs, relative to their magnitude. */
  readonly difference?: number;
  readonly maps?: number;
  readonly outputs?: number;
  readonly seconds: number;
  readonly why?: string;
}

/** A model that takes longer has failed; SwiftShader compiles some shaders for a minute. */
const LIMIT_SECONDS = 600;

/** Keeps a page open over many models, and opens another after one that hung or crashed. */
class Runner {
  private opened: OpenedPage | undefined;
  private readonly folders: Readonly<Record<string, string>>;

  constructor(pageFolder: string, modelsFolder: string) {
    this.folders = { '/models/': modelsFolder, '/onnxruntime-web/': ortFolder, '/': pageFolder };
  }

  async run(example: ModelExample, flash: 'auto' | 'off'): Promise<PageResult> {
    this.opened ??= await openPage(this.folders, WITH_WEBGPU);
    const { page } = this.opened;
    await page.getByText('ready').waitFor();
    const inputs: readonly PageTensor[] = readTestData(example.dataFolder).inputs;
    const running = page.evaluate(
      ([address, given, mode]) =>
        (globalThis as unknown as { runModel: RunModel }).runModel(address, given, { flash: mode }),
      [`/models/${example.name}/model.onnx`, inputs, flash] as const,
    );
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
  }

  async close() {
    await this.opened?.close();
    this.opened = undefined;
  }
}

function differenceOf({ outputs }: PageResult, example: ModelExample): number {
  const expected = readTestData(example.dataFolder).outputs;
  const differences = expected.map((tensor, i) => {
    const { type, data } = outputs.find(({ name }) => name === tensor.name) ?? outputs[i]!;
    return relativeDifference(toNumbers(type as 'float32', data as ArrayLike<number>), tensor);
  });
  return Math.max(...differences);
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error)).replace(/\s+/g, ' ');

async function judge(runner: Runner, example: ModelExample): Promise<WebOutcome> {
  const begin = Date.now();
  const facts = () => ({ name: example.name, sites: example.sites, seconds: Math.round((Date.now() - begin) / 1000) });
  const none = { attentions: 0, segments: 0 };
  let fault: string;
  try {
    const result = await runner.run(example, 'auto');
    const { attentions, segments, maps, text } = result;
    const difference = differenceOf(result, example);
    const run = { attentions, segments, difference, maps, outputs: result.outputs.length };
    const why = attentions === example.sites ? {} : { why: text };
    if (difference <= example.tolerance) return { ...facts(), outcome: 'right', ...run, ...why };
    fault = `differs by ${difference}: ${text}`;
  } catch (error) {
    fault = messageOf(error);
  }
  try {
    const difference = differenceOf(await runner.run(example, 'off'), example);
    if (difference <= example.tolerance) return { ...facts(), outcome: 'failed', ...none, why: fault };
    return { ...facts(), outcome: 'not right', ...none, difference, why: fault };
  } catch (error) {
    return { ...facts(), outcome: 'not runnable', ...none, why: messageOf(error) };
  }
}

function isFloat32({ modelFile }: ModelExample): boolean {
  const model = decodeModel(readFileSync(modelFile), modelFile);
  let hasHalf = false;
  forEachTensor(model, ({ data_type: type }) => {
    hasHalf ||= type === DataType.FLOAT16 || type === DataType.BFLOAT16;
  });
  return !hasHalf;
}

const whole = process.env.ORT_FLASH_WEB === 'all' ? wholeCorpus() : undefined;
const models = (whole ?? bundledModels()).filter((example) => !example.static && isFloat32(example));

const resultsFile = process.env.ORT_FLASH_WEB_RESULTS;
const lines = resultsFile && existsSync(resultsFile) ? readFileSync(resultsFile, 'utf8').trim().split('\n') : [];
const done = new Set(lines.filter(Boolean).map((line) => (JSON.parse(line) as WebOutcome).name));

let runner: Runner | undefined;
const folder = mkdtempSync(join(tmpdir(), 'ort-flash-models-'));

async function openRunner(): Promise<Runner> {
  writeFileSync(join(folder, 'index.html'), '<!doctype html><body><script type="module" src="/harness.js"></script>');
  await build({
    entryPoints: [join(root, 'test', 'web-harness.ts')],
    outfile: join(folder, 'harness.js'),
    bundle: true,
    format: 'esm',
    logLevel: 'error',
  });
  return new Runner(folder, dirname(dirname(models[0]!.modelFile)));
}

anyTest.after.always(async () => {
  await runner?.close();
  rmSync(folder, { recursive: true });
});

for (const example of models) {
  if (done.has(example.name)) continue;
  test(`${example.name}: PyTorch's outputs through ort-flash/web in Chromium`, async (t) => {
    t.timeout(3 * LIMIT_SECONDS * 1000);
    runner ??= await openRunner();
    const outcome = await judge(runner, example);
    if (resultsFile) appendFileSync(resultsFile, `${JSON.stringify(outcome)}\n`);
    t.log(JSON.stringify(outcome));
    t.not(outcome.outcome, 'failed');
    if (outcome.outcome !== 'right') return;
    t.is(outcome.attentions, example.sites);
    t.true(outcome.maps! <= outcome.outputs!, 'nothing is read back but the outputs');
  });
}
