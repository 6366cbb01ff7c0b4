#!/usr/bin/env node
// Builds the CUDA custom-op library, kernels-cuda/build/libortflash_cuda.so: `npm run build:cuda`, with further arguments
// for make (`npm run build:cuda -- harness`). Needs nvcc (CUDA 12.8 or later; NVCC names another), make and g++.
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { onnxRuntimeHeaders } from './addon/headers.mjs';

const folder = dirname(fileURLToPath(import.meta.url));
const nvcc = process.env.NVCC || 'nvcc';
if (spawnSync(nvcc, ['--version'], { stdio: 'ignore' }).status !== 0) {
  process.stderr.write(`build:cuda: cannot run ${nvcc}: install NVIDIA's CUDA toolkit, or name its compiler in NVCC\n`);
  process.exit(1);
}
const jobs = `-j${availableParallelism()}`;
const variables = [`ONNXRUNTIME_INCLUDE=${onnxRuntimeHeaders()}`, `NVCC=${nvcc}`];
const { status } = spawnSync('make', ['-C', folder, jobs, ...variables, ...process.argv.slice(2)], {
  stdio: 'inherit',
});
process.exit(status ?? 1);
