// Bundles `ort-flash/web` into one module for pages without a bundler of their own. It imports nothing but
// `onnxruntime-web/webgpu`, which the page's import map names.
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
 * @param {string} outfile
 * @returns {Promise<import('esbuild').BuildResult>}
 */
export function bundleWeb(outfile) {
  return build({
    entryPoints: [fileURLToPath(new URL('web.ts', import.meta.url))],
    outfile,
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    legalComments: 'linked',
    plugins: [publicName],
    logLevel: 'error',
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await bundleWeb(process.argv[2]);
