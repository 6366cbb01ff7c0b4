import { OrtFlashError } from '../../graph-rewrite/errors.js';

/** Runs after which a buffer that none of them used is destroyed. */
const IDLE_RUNS = 4;
/** Smallest buffer: one binding alignment. */
const LEAST_BYTES = 256;

interface IdleBuffer {
  readonly buffer: GPUBuffer;
  readonly since: number;
}

/**
 * GPU buffers for the tensors of runs, used again as soon as their last use is submitted: what follows on the queue
 * waits for it. Sizes come in steps of an eighth, so that lengths that differ little share buffers.
 */
export class BufferPool {
  readonly #device: GPUDevice;
  readonly #idle = new Map<number, IdleBuffer[]>();
  readonly #used = new Set<GPUBuffer>();
  #runs = 0;

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /**
   * A buffer of at least so many bytes, with whatever is in it.
   * @throws OrtFlashError `device` where the device has no buffers that large
   */
  acquire(bytes: number): GPUBuffer {
    const { maxBufferSize } = this.#device.limits;
    if (bytes > maxBufferSize) {
      const what = `a tensor takes ${bytes} bytes, the largest buffer of this device ${maxBufferSize}`;
      throw new OrtFlashError('device', what, {}, 'use shorter inputs');
    }
    const size = this.sizeFor(bytes);
    const buffer =
      this.#idle.get(size)?.pop()?.buffer ??
      this.#device.createBuffer({
        label: 'ort-flash tensor',
        size,
        usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
      });
    this.#used.add(buffer);
    return buffer;
  }

  /** Bytes of the buffer that one gets who asks for so many, or the device's largest. */
  sizeFor(bytes: number): number {
    return Math.min(sizeClass(bytes), this.#device.limits.maxBufferSize);
  }

  /** Takes a buffer back; everything that reads it must have been submitted. Doing it twice does no harm. */
  release(buffer: GPUBuffer): void {
    if (!this.#used.delete(buffer)) return;
    const idle = this.#idle.get(buffer.size) ?? [];
    idle.push({ buffer, since: this.#runs });
    this.#idle.set(buffer.size, idle);
  }

  /** Marks the end of a run: destroys what the last few runs did not use. */
  endRun(): void {
    this.#runs++;
    for (const [size, idle] of this.#idle) {
      const kept = idle.filter(({ buffer, since }) => {
        if (this.#runs - since <= IDLE_RUNS) return true;
        buffer.destroy();
        return false;
      });
      if (kept.length > 0) this.#idle.set(size, kept);
      else this.#idle.delete(size);
    }
  }

  /** Destroys every buffer that is not in use. */
  clear(): void {
    for (const idle of this.#idle.values()) for (const { buffer } of idle) buffer.destroy();
    this.#idle.clear();
  }

  /** Buffers that exist, and their bytes. */
  get size(): { readonly buffers: number; readonly bytes: number } {
    const all = [...this.#used, ...[...this.#idle.values()].flat().map(({ buffer }) => buffer)];
    return { buffers: all.length, bytes: all.reduce((sum, { size }) => sum + size, 0) };
  }
}

/** The next size of the form k·2ⁿ with 8 ≤ k < 16: at most an eighth more than asked for. */
function sizeClass(bytes: number): number {
  if (bytes <= LEAST_BYTES) return LEAST_BYTES;
  const step = Math.max(LEAST_BYTES, 2 ** (Math.floor(Math.log2(bytes)) - 3));
  return Math.ceil(bytes / step) * step;
}
