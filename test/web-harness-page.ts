/** Builds the page of web-harness.ts. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import { root } from './web-browser.js';

/** Writes the page to a folder, to be served under `/`, with onnxruntime-web's files under `/onnxruntime-web/`. */
export async function buildHarness(folder: string): Promise<void> {
  writeFileSync(join(folder, 'index.html'), '<!doctype html><body><script type="module" src="/harness.js"></script>');
  await build({
    entryPoints: [join(root, 'test', 'web-harness.ts')],
    outfile: join(folder, 'harness.js'),
    bundle: true,
    format: 'esm',
    logLevel: 'error',
  });
}
