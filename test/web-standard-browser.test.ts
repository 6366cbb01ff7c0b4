/**
 * The ONNX standard's own tests of `Attention` through `ort-flash/web` in Chromium on SwiftShader, which has no half
 * precision: those bundled, and with ORT_FLASH_WEB=all all 75.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import anyTest from 'ava';
import { hasChromium, type OpenedPage, openPage, ortFolder, WITH_WEBGPU } from './web-browser.js';
import type { RunModel } from './web-harness.js';
import { buildHarness } from './web-harness-page.js';
import { checkCase, inputsOf, type RunCase, typeOf, webCases } from './web-standard.js';

const test = hasChromium ? anyTest.serial : anyTest.skip;
const cases = webCases().filter((item) => typeOf(item) !== 'float16');
const folder = mkdtempSync(join(tmpdir(), 'ort-flash-standard-'));
let opened: OpenedPage | undefined;

anyTest.after.always(async () => {
  await opened?.close();
  rmSync(folder, { recursive: true });
});

const run: RunCase = async (item, flash) => {
  const { page } = opened!;
  const address = `/cases/${item.modelFile.slice(dirname(dirname(item.modelFile)).length + 1)}`;
  try {
    const { outputs, ...facts } = await page.evaluate(
      ([model, given, mode]) =>
        (globalThis as unknown as { runModel: RunModel }).runModel(model, given, { flash: mode }),
      [address, inputsOf(item), flash] as const,
    );
    return { ...facts, outputs: Object.fromEntries(outputs.map((output) => [output.name, output])) };
  } catch (error) {
    // What the page threw, without its stack, whose lines tell the calls apart.
    throw new Error(String((error as Error).message).split('\n')[0]);
  }
};

for (const item of cases)
  test(`${item.name}: the standard's outputs in Chromium`, async (t) => {
    t.timeout(900_000);
    if (opened === undefined) {
      await buildHarness(folder);
      const folders = { '/cases/': dirname(dirname(item.modelFile)), '/onnxruntime-web/': ortFolder, '/': folder };
      opened = await openPage(folders, WITH_WEBGPU);
      await opened.page.getByText('ready').waitFor();
    }
    await checkCase(t, item, run);
  });
