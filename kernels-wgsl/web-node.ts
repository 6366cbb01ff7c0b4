/** Makes `ort-flash/web` run in Node, over Dawn (the npm package `webgpu`). */
import { OrtFlashError } from '../graph-rewrite/errors.js';

/** Dawn's toggles without which an NVIDIA GPU shows neither f16 nor subgroup matrices. */
const TOGGLES = ['enable-dawn-features=vulkan_enable_f16_on_nvidia,allow_unsafe_apis'];

let installed: Promise<GPU> | undefined;

/**
 * Gives Node what onnxruntime-web expects of a browser: `navigator.gpu` and the globals of WebGPU. Does nothing where
 * `navigator.gpu` is there already.
 * @throws OrtFlashError `device` where the package `webgpu` is not installed or does not load
 */
export function installNodeWebGpu(): Promise<GPU> {
  installed ??= install();
  installed.catch(() => {
    installed = undefined;
  });
  return installed;
}

async function install(): Promise<GPU> {
  const present: GPU | undefined = globalThis.navigator?.gpu;
  if (present) return present;
  const { create, globals } = await import('webgpu').catch((cause: Error) => {
    const what = `WebGPU in Node needs the package webgpu: ${cause.message}`;
    throw new OrtFlashError('device', what, {}, 'npm install webgpu', { cause });
  });
  Object.assign(globalThis, globals);
  const gpu = create(TOGGLES);
  if (globalThis.navigator) Object.defineProperty(globalThis.navigator, 'gpu', { value: gpu, configurable: true });
  else Object.defineProperty(globalThis, 'navigator', { value: { gpu }, configurable: true });
  copySharedWrites();
  return gpu;
}

/** onnxruntime-web writes from its WebAssembly memory, which is shared between threads; Dawn refuses such memory. */
function copySharedWrites(): void {
  const { writeBuffer } = GPUQueue.prototype;
  GPUQueue.prototype.writeBuffer = function (buffer, bufferOffset, data, dataOffset, size) {
    const memory: ArrayBufferLike = ArrayBuffer.isView(data) ? data.buffer : data;
    if (!(memory instanceof SharedArrayBuffer))
      return writeBuffer.call(this, buffer, bufferOffset, data as ArrayBuffer, dataOffset, size);
    const view = ArrayBuffer.isView(data) ? data : new Uint8Array(memory);
    // Offset and size count elements of a view.
    const unit = 'BYTES_PER_ELEMENT' in view ? (view.BYTES_PER_ELEMENT as number) : 1;
    const start = view.byteOffset + (dataOffset ?? 0) * unit;
    const end = size === undefined ? view.byteOffset + view.byteLength : start + size * unit;
    const copy = new Uint8Array(end - start);
    copy.set(new Uint8Array(memory, start, end - start));
    return writeBuffer.call(this, buffer, bufferOffset, copy);
  };
}
