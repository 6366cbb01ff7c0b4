import { Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import type { BufferPool } from './buffer-pool.js';
import { type BufferRows, copyRows, cpuTensor, denseRows, readBack, tensorBytes } from './tensors.js';

/**
 * Room for later keys is a quarter of those that there are, and at least so many: each key is copied about four times in
 * all, however long the cache grows, and not once a step.
 */
const LEAST_ROOM = 64;

/** A key or value cache without its length: (batch, key heads, …, head dimension). */
export interface CacheShape {
  readonly type: Tensor.Type;
  readonly batch: number;
  readonly heads: number;
  readonly dimension: number;
}

const bytesOf = ({ type, batch, heads, dimension }: CacheShape, positions: number) =>
  tensorBytes(type, [batch, heads, positions, dimension]);

/** Whether such a cache can grow in place: parts of it are copied in words of 4 bytes. */
export function canGrow(shape: CacheShape): boolean {
  return bytesOf(shape, 1) > 0 && tensorBytes(shape.type, [shape.dimension]) % 4 === 0;
}

/**
 * Positions to make room for, the same for caches of these shapes: some more than there are keys, and then what the
 * pool's buffers of that size hold anyway.
 */
export function capacityFor(shapes: readonly CacheShape[], keys: number, pool: BufferPool): number {
  const wanted = keys + Math.max(LEAST_ROOM, Math.ceil(keys / 4));
  const held = shapes.map((shape) => Math.floor(pool.sizeFor(bytesOf(shape, wanted)) / bytesOf(shape, 1)));
  // In fours, so that all that begins at a head is aligned alike. A device that has no such buffers has no room.
  return Math.max(keys, Math.floor(Math.min(...held) / 4) * 4);
}

/** Memory of one cache, (batch, key heads, capacity, head dimension), which the views of it share. */
class CacheMemory {
  readonly shape: CacheShape;
  readonly capacity: number;
  readonly buffer: GPUBuffer;
  readonly pool: BufferPool;
  readonly #views = new Set<CacheView>();
  #length = 0;

  constructor(shape: CacheShape, capacity: number, pool: BufferPool) {
    this.shape = shape;
    this.capacity = capacity;
    this.pool = pool;
    this.buffer = pool.acquire(bytesOf(shape, capacity));
  }

  /** Positions that some view shows; what stands behind them is nobody's. */
  get length(): number {
    return this.#length;
  }

  add(view: CacheView): void {
    this.#views.add(view);
    this.#length = Math.max(this.#length, view.length);
  }

  /** Gives the memory back with its last view. */
  remove(view: CacheView): void {
    if (!this.#views.delete(view)) return;
    if (this.#views.size === 0) this.pool.release(this.buffer);
    else if (view.length === this.#length) this.#length = Math.max(...[...this.#views].map(({ length }) => length));
  }
}

/**
 * The first positions of a cache: a tensor (batch, key heads, length, head dimension) whose elements never change, while
 * the cache may grow behind them. It is dense only where it is copied to.
 */
export class CacheView {
  readonly length: number;
  readonly #memory: CacheMemory;

  private constructor(memory: CacheMemory, length: number) {
    this.#memory = memory;
    this.length = length;
    memory.add(this);
  }

  /**
   * New memory for a cache of some length, to be written by the caller.
   * @throws OrtFlashError `device` where the device has no buffers that large
   */
  static create(shape: CacheShape, length: number, capacity: number, pool: BufferPool): CacheView {
    return new CacheView(new CacheMemory(shape, capacity, pool), length);
  }

  get shape(): CacheShape {
    return this.#memory.shape;
  }

  get dims(): [number, number, number, number] {
    const { batch, heads, dimension } = this.shape;
    return [batch, heads, this.length, dimension];
  }

  /** Positions in memory; head h of batch b begins at ((b · heads + h) · capacity · head dimension). */
  get capacity(): number {
    return this.#memory.capacity;
  }

  get buffer(): GPUBuffer {
    return this.#memory.buffer;
  }

  get pool(): BufferPool {
    return this.#memory.pool;
  }

  /** Whether the cache can grow behind this view: there is room, and nobody has put anything there. */
  hasRoom(length: number): boolean {
    return this.#memory.length === this.length && length <= this.capacity;
  }

  /** A view of the same memory with more positions, which the caller writes; only where {@link hasRoom} says so. */
  grow(length: number): CacheView {
    return new CacheView(this.#memory, length);
  }

  /** Another view of the same, which keeps the memory when this one is released. */
  hold(): CacheView {
    return new CacheView(this.#memory, this.length);
  }

  /** Where the elements lie, in the tensor's order. */
  get rows(): BufferRows {
    const { batch, heads } = this.shape;
    const position = tensorBytes(this.shape.type, [this.shape.dimension]);
    return {
      buffer: this.buffer,
      count: batch * heads,
      bytes: this.length * position,
      stride: this.capacity * position,
    };
  }

  /** The elements in a buffer of their own, from the pool. */
  copyDense(device: GPUDevice): GPUBuffer {
    const dense = this.pool.acquire(Math.max(4, bytesOf(this.shape, this.length)));
    const encoder = device.createCommandEncoder({ label: 'ort-flash cache' });
    copyRows(encoder, this.rows, dense, 0);
    device.queue.submit([encoder.finish()]);
    return dense;
  }

  /** Gives the view back; everything that reads it must have been submitted. Doing it twice does no harm. */
  release(): void {
    this.#memory.remove(this);
  }
}

const views = new WeakMap<Tensor, CacheView>();

/**
 * The cache that a tensor is a view of; undefined for all other tensors, for those whose buffer somebody has asked for
 * and may have written to, and for those that were read back, disposed of, or given another shape.
 */
export function cacheOf(tensor: Tensor, pool: BufferPool): CacheView | undefined {
  const view = views.get(tensor);
  if (view === undefined || tensor.location !== 'gpu-buffer' || view.pool !== pool) return undefined;
  const { dims } = view;
  const isWhole = tensor.dims.length === dims.length && dims.every((size, axis) => size === tensor.dims[axis]);
  return isWhole ? view : undefined;
}

/**
 * A view as a tensor for the caller: it takes the view over, and `dispose` gives it back. To everybody else it is as
 * dense as any other: whoever asks for `gpuBuffer` gets a dense copy, which is the tensor from then on.
 */
export function cacheTensor(view: CacheView, device: GPUDevice): Tensor {
  const { type } = view.shape;
  let dense: GPUBuffer | undefined;
  let isDisposed = false;
  const tensor = Tensor.fromGpuBuffer(view.buffer, {
    dataType: type as 'float32',
    dims: view.dims,
    dispose: () => {
      isDisposed = true;
      views.delete(tensor);
      if (dense) view.pool.release(dense);
      else view.release();
    },
    download: async () => {
      const [content] = await readBack(device, [dense ? denseRows(dense, type, view.dims) : view.rows]);
      return cpuTensor(type, content!, view.dims).data as Float32Array;
    },
  });
  views.set(tensor, view);
  Object.defineProperty(tensor, 'gpuBuffer', {
    get: () => {
      if (isDisposed) throw new OrtFlashError('invalid-argument', 'the tensor was disposed of');
      if (dense === undefined) {
        dense = view.copyDense(device);
        views.delete(tensor);
        view.release();
      }
      return dense;
    },
  });
  return tensor;
}
