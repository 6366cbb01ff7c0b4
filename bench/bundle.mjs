#!/usr/bin/env node
// Packs benchmarks into a few files, for a machine that has Node and onnxruntime-node but no other dependency of this
// package: node bench/bundle.mjs FOLDER NAME…, then node FOLDER/NAME.mjs there, with onnxruntime-node in a node_modules
// at or above FOLDER, and ORT_FLASH_NODE_ADDON and ORT_FLASH_CUDA_LIBRARY naming what was built.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const [folder, ...names] = process.argv.slice(2);
if (folder === undefined || names.length === 0) {
  process.stderr.write('usage: node bench/bundle.mjs FOLDER NAME…, for instance /tmp/bench encoder-cuda corpus-cuda\n');
  process.exit(2);
}
const here = dirname(fileURLToPath(import.meta.url));
await build({
  entryPoints: names.map((name) => join(here, `${name}.ts`)),
  outdir: folder,
  outExtension: { '.js': '.mjs' },
  bundle: true,
  platform: 'node',
  format: 'esm',
  // So that onnxruntime-web is asked for by those alone who use it.
  splitting: true,
  alias: { '#onnxruntime-web': 'onnxruntime-web/webgpu' },
  target: 'node20',
  external: ['onnxruntime-node', 'onnxruntime-web', 'onnxruntime-web/*', 'webgpu'],
  // What it takes in from CommonJS packages asks for Node's modules by require.
  banner: {
    js: "import { createRequire as makeRequire } from 'node:module'; const require = makeRequire(import.meta.url);",
  },
});
