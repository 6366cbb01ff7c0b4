/**
 * Tensors on the GPU, between onnxruntime-web's copy of onnxruntime-common and the one of this runtime: to each its own
 * class, over the same memory.
 */
import { Tensor } from 'onnxruntime-node';
import type { Results } from '../kernels-wgsl/session/handler.js';

type Result = Results[string];

/** What onnxruntime-web knows of a tensor that the caller has. */
const originals = new WeakMap<Tensor, Tensor>();

/**
 * A result as this runtime's tensor, where it is on the GPU; others are as they are. The buffer is not asked for before
 * the caller does: a cache would be copied for that.
 */
export function giveTensor(result: Result): Result {
  const original = result as Tensor;
  if (original.location !== 'gpu-buffer' || original instanceof Tensor) return result;
  const given = Tensor.fromGpuBuffer({} as Tensor.GpuBufferType, {
    dataType: original.type as Tensor.GpuBufferDataTypes,
    dims: [...original.dims],
    dispose: () => original.dispose(),
    download: () => original.getData() as Promise<Float32Array>,
  });
  Object.defineProperty(given, 'gpuBuffer', { get: () => original.gpuBuffer });
  originals.set(given, original);
  return given;
}

/** The tensor that a result of an earlier run was, where it is on the GPU as it was; others are as they are. */
export function takeTensor(given: Result): Result {
  const original = originals.get(given as Tensor);
  if (original === undefined || (given as Tensor).location !== 'gpu-buffer') return given;
  const { dims } = given;
  const isWhole = dims.length === original.dims.length && dims.every((size, axis) => size === original.dims[axis]);
  return isWhole ? original : given;
}

/** Does something to each tensor of a record. */
export function mapTensors(tensors: Readonly<Record<string, Result>>, change: (tensor: Result) => Result) {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, change(tensor)]));
}
