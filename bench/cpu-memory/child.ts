/** Measures one model in a process of its own: `node child.js MODEL WAY FORM SIZES`. */
import { readFileSync, writeFileSync } from 'node:fs';
import { InferenceSession as OrtSession } from 'onnxruntime-node';
import type { Measured } from '../cpu-memory.js';
import { FORMS, type Sizes } from './forms.js';
import { feedsOf } from './inputs.js';

const [, , file = '', way = '', name = '', sizes = '{}'] = process.argv;
/** Runs after the first, whose memory is measured: as many as take a second together, but not more than this. */
const MOST_RUNS = 50;

/** The peak of resident memory from now on (Linux, proc(5): clear_refs 5, VmHWM), in bytes. */
function watchPeak(): () => number {
  writeFileSync('/proc/self/clear_refs', '5');
  return () => Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;
}

const Session = way === 'session' ? (await import('../../kernels-cuda/index.js')).InferenceSession : OrtSession;
// One thread, so that processor time is that of the work and not of threads that wait for each other.
const session = await Session.create(file, { intraOpNumThreads: 1 });
const inputs = feedsOf(FORMS.find((form) => form.name === name)!, JSON.parse(sizes) as Sizes);
globalThis.gc?.();
const before = process.memoryUsage.rss();
const peak = watchPeak();
const times: number[] = [];
let peakBytes = 0;
let checksum = 0;
for (let run = 0; run <= MOST_RUNS && times.reduce((sum, time) => sum + time, 0) < 1000; run++) {
  const start = process.cpuUsage();
  const { Y } = await session.run(inputs);
  const { user, system } = process.cpuUsage(start);
  if (run > 0) times.push((user + system) / 1000);
  else {
    peakBytes = peak() - before;
    checksum = (Y!.data as Float32Array).reduce((sum, value) => sum + Math.abs(value), 0);
  }
}
const cpuMilliseconds = times.sort((a, b) => a - b)[Math.floor(times.length / 2)]!;
process.stdout.write(JSON.stringify({ peakBytes, cpuMilliseconds, checksum } satisfies Measured));
process.exit(0);
