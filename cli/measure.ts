/**
 * Measures one model at one length in a process of its own, so that its peak memory is nobody else's:
 * `node measure.js MODEL LENGTH RUNS`; prints a {@link Measurement} as JSON.
 */
import { execFile } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export interface Measurement {
  /** Largest resident memory of the process during the run, less what it had before: bytes. */
  readonly peakBytes: number;
  /** Median time of a run, in milliseconds. */
  readonly milliseconds: number;
}

/** Runs `model`, whose lengths are all set to `length`, `runs` times with batch 1 in a child process. */
export async function measureInChild(model: string, length: number, runs: number): Promise<Measurement> {
  const args = [...process.execArgv, fileURLToPath(import.meta.url), model, String(length), String(runs)];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  return JSON.parse(stdout) as Measurement;
}

async function measure(path: string, length: number, runs: number): Promise<Measurement> {
  const { createSession, readModel, runModel } = await import('./verify/models.js');
  const { readSignature } = await import('./verify/signature.js');
  const { hypotheses } = await import('./verify/sizes.js');
  const { Random } = await import('./verify/inputs.js');
  const { makeFeeds } = await import('./verify/values.js');
  const signature = readSignature(readModel(path), path);
  const session = await createSession(path, 'the model');
  const sizes = { batch: 1, length, past: 0, pixels: length, samples: length, patterns: ['full'] } as const;
  const feeds = makeFeeds(signature, hypotheses(signature, undefined).at(-1)!.bind(sizes), sizes, new Random(1));
  if (!feeds) throw new Error('the sizes of its dimensions are unknown');
  const before = process.memoryUsage.rss();
  const peak = resetPeak();
  const times: number[] = [];
  let peakBytes = 0;
  for (let run = 0; run < runs; run++) {
    const start = performance.now();
    const outputs = await runModel(session, feeds);
    if (typeof outputs === 'string') throw new Error(outputs);
    times.push(performance.now() - start);
    if (run === 0) peakBytes = Math.max(0, peak() - before);
  }
  times.sort((a, b) => a - b);
  return { peakBytes, milliseconds: times[Math.floor(times.length / 2)]! };
}

/**
 * Starts the peak of resident memory afresh where the system can (Linux, proc(5): clear_refs 5, VmHWM), so that
 * loading the model does not hide a smaller peak of a run. Elsewhere the peak is that of the whole process.
 * @returns what reads the peak, in bytes
 */
function resetPeak(): () => number {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
    return () => Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;
  } catch {
    return () => process.resourceUsage().maxRSS * 1024;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , model = '', length, runs] = process.argv;
  process.stdout.write(JSON.stringify(await measure(model, Number(length), Number(runs))));
}
