import { decodeHalf } from '../../graph-rewrite/op/half.js';
import type { AttentionProblem } from '../../graph-rewrite/op/problem.js';
import type { AttentionBuffers, FlashAttention } from '../flash-attention.js';
import type { PlanOptions, PlanTensor } from '../plan.js';

/** Data of a call's inputs: Float32Array, or Uint16Array for halves, Uint8Array for booleans, BigInt64Array. */
export type CallData = Readonly<Partial<Record<PlanTensor, Float32Array | Uint16Array | Uint8Array | BigInt64Array>>>;

export interface CallResult {
  readonly Y: Float32Array;
  readonly present_key?: Float32Array;
  readonly present_value?: Float32Array;
  readonly lse?: Float32Array;
}

const OUTPUTS = ['Y', 'present_key', 'present_value', 'lse'] as const;

/** A quiet NaN in every element type, with which outputs are filled beforehand: what a kernel leaves out is seen. */
const POISON = 0x7fff7fff;

/** Runs one call from host data to host data. */
export async function runAttention(
  flash: FlashAttention,
  problem: AttentionProblem,
  data: CallData,
  options: PlanOptions = {},
): Promise<CallResult> {
  const { device } = flash;
  const prepared = await flash.prepare(problem, options);
  const bytes = prepared.plan.tensorBytes;
  const buffers: Partial<Record<PlanTensor, { buffer: GPUBuffer }>> = {};
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  for (const [name, size] of Object.entries(bytes) as [PlanTensor, number][]) {
    const values = data[name];
    // A packed tensor is larger than the part of it that the problem reads.
    const whole = Math.ceil(Math.max(16, size, values?.byteLength ?? 0) / 4) * 4;
    const buffer = device.createBuffer({ label: name, size: whole, usage, mappedAtCreation: true });
    const mapped = buffer.getMappedRange();
    if (values === undefined) new Uint32Array(mapped).fill(POISON);
    else new Uint8Array(mapped).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    buffer.unmap();
    buffers[name] = { buffer };
  }
  device.pushErrorScope('validation');
  const encoder = device.createCommandEncoder();
  flash.encode(prepared, encoder, buffers as AttentionBuffers);
  const readbacks = OUTPUTS.filter((name) => (bytes[name] ?? 0) > 0).map((name) => {
    const readback = device.createBuffer({
      size: buffers[name]!.buffer.size,
      usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
    });
    encoder.copyBufferToBuffer(buffers[name]!.buffer, 0, readback, 0, readback.size);
    return { name, readback };
  });
  device.queue.submit([encoder.finish()]);
  const error = await device.popErrorScope();
  if (error !== null) throw new Error(error.message);
  const result: Partial<Record<(typeof OUTPUTS)[number], Float32Array>> = {};
  for (const { name, readback } of readbacks) {
    await readback.mapAsync(GPUMapMode.READ);
    const copy = readback.getMappedRange().slice(0);
    const isHalf = problem.type === 'float16' && name !== 'lse';
    // A cache with room to grow is given as it lies in memory.
    const isCache = options.cacheCapacity !== undefined && name.startsWith('present_');
    const count = isCache ? bytes[name]! / (isHalf ? 2 : 4) : elementCount(problem, name);
    result[name] = isHalf
      ? decodeHalf(new Uint16Array(copy).subarray(0, count), 'float16')
      : new Float32Array(copy).subarray(0, count);
    readback.destroy();
  }
  for (const tensor of Object.values(buffers)) tensor.buffer.destroy();
  return { Y: new Float32Array(0), ...result };
}

function elementCount(problem: AttentionProblem, name: (typeof OUTPUTS)[number]): number {
  const product = (shape: readonly number[] | undefined) => (shape ?? [0]).reduce((a, b) => a * b, 1);
  if (name === 'Y') return product(problem.outputShape);
  if (name === 'present_key') return product(problem.presentKeyShape);
  if (name === 'present_value') return product(problem.presentValueShape);
  return problem.batch * problem.queryHeads * problem.queries;
}
