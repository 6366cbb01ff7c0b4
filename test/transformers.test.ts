/** transformers.js on `ort-flash/web`, the example in test/web-app/transformers, against itself on stock onnxruntime-web. */
import { symlinkSync } from 'node:fs';
import { join } from 'node:path';
import anyTest from 'ava';
import { build as bundle } from 'esbuild';
import type { Page } from 'playwright-core';
import { build as buildWithVite } from 'vite';
import { writeTransformersModels } from './transformers-models.js';
import { hasChromium, openPage, ortFolder, root, WITH_WEBGPU, withFolder } from './web-browser.js';

const test = hasChromium ? anyTest.serial : anyTest.skip;
const app = join(root, 'test', 'web-app', 'transformers');
const source = join(root, 'kernels-wgsl', 'web.ts');

const TEXTS = ['Attention is all you need.', 'To be, or not to be', '!'];
/** As app.js asks for. */
const NEW_TOKENS = 12;

interface Embedded {
  readonly embeddings: number[][];
  readonly how: string;
}

interface Continued {
  readonly texts: string[];
  readonly how: string;
  /** Readbacks from the GPU meanwhile. */
  readonly maps: number;
}

/** Fills in the texts, presses the button and waits for the result. */
async function submit(page: Page, button: string) {
  await page.getByLabel('Texts').fill(TEXTS.join('\n'));
  await page.getByRole('button', { name: button }).click();
  await page.waitForFunction(() => !['', 'loading the model'].includes(document.getElementById('how')!.textContent!));
  const how = (await page.locator('#how').textContent())!;
  const result = await page.locator('#result').textContent();
  if (!result) throw new Error(how);
  return { how, result: JSON.parse(result) };
}

async function embed(page: Page): Promise<Embedded> {
  const { how, result } = await submit(page, 'Embed');
  return { how, embeddings: result };
}

async function continueTexts(page: Page): Promise<Continued> {
  await page.evaluate(() => Object.assign(globalThis, { maps: 0 }));
  const { how, result } = await submit(page, 'Continue');
  const maps = await page.evaluate(() => (globalThis as unknown as { maps: number }).maps);
  return { how, texts: result, maps };
}

/** Opens the app in a folder. */
async function withApp<Result>(
  folder: string,
  models: string,
  path: string,
  work: (page: Page) => Promise<Result>,
): Promise<Result> {
  const { page, close } = await openPage({ '/models/': models, '/': folder }, WITH_WEBGPU, path);
  try {
    return await work(page);
  } finally {
    await close();
  }
}

const build = (folder: string, config: object) =>
  buildWithVite({
    root: app,
    logLevel: 'error',
    ...config,
    build: { outDir: folder, emptyOutDir: true, target: 'es2022' },
  });

async function buildWithEsbuild(folder: string) {
  await bundle({
    entryPoints: [join(app, 'app.js')],
    outdir: folder,
    bundle: true,
    format: 'esm',
    alias: { 'onnxruntime-web/webgpu': source },
    logLevel: 'error',
  });
  // esbuild leaves it to the user to put the runtime's WebAssembly beside the bundle.
  const wasm = 'ort-wasm-simd-threaded.asyncify.wasm';
  symlinkSync(join(ortFolder, wasm), join(folder, wasm));
  symlinkSync(join(app, 'index.html'), join(folder, 'index.html'));
}

const FLASH = /^runs on webgpu, 2 attentions in FlashAttention kernels/;

/** Embeddings are normalised to length 1. */
function largestDifference(actual: Embedded, expected: Embedded): number {
  const differences = expected.embeddings.flatMap((row, i) =>
    row.map((value, j) => Math.abs(value - (actual.embeddings[i]?.[j] ?? Number.NaN))),
  );
  return differences.some(Number.isNaN) ? Number.POSITIVE_INFINITY : Math.max(...differences);
}

test('feature extraction and text generation are as on stock onnxruntime-web', async (t) => {
  t.timeout(900_000);
  await withFolder(async (folder) => {
    const models = join(folder, 'models');
    writeTransformersModels(models);

    const stock = join(folder, 'stock');
    await build(stock, { configFile: false, base: './' });
    const [embedded, continued] = await withApp(stock, models, '/?device=wasm', async (page) => {
      return [await embed(page), await continueTexts(page)] as const;
    });
    t.is(embedded.how, 'runs on wasm');
    const added = continued.texts.map((text, i) => text.slice(TEXTS[i]!.length));
    t.is(new Set(added).size, TEXTS.length, 'what is added depends on the text');
    t.false(added.includes(''));

    const withVite = join(folder, 'vite');
    // What is in this repository, not what was compiled from it last.
    await build(withVite, { resolve: { alias: { 'onnxruntime-web/webgpu': source } } });
    await withApp(withVite, models, '/', async (page) => {
      const ours = await embed(page);
      t.regex(ours.how, FLASH);
      t.true(largestDifference(ours, embedded) <= 1e-5);
      const { how, texts, maps } = await continueTexts(page);
      t.regex(how, FLASH);
      t.deepEqual(texts, continued.texts);
      t.is(maps, NEW_TOKENS, 'keys and values stay on the GPU: only the logits are read back');
    });

    const withEsbuild = join(folder, 'esbuild');
    await buildWithEsbuild(withEsbuild);
    await withApp(withEsbuild, models, '/', async (page) => {
      const ours = await embed(page);
      t.regex(ours.how, FLASH);
      t.true(largestDifference(ours, embedded) <= 1e-5);
    });
  });
});
