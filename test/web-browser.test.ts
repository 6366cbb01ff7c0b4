import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import anyTest from 'ava';
import { build as bundle } from 'esbuild';
import { type Browser, chromium, type Page } from 'playwright-core';
import { build as buildWithVite } from 'vite';
import { bundledModel, readTestData } from '../models/corpus.js';
import { relativeDifference } from './runtime.js';
import type { AppTensor, RunModel } from './web-app/main.js';

const CHROMIUM = '/usr/bin/chromium';
const FLAGS = [
  '--no-sandbox',
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--enable-features=Vulkan',
  '--disable-background-networking',
  '--disable-component-update',
  '--no-first-run',
];

const test = existsSync(CHROMIUM) ? anyTest.serial : anyTest.skip;
const root = fileURLToPath(new URL('..', import.meta.url));
const ortFolder = join(root, 'node_modules', 'onnxruntime-web', 'dist');
const app = join(root, 'test', 'web-app');
const TYPES: Readonly<Record<string, string>> = { '.html': 'text/html', '.wasm': 'application/wasm' };

/** Serves files by the first of the folders under whose prefix they are. */
async function serve(folders: Readonly<Record<string, string>>): Promise<{ server: Server; address: string }> {
  const server = createServer((request, response) => {
    const path = new URL(request.url ?? '/', 'http://localhost').pathname;
    const [prefix, folder] = Object.entries(folders).find(([start]) => path.startsWith(start)) ?? ['/', root];
    const file = join(folder, path.slice(prefix.length) || 'index.html');
    if (!existsSync(file)) return void response.writeHead(404).end();
    response.setHeader(
      'content-type',
      TYPES[extname(file)] ?? (/\.m?js$/.test(file) ? 'text/javascript' : 'application/octet-stream'),
    );
    response.end(readFileSync(file));
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return { server, address: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
}

interface Call {
  readonly model: string;
  readonly options?: object;
}

/** Runs a bundled model in the page and gives the largest difference from PyTorch's outputs. */
async function runIn(page: Page, { model, options = {} }: Call) {
  const example = bundledModel(model);
  const { inputs, outputs } = readTestData(example.dataFolder);
  const tensors = inputs.map(({ name, type, data, dims }) => ({
    name,
    type,
    data: Array.from(data as ArrayLike<number | bigint>, Number),
    dims,
  }));
  const result = await page.evaluate(
    ([address, given, sessionOptions]) =>
      (globalThis as unknown as { runModel: RunModel }).runModel(
        address as string,
        given as unknown as AppTensor[],
        sessionOptions as object,
      ),
    [`/models/${model}/model.onnx`, tensors, options] as const,
  );
  const differences = outputs.map((expected, i) => relativeDifference(result.outputs[i]!, expected));
  return { ...result, isRight: Math.max(...differences) <= example.tolerance };
}

const withPage = async (
  folders: Readonly<Record<string, string>>,
  flags: readonly string[],
  work: (page: Page) => Promise<void>,
) => {
  const { server, address } = await serve(folders);
  let browser: Browser | undefined;
  try {
    browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: [...flags] });
    const page = await browser.newPage();
    page.setDefaultTimeout(600_000);
    await page.goto(address);
    await page.getByText('ready').waitFor();
    await work(page);
  } finally {
    await browser?.close();
    server.close();
  }
};

test('a plain module page, with onnxruntime-web from an import map', async (t) => {
  t.timeout(900_000);
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-page-'));
  try {
    await bundle({
      entryPoints: [join(app, 'main.ts')],
      outfile: join(folder, 'main.js'),
      bundle: true,
      format: 'esm',
      external: ['onnxruntime-web/webgpu'],
      logLevel: 'error',
    });
    const imports = { 'onnxruntime-web/webgpu': '/ort/ort.webgpu.bundle.min.mjs' };
    const page = `<!doctype html><body><script type="importmap">${JSON.stringify({ imports })}</script>
      <script type="module" src="/main.js"></script></body>`;
    writeFileSync(join(folder, 'index.html'), page);
    const folders = { '/models/': join(root, 'models'), '/ort/': ortFolder, '/': folder };
    await withPage(folders, FLAGS, async (one) => {
      const { isRight, ...bert } = await runIn(one, { model: 'bert-sdpa-dyn18' });
      t.true(isRight);
      t.like(bert, { device: 'webgpu', attentions: 2, segments: 3, maps: 1 });
      const whole = await runIn(one, { model: 'neg_moe_router-dyn18' });
      t.true(whole.isRight);
      t.like(whole, { device: 'webgpu', attentions: 0, segments: 1 });
    });
    // Without WebGPU the lowered model runs on WebAssembly.
    await withPage(folders, ['--no-sandbox', '--disable-features=WebGPU'], async (one) => {
      const { isRight, text, ...bert } = await runIn(one, { model: 'bert-sdpa-dyn18' });
      t.true(isRight);
      t.like(bert, { device: 'wasm', attentions: 0, segments: 1 });
      t.regex(text, /not on webgpu.*2 of 2 attention sites run as ONNX Runtime's own/);
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('an app built with Vite', async (t) => {
  t.timeout(900_000);
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-vite-'));
  try {
    await buildWithVite({
      root: app,
      logLevel: 'error',
      build: { outDir: folder, emptyOutDir: true, target: 'es2022' },
    });
    await withPage({ '/models/': join(root, 'models'), '/': folder }, FLAGS, async (page) => {
      const { isRight, ...bert } = await runIn(page, { model: 'bert-sdpa-dyn18' });
      t.true(isRight);
      t.like(bert, { device: 'webgpu', attentions: 2, segments: 3, maps: 1 });
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
});
