import { Tensor } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { elementsOver } from '../graph-rewrite/onnx/elements.js';
import type { NativeDeviceTensor, NativeFeed, NativeResult } from './node-addon.js';

/** ONNX's element types that onnxruntime-common's Tensor does not know; see {@link createTensor}. */
export type ExtendedTensorType =
  | 'bfloat16'
  | 'float8e4m3fn'
  | 'float8e4m3fnuz'
  | 'float8e5m2'
  | 'float8e5m2fnuz'
  | 'float8e8m0'
  | 'float4e2m1'
  | 'int2'
  | 'uint2';

const EXTENDED_BITS: Readonly<Record<ExtendedTensorType, number>> = {
  bfloat16: 16,
  float8e4m3fn: 8,
  float8e4m3fnuz: 8,
  float8e5m2: 8,
  float8e5m2fnuz: 8,
  float8e8m0: 8,
  float4e2m1: 4,
  int2: 2,
  uint2: 2,
};

function isExtended(type: string): type is ExtendedTensorType {
  return type in EXTENDED_BITS;
}

const isNumberList = (dims: readonly number[]) => dims.every((size) => Number.isSafeInteger(size) && size >= 0);

/**
 * Makes a tensor of any type that ONNX has; onnxruntime-common's own constructor refuses bfloat16 and the float8 types.
 * @param data the elements: bfloat16 and float16 as the bits in a Uint16Array, types of 8 bits and less as bytes, packed
 * @throws OrtFlashError `invalid-tensor` where data and dims do not fit together
 */
export function createTensor(type: Tensor.Type | ExtendedTensorType, data: Tensor.DataType, dims: readonly number[]) {
  if (!isExtended(type)) {
    try {
      // Tensor's type parameter pairs type and data, which a type known only at run time cannot show.
      return new Tensor(type as 'float32', data as Float32Array, dims);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new OrtFlashError('invalid-tensor', why, { shape: dims }, undefined, { cause: error });
    }
  }
  const bits = EXTENDED_BITS[type];
  const size = dims.reduce((product, dim) => product * dim, 1);
  const holder = bits === 16 ? 'uint16' : 'uint8';
  if (!(data instanceof (bits === 16 ? Uint16Array : Uint8Array)))
    throw new OrtFlashError('invalid-tensor', `the data of a ${type} tensor must be a ${holder} array`, {
      shape: dims,
    });
  if (!isNumberList(dims) || data.length !== Math.ceil((size * Math.min(bits, 8)) / 8))
    throw new OrtFlashError('invalid-tensor', `${data.length} elements of data do not fill the tensor`, {
      shape: dims,
    });
  return relabel(new Tensor(holder, data as Uint8Array, [data.length]), type, dims);
}

/** Gives a tensor a type and a shape that onnxruntime-common's constructor would refuse. */
function relabel(tensor: Tensor, type: string, dims: readonly number[]): Tensor {
  return Object.assign(tensor, { type, dims: [...dims], size: dims.reduce((product, dim) => product * dim, 1) });
}

/** The GPU tensors of the addon behind tensors of location `gpu-buffer`. */
const deviceTensors = new WeakMap<Tensor, NativeDeviceTensor>();

/** A tensor from what a run gave. One that stays on the GPU has location `gpu-buffer`; `getData` copies it from there. */
export function tensorOf([type, dims, data]: NativeResult): Tensor {
  if (data instanceof ArrayBuffer)
    return createTensor(type as Tensor.Type, elementsOver(type as DataTypeName, data), dims);
  if (Array.isArray(data)) return createTensor('string', data, dims);
  const tensor = Tensor.fromGpuBuffer(data as unknown as Tensor.GpuBufferType, {
    dataType: 'uint8',
    dims,
    download: async () => elementsOver(type as DataTypeName, await data.download()) as Uint8Array,
    dispose: () => data.dispose(),
  });
  deviceTensors.set(tensor, data);
  return relabel(tensor, type, dims);
}

/**
 * A tensor as the addon takes it.
 * @throws OrtFlashError `invalid-tensor` where it is no tensor, was disposed of, or lies where this session cannot read
 */
export function feedOf(name: string, tensor: unknown): NativeFeed {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-tensor', `input ${name} ${why}`, { tensor: name });
  };
  if (typeof tensor !== 'object' || tensor === null) return fail('is no tensor');
  const { type, dims, location } = tensor as Tensor;
  if (typeof type !== 'string' || !Array.isArray(dims)) return fail('is no tensor');
  if (location === 'gpu-buffer') {
    const device = deviceTensors.get(tensor as Tensor) ?? fail('lies on another GPU than that of the session');
    return [name, device];
  }
  const { data } = tensor as Tensor;
  if (type === 'string') return [name, type, dims, data as string[]];
  if (!ArrayBuffer.isView(data)) return fail('has no data on the CPU');
  return [name, type, dims, bytesOf(data)];
}

/** The bytes of a view; none where its buffer was given to another thread. */
function bytesOf(view: ArrayBufferView): Uint8Array {
  return view.byteLength === 0 ? new Uint8Array() : new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/** Bytes that are copied without letting the event loop have its turn. */
const COPIED_AT_ONCE = 1 << 20;

/** Copies all bytes, and lets the event loop go on meanwhile. */
async function copyBytes(target: Uint8Array, source: Uint8Array): Promise<void> {
  for (let at = 0; at < source.length; at += COPIED_AT_ONCE) {
    if (at > 0) await new Promise<void>((done) => setImmediate(done));
    if (target.length !== source.length) return;
    target.set(source.subarray(at, at + COPIED_AT_ONCE), at);
  }
}

/**
 * Copies a run's result into the tensor that the caller wants it in.
 * @throws OrtFlashError `invalid-tensor` where type or shape differ
 */
export async function fillTensor(name: string, target: Tensor, [type, dims, elements]: NativeResult): Promise<Tensor> {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-tensor', `the tensor given for output ${name} ${why}`, { tensor: name });
  };
  if (target.type !== type) fail(`has type ${target.type}, the output has ${type}`);
  if (target.dims.length !== dims.length || dims.some((size, i) => size !== target.dims[i]))
    fail(`has shape (${target.dims.join(', ')}), the output has (${dims.join(', ')})`);
  if (target.location !== 'cpu' && target.location !== 'cpu-pinned') fail('does not lie on the CPU');
  const { data } = target;
  if (Array.isArray(elements)) {
    const strings = data as string[];
    for (const [i, text] of elements.entries()) strings[i] = text;
    return target;
  }
  if (!(elements instanceof ArrayBuffer)) return fail('is on the CPU, the output on the GPU');
  if (!ArrayBuffer.isView(data) || data.byteLength !== elements.byteLength) return fail('has lost its data');
  const bytes = bytesOf(data);
  await copyBytes(bytes, new Uint8Array(elements));
  if (bytes.length !== elements.byteLength) fail('was given to another thread while it was filled');
  return target;
}
