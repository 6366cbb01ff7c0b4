/**
 * What a run costs beside the model, `ort-flash/node` against onnxruntime-node in one process: `npx tsx
 * bench/node-session.ts` (`--json` prints what it also writes to `bench/results/node-session.json`).
 *
 * The model hands its input back, so a run is all cost: checks, copies, and the way to another thread and back, which
 * onnxruntime-node does not take. Also: how late a timer of 1 ms is at worst during one long run; onnxruntime-node
 * computes on the thread of the event loop, so its timer is as late as the run is long. All that is compared is measured
 * by turns, several times, and the least counts: what else the machine does only adds.
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
  /** A run's time as a rule: medians, in microseconds. */
  readonly microseconds: Readonly<Record<Name, number>>;
  readonly ratio: number;
  /** A run's part in the time of many, which freeing their results takes part of: means, in microseconds. */
  readonly means: Readonly<Record<Name, number>>;
  readonly ratioOfMeans: number;
}

interface LoopDelay {
  /** What the session is doing. */
  readonly work: string;
  /** In milliseconds. */
  readonly run: Readonly<Record<Name, number>>;
  /** The worst delay of a timer of 1 ms in that time, in milliseconds: the least of several times. */
  readonly worst: Readonly<Record<Name, number>>;
  /** Likewise while the process does nothing for as long, in between: what the machine does to the timer by itself. */
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

const ROUNDS = 15;

/** The least of what each measurement gives, taken by turns. */
async function leastByTurns<K extends string>(
  measures: Readonly<Record<K, () => Promise<number[]>>>,
): Promise<Record<K, number[]>> {
  const names = Object.keys(measures) as K[];
  const least = new Map<K, number[]>();
  for (let round = 0; round < ROUNDS; round++) {
    for (const name of names) {
      const values = await measures[name]();
      const before = least.get(name) ?? values;
      least.set(
        name,
        values.map((value, i) => Math.min(value, before[i]!)),
      );
    }
  }
  return Object.fromEntries(least) as Record<K, number[]>;
}

/** Median and mean of some hundred runs, in microseconds. */
async function timeRuns(session: OrtSession, x: Tensor, runs: number): Promise<[number, number]> {
  const times: number[] = [];
  for (let run = -5; run < runs; run++) {
    const start = performance.now();
    await session.run({ x });
    if (run >= 0) times.push((performance.now() - start) * 1000);
  }
  return [median(times), times.reduce((sum, time) => sum + time, 0) / runs];
}

async function runCosts(): Promise<RunCost[]> {
  const sessions = await forEach((name) => openSession(name, identityModel('float32')));
  const costs: RunCost[] = [];
  for (const bytes of SIZES) {
    const x = new Tensor('float32', new Float32Array(bytes / 4), [bytes / 4]);
    const runs = bytes > 1 << 20 ? 30 : 500;
    const measure = (name: Name) => () => timeRuns(sessions[name], x, runs);
    const least = await leastByTurns({
      'ort-flash': measure('ort-flash'),
      'onnxruntime-node': measure('onnxruntime-node'),
    });
    const pick = (i: number) => ({
      'ort-flash': least['ort-flash'][i]!,
      'onnxruntime-node': least['onnxruntime-node'][i]!,
    });
    const ratio = (values: Readonly<Record<Name, number>>) => values['ort-flash'] / values['onnxruntime-node'];
    const [microseconds, means] = [pick(0), pick(1)];
    costs.push({ bytes, microseconds, ratio: ratio(microseconds), means, ratioOfMeans: ratio(means) });
  }
  return costs;
}

/** How long `work` takes, and the worst delay of a timer of 1 ms while it is under way, in milliseconds. */
async function worstDelay(work: () => Promise<unknown>): Promise<[run: number, worst: number]> {
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
  return [run, worst];
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
    let wait = 0;
    const least = await leastByTurns({
      'ort-flash': async () => {
        const [run, worst] = await worstDelay(() => sessions['ort-flash'].run({ x }));
        wait = run;
        return [run, worst];
      },
      'onnxruntime-node': () => worstDelay(() => sessions['onnxruntime-node'].run({ x })),
      idle: () => worstDelay(() => new Promise((done) => setTimeout(done, wait))),
    });
    const pick = (i: number) => ({
      'ort-flash': least['ort-flash'][i]!,
      'onnxruntime-node': least['onnxruntime-node'][i]!,
    });
    delays.push({ work, run: pick(0), worst: pick(1), idle: least.idle[1]! });
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
  for (const { bytes, microseconds, ratio, means, ratioOfMeans } of costs) {
    const [ours, theirs] = NAMES.map((name) => `${microseconds[name].toFixed(0)} µs`);
    const [mean, theirMean] = NAMES.map((name) => `${means[name].toFixed(0)} µs`);
    console.log(
      `${size(bytes).padStart(8)}: ${ours} a run, onnxruntime-node ${theirs} (${ratio.toFixed(2)}); ` +
        `on average ${mean}, ${theirMean} (${ratioOfMeans.toFixed(2)})`,
    );
  }
  for (const { work, run, worst, idle } of delays) {
    const [ours, theirs] = NAMES.map((name) => `${worst[name].toFixed(1)} ms late in ${run[name].toFixed(0)} ms`);
    console.log(`${work}: ${ours}, onnxruntime-node ${theirs}; idle, ${idle.toFixed(1)} ms`);
  }
}
const folder = join(dirname(fileURLToPath(import.meta.url)), 'results');
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'node-session.json'), `${JSON.stringify(report, null, 2)}\n`);
