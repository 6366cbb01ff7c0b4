/**
 * Peak memory and processor time of one attention on the CPU, in each form that models have it: `npx tsx bench/cpu-memory.ts`
 * (`--tokens 4096`, `--heads 12`, `--dimension 64`, `--only FORM`; `--json` prints what it also writes to
 * `bench/results/cpu-memory.json`).
 *
 * Each measurement is a process of its own: its largest resident memory during a run, less what it had with the model
 * loaded and the inputs made. Peers, in the same run: the attention as exporters write it, and the best that ONNX
 * Runtime's own operators can do where they can say the form at all.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { arch, cpus, tmpdir, totalmem, type } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FORMS, type Form, makeForm, type Sizes, type Way } from './cpu-memory/forms.js';

export interface Measured {
  /** Bytes on top of the loaded model and its inputs. */
  readonly peakBytes: number;
  /** Processor time of the second run, on one thread: what a busy machine changes least. */
  readonly cpuMilliseconds: number;
  /** Sum of the outputs' absolute values, which shows that two ways computed the same. */
  readonly checksum: number;
}

interface Row {
  readonly form: string;
  readonly ways: Readonly<Partial<Record<Way | 'session', Measured>>>;
  /** Memory of the session over that of the best of ONNX Runtime's own operators, and over the decomposed form's. */
  readonly toOperator: number | undefined;
  readonly toDecomposed: number;
}

const WAYS = ['decomposed', 'operator', 'target-ort', 'session'] as const;

function option(name: string, fallback: number): number {
  const at = process.argv.indexOf(`--${name}`);
  const value = at < 0 ? fallback : Number(process.argv[at + 1]);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new Error(`--${name} must be a whole number from 1 on`);
}

function measure(folder: string, form: Form, way: (typeof WAYS)[number], sizes: Sizes): Measured | undefined {
  const model = makeForm(form, way === 'session' ? 'decomposed' : way, sizes);
  if (model === undefined) return undefined;
  const file = join(folder, 'model.onnx');
  writeFileSync(file, model);
  const child = fileURLToPath(new URL('./cpu-memory/child.js', import.meta.url));
  const script = child.endsWith('.js') && import.meta.url.endsWith('.ts') ? child.replace(/js$/, 'ts') : child;
  const args = [file, way, form.name, JSON.stringify(sizes)];
  return JSON.parse(execFileSync(process.execPath, [...process.execArgv, script, ...args]).toString()) as Measured;
}

function measureForm(form: Form, sizes: Sizes): Row {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-bench-'));
  try {
    const ways: Partial<Record<Way | 'session', Measured>> = {};
    for (const way of WAYS) {
      const measured = measure(folder, form, way, sizes);
      if (measured !== undefined) ways[way] = measured;
    }
    const { decomposed, operator, session } = ways;
    return {
      form: form.name,
      ways,
      toOperator: operator && session!.peakBytes / operator.peakBytes,
      toDecomposed: session!.peakBytes / decomposed!.peakBytes,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function printTable(rows: readonly Row[]): void {
  const cell = (measured: Measured | undefined) =>
    measured === undefined
      ? '–'
      : `${(measured.peakBytes / 2 ** 20).toFixed(0)} MiB ${measured.cpuMilliseconds.toFixed(0)} ms`;
  const head = ['form', 'decomposed', "ONNX Runtime's", '--target ort', 'session', 'of its', 'of decomposed'];
  const lines = rows.map((row) => [
    row.form,
    ...WAYS.map((way) => cell(row.ways[way])),
    row.toOperator?.toFixed(2) ?? '–',
    row.toDecomposed.toFixed(2),
  ]);
  const widths = head.map((title, i) => Math.max(title.length, ...lines.map((line) => line[i]!.length)));
  for (const line of [head, ...lines]) console.log(line.map((text, i) => text.padStart(widths[i]!)).join('  '));
}

const sizes: Sizes = { tokens: option('tokens', 4096), heads: option('heads', 12), dimension: option('dimension', 64) };
const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : undefined;
const rows: Row[] = [];
for (const form of FORMS.filter(({ name }) => only === undefined || name === only)) {
  rows.push(measureForm(form, sizes));
  if (only === undefined) write();
}
if (process.argv.includes('--json')) console.log(JSON.stringify(report()));
else printTable(rows);

function report() {
  return {
    subject: 'cpu-memory',
    date: new Date().toISOString().slice(0, 10),
    machine: `${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} threads, ${Math.round(totalmem() / 2 ** 30)} GiB`,
    system: `${type()} ${arch()}`,
    versions: { node: process.versions.node, onnxruntime: runtimeVersion() },
    sizes,
    rows,
  };
}

/** After every form, so that an interruption loses nothing. */
function write(): void {
  const folder = join(dirname(fileURLToPath(import.meta.url)), 'results');
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'cpu-memory.json'), `${JSON.stringify(report(), null, 2)}\n`);
}

function runtimeVersion(): string {
  const file = fileURLToPath(import.meta.resolve('onnxruntime-node/package.json'));
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
