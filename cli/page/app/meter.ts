/** Counts what a run holds in memory, and hears of what the GPU reports beside it. */

import { OrtFlashError } from '../../../graph-rewrite/errors.js';

/** Sizes of the GPU buffers that were made and not destroyed. */
const live = new Map<GPUBuffer, number>();
const memories: WebAssembly.Memory[] = [];
let held = 0;
let peak = 0;
let fault: OrtFlashError | undefined;
let rejectLost: (error: Error) => void = () => undefined;

/** Rejects when a device is lost or reports an error that nobody else catches; never resolves. */
export const broken = new Promise<never>((_, reject) => {
  rejectLost = reject;
});
broken.catch(() => undefined);

/** @throws Error where the GPU has reported an error: results may be wrong then, though the run went through. */
export function checkGpu(): void {
  if (fault) throw fault;
}

/** The most bytes that GPU buffers have held at once. */
export function peakGpuBytes(): number {
  return peak;
}

/** Bytes of all WebAssembly memory, which never shrinks. */
export function wasmBytes(): number {
  return memories.reduce((sum, { buffer }) => sum + buffer.byteLength, 0);
}

/** To be called before anything opens a device or compiles WebAssembly. */
export function startMeter(): void {
  const { Memory } = WebAssembly;
  WebAssembly.Memory = class extends Memory {
    constructor(descriptor: WebAssembly.MemoryDescriptor) {
      super(descriptor);
      memories.push(this);
    }
  };
  if (typeof GPUDevice === 'undefined') return;
  countBuffers();
  watchDevices();
}

function countBuffers(): void {
  const { createBuffer } = GPUDevice.prototype;
  const { destroy } = GPUBuffer.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = createBuffer.call(this, descriptor);
    live.set(buffer, descriptor.size);
    held += descriptor.size;
    peak = Math.max(peak, held);
    return buffer;
  };
  GPUBuffer.prototype.destroy = function () {
    held -= live.get(this) ?? 0;
    live.delete(this);
    return destroy.call(this);
  };
}

function watchDevices(): void {
  const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    const device = await requestDevice.call(this, descriptor);
    device.addEventListener('uncapturederror', ({ error }) => {
      const what = error instanceof GPUOutOfMemoryError ? 'the GPU is out of memory' : 'the GPU refused the work';
      fault ??= new OrtFlashError('device', `${what}: ${error.message.split('\n')[0]}`, {}, 'choose a smaller size');
      rejectLost(fault);
    });
    device.lost.then(({ reason, message }) => {
      if (reason !== 'destroyed') {
        const hint = 'run again, with a smaller size if it happens again';
        rejectLost(new OrtFlashError('device', `the GPU device was lost (${message.replace(/\.$/, '')})`, {}, hint));
      }
    });
    return device;
  };
}
