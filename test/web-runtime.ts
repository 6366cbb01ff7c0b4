/** Runs models in `ort-flash/web` over Dawn, on SwiftShader unless ORT_FLASH_GPU=1, for tests. */
import { existsSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import type { ModelExample, TestTensor } from '../models/corpus.js';
import { readTestData } from '../models/corpus.js';
import { asFloat32, relativeDifference, toNumbers } from './runtime.js';

/** SwiftShader, Vulkan on the CPU, as Debian's Chromium brings it. */
const SWIFTSHADER = '/usr/lib/chromium/vk_swiftshader_icd.json';
const wantsHardware = process.env.ORT_FLASH_GPU === '1';

/** Whether there is a WebGPU adapter to test with. */
export const hasWebGpu = wantsHardware || existsSync(SWIFTSHADER);

export type Ort = typeof import('../kernels-wgsl/web.js');

/** What tests count of WebGPU. */
export interface GpuCounts {
  /** Calls of `mapAsync`: readbacks. */
  maps: number;
  /** Buffers that were made and not destroyed. */
  readonly buffers: Set<GPUBuffer>;
}

export const counts: GpuCounts = { maps: 0, buffers: new Set() };

/**
 * Makes Dawn find SwiftShader, and V8 leave onnxruntime-web's WebAssembly as its quick compiler makes it: it would spend
 * a minute on making it faster, which no test is worth. To be called before either is loaded.
 */
export function useTestAdapter(): void {
  if (wantsHardware) return;
  process.env.VK_ICD_FILENAMES = SWIFTSHADER;
  setFlagsFromString('--liftoff-only');
}

/** Loads `ort-flash/web` in Node, quiet, with WebGPU's buffers and readbacks counted. */
export async function loadWeb(): Promise<Ort> {
  useTestAdapter();
  const { installNodeWebGpu } = await import('../kernels-wgsl/web-node.js');
  await installNodeWebGpu();
  countCalls();
  const ort = await import('../kernels-wgsl/web.js');
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  return ort;
}

function countCalls(): void {
  const { mapAsync, destroy } = GPUBuffer.prototype;
  const { createBuffer } = GPUDevice.prototype;
  GPUBuffer.prototype.mapAsync = function (...parameters) {
    counts.maps++;
    return mapAsync.apply(this, parameters);
  };
  GPUBuffer.prototype.destroy = function () {
    counts.buffers.delete(this);
    return destroy.call(this);
  };
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = createBuffer.call(this, descriptor);
    counts.buffers.add(buffer);
    return buffer;
  };
}

type Session = import('../kernels-wgsl/web.js').InferenceSession;

/** The reference inputs as tensors. */
export function feedsOf(ort: Ort, session: Session, example: ModelExample) {
  const { inputs } = readTestData(example.dataFolder);
  const tensor = ({ type, data, dims }: TestTensor) => new ort.Tensor(type as 'float32', data as Float32Array, dims);
  return Object.fromEntries(inputs.map((input, i) => [input.name || session.inputNames[i]!, tensor(asFloat32(input))]));
}

/** Largest difference of the results from PyTorch's, over all outputs. */
export function largestDifference(
  session: Session,
  results: Awaited<ReturnType<Session['run']>>,
  example: ModelExample,
): number {
  const { outputs } = readTestData(example.dataFolder);
  const differences = outputs.map((expected, i) => {
    const { type, data } = results[expected.name] ?? results[session.outputNames[i]!]!;
    return relativeDifference(toNumbers(type, data as ArrayLike<number | bigint>), expected);
  });
  return Math.max(...differences);
}
