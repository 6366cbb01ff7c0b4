// Bundles the page: `node cli/page/build.mjs FOLDER`. Run by setup.mjs; what comes out needs no network but the server
// that sends it.
import { copyFileSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const app = join(dirname(fileURLToPath(import.meta.url)), 'app');
const [folder] = process.argv.slice(2);

rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
await build({
  entryPoints: ['main.ts', 'rewrite-worker.ts', 'run-worker.ts', 'style.css'].map((file) => join(app, file)),
  outdir: folder,
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  legalComments: 'linked',
  logLevel: 'error',
});
for (const file of ['index.html', 'icon.svg']) copyFileSync(join(app, file), join(folder, file));
