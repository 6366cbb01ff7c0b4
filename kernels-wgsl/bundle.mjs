// Bundles `ort-flash/web` for pages without a bundler of their own: one module, and beside it those parts that it loads
// when they are needed. They import nothing else but `onnxruntime-web/webgpu`, which the page's import map names.
import { basename, dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

/** What this package calls `onnxruntime-web/webgpu` (package.json, "imports") gets its public name back. */
const publicName = {
  name: 'public name of onnxruntime-web',
  setup(builder) {
    builder.onResolve({ filter: /^#onnxruntime-web$/ }, () => ({ path: 'onnxruntime-web/webgpu', external: true }));
  },
};

/**
 * @param {string} outfile the module; its parts go beside it
 * @returns {Promise<import('esbuild').BuildResult>}
 */
function bundleWeb(outfile) {
  return build({
    entryPoints: [fileURLToPath(new URL('web.ts', import.meta.url))],
    outdir: dirname(outfile),
    entryNames: basename(outfile, '.js'),
    chunkNames: `${basename(outfile, '.min.js')}-[name]-[hash].min`,
    bundle: true,
    splitting: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    legalComments: 'linked',
    plugins: [publicName],
    logLevel: 'error',
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await bundleWeb(process.argv[2]);
