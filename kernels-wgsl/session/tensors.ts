import { Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { dataTypeInfo, dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import { elementsOver } from '../../graph-rewrite/onnx/elements.js';

/** Types that ONNX Runtime keeps in GPU buffers. */
export type GpuType = Tensor.GpuBufferDataTypes;

/** Types that can be on the GPU; the runtime's own list. */
const GPU_TYPES: ReadonlySet<string> = new Set(['float32', 'float16', 'int32', 'int64', 'uint32', 'uint8', 'bool']);

export function isGpuType(type: string): type is GpuType {
  return GPU_TYPES.has(type);
}

/** Bytes of a tensor's elements. */
export function tensorBytes(type: Tensor.Type, dims: readonly number[]): number {
  const { bits } = dataTypeInfo(dataTypeOf(type))!;
  return Math.ceil((dims.reduce((product, size) => product * size, 1) * bits) / 8);
}

/** The elements of a tensor in CPU memory, as bytes, a multiple of 4 of them as the queue takes them. */
export function cpuBytes(tensor: Tensor): Uint8Array<ArrayBuffer> {
  const { buffer, byteOffset, byteLength } = tensor.data as ArrayBufferView<ArrayBuffer>;
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  if (byteLength % 4 === 0) return bytes;
  const padded = new Uint8Array(Math.ceil(byteLength / 4) * 4);
  padded.set(bytes);
  return padded;
}

/** A tensor in CPU memory from its elements' bytes. */
export function cpuTensor(type: Tensor.Type, buffer: ArrayBuffer, dims: readonly number[]): Tensor {
  return new Tensor(type, elementsOver(type, buffer) as Tensor.DataType, dims);
}

/** Copies a result into the tensor that the caller gave for it. */
export function fillTensor(name: string, target: Tensor, result: Tensor): void {
  checkTarget(name, target, result.type, result.dims);
  const from = result.data as ArrayBufferView;
  const to = target.data as ArrayBufferView;
  new Uint8Array(to.buffer, to.byteOffset, to.byteLength).set(
    new Uint8Array(from.buffer, from.byteOffset, from.byteLength),
  );
}

/** @throws OrtFlashError `invalid-tensor` where a tensor that the caller gave for an output does not fit it */
export function checkTarget(name: string, target: Tensor, type: Tensor.Type, dims: readonly number[]): void {
  const fits = target.type === type && target.dims.length === dims.length && target.dims.every((d, i) => d === dims[i]);
  if (fits) return;
  const what = `the tensor given for an output has type ${target.type} and shape (${target.dims.join(', ')}), not ${type}`;
  throw new OrtFlashError('invalid-tensor', what, { tensor: name, shape: dims });
}

/** Elements in a GPU buffer: rows that begin `stride` bytes apart. Of several, bytes and stride are multiples of 4. */
export interface BufferRows {
  readonly buffer: GPUBuffer;
  readonly count: number;
  readonly bytes: number;
  readonly stride: number;
}

/** Where a tensor's elements lie that has a buffer to itself. */
export function denseRows(buffer: GPUBuffer, type: Tensor.Type, dims: readonly number[]): BufferRows {
  const bytes = tensorBytes(type, dims);
  return { buffer, count: 1, bytes, stride: bytes };
}

/** Copies rows, one behind the other, to an offset that is a multiple of 4. */
export function copyRows(encoder: GPUCommandEncoder, from: BufferRows, to: GPUBuffer, offset: number): void {
  const { buffer, stride } = from;
  const isDense = from.bytes === stride;
  const count = isDense ? 1 : from.count;
  const bytes = isDense ? from.bytes * from.count : from.bytes;
  const words = Math.ceil(bytes / 4) * 4;
  if (words === 0) return;
  for (let row = 0; row < count; row++)
    encoder.copyBufferToBuffer(buffer, row * stride, to, offset + row * bytes, words);
}

/** Reads GPU buffers back in one go: copies are submitted at once, the elements come when the GPU is done. */
export function readBack(device: GPUDevice, sources: readonly BufferRows[]): Promise<ArrayBuffer[]> {
  if (sources.length === 0) return Promise.resolve([]);
  const offsets: number[] = [];
  let end = 0;
  for (const { bytes, count } of sources) {
    offsets.push(end);
    end += Math.ceil((bytes * count) / 16) * 16;
  }
  const staging = device.createBuffer({
    label: 'ort-flash outputs',
    size: Math.max(16, end),
    usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
  });
  const encoder = device.createCommandEncoder({ label: 'ort-flash outputs' });
  for (const [i, rows] of sources.entries()) copyRows(encoder, rows, staging, offsets[i]!);
  device.queue.submit([encoder.finish()]);
  return staging
    .mapAsync(GPUMapMode.READ)
    .then(() => {
      const mapped = staging.getMappedRange();
      return sources.map(({ bytes, count }, i) => mapped.slice(offsets[i]!, offsets[i]! + bytes * count));
    })
    .finally(() => staging.destroy());
}
