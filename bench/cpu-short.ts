/**
 * Processor time of one attention over short sequences on the CPU, in each form that models have it: what `ort-flash rewrite
 * --target ort` writes against the attention as exporters write it, and ONNX Runtime's own operators:
 * `npx tsx bench/cpu-short.ts` (`--json` prints what it also writes to `bench/results/cpu-short.json`).
 *
 * Runs of all ways take turns, each on one thread, so that a busy machine slows them alike. Times are those that a
 * quarter of the runs stay below, which other work on the machine lengthens least.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { arch, cpus, totalmem, type } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { InferenceSession } from 'onnxruntime-node';
import { FORMS, type Form, makeForm, type Sizes, type Way } from './cpu-memory/forms.js';
import { feedsOf } from './cpu-memory/inputs.js';

const WAYS: readonly Way[] = ['decomposed', 'operator', 'target-ort'];
const TOKENS = [16, 64, 128, 256, 512];
const WARM_UP = 3;

interface Row {
  readonly form: string;
  readonly tokens: number;
  readonly runs: number;
  /** Milliseconds that a quarter of the runs stay below. */
  readonly ways: Readonly<Partial<Record<Way, number>>>;
  readonly toDecomposed: number;
}

function lowerQuartile(times: readonly number[]): number {
  return [...times].sort((a, b) => a - b)[Math.floor(times.length / 4)]!;
}

async function measure(form: Form, sizes: Sizes): Promise<Row> {
  const sessions: [Way, InferenceSession][] = [];
  for (const way of WAYS) {
    const model = makeForm(form, way, sizes);
    if (model) sessions.push([way, await InferenceSession.create(model, { intraOpNumThreads: 1 })]);
  }
  const feeds = feedsOf(form, sizes);
  // As many as take some two seconds together at a few GFLOP/s.
  const flops = 4 * sizes.tokens ** 2 * sizes.heads * sizes.dimension;
  const runs = Math.round(Math.min(1000, Math.max(31, 1e10 / flops)));
  const times = new Map<Way, number[]>(sessions.map(([way]) => [way, []]));
  for (let run = 0; run < WARM_UP + runs; run++) {
    // Each way follows each other one equally often: it finds in the caches what that one left.
    const order = run % 2 === 0 ? sessions : [...sessions].reverse();
    for (const [way, session] of order) {
      const start = process.cpuUsage();
      await session.run(feeds);
      const { user, system } = process.cpuUsage(start);
      if (run >= WARM_UP) times.get(way)!.push((user + system) / 1000);
    }
  }
  for (const [, session] of sessions) await session.release();
  const ways = Object.fromEntries([...times].map(([way, all]) => [way, lowerQuartile(all)])) as Row['ways'];
  const toDecomposed = ways['target-ort']! / ways.decomposed!;
  return { form: form.name, tokens: sizes.tokens, runs, ways, toDecomposed };
}

function printTable(rows: readonly Row[]): void {
  console.log('milliseconds of what --target ort writes, and its ratio to the decomposed form');
  const cell = (text: string, width = 16) => text.padStart(width);
  console.log(cell('tokens', 24), ...TOKENS.map((tokens) => cell(`${tokens}`)));
  for (const { name } of FORMS) {
    const cells = rows
      .filter(({ form }) => form === name)
      .map((row) => `${row.ways['target-ort']!.toFixed(3)} (${row.toDecomposed.toFixed(2)})`);
    console.log(cell(name, 24), ...cells.map((text) => cell(text)));
  }
}

function versionOf(name: string): string {
  const file = fileURLToPath(import.meta.resolve(`${name}/package.json`));
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

const rows: Row[] = [];
for (const form of FORMS) {
  for (const tokens of TOKENS) rows.push(await measure(form, { tokens, heads: 12, dimension: 64 }));
}
const report = {
  subject: 'cpu-short',
  date: new Date().toISOString().slice(0, 10),
  machine: `${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} threads, ${Math.round(totalmem() / 2 ** 30)} GiB`,
  system: `${type()} ${arch()}`,
  versions: { node: process.versions.node, onnxruntime: versionOf('onnxruntime-node') },
  heads: 12,
  dimension: 64,
  rows,
};
const folder = join(dirname(fileURLToPath(import.meta.url)), 'results');
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'cpu-short.json'), `${JSON.stringify(report, null, 2)}\n`);
if (process.argv.includes('--json')) console.log(JSON.stringify(report));
else printTable(rows);
