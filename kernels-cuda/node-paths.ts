import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** This package's folder: the nearest one above this file with a package.json, from source and from dist alike. */
export function packageFolder(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder) folder = dirname(folder);
  return folder;
}

/** The command that builds native code: in a clone, and from an app that has this package installed. */
export function buildCommand(script: 'build:addon' | 'build:cuda'): string {
  const isInstalled = basename(dirname(packageFolder())) === 'node_modules';
  return `${isInstalled ? 'npm explore ort-flash -- ' : ''}npm run ${script}`;
}

/** Where `npm run build:addon` puts the addon; ORT_FLASH_NODE_ADDON names another. */
export function addonPath(): string {
  const given = process.env.ORT_FLASH_NODE_ADDON;
  return given ? resolve(given) : join(packageFolder(), 'kernels-cuda', 'build', 'ort_flash_node.node');
}

/** Where `npm run build:cuda` puts the library of our CUDA kernels; ORT_FLASH_CUDA_LIBRARY names another. */
export function customOpLibraryPath(): string {
  const given = process.env.ORT_FLASH_CUDA_LIBRARY;
  return given ? resolve(given) : join(packageFolder(), 'kernels-cuda', 'build', 'libortflash_cuda.so');
}

/** ONNX Runtime's library: the one that onnxruntime-node ships; ORT_FLASH_ONNXRUNTIME names another. */
export function onnxRuntimePath(): string {
  const given = process.env.ORT_FLASH_ONNXRUNTIME;
  if (given) return resolve(given);
  const folder = dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json'));
  const name = process.platform === 'darwin' ? 'libonnxruntime.dylib' : 'libonnxruntime.so.1';
  return join(folder, 'bin', 'napi-v6', process.platform, process.arch, name);
}

/** ONNX Runtime's CUDA provider, which it looks for beside its own library. */
export function cudaProviderPath(): string {
  return join(dirname(onnxRuntimePath()), 'libonnxruntime_providers_cuda.so');
}
