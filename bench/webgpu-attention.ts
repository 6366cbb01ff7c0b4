/**
 * Attention on WebGPU: this project's kernels against ONNX Runtime's MultiHeadAttention and decomposed attention, same
 * device, same buffers, same run; and as a share of ceilings measured here. Under Node, over Dawn:
 *
 *     ORT_FLASH_GPU=1 npx tsx bench/webgpu-attention.ts [--variants] [--only TEXT] [--budget SECONDS] [--out FILE] [--json]
 *
 * Without ORT_FLASH_GPU it runs small cases on SwiftShader. `--variants` times what the planner could choose instead,
 * case by case, without ONNX Runtime; `--only` keeps the cases whose name (of variants, name and choice) has every word of
 * TEXT in it. Results are written after every case, and a case that fails, or does not fit the budget, costs only itself.
 *
 * Our times are GPU time: timestamp queries around many calls in one pass, warmed up, median of three passes. ONNX
 * Runtime's passes cannot be reached: its time is wall-clock time of many runs without waiting in between. On
 * SwiftShader both are processor time, of all threads.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { arch, cpus, type as system } from 'node:os';
import { dirname } from 'node:path';
import { parseArgs } from 'node:util';
import { FlashAttention, type PlanOptions } from '../kernels-wgsl/index.js';
import { openDevice } from '../kernels-wgsl/testing/device.js';
import { type Case, goalCases, type Peer, problemOf } from './webgpu/cases.js';
import { type Ceilings, measureCeilings } from './webgpu/ceilings.js';
import { type CallError, createTimer, measureError, poison, randomTensor, timeRuns } from './webgpu/measure.js';
import { loadOrtWeb, type OrtWeb, ortAttention } from './webgpu/ort-web.js';
import { variantsOf } from './webgpu/variants.js';

const { values: flags } = parseArgs({
  options: {
    variants: { type: 'boolean' },
    only: { type: 'string' },
    budget: { type: 'string' },
    out: { type: 'string' },
    json: { type: 'boolean' },
  },
});

interface Row {
  readonly case: string;
  readonly kernel: string;
  readonly choice: PlanOptions;
  readonly milliseconds: number;
  /** TFLOP/s; GB/s of keys and values where decoding. */
  readonly rate: number;
  readonly shareOfCeiling: number | undefined;
  readonly error: CallError;
  readonly peers: Partial<Record<Peer, { readonly milliseconds: number; readonly times: number }>>;
}

interface Failure {
  readonly case: string;
  readonly failure: string;
}

const started = performance.now();
const { device, gpu, adapter, isHardware } = await openDevice();
const flash = FlashAttention.create(device, { adapterInfo: adapter.info });
const isSoftware = !isHardware;
const time = createTimer(device, { isSoftware, isQuick: flags.variants ?? false });
const budget = Number(flags.budget ?? (isSoftware ? 3600 : 230)) * 1000;
const out = flags.out ?? resultFile();
const rows: (Row | Failure)[] = [];
let isLost = false;
device.lost.then(() => {
  isLost = true;
});

function resultFile(): string {
  const name = isSoftware ? 'webgpu-attention-swiftshader' : 'webgpu-attention';
  return `bench/results/${name}${flags.variants ? '-variants' : ''}.json`;
}

/** What gives no answer must not keep the others from being measured. */
function withDeadline<T>(result: Promise<T>): Promise<T> {
  const seconds = isSoftware ? 900 : 60;
  const late = new Promise<never>((_, reject) => {
    setTimeout(() => reject(new Error(`no answer within ${seconds} s`)), seconds * 1000).unref();
  });
  return Promise.race([result, late]);
}

/** Our kernel on one case: its time, and its error on sampled rows; then ONNX Runtime on the same buffers. */
async function run(c: Case, ceilings: Ceilings | undefined, ort: OrtWeb | undefined): Promise<Row> {
  const prepared = await flash.prepare(problemOf(c), c.options);
  const bytes = prepared.plan.tensorBytes;
  // Decoding is told from memory by giving every call other keys and values than the caches may hold.
  const sets = c.queries === 1 && !isSoftware ? 6 : 1;
  const Q = randomTensor(device, c.type, 'Q', bytes.Q!);
  const K = randomTensor(device, c.type, 'K', bytes.K! * sets);
  const V = randomTensor(device, c.type, 'V', bytes.V! * sets);
  const Y = device.createBuffer({
    size: bytes.Y!,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
  });
  try {
    poison(device, Y);
    await device.queue.onSubmittedWorkDone();
    const calls = Array.from({ length: sets }, (_, i) => ({
      Q: { buffer: Q.buffer },
      K: { buffer: K.buffer, offset: i * bytes.K! },
      V: { buffer: V.buffer, offset: i * bytes.V! },
      Y: { buffer: Y },
    }));
    device.pushErrorScope('validation');
    const encoder = device.createCommandEncoder();
    flash.encode(prepared, encoder, calls[0]!);
    device.queue.submit([encoder.finish()]);
    const invalid = await device.popErrorScope();
    if (invalid !== null) throw new Error(invalid.message);
    const error = await measureError(device, c, { Q, K, V }, Y);
    const milliseconds = await time((pass, i) => flash.encode(prepared, pass, calls[i % sets]!));
    const peers: Row['peers'] = {};
    if (ort !== undefined)
      for (const form of c.peers)
        try {
          const theirs = await withDeadline(timePeer(ort, c, form, { Q: Q.buffer, K: K.buffer, V: V.buffer }));
          Object.assign(peers, { [form]: { milliseconds: theirs, times: theirs / milliseconds } });
        } catch (why) {
          process.stderr.write(`${c.name}: ONNX Runtime's ${form}: ${String(why).split('\n')[0]}\n`);
        }
    const isDecode = c.queries === 1;
    const pairs = c.queries * c.keys * (c.isCausal ? 0.5 : 1);
    const { kernel } = prepared.plan;
    const ceiling =
      ceilings && (isDecode ? ceilings.copy : kernel === 'prefill-matrix' ? ceilings.matrix : ceilings[c.type]);
    const rate = isDecode
      ? (bytes.K! + bytes.V!) / milliseconds / 1e6
      : (4 * c.heads * pairs * c.dimension) / milliseconds / 1e9;
    const shareOfCeiling = ceiling && rate / ceiling;
    return { case: c.name, kernel, choice: c.options, milliseconds, rate, shareOfCeiling, error, peers };
  } finally {
    for (const buffer of [Q.buffer, K.buffer, V.buffer, Y]) buffer.destroy();
  }
}

async function timePeer(
  ort: OrtWeb,
  c: Case,
  form: Peer,
  inputs: { readonly Q: GPUBuffer; readonly K: GPUBuffer; readonly V: GPUBuffer },
): Promise<number> {
  const { type, heads, dimension, keys: tokens, isCausal } = c;
  const peer = await ortAttention(ort, device, form, { type, heads, dimension, tokens, isCausal }, inputs);
  const milliseconds = await timeRuns(device, peer.run, isSoftware);
  await peer.release();
  return milliseconds;
}

function save(ceilings: Ceilings | undefined): object {
  const report = {
    date: new Date().toISOString(),
    command: `${isHardware ? 'ORT_FLASH_GPU=1 ' : ''}npx tsx bench/webgpu-attention.ts${flags.variants ? ' --variants' : ''}${flags.only ? ` --only ${JSON.stringify(flags.only)}` : ''}`,
    machine: {
      system: system(),
      arch: arch(),
      cpu: cpus()[0]?.model,
      adapter: adapter.info.description,
      vendor: adapter.info.vendor,
    },
    versions: { node: process.version, 'onnxruntime-web': '1.30.0', webgpu: '0.6.2' },
    clock: isSoftware ? 'processor time of all threads' : 'ours: timestamp queries; ONNX Runtime: wall-clock time',
    seconds: Math.round((performance.now() - started) / 1000),
    ...(ceilings && { ceilings }),
    rows,
  };
  mkdirSync(dirname(out), { recursive: true });
  writeFileSync(out, `${JSON.stringify(report, null, 1)}\n`);
  return report;
}

const number = (x: number | undefined, digits: number) => (x === undefined ? '' : x.toFixed(digits));

function line(row: Row): string {
  const peers = Object.entries(row.peers).map(
    ([name, p]) => `${p.times.toFixed(2)}× ${name} (${p.milliseconds.toFixed(2)} ms)`,
  );
  const { ofScale, ofRounding } = row.error;
  const error = `error ${ofScale.toExponential(1)}${ofRounding === undefined ? '' : ` (${ofRounding.toFixed(2)}× rounding)`}`;
  const share = row.shareOfCeiling === undefined ? '' : `(${number(row.shareOfCeiling * 100, 0)} %)`;
  const choice = Object.keys(row.choice).length > 0 ? JSON.stringify(row.choice) : '';
  return `${row.case.padEnd(38)} ${number(row.milliseconds, 3).padStart(9)} ms ${number(row.rate, row.rate < 1 ? 4 : 1).padStart(8)} ${share} ${row.kernel}, ${error} ${peers.join(', ')} ${choice}`;
}

const say = (text: string) => process[flags.json ? 'stderr' : 'stdout'].write(`${text}\n`);

let ceilings: Ceilings | undefined;
let ort: OrtWeb | undefined;
// Node must not take a pause in which only the GPU works for the end of the program.
setInterval(() => undefined, 60_000);
if (isHardware) {
  try {
    ceilings = await withDeadline(measureCeilings(device, time, 8192));
    say(
      `ceilings: f32 ${number(ceilings.float32, 1)}, f16 ${number(ceilings.float16, 1)}, matrix ${number(ceilings.matrix, 0)} TFLOP/s, copy ${number(ceilings.copy, 0)} GB/s`,
    );
  } catch (why) {
    say(`ceilings: ${String(why).split('\n')[0]}`);
  }
}
if (!flags.variants) {
  try {
    ort = await withDeadline(loadOrtWeb(gpu));
  } catch (why) {
    say(`ONNX Runtime: ${String(why).split('\n')[0]}`);
  }
}
const wantedWords = (flags.only ?? '').split(' ');
const cases = (flags.variants ? variantsOf(flash.facts) : goalCases(flash.facts)).filter(({ name, options }) => {
  const text = flags.variants ? `${name} ${JSON.stringify(options)}` : name;
  return wantedWords.every((word) => text.includes(word));
});
for (const c of cases) {
  try {
    if (isLost) throw new Error('the device is lost');
    if (performance.now() - started > budget) throw new Error('no time left');
    const row = await withDeadline(run(c, ceilings, ort));
    rows.push(row);
    say(line(row));
  } catch (why) {
    const failure = String(why instanceof Error ? why.message : why).slice(0, 300);
    rows.push({ case: c.name, failure });
    say(`${c.name.padEnd(38)} failed: ${failure.split('\n')[0]} ${JSON.stringify(c.options)}`);
  }
  save(ceilings);
}
if (flags.json) process.stdout.write(`${JSON.stringify(save(ceilings))}\n`);
process.exit(rows.some((row) => 'failure' in row) ? 1 : 0);
