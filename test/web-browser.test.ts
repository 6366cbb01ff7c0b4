/** The example app in test/web-app, as a page without a bundler and built with Vite. */
import { execFileSync } from 'node:child_process';
import { cpSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import anyTest, { type ExecutionContext } from 'ava';
import type { Page } from 'playwright-core';
import { build as buildWithVite, createServer } from 'vite';
import { bundledModel, readTestData } from '../models/corpus.js';
import { installPackage, packedFiles } from './installed-package.js';
import { relativeDifference } from './runtime.js';
import {
  type Folders,
  hasChromium,
  openAddress,
  openPage,
  ortFolder,
  root,
  WITH_WEBGPU,
  WITHOUT_WEBGPU,
  withFolder,
} from './web-browser.js';

const test = hasChromium ? anyTest.serial : anyTest.skip;
const app = join(root, 'test', 'web-app');
const MODEL = 'bert-sdpa-dyn18';

/** The reference input's sequences without padding, and the mean of PyTorch's hidden states over each. */
function reference() {
  const { inputs, outputs } = readTestData(bundledModel(MODEL).dataFolder);
  const [ids, mask] = inputs.map(({ data }) => Array.from(data as BigInt64Array, Number));
  const [hidden] = outputs;
  const [rows = 0, length = 0, width = 0] = hidden!.dims;
  const sequences = Array.from({ length: rows }, (_, row) => {
    const at = Array.from({ length }, (_, token) => row * length + token);
    return at.filter((token) => mask![token] === 1);
  });
  const states = hidden!.data as Float32Array;
  const means = sequences.flatMap((tokens) =>
    Array.from({ length: width }, (_, column) => {
      const sum = tokens.reduce((total, token) => total + states[token * width + column]!, 0);
      return sum / tokens.length;
    }),
  );
  return { sequences: sequences.map((tokens) => tokens.map((token) => ids![token])), means: Float32Array.from(means) };
}

/** Uses the app as a person would, and compares with PyTorch. */
async function useApp(t: ExecutionContext, page: Page) {
  const { sequences, means } = reference();
  await page.getByLabel('Token ids').fill(sequences.map((ids) => ids.join(' ')).join('\n'));
  await page.getByRole('button', { name: 'Embed' }).click();
  await page.waitForFunction(() => document.getElementById('embeddings')!.textContent !== '');
  const embeddings = JSON.parse((await page.locator('#embeddings').textContent())!) as number[][];
  const expected = { name: '', type: 'float32', dims: [means.length], data: means } as const;
  t.true(relativeDifference(embeddings.flat(), expected) <= bundledModel(MODEL).tolerance);
  const maps = await page.evaluate(() => (globalThis as unknown as { maps: number }).maps);
  return { how: (await page.locator('#how').textContent())!, maps };
}

async function openApp(t: ExecutionContext, folders: Folders, flags: readonly string[], path?: string) {
  const { page, close } = await openPage(folders, flags, path);
  try {
    return await useApp(t, page);
  } finally {
    await close();
  }
}

const models = { '/models/': join(root, 'models') };
const FLASH = /^runs on webgpu, 2 attentions in FlashAttention kernels between 3 parts in ONNX Runtime; not weighed/;

test('the example as a page without a bundler', async (t) => {
  t.timeout(900_000);
  await withFolder(async (folder) => {
    execFileSync(process.execPath, [join(root, 'kernels-wgsl', 'bundle.mjs'), join(folder, 'web.min.js')]);
    const folders = { ...models, '/ort-flash/': folder, '/onnxruntime-web/': ortFolder, '/': app };
    const { how, maps } = await openApp(t, folders, WITH_WEBGPU, '/plain.html');
    t.regex(how, FLASH);
    t.is(maps, 1, 'only the output is read back');
    const without = await openApp(t, folders, WITHOUT_WEBGPU, '/plain.html');
    t.regex(
      without.how,
      /^runs on wasm.*not on webgpu.*0 of 2 attention sites run as .* 2 a block of queries at a time/,
    );
  });
});

test('the example built with Vite', async (t) => {
  t.timeout(900_000);
  await withFolder(async (folder) => {
    await buildWithVite({
      root: app,
      logLevel: 'error',
      build: { outDir: folder, emptyOutDir: true },
      // What is in this repository, not what was compiled from it last.
      resolve: { alias: { 'ort-flash/web': join(root, 'kernels-wgsl', 'web.ts') } },
    });
    const { how, maps } = await openApp(t, { ...models, '/': folder }, WITH_WEBGPU);
    t.regex(how, FLASH);
    t.is(maps, 1, 'only the output is read back');
  });
});

test('the example on Vite’s development server, with the package as it is installed', async (t) => {
  t.timeout(900_000);
  await withFolder(async (folder) => {
    installPackage(folder, packedFiles(), ['vite']);
    for (const file of ['app.js', 'index.html', 'vite.config.js']) cpSync(join(app, file), join(folder, file));
    cpSync(join(root, 'models', MODEL), join(folder, 'public', 'models', MODEL), { recursive: true });
    const cacheDir = join(folder, '.vite');
    // What the package depends on is linked here, and not copied as npm would.
    const server = { port: 0, fs: { allow: [folder, realpathSync(join(root, 'node_modules'))] } };
    const vite = await createServer({ root: folder, cacheDir, logLevel: 'error', server });
    try {
      await vite.listen();
      const { page, close } = await openAddress(vite.resolvedUrls!.local[0]!, WITH_WEBGPU);
      try {
        page.setDefaultTimeout(120_000);
        await page.waitForFunction(() => document.getElementById('how')!.textContent !== 'loading the model');
        t.regex((await page.locator('#how').textContent())!, FLASH);
        await useApp(t, page);
      } finally {
        await close();
      }
    } finally {
      await vite.close();
    }
  });
});
