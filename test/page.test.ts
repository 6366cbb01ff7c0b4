/** The page as a visitor meets it, in Chromium on a GPU in software. */
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { get } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import anyTest, { type ExecutionContext } from 'ava';
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core';
import { type PageServer, startPageServer } from '../cli/page/server.js';
import { bundledModel } from '../models/corpus.js';
import { CHROMIUM, hasChromium, WITH_WEBGPU, WITHOUT_WEBGPU } from './web-browser.js';

const test = hasChromium ? anyTest.serial : anyTest.skip;
const root = fileURLToPath(new URL('..', import.meta.url));
const site = mkdtempSync(join(tmpdir(), 'ort-flash-page-'));
let server: PageServer;
let browser: Browser;

anyTest.before(async () => {
  if (!hasChromium) return;
  execFileSync(process.execPath, [join(root, 'cli', 'page', 'build.mjs'), site]);
  server = await startPageServer(site, 0);
  browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: [...WITH_WEBGPU] });
});

anyTest.after.always(async () => {
  await browser?.close();
  await server?.close();
  rmSync(site, { recursive: true, force: true });
});

interface Visit {
  readonly page: Page;
  /** Addresses asked for that are not the page's own, and what the browser complained of. */
  readonly external: string[];
  readonly complaints: string[];
}

/** Opens the page, and afterwards sees to it that it asked nothing of anybody else. */
async function visit(
  t: ExecutionContext,
  work: (visit: Visit) => Promise<void>,
  options: BrowserContextOptions = {},
  from = browser,
): Promise<void> {
  t.timeout(900_000);
  const context = await from.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  try {
    // What tsx adds to functions that are sent to the page.
    await context.addInitScript('globalThis.__name = (value) => value');
    const page = await context.newPage();
    page.setDefaultTimeout(600_000);
    const external: string[] = [];
    const complaints: string[] = [];
    context.on('request', (request) => {
      const address = request.url();
      if (!address.startsWith(server.address) && !address.startsWith('blob:')) external.push(address);
    });
    page.on('pageerror', (error) => complaints.push(String(error)));
    page.on('console', (message) => {
      if (message.type() === 'error') complaints.push(message.text());
    });
    await page.goto(server.address);
    await page.locator('#models:not([disabled])').waitFor();
    await work({ page, external, complaints });
    t.deepEqual(external, []);
  } finally {
    await context.close();
  }
}

/** What `ort-flash rewrite` writes. */
function rewrittenByCommand(t: ExecutionContext, model: string): Buffer {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-rewritten-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const output = join(folder, 'out.onnx');
  execFileSync(process.execPath, ['--import=tsx', join(root, 'cli', 'main.ts'), 'rewrite', model, '-o', output]);
  return readFileSync(output);
}

/** Drops files on the page, as a hand would. */
async function drop(page: Page, files: Readonly<Record<string, Uint8Array>>): Promise<void> {
  const given = Object.entries(files).map(([name, bytes]) => [name, Buffer.from(bytes).toString('base64')] as const);
  await page.evaluate((list) => {
    const transfer = new DataTransfer();
    for (const [name, text] of list) {
      transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
    }
    const target = document.querySelector('#drop')!;
    for (const type of ['dragenter', 'dragover', 'drop']) {
      target.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: transfer }));
    }
  }, given);
}

/** Presses Tab until the focus is on what the selector names. */
async function tabTo(page: Page, selector: string): Promise<void> {
  for (let presses = 0; presses < 60; presses++) {
    await page.keyboard.press('Tab');
    if (await page.evaluate((wanted) => document.activeElement?.matches(wanted), selector)) return;
  }
  throw new Error(`Tab does not reach ${selector}`);
}

test('by keyboard alone: a bundled model is rewritten, downloaded as the command writes it, and run', async (t) => {
  await visit(t, async ({ page, complaints }) => {
    await tabTo(page, '[data-model="bert-sdpa-dyn18"]');
    await page.keyboard.press('Enter');
    await page.locator('#results-title').waitFor();
    t.is(await page.locator('.summary .verdict').innerText(), '2 of 2 attentions fused');
    t.is(await page.evaluate(() => document.activeElement?.id), 'results-title');
    t.regex(await page.locator('#status').innerText(), /2 of 2 attentions fused/);
    t.is(await page.locator('.pair svg').count(), 2);
    t.is(await page.locator('.plot .line').count(), 2);

    await tabTo(page, '#download');
    const [download] = await Promise.all([page.waitForEvent('download'), page.keyboard.press('Enter')]);
    t.is(download.suggestedFilename(), 'bert-sdpa-dyn18.flash.onnx');
    const { modelFile } = bundledModel('bert-sdpa-dyn18');
    t.deepEqual(readFileSync(await download.path()), rewrittenByCommand(t, modelFile));

    await tabTo(page, '#size');
    await page.keyboard.press('ControlOrMeta+a');
    await page.keyboard.type('12');
    await page.keyboard.press('Enter');
    const difference = page.locator('#difference');
    await difference.waitFor();
    t.regex(await difference.innerText(), /^Same results: largest difference [\d.e-]+ of the largest value/);
    t.is(await page.locator('.outcome tbody tr').count(), 5);
    t.notRegex(await page.locator('.outcome').innerText(), /failed/);
    t.regex((await page.locator('.outcome details').textContent())!, /2 attentions in FlashAttention kernels/);
    t.deepEqual(complaints, []);
  });
});

test('what is no model gives one sentence, and the model shown stays', async (t) => {
  const model = readFileSync(bundledModel('einsum_attn-dyn18').modelFile);
  await visit(t, async ({ page, complaints }) => {
    const problem = page.locator('#problem');
    const hostile = {
      'picture.png': Buffer.from('\x89PNG\r\n\x1a\n0000000000', 'latin1'),
      'empty.onnx': Buffer.alloc(0),
      'cut.onnx': model.subarray(0, model.length / 2),
      'page.onnx': Buffer.from('<!doctype html><title>Not found</title>'),
      '<img src=x onerror=alert(1)>.onnx': Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 7919) % 251)),
    };
    for (const [name, bytes] of Object.entries(hostile)) {
      await drop(page, { [name]: bytes });
      await problem.getByText(name.slice(0, 12)).waitFor();
      t.regex(await problem.innerText(), /^[^\n]+\.$/, name);
      t.false(await page.locator('#results').isVisible(), name);
    }
    t.is(await page.locator('img[onerror]').count(), 0);

    await drop(page, { 'one.onnx': model, 'two.onnx': model });
    await problem.getByText('Two models were given').waitFor();
    await drop(page, { 'good.onnx': model });
    await page.locator('#results-title').getByText('good.onnx').waitFor();
    t.is(await problem.innerText(), '');
    await drop(page, { 'cut.onnx': hostile['cut.onnx'] });
    await problem.getByText('cut.onnx').waitFor();
    t.is(await page.locator('#results-title').innerText(), 'good.onnx');
    t.deepEqual(complaints, []);
  });
});

test('models that may not be fused say why, and are not run', async (t) => {
  await visit(t, async ({ page }) => {
    await page.selectOption('#models', 'neg_probs_output-dyn23');
    await page.locator('.refused .reason').waitFor();
    t.regex(await page.locator('.summary .verdict').innerText(), /^The one attention is not fused$/);
    t.regex(await page.locator('.refused .reason').innerText(), /^Site 0: .{20}/);
    t.is(await page.locator('#download').count(), 0);
    t.is(await page.getByRole('button', { name: 'Run both' }).count(), 0);
  });
});

test('without WebGPU the page says so and runs on the CPU; runs can be cancelled', async (t) => {
  const plain = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: [...WITHOUT_WEBGPU] });
  try {
    const work = async ({ page }: Visit) => {
      await page.locator('#gpu').getByText('in WebAssembly').waitFor();
      await page.selectOption('#models', 'einsum_attn-dyn18');
      const run = page.getByRole('button', { name: 'Run both' });
      await run.click();
      await page.getByRole('button', { name: 'Cancel' }).click();
      await page.locator('.outcome').getByText('Cancelled.').waitFor();
      t.true(await run.evaluate((button) => button === document.activeElement));
      await run.click();
      await page.locator('#difference').waitFor();
      t.regex(await page.locator('#difference').innerText(), /^Same results/);
      t.regex(
        (await page.locator('.outcome details').textContent())!,
        /runs on wasm.*1 of 1 attention sites run as ONNX Runtime's own/,
      );
    };
    await visit(t, work, {}, plain);
  } finally {
    await plain.close();
  }
});

test('a GPU process that dies ends the run with one sentence, and the page goes on', async (t) => {
  const own = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: [...WITH_WEBGPU] });
  try {
    const work = async ({ page }: Visit) => {
      await page.locator('[data-model="encoder-12x64"]').click();
      // Long enough on a GPU in software that it dies in the middle.
      await page.locator('#size').fill('512');
      await page.getByRole('button', { name: 'Run both' }).click();
      const session = await own.newBrowserCDPSession();
      for (const form of ['As exported', 'Rewritten']) {
        await page.locator('.doing').getByText(`${form}: first run`).waitFor();
        // The answer comes from the process that dies.
        await session.send('Browser.crashGpuProcess').catch(() => undefined);
      }
      const problem = page.locator('.outcome .problem');
      await problem.getByText('Neither form runs').waitFor();
      t.regex(await problem.innerText(), /^Neither form runs\. The GPU device was lost \([^\n]+; run again, [^\n]+\.$/);
      t.true(await page.locator('#download').isVisible());
      t.true(await page.getByRole('button', { name: 'Run both' }).isEnabled());
    };
    await visit(t, work, {}, own);
  } finally {
    await own.close();
  }
});

/** Relative luminance and contrast (WCAG 2.2) of each text against what is painted behind it; those below AA. */
function weakTexts(): string[] {
  const parse = (color: string) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = ([r = 0, g = 0, b = 0]: number[]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x! + 0.7152 * y! + 0.0722 * z!;
  };
  const ground = (element: Element): number[] => {
    for (let at: Element | null = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const weak: string[] = [];
  for (const element of document.querySelectorAll('body *')) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent!.trim() !== '');
    if (!text || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const behind = element.closest('.attention')
      ? parse(getComputedStyle(element.previousElementSibling!).fill)
      : ground(element);
    const color = parse(element instanceof SVGElement ? style.fill : style.color);
    const [light, dark] = [luminance(color), luminance(behind)].sort((a, b) => b - a) as [number, number];
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) weak.push(`${element.textContent!.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return weak;
}

for (const colorScheme of ['light', 'dark'] as const) {
  for (const width of [360, 768, 1440]) {
    test(`${colorScheme} at ${width} px: nothing overflows or shifts, contrast is AA`, async (t) => {
      const work = async ({ page }: Visit) => {
        await page.selectOption('#models', 'nn_mha-dyn18');
        await page.locator('.plot .line').first().waitFor();
        await page.waitForTimeout(300);
        t.is(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0);
        t.deepEqual(await page.evaluate(weakTexts), []);
        const shift = await page.evaluate(
          () =>
            new Promise<number>((done) => {
              let sum = 0;
              const observer = new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) sum += (entry as unknown as { value: number }).value;
              });
              observer.observe({ type: 'layout-shift', buffered: true });
              setTimeout(() => done(sum), 200);
            }),
        );
        t.true(shift < 0.02, `layout shift ${shift}`);
        await page.evaluate(() => window.scrollTo(0, 0));
        await drop(page, { 'empty.onnx': Buffer.alloc(0) });
        const problem = page.locator('#problem');
        await problem.getByText('empty.onnx').waitFor();
        const { y, height } = (await problem.boundingBox())!;
        t.true(y >= 0 && y + height <= 800, 'the error is in view');
      };
      await visit(t, work, { colorScheme, viewport: { width, height: 800 }, reducedMotion: 'reduce' });
    });
  }
}

interface AccessibleNode {
  readonly ignored: boolean;
  readonly role?: { readonly value: string };
  readonly name?: { readonly value: string };
  readonly properties?: readonly { readonly name: string; readonly value: { readonly value: unknown } }[];
}

test('the accessibility tree: every control and picture has a name, headings are nested', async (t) => {
  await visit(t, async ({ page }) => {
    await page.selectOption('#models', 'nn_mha-dyn18');
    await page.locator('.plot .line').first().waitFor();
    const session = await page.context().newCDPSession(page);
    const { nodes } = (await session.send('Accessibility.getFullAXTree')) as unknown as { nodes: AccessibleNode[] };
    const seen = nodes.filter((node) => !node.ignored);
    const named = new Set(['button', 'link', 'spinbutton', 'combobox', 'image', 'region', 'table', 'progressbar']);
    const nameless = seen.filter((node) => named.has(node.role?.value ?? '') && !node.name?.value);
    t.deepEqual(nameless, []);
    const roles = new Set(seen.map((node) => node.role?.value));
    for (const role of ['main', 'banner', 'contentinfo', 'status', 'alert', 'table', 'button', 'link', 'spinbutton']) {
      t.true(roles.has(role), role);
    }
    const levels = seen
      .filter((node) => node.role?.value === 'heading')
      .map((node) => Number(node.properties?.find(({ name }) => name === 'level')?.value.value));
    t.is(levels[0], 1);
    for (const [i, level] of levels.entries()) t.true(i === 0 || level - levels[i - 1]! <= 1, levels.join());
    // The file input is hidden from the eye only: its label shows where the focus is.
    await page.evaluate(() => (document.activeElement as HTMLElement | null)?.blur());
    await page.evaluate(() => window.scrollTo(0, 0));
    await page.locator('#files').focus();
    await page.keyboard.press('Shift+Tab');
    await page.keyboard.press('Tab');
    t.is(await page.locator('#drop').evaluate((label) => getComputedStyle(label).outlineStyle), 'solid');
  });
});

/** Status and headers of one answer; the path is sent as it is, dots and all. */
function answerTo(path: string): Promise<{ status: number; policy: string }> {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(server.address);
    get({ hostname, port, path }, (response) => {
      response.resume();
      resolve({ status: response.statusCode!, policy: String(response.headers['content-security-policy']) });
    }).on('error', reject);
  });
}

test('the server gives its own files and nothing else, under a policy that allows no other server', async (t) => {
  for (const path of ['/', '/main.js', '/run-worker.js', '/models.json', '/models/bert-ts11.onnx']) {
    const { status, policy } = await answerTo(path);
    t.is(status, 200, path);
    t.regex(policy, /^default-src 'none'/);
    t.notRegex(policy, /https?:|\*|data:|unsafe-inline|'unsafe-eval'/);
  }
  for (const path of [
    '/../package.json',
    '/models/../package.json',
    '/%2e%2e/package.json',
    '/models/',
    '/models/x.onnx',
  ]) {
    t.is((await answerTo(path)).status, 404, path);
  }
});

test('ort-flash page: a port that is taken is one line, exit code 2', async (t) => {
  const { port } = new URL(server.address);
  const child = spawn(process.execPath, ['--import=tsx', join(root, 'cli', 'main.ts'), 'page', '--port', port]);
  let text = '';
  child.stderr.on('data', (part) => {
    text += part;
  });
  const code = await new Promise((resolve) => child.on('close', resolve));
  t.is(code, 2);
  t.regex(text, /^error: (port \d+ is taken|the page is not built)[^\n]*\n$/);
});
