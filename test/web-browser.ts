/** Runs pages in headless Chromium on SwiftShader, for tests. */
import { createReadStream, existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium, type Page } from 'playwright-core';

export const CHROMIUM = '/usr/bin/chromium';
/** Whether there is a browser to test with. */
export const hasChromium = existsSync(CHROMIUM);

const QUIET = [
  '--no-sandbox',
  '--disable-quic',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--no-first-run',
];
/** WebGPU on SwiftShader, a GPU in software; it compiles shaders for longer than the browser's watchdog waits. */
export const WITH_WEBGPU: readonly string[] = [
  ...QUIET,
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--enable-features=Vulkan',
  '--disable-gpu-watchdog',
];
export const WITHOUT_WEBGPU: readonly string[] = [...QUIET, '--disable-features=WebGPU'];

export const root = fileURLToPath(new URL('..', import.meta.url));
/** onnxruntime-web's files, which pages without a bundler load. */
export const ortFolder = join(root, 'node_modules', 'onnxruntime-web', 'dist');

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
};

/** Folders by the prefix of the addresses under which their files are served; the first that fits is taken. */
export type Folders = Readonly<Record<string, string>>;

async function serve(folders: Folders): Promise<{ server: Server; address: string }> {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://localhost').pathname);
    const [prefix, folder] = Object.entries(folders).find(([start]) => path.startsWith(start)) ?? ['/', root];
    const file = join(folder, path.slice(prefix.length) || 'index.html');
    const size = statSync(file, { throwIfNoEntry: false })?.size;
    if (size === undefined) return void response.writeHead(404).end();
    const type = TYPES[extname(file)] ?? 'application/octet-stream';
    // Isolated from other origins, the page may use threads, as it should where it is used.
    const isolation = {
      'cross-origin-opener-policy': 'same-origin',
      'cross-origin-embedder-policy': 'require-corp',
    };
    response.writeHead(200, { ...isolation, 'content-type': type, 'content-length': size });
    createReadStream(file).pipe(response);
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return { server, address: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
}

/** A page in a browser of its own. */
export interface OpenedPage {
  readonly page: Page;
  close(): Promise<void>;
}

/** Opens a page of the served folders, as {@link openAddress} does. */
export async function openPage(folders: Folders, flags: readonly string[], path = '/'): Promise<OpenedPage> {
  const { server, address } = await serve(folders);
  const stop = () => {
    server.closeAllConnections();
    server.close();
  };
  try {
    const { page, close } = await openAddress(address + path, flags);
    return { page, close: () => close().finally(stop) };
  } catch (error) {
    stop();
    throw error;
  }
}

/** Opens a page that somebody else serves, with the calls of `mapAsync`, WebGPU's readbacks, counted in `maps`. */
export async function openAddress(address: string, flags: readonly string[]): Promise<OpenedPage> {
  const browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: [...flags] });
  const close = () => browser.close();
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(900_000);
    await page.addInitScript(countMaps);
    await page.goto(address);
    return { page, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Runs in the page, before its scripts. */
function countMaps() {
  const counted = globalThis as unknown as { maps: number };
  counted.maps = 0;
  if (typeof GPUBuffer === 'undefined') return;
  const { mapAsync } = GPUBuffer.prototype;
  GPUBuffer.prototype.mapAsync = function (...parameters) {
    counted.maps++;
    return mapAsync.apply(this, parameters);
  };
}

/** Calls `work` with a temporary folder, which is removed afterwards. */
export async function withFolder<Result>(work: (folder: string) => Promise<Result>): Promise<Result> {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-web-'));
  try {
    return await work(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
