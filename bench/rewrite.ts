/**
 * Time and peak memory of rewriting against model size: `npx tsx bench/rewrite.ts`
 * (`--json` prints what it also writes to `bench/results/rewrite.json`).
 *
 * Each measurement is a process of its own. Its peer, in the same run, reads the model file's bytes and writes them
 * again, flushed to the disk, as the rewriter does; of external data neither touches a byte. Two bounds are checked:
 * with inline weights at most twice the peer's time plus 1 s; with external data under 3 s and 300 MB.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { arch, cpus, tmpdir, totalmem, type } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readModelFile, writeModelFile } from '../graph-rewrite/files.js';
import { rewriteModel } from '../graph-rewrite/index.js';
import { writeWholeFile } from '../graph-rewrite/whole-files.js';
import { buildTransformer, type TransformerOptions, writeTransformer } from '../models/builder.js';

/** What one child process reports. */
interface Measurement {
  readonly seconds: number;
  /** Processor time, of all threads: what a busy machine does not change. */
  readonly cpuSeconds: number;
  /** Largest resident set of the process, runtime included. */
  readonly peakMegabytes: number;
  /** Attentions fused. */
  readonly fused: number;
}

interface Result {
  readonly model: TransformerOptions['style'];
  readonly weights: 'inline' | 'external';
  /** Weights and graph, wherever they are. */
  readonly megabytes: number;
  readonly nodes: number;
  readonly layers: number;
  readonly peer: Measurement;
  readonly rewrite: Measurement;
  /** Rewrite time as a multiple of the peer's. */
  readonly ratio: number;
  readonly holds: boolean;
}

const MEGABYTE = 1e6;
const ROUNDS = 3;

/** Layers that give about this many megabytes of float32 weights at width 1,024. */
const layersFor = (megabytes: number) => Math.max(1, Math.round(megabytes / 50.4));

const CASES: readonly { megabytes: number; weights: 'inline' | 'external'; style: TransformerOptions['style'] }[] = [
  { megabytes: 50, weights: 'inline', style: 'dynamo' },
  { megabytes: 200, weights: 'inline', style: 'dynamo' },
  { megabytes: 200, weights: 'inline', style: 'torchscript' },
  { megabytes: 800, weights: 'inline', style: 'dynamo' },
  { megabytes: 200, weights: 'external', style: 'dynamo' },
  { megabytes: 1000, weights: 'external', style: 'dynamo' },
  { megabytes: 3000, weights: 'external', style: 'dynamo' },
  { megabytes: 3000, weights: 'external', style: 'torchscript' },
];

/** What is measured, in a child process; gives the number of attentions fused. */
const STEPS: Readonly<Record<string, (input: string, output: string) => Promise<number>>> = {
  async peer(input, output) {
    await writeWholeFile(output, [readFileSync(input)]);
    return 0;
  },
  async rewrite(input, output) {
    const model = readModelFile(input);
    const report = rewriteModel(model);
    await writeModelFile(output, model, { source: input });
    return report.sites.filter((site) => site.fused).length;
  },
};

async function child(step: string, input: string, output: string): Promise<void> {
  const start = performance.now();
  const cpu = process.cpuUsage();
  const fused = await STEPS[step]!(input, output);
  const seconds = (performance.now() - start) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  const cpuSeconds = (user + system) / 1e6;
  const peakMegabytes = peakBytes() / MEGABYTE;
  process.stdout.write(JSON.stringify({ seconds, cpuSeconds, peakMegabytes, fused } satisfies Measurement));
}

/** This process's largest resident set. Linux's resource usage includes the parent's up to the fork, its status not. */
function peakBytes(): number {
  const status = existsSync('/proc/self/status') ? readFileSync('/proc/self/status', 'utf8') : '';
  const kibibytes = /^VmHWM:\s*(\d+) kB/m.exec(status)?.[1] ?? process.resourceUsage().maxRSS;
  return Number(kibibytes) * 1024;
}

/** The median time and the largest memory of several runs. */
function measure(step: string, input: string, output: string): Measurement {
  const self = fileURLToPath(import.meta.url);
  const runs = Array.from({ length: ROUNDS }, () => {
    const text = execFileSync(process.execPath, [...process.execArgv, self, '--child', step, input, output]);
    return JSON.parse(text.toString()) as Measurement;
  });
  const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(ROUNDS / 2)]!;
  return {
    seconds: median(runs.map((run) => run.seconds)),
    cpuSeconds: median(runs.map((run) => run.cpuSeconds)),
    peakMegabytes: Math.max(...runs.map((run) => run.peakMegabytes)),
    fused: runs[0]!.fused,
  };
}

async function runCase(folder: string, { megabytes, weights, style }: (typeof CASES)[number]): Promise<Result> {
  const options: TransformerOptions = {
    style,
    layers: layersFor(megabytes),
    width: 1024,
    heads: 16,
    paddingMask: true,
  };
  const input = join(folder, 'model.onnx');
  const external = weights === 'external';
  await (external ? writeTransformer(input, options) : writeModelFile(input, buildTransformer(options)));
  const model = readModelFile(input);
  const size = statSync(input).size + (external ? statSync(join(folder, 'model.data')).size : 0);
  const out = join(folder, 'out');
  mkdirSync(out, { recursive: true });
  const peer = measure('peer', input, join(out, 'peer.onnx'));
  const rewrite = measure('rewrite', input, join(out, 'model.onnx'));
  return {
    model: style,
    weights,
    megabytes: size / MEGABYTE,
    nodes: model.graph!.node.length,
    layers: options.layers,
    peer,
    rewrite,
    ratio: rewrite.seconds / peer.seconds,
    holds: external ? rewrite.seconds < 3 && rewrite.peakMegabytes < 300 : rewrite.seconds <= 2 * peer.seconds + 1,
  };
}

function printTable(results: readonly Result[]): void {
  const rows = results.map((r) => [
    r.model,
    r.weights,
    r.megabytes.toFixed(0),
    String(r.nodes),
    `${r.rewrite.fused}/${r.layers}`,
    r.peer.seconds.toFixed(2),
    r.rewrite.seconds.toFixed(2),
    r.rewrite.cpuSeconds.toFixed(2),
    r.peer.peakMegabytes.toFixed(0),
    r.rewrite.peakMegabytes.toFixed(0),
    r.holds ? 'yes' : 'NO',
  ]);
  const head = [
    'model',
    'weights',
    'MB',
    'nodes',
    'fused',
    'read+write s',
    'rewrite s',
    'its CPU s',
    'read+write MB',
    'rewrite MB',
    'within bounds',
  ];
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]!.length)));
  for (const row of [head, ...rows]) console.log(row.map((cell, i) => cell.padStart(widths[i]!)).join('  '));
}

async function main(): Promise<void> {
  const results: Result[] = [];
  for (const example of CASES) {
    const folder = mkdtempSync(join(tmpdir(), 'ort-flash-bench-'));
    try {
      results.push(await runCase(folder, example));
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  const machine = `${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} threads, ${Math.round(totalmem() / 2 ** 30)} GiB`;
  const report = {
    subject: 'rewrite',
    date: new Date().toISOString().slice(0, 10),
    machine,
    system: `${type()} ${arch()}`,
    versions: { node: process.versions.node },
    results,
  };
  if (process.argv.includes('--json')) console.log(JSON.stringify(report));
  else printTable(results);
  const file = join(dirname(fileURLToPath(import.meta.url)), 'results', 'rewrite.json');
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(report, null, 2)}\n`);
  if (results.some((result) => !result.holds)) process.exitCode = 1;
}

const [flag, step, input, output] = process.argv.slice(2);
await (flag === '--child' ? child(step!, input!, output!) : main());
