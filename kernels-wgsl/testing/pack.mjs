// Packs the GPU tests and the WebGPU benchmark into files of plain JavaScript, for a machine that has a GPU and can
// install nothing: it needs Node, and in node_modules the packages webgpu and onnxruntime-web.
//
//     node kernels-wgsl/testing/pack.mjs           writes gpu-pack/
//
// Then, on that machine, in the repository: ORT_FLASH_GPU=1 node gpu-pack/half.test.mjs, and so on.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const at = (...parts) => join(root, ...parts);
const entries = [
  'kernels-wgsl/half.test.ts',
  'kernels-wgsl/matrix.test.ts',
  'kernels-wgsl/attention.test.ts',
  'kernels-wgsl/cache-memory.test.ts',
  'kernels-wgsl/standard-cases.test.ts',
  'bench/webgpu-attention.ts',
];

await build({
  entryPoints: entries.map((entry) => ({ in: at(entry), out: entry.replace(/^.*\/|\.ts$/g, '') })),
  outdir: at('gpu-pack'),
  outExtension: { '.js': '.mjs' },
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node20',
  external: ['webgpu', 'onnxruntime-web', 'onnxruntime-web/*', 'onnxruntime-common'],
  alias: { ava: at('kernels-wgsl/testing/plain-test.ts') },
  // What some packages require at run time.
  banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  logLevel: 'warning',
});
