/** Data, time and error of one attention call on a GPUDevice; for bench/webgpu-attention.ts. */
import { decodeHalf, encodeHalf } from '../../graph-rewrite/op/half.js';
import { randomNumbers } from '../../kernels-wgsl/testing/problems.js';
import type { Case } from './cases.js';
import type { Timer } from './ceilings.js';

/** Random numbers that a tensor repeats: nearly normal, of variance 1; so many that no two rows of a tensor are alike. */
const PATTERN = 2 ** 18 - 4;

const random = randomNumbers(1);

/** A tensor on the GPU, and the numbers in it. */
export interface BenchTensor {
  readonly buffer: GPUBuffer;
  /** The numbers before they were rounded to the tensor's type, and as they are in it; element i is number i % PATTERN. */
  readonly exact: Float32Array;
  readonly stored: Float32Array;
}

const patterns = new Map<string, Omit<BenchTensor, 'buffer'> & { readonly bytes: Uint8Array<ArrayBuffer> }>();

/** Numbers of one of a call's tensors, made once: a GPU that waits for the next ones lowers its clocks. */
function patternOf(type: Case['type'], role: string) {
  const known = patterns.get(`${type} ${role}`);
  if (known !== undefined) return known;
  const exact = Float32Array.from({ length: PATTERN }, () => (random() + random() + random() - 1.5) * 2);
  const halves = type === 'float16' ? encodeHalf(exact, 'float16') : undefined;
  const made = {
    exact,
    stored: halves === undefined ? exact : decodeHalf(halves, 'float16'),
    bytes: new Uint8Array((halves ?? exact).buffer as ArrayBuffer),
  };
  patterns.set(`${type} ${role}`, made);
  return made;
}

/** @param role which of a call's tensors this is: each has numbers of its own. */
export function randomTensor(device: GPUDevice, type: Case['type'], role: 'Q' | 'K' | 'V', size: number): BenchTensor {
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffer = device.createBuffer({ size, usage });
  const { exact, stored, bytes } = patternOf(type, role);
  for (let at = 0; at < size; at += bytes.length)
    device.queue.writeBuffer(buffer, at, bytes, 0, Math.min(bytes.length, size - at));
  return { buffer, exact, stored };
}

/** Bytes of NaN in any float type, so that an output that was not written is seen. */
export function poison(device: GPUDevice, buffer: GPUBuffer): void {
  const words = new Uint32Array(Math.min(buffer.size, 1 << 20) / 4).fill(0x7fff7fff);
  for (let at = 0; at < buffer.size; at += words.byteLength)
    device.queue.writeBuffer(buffer, at, words, 0, Math.min(words.length, (buffer.size - at) / 4));
}

export interface TimerOptions {
  readonly isSoftware: boolean;
  readonly isQuick: boolean;
}

/** Milliseconds: of the wall's clock; of processor time where the GPU is the CPU, which other programs use as well. */
function clock(isSoftware: boolean): number {
  if (!isSoftware) return performance.now();
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Passes of one measurement: each has two timestamps. */
const MOST_PASSES = 64;

/**
 * GPU time of one call, in milliseconds: timestamps around many calls in one pass, median of the last three of many
 * passes that are submitted at once. An H100 that has been idle for two seconds runs at a fifth of its clock, and takes
 * up to half a second of work without a gap to raise it. Wall-clock time where there are no timestamps, processor time on
 * a CPU that plays GPU.
 */
export function createTimer(device: GPUDevice, { isSoftware, isQuick }: TimerOptions): Timer {
  const hasTimestamps = device.features.has('timestamp-query') && !isSoftware;
  const bytes = 16 * MOST_PASSES;
  const querySet = hasTimestamps ? device.createQuerySet({ type: 'timestamp', count: 2 * MOST_PASSES }) : undefined;
  const resolved = device.createBuffer({ size: bytes, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
  const readback = device.createBuffer({ size: bytes, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const stamps = async (passes: number) => {
    const encoder = device.createCommandEncoder();
    encoder.resolveQuerySet(querySet!, 0, 2 * passes, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, readback, 0, 16 * passes);
    device.queue.submit([encoder.finish()]);
    await readback.mapAsync(GPUMapMode.READ);
    const read = new BigInt64Array(readback.getMappedRange(0, 16 * passes).slice(0));
    readback.unmap();
    return Array.from({ length: passes }, (_, i) => Number(read[2 * i + 1]! - read[2 * i]!) / 1e6);
  };
  /** Milliseconds of a call in each of so many passes. */
  const measure = async (encode: Parameters<Timer>[0], calls: number, passes: number): Promise<number[]> => {
    const start = clock(isSoftware);
    for (let i = 0; i < passes; i++) {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass(
        querySet && {
          timestampWrites: { querySet, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 },
        },
      );
      for (let k = 0; k < calls; k++) encode(pass, k);
      pass.end();
      device.queue.submit([encoder.finish()]);
    }
    if (querySet) return (await stamps(passes)).map((ms) => ms / calls);
    await device.queue.onSubmittedWorkDone();
    return [(clock(isSoftware) - start) / calls / passes];
  };
  return async (encode) => {
    let [each] = (await measure(encode, 1, 1)) as [number];
    if (isSoftware) return median([each, ...(await measure(encode, 1, 1)), ...(await measure(encode, 1, 1))]);
    // Clocks that rise make calls shorter: asked again until so much work went through without a gap.
    const wanted = isQuick ? 450 : 600;
    let total = 0;
    for (let tries = 0; tries < 20; tries++) {
      const calls = Math.max(1, Math.min(400, Math.ceil((isQuick ? 10 : 25) / each)));
      const passes = Math.max(3, Math.min(MOST_PASSES, Math.ceil(wanted / 2 / (calls * each))));
      const times = await measure(encode, calls, passes);
      const worked = times.reduce((sum, ms) => sum + ms * calls, 0);
      each = median(times.slice(-3));
      total += worked;
      if (total >= wanted && tries > 0) break;
    }
    return each;
  };
}

/**
 * Time of one run by `clock`, in milliseconds, many without waiting in between; median of three measurements, each of
 * which keeps the GPU at work for long enough that its clocks are up.
 */
export async function timeRuns(device: GPUDevice, run: () => Promise<void>, isSoftware: boolean): Promise<number> {
  const measure = async (runs: number) => {
    await device.queue.onSubmittedWorkDone();
    const start = clock(isSoftware);
    for (let i = 0; i < runs; i++) await run();
    await device.queue.onSubmittedWorkDone();
    return (clock(isSoftware) - start) / runs;
  };
  await measure(1);
  const once = await measure(1);
  if (isSoftware) return median([once, await measure(1), await measure(1)]);
  const runs = (ms: number, each: number) => Math.max(1, Math.min(1000, Math.ceil(ms / each)));
  const warm = await measure(runs(600, once));
  const count = runs(100, warm);
  return median([await measure(count), await measure(count), await measure(count)]);
}

export const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

export interface CallError {
  /** Largest difference from double precision, over the largest output. */
  readonly ofScale: number;
  /** Float16: root mean square of the error, over that of rounding inputs and output alone. */
  readonly ofRounding?: number;
}

/** Rows, of (head, query), on which outputs are compared: spread over the whole problem. */
const SAMPLES = 6;

/** Compares sampled rows of an output (1, queries, heads · dimension) with double precision. */
export async function measureError(
  device: GPUDevice,
  c: Case,
  tensors: { readonly Q: BenchTensor; readonly K: BenchTensor; readonly V: BenchTensor },
  output: GPUBuffer,
): Promise<CallError> {
  const isHalf = c.type === 'float16';
  const element = isHalf ? 2 : 4;
  const rows = Array.from({ length: SAMPLES }, (_, i) => ({
    head: (i * 7 + 1) % c.heads,
    query: Math.floor(((c.queries - 1) * i) / (SAMPLES - 1)),
  }));
  // A row may begin in the middle of a word of four bytes only where the head dimension is odd: here it never is.
  const bytes = c.dimension * element;
  const readback = device.createBuffer({
    size: SAMPLES * bytes,
    usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
  });
  const encoder = device.createCommandEncoder();
  for (const [i, { head, query }] of rows.entries())
    encoder.copyBufferToBuffer(output, (query * c.heads + head) * bytes, readback, i * bytes, bytes);
  device.queue.submit([encoder.finish()]);
  await readback.mapAsync(GPUMapMode.READ);
  const copy = readback.getMappedRange().slice(0);
  readback.destroy();
  const got = isHalf ? decodeHalf(new Uint16Array(copy), 'float16') : new Float32Array(copy);

  let largest = 0;
  let scale = 0;
  let error = 0;
  let rounding = 0;
  for (const [i, { head, query }] of rows.entries()) {
    const fromStored = attendRow(c, head, query, tensors, 'stored');
    const fromExact = isHalf ? attendRow(c, head, query, tensors, 'exact') : fromStored;
    const rounded = isHalf ? decodeHalf(encodeHalf(Float32Array.from(fromStored), 'float16'), 'float16') : fromStored;
    for (let d = 0; d < c.dimension; d++) {
      const value = got[i * c.dimension + d]!;
      const difference = Math.abs(value - fromStored[d]!);
      if (!(difference <= largest)) largest = difference;
      scale = Math.max(scale, Math.abs(fromStored[d]!));
      error += (value - fromExact[d]!) ** 2;
      rounding += (rounded[d]! - fromExact[d]!) ** 2;
    }
  }
  return { ofScale: largest / scale, ...(isHalf && { ofRounding: Math.sqrt(error / rounding) }) };
}

/** One row of attention in double precision. */
function attendRow(
  c: Case,
  head: number,
  query: number,
  { Q, K, V }: { readonly Q: BenchTensor; readonly K: BenchTensor; readonly V: BenchTensor },
  which: 'exact' | 'stored',
): Float64Array {
  const { dimension } = c;
  const keyHead = Math.floor(head / (c.heads / c.keyHeads));
  const isCache = c.queries === 1;
  const keyRow = (key: number) => (isCache ? keyHead * c.keys + key : key * c.keyHeads + keyHead) * dimension;
  const at = (data: Float32Array, index: number) => data[index % PATTERN]!;
  const last = c.isCausal ? query + c.keys - c.queries : c.keys - 1;
  const queryRow = (query * c.heads + head) * dimension;
  const scores = new Float64Array(last + 1);
  let highest = Number.NEGATIVE_INFINITY;
  for (let key = 0; key <= last; key++) {
    let sum = 0;
    for (let d = 0; d < dimension; d++) sum += at(Q[which], queryRow + d) * at(K[which], keyRow(key) + d);
    scores[key] = sum / Math.sqrt(dimension);
    highest = Math.max(highest, scores[key]!);
  }
  const result = new Float64Array(dimension);
  let total = 0;
  for (let key = 0; key <= last; key++) {
    const weight = Math.exp(scores[key]! - highest);
    total += weight;
    for (let d = 0; d < dimension; d++) result[d]! += weight * at(V[which], keyRow(key) + d);
  }
  return result.map((x) => x / total);
}
