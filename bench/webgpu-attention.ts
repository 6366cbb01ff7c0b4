/**
 * Attention on WebGPU: this project's kernels against ONNX Runtime's MultiHeadAttention and decomposed attention, same
 * device, same buffers, same run; and as a share of ceilings measured here. Under Node, over Dawn:
 *
 *     ORT_FLASH_GPU=1 npx tsx bench/webgpu-attention.ts [--quick] [--json]
 *
 * Our times are GPU time: timestamp queries around many calls in one pass, warmed up, median of three passes. ONNX
 * Runtime's passes cannot be reached: its time is wall-clock time of many runs without waiting in between.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { arch, cpus, type as system } from 'node:os';
import { parseArgs } from 'node:util';
import { DEFAULT_ATTRIBUTES } from '../graph-rewrite/op/definition.js';
import { encodeHalf } from '../graph-rewrite/op/half.js';
import { type AttentionProblem, resolveProblem } from '../graph-rewrite/op/problem.js';
import { FlashAttention, type PlanOptions } from '../kernels-wgsl/index.js';
import { openDevice } from '../kernels-wgsl/testing/device.js';
import { randomNumbers } from '../kernels-wgsl/testing/problems.js';
import { measureCeilings, type Timer } from './gpu-ceilings.js';
import { loadOrtWeb, ortAttention } from './ort-web.js';

const { values: flags } = parseArgs({ options: { quick: { type: 'boolean' }, json: { type: 'boolean' } } });

interface Case {
  readonly name: string;
  readonly type: 'float16' | 'float32';
  readonly heads: number;
  readonly keyHeads: number;
  readonly queries: number;
  readonly keys: number;
  readonly dimension: number;
  readonly isCausal?: boolean;
  readonly options?: PlanOptions;
  /** ONNX Runtime's forms to run beside; the decomposed one takes memory quadratic in the tokens. */
  readonly peers: readonly ('MultiHeadAttention' | 'decomposed')[];
}

interface Row {
  readonly case: string;
  readonly kernel: string;
  readonly choice: PlanOptions;
  readonly milliseconds: number;
  /** TFLOP/s; GB/s of keys and values where decoding. */
  readonly rate: number;
  readonly shareOfCeiling: number | undefined;
  readonly peers: Readonly<Record<string, { readonly milliseconds: number; readonly times: number }>>;
}

const { device, gpu, adapter, isHardware } = await openDevice();
const flash = FlashAttention.create(device, { adapterInfo: adapter.info });
const ort = await loadOrtWeb(gpu);

/** GPU time where the device has timestamps, wall-clock time otherwise; of one call, in milliseconds. */
const time: Timer = async (encode) => {
  const hasTimestamps = device.features.has('timestamp-query');
  const measure = async (calls: number) => {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass(
      hasTimestamps ? { timestampWrites: { querySet, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 } } : {},
    );
    for (let i = 0; i < calls; i++) encode(pass, i);
    pass.end();
    if (hasTimestamps) {
      encoder.resolveQuerySet(querySet, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, readback, 0, 16);
    }
    const start = performance.now();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    const wall = performance.now() - start;
    if (!hasTimestamps) return wall / calls;
    await readback.mapAsync(GPUMapMode.READ);
    const [from, to] = new BigInt64Array(readback.getMappedRange().slice(0));
    readback.unmap();
    return Number(to! - from!) / 1e6 / calls;
  };
  const once = await measure(1);
  const calls = Math.max(1, Math.min(400, Math.ceil((flags.quick ? 10 : 25) / once)));
  const start = performance.now();
  do await measure(calls);
  while (performance.now() - start < (flags.quick ? 20 : 200));
  const times = [await measure(calls), await measure(calls), await measure(calls)].sort((a, b) => a - b);
  return times[1]!;
};
const querySet = device.createQuerySet({ type: 'timestamp', count: 2 });
const resolved = device.createBuffer({ size: 16, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
const readback = device.createBuffer({ size: 16, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });

/** Wall-clock time of one run, many without waiting in between. */
async function timeRuns(run: () => Promise<void>): Promise<number> {
  await run();
  await device.queue.onSubmittedWorkDone();
  const measure = async (runs: number) => {
    const start = performance.now();
    for (let i = 0; i < runs; i++) await run();
    await device.queue.onSubmittedWorkDone();
    return (performance.now() - start) / runs;
  };
  const once = await measure(1);
  const runs = Math.max(1, Math.min(50, Math.ceil((flags.quick ? 10 : 150) / once)));
  const times = [await measure(runs), await measure(runs), await measure(runs)].sort((a, b) => a - b);
  return times[1]!;
}

/** A peer that gives no answer must not keep the others from being measured. */
function withDeadline<T>(result: Promise<T>): Promise<T> {
  const late = new Promise<never>((_, reject) => {
    setTimeout(() => reject(new Error('no answer within a minute')), 60_000).unref();
  });
  return Promise.race([result, late]);
}

const random = randomNumbers(1);
function randomBuffer(type: Case['type'], bytes: number): GPUBuffer {
  const buffer = device.createBuffer({
    size: bytes,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
  });
  const floats = Float32Array.from({ length: 1 << 18 }, () => (random() + random() + random() - 1.5) * 2);
  const pattern = new Uint8Array((type === 'float16' ? encodeHalf(floats, 'float16') : floats).buffer as ArrayBuffer);
  for (let at = 0; at < bytes; at += pattern.length)
    device.queue.writeBuffer(buffer, at, pattern, 0, Math.min(pattern.length, bytes - at));
  return buffer;
}

function resolve(c: Case): AttentionProblem {
  const shape = (heads: number, tokens: number) => ({ type: c.type, shape: [1, tokens, heads * c.dimension] }) as const;
  const layout = 'BS(HD)';
  return resolveProblem(
    {
      ...DEFAULT_ATTRIBUTES,
      isCausal: c.isCausal ?? false,
      alignEnd: true,
      queryHeads: c.heads,
      keyHeads: c.keyHeads,
      queryLayout: layout,
      keyLayout: c.queries > 1 ? layout : 'BHSD',
      valueLayout: c.queries > 1 ? layout : 'BHSD',
      outputLayout: layout,
    },
    {
      Q: shape(c.heads, c.queries),
      K: c.queries > 1 ? shape(c.keyHeads, c.keys) : { type: c.type, shape: [1, c.keyHeads, c.keys, c.dimension] },
      V: c.queries > 1 ? shape(c.keyHeads, c.keys) : { type: c.type, shape: [1, c.keyHeads, c.keys, c.dimension] },
    },
  );
}

async function run(c: Case): Promise<Row> {
  const problem = resolve(c);
  const choice = { ...(c.options?.kernel === undefined ? await flash.autotune(problem) : {}), ...c.options };
  const prepared = await flash.prepare(problem, choice);
  const bytes = prepared.plan.tensorBytes;
  // Decoding is told from memory by giving every call other keys and values than the caches may hold.
  const sets = c.queries === 1 ? 6 : 1;
  const Q = randomBuffer(c.type, bytes.Q!);
  const K = randomBuffer(c.type, bytes.K! * sets);
  const V = randomBuffer(c.type, bytes.V! * sets);
  const Y = randomBuffer(c.type, bytes.Y!);
  await device.queue.onSubmittedWorkDone();
  const calls = Array.from({ length: sets }, (_, i) => ({
    Q: { buffer: Q },
    K: { buffer: K, offset: i * bytes.K! },
    V: { buffer: V, offset: i * bytes.V! },
    Y: { buffer: Y },
  }));
  const milliseconds = await time((pass, i) => flash.encode(prepared, pass, calls[i % sets]!));
  const peers: Record<string, { milliseconds: number; times: number }> = {};
  for (const form of c.peers) {
    try {
      const shape = { type: c.type, heads: c.heads, dimension: c.dimension, tokens: c.keys };
      const peer = await ortAttention(ort, device, form, shape, { Q, K, V });
      const theirs = await withDeadline(timeRuns(peer.run));
      peers[form] = { milliseconds: theirs, times: theirs / milliseconds };
      await peer.release();
    } catch (error) {
      process.stderr.write(`${c.name}: ONNX Runtime's ${form}: ${String(error).split('\n')[0]}\n`);
    }
  }
  for (const buffer of [Q, K, V, Y]) buffer.destroy();
  const flops = 4 * c.heads * c.queries * c.keys * c.dimension * (c.isCausal ? 0.5 : 1);
  const isDecode = c.queries === 1;
  const { kernel } = prepared.plan;
  const ceiling = isDecode ? ceilings.copy : kernel === 'prefill-matrix' ? ceilings.matrix : ceilings[c.type];
  const rate = isDecode ? (bytes.K! + bytes.V!) / milliseconds / 1e6 : flops / milliseconds / 1e9;
  return { case: c.name, kernel, choice, milliseconds, rate, shareOfCeiling: ceiling && rate / ceiling, peers };
}

function cases(): Case[] {
  const list: Case[] = [];
  const add = (type: Case['type'], heads: number, dimension: number, tokens: number, extra: Partial<Case> = {}) =>
    list.push({
      name: `${type} ${heads}×${dimension}, ${tokens}${extra.isCausal ? ' causal' : ''}${extra.options ? ' portable' : ''}`,
      type,
      heads,
      keyHeads: heads,
      queries: tokens,
      keys: tokens,
      dimension,
      peers: extra.isCausal ? [] : tokens === 4096 ? ['MultiHeadAttention', 'decomposed'] : ['MultiHeadAttention'],
      ...extra,
    });
  const types: Case['type'][] = flash.facts.halfFloats ? ['float16', 'float32'] : ['float32'];
  const shapes = [
    [32, 64],
    [16, 128],
  ] as const;
  const lengths = isHardware ? [512, 4096, 8192] : [256];
  for (const type of types) {
    for (const [heads, dimension] of isHardware ? shapes : ([[2, 64]] as const)) {
      for (const tokens of lengths) add(type, heads, dimension, tokens);
      if (type === 'float16') {
        add(type, heads, dimension, 8192, { isCausal: true });
        add(type, heads, dimension, 4096, { options: { kernel: 'prefill' }, peers: [] });
      }
    }
  }
  if (isHardware) add('float16', 16, 128, 65536, { peers: [] });
  for (const keys of isHardware ? [8192, 65536] : [1024])
    list.push({
      name: `${types[0]} decode 32 on 8×128, ${keys}`,
      type: types[0]!,
      heads: 32,
      keyHeads: 8,
      queries: 1,
      keys,
      dimension: 128,
      peers: [],
    });
  return list;
}

const ceilings = await measureCeilings(device, time, isHardware ? 8192 : 4);
const rows: Row[] = [];
for (const c of cases()) {
  if (process.stderr.isTTY) process.stderr.write(`${c.name}\n`);
  rows.push(await run(c));
}

const report = {
  date: new Date().toISOString(),
  command: 'ORT_FLASH_GPU=1 npx tsx bench/webgpu-attention.ts',
  machine: {
    system: system(),
    arch: arch(),
    cpu: cpus()[0]?.model,
    adapter: adapter.info.description,
    vendor: adapter.info.vendor,
  },
  versions: { node: process.version, 'onnxruntime-web': '1.30.0', webgpu: '0.6.2' },
  ceilings,
  rows,
};
mkdirSync('bench/results', { recursive: true });
if (isHardware) writeFileSync('bench/results/webgpu-attention.json', `${JSON.stringify(report, null, 1)}\n`);
if (flags.json) process.stdout.write(`${JSON.stringify(report)}\n`);
else {
  const n = (x: number | undefined, digits: number) => (x === undefined ? '' : x.toFixed(digits));
  process.stdout.write(
    `ceilings: f32 ${n(ceilings.float32, 1)}, f16 ${n(ceilings.float16, 1)}, matrix ${n(ceilings.matrix, 0)} TFLOP/s, copy ${n(ceilings.copy, 0)} GB/s\n`,
  );
  for (const row of rows) {
    const peers = Object.entries(row.peers).map(
      ([name, p]) => `${p.times.toFixed(2)}× ${name} (${p.milliseconds.toFixed(2)} ms)`,
    );
    process.stdout.write(
      `${row.case.padEnd(34)} ${n(row.milliseconds, 3).padStart(9)} ms ${n(row.rate, 1).padStart(8)} (${n((row.shareOfCeiling ?? 0) * 100, 0)} %) ${row.kernel} ${peers.join(', ')} ${JSON.stringify(row.choice)}\n`,
    );
  }
}
device.destroy();
process.exit(0);
