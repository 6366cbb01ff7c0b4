import type { Tensor } from '#onnxruntime-web';
import type { AttentionProblem } from '../../graph-rewrite/op/problem.js';
import type { CacheOptions } from './attention.js';
import type { BufferPool } from './buffer-pool.js';
import { type CacheShape, CacheView, canGrow, capacityFor } from './growing-cache.js';

/** Views of the caches that past keys and values are given in; undefined where they are dense tensors. */
export interface PastViews {
  readonly key: CacheView | undefined;
  readonly value: CacheView | undefined;
}

/** What may become of the present keys and values of one call. */
export interface CacheUse {
  /** No memory of the caller's own is meant for them: they may stay where the past is. */
  readonly staysInPlace: boolean;
  /** The caller gets them on the GPU, and may give them to the next run: they may have room to grow. */
  readonly grows: boolean;
}

/** Where one call's present keys and values go, and what the kernels have to know of it. */
export interface CachePlacement {
  readonly options: CacheOptions;
  /** Undefined where they are dense tensors of their own. */
  readonly present: { readonly present_key: CacheView; readonly present_value: CacheView } | undefined;
}

/**
 * Puts the present keys and values behind the past ones where that is possible, so that nothing is copied; else into new
 * memory, with room for more where the caller may give them to the next run.
 * @throws OrtFlashError `device` where the device has no buffers that large
 */
export function placeCache(
  problem: AttentionProblem,
  past: PastViews,
  use: CacheUse,
  pool: BufferPool,
): CachePlacement {
  const { keys, pastKeys } = problem;
  const { key, value } = past;
  if (key && value && use.staysInPlace && canAppend(key, value, keys))
    return {
      options: { cacheCapacity: key.capacity },
      present: { present_key: key.grow(keys), present_value: value.grow(keys) },
    };
  const pastCapacity = { key: key?.capacity ?? pastKeys, value: value?.capacity ?? pastKeys };
  const shapes = shapesOf(problem);
  if (!use.grows || keys === 0 || !shapes.every(canGrow))
    return { options: key || value ? { pastCapacity } : {}, present: undefined };
  const cacheCapacity = capacityFor(shapes, keys, pool);
  const [present_key, present_value] = shapes.map((shape) => CacheView.create(shape, keys, cacheCapacity, pool));
  return {
    options: { cacheCapacity, pastCapacity },
    present: { present_key: present_key!, present_value: present_value! },
  };
}

/** Whether both can grow to this length, each in its own memory, which are planned as one. */
function canAppend(key: CacheView, value: CacheView, length: number): boolean {
  const isPair = key.capacity === value.capacity && key.buffer !== value.buffer;
  return isPair && key.hasRoom(length) && value.hasRoom(length);
}

function shapesOf(problem: AttentionProblem): [CacheShape, CacheShape] {
  const { batch, keyHeads: heads, headDimension, valueDimension } = problem;
  const shape = (dimension: number) => ({ type: problem.type as Tensor.Type, batch, heads, dimension });
  return [shape(headDimension), shape(valueDimension)];
}
