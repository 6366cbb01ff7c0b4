/**
 * What a run costs beside the model, `ort-flash/node` against onnxruntime-node in one process: `npx tsx
 * bench/node-session.ts` (`--json` prints what it also writes to `bench/results/node-session.json`).
 *
 * The model hands its input back, so a run is all cost: checks, copies, and the way to another thread and back, which
 * onnxruntime-node does not take. Also: how late a timer of 1 ms is at worst during one long run; onnxruntime-node
 * computes on the thread of the event loop, so its timer is as late as the run is long.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { arch, cpus, totalmem, type } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { InferenceSession as OrtSession, Tensor } from 'onnxruntime-node';
import { InferenceSession } from '../kernels-cuda/index.js';
import { identityModel, powerModel } from '../kernels-cuda/test-models.js';

const SIZES = [4, 16 << 10, 256 << 10, 4 << 20, 16 << 20];
type Name = 'ort-flash' | 'onnxruntime-node';
const NAMES: readonly Name[] = ['ort-flash', 'onnxruntime-node'];

interface RunCost {
  /** Of the input and of the output. */
  readonly bytes: number;
  /** Medians, in microseconds. */
  readonly microseconds: Readonly<Record<Name, number>>;
  readonly ratio: number;
}

interface LoopDelay {
  /** What the session is doing. */
  readonly work: string;
  /** In milliseconds. */
  readonly run: Readonly<Record<Name, number>>;
  /** The worst delay of a timer of 1 ms in that time, in milliseconds: the least of several runs. */
  readonly worst: Readonly<Record<Name, number>>;
  /** Likewise while the process does nothing for as long: what the machine's other work does to the timer. */
  readonly idle: number;
}

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

const openSession = (name: Name, model: Uint8Array): Promise<OrtSession> =>
  name === 'ort-flash' ? InferenceSession.create(model) : OrtSession.create(model);

async function forEach<T>(make: (name: Name) => Promise<T>): Promise<Record<Name, T>> {
  const entries: [Name, T][] = [];
  for (const name of NAMES) entries.push([name, await make(name)]);
  return Object.fromEntries(entries) as Record<Name, T>;
}

async function runCosts(): Promise<RunCost[]> {
  const sessions = await forEach((name) => openSession(name, identityModel('float32')));
  const costs: RunCost[] = [];
  for (const bytes of SIZES) {
    const x = new Tensor('float32', new Float32Array(bytes / 4), [bytes / 4]);
    const runs = bytes > 1 << 20 ? 40 : 2000;
    const times: Record<Name, number[]> = { 'ort-flash': [], 'onnxruntime-node': [] };
    // By turns, so that what else the machine does falls on both.
    for (let run = -10; run < runs; run++) {
      for (const name of NAMES) {
        const start = performance.now();
        await sessions[name].run({ x });
        if (run >= 0) times[name].push((performance.now() - start) * 1000);
      }
    }
    const microseconds = {
      'ort-flash': median(times['ort-flash']),
      'onnxruntime-node': median(times['onnxruntime-node']),
    };
    costs.push({ bytes, microseconds, ratio: microseconds['ort-flash'] / microseconds['onnxruntime-node'] });
  }
  return costs;
}

/** The worst delay of a timer of 1 ms while `work` is under way. */
async function worstDelay(work: () => Promise<unknown>): Promise<{ run: number; worst: number }> {
  let worst = 0;
  let last = performance.now();
  const tick = () => {
    const now = performance.now();
    worst = Math.max(worst, now - last - 1);
    last = now;
  };
  const timer = setInterval(tick, 1);
  await new Promise((done) => setTimeout(done, 50));
  [worst, last] = [0, performance.now()];
  const start = last;
  await work();
  const run = performance.now() - start;
  tick();
  clearInterval(timer);
  return { run, worst };
}

const ROUNDS = 5;

async function leastOf(measure: () => ReturnType<typeof worstDelay>): ReturnType<typeof worstDelay> {
  let least = await measure();
  for (let round = 1; round < ROUNDS; round++) {
    const next = await measure();
    if (next.worst < least.worst) least = next;
  }
  return least;
}

async function loopDelays(): Promise<LoopDelay[]> {
  const size = 768;
  const matrix = new Tensor('float32', new Float32Array(size * size).fill(1 / size), [size, size]);
  const large = new Tensor('float32', new Float32Array(16 << 20), [16 << 20]);
  const works: [string, Uint8Array, Tensor][] = [
    ['40 products of 768×768 matrices', powerModel(40), matrix],
    ['64 MiB in and out', identityModel('float32'), large],
  ];
  const delays: LoopDelay[] = [];
  for (const [work, model, x] of works) {
    const sessions = await forEach((name) => openSession(name, model));
    const measured = await forEach((name) => leastOf(() => worstDelay(() => sessions[name].run({ x }))));
    const wait = measured['ort-flash'].run;
    const idle = await leastOf(() => worstDelay(() => new Promise((done) => setTimeout(done, wait))));
    const pick = (field: 'run' | 'worst') =>
      Object.fromEntries(NAMES.map((name) => [name, measured[name][field]])) as Record<Name, number>;
    delays.push({ work, run: pick('run'), worst: pick('worst'), idle: idle.worst });
  }
  return delays;
}

function size(bytes: number): string {
  return bytes >= 1 << 20 ? `${bytes >> 20} MiB` : bytes >= 1 << 10 ? `${bytes >> 10} KiB` : `${bytes} bytes`;
}

const costs = await runCosts();
const delays = await loopDelays();
const report = {
  subject: 'node-session',
  date: new Date().toISOString().slice(0, 10),
  machine: `${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} threads, ${Math.round(totalmem() / 2 ** 30)} GiB`,
  system: `${type()} ${arch()}`,
  versions: { node: process.versions.node },
  costs,
  delays,
};
if (process.argv.includes('--json')) console.log(JSON.stringify(report));
else {
  for (const { bytes, microseconds, ratio } of costs) {
    const [ours, theirs] = NAMES.map((name) => `${microseconds[name].toFixed(0)} µs`);
    console.log(`${size(bytes).padStart(8)}: ${ours} a run, onnxruntime-node ${theirs} (${ratio.toFixed(2)})`);
  }
  for (const { work, run, worst, idle } of delays) {
    const [ours, theirs] = NAMES.map((name) => `${worst[name].toFixed(1)} ms late in ${run[name].toFixed(0)} ms`);
    console.log(`${work}: ${ours}, onnxruntime-node ${theirs}; idle, ${idle.toFixed(1)} ms`);
  }
}
const folder = join(dirname(fileURLToPath(import.meta.url)), 'results');
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'node-session.json'), `${JSON.stringify(report, null, 2)}\n`);
