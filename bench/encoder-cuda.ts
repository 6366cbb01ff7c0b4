/**
 * A whole model on CUDA: the 12-layer encoder (768 wide, 12 heads, float16, batch 1) with this package's kernels, with
 * them in captured graphs, and by ONNX Runtime alone, decomposed and as its MultiHeadAttention; same process, same
 * bindings, the hidden states on the GPU throughout.
 *
 *     npx tsx bench/encoder-cuda.ts [--tokens 128,512,…] [--seconds 3] [--layers 12] [--device cuda|cpu] [--ways 'ours;decomposed'] [--out FILE]
 *
 * Takes under four minutes on an H100, and writes what it has after every measurement, to
 * `bench/results/encoder-cuda.json` on CUDA. `bundle.mjs` packs it for a machine without this package's dependencies. `--device cpu` with few tokens tries the benchmark itself. Times are wall
 * time of one run after the other, the median; the last column is ours over the better of ONNX Runtime's two.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { InferenceSession, Tensor } from '../kernels-cuda/index.js';
import { packageFolder } from '../kernels-cuda/node-paths.js';
import { buildTransformer, ENCODER_12_LAYERS } from '../models/builder.js';

const { values: flags } = parseArgs({
  options: {
    tokens: { type: 'string', default: '128,512,2048,4096,8192,16384' },
    seconds: { type: 'string', default: '2' },
    layers: { type: 'string', default: String(ENCODER_12_LAYERS.layers) },
    device: { type: 'string', default: 'cuda' },
    out: { type: 'string' },
    /** Only these ways, with semicolons in between. */
    ways: { type: 'string' },
    json: { type: 'boolean' },
  },
});
const LENGTHS = flags.tokens.split(',').map(Number);
const MOST_RUNS = 100;

type Way = 'ours' | 'ours, captured' | 'decomposed' | 'MultiHeadAttention';

interface Measured {
  readonly tokens: number;
  /** Median time of a run; absent where it failed. */
  readonly milliseconds?: number;
  readonly runs?: number;
  /** Of the outputs, to see that all ways compute the same. */
  readonly meanMagnitude?: number;
  readonly error?: string;
}

const results: Partial<Record<Way, { explanation: string; measured: Measured[] }>> = {};
const decomposed = () =>
  buildTransformer({ ...ENCODER_12_LAYERS, layers: Number(flags.layers), style: 'dynamo', type: 'float16' });

function modelFor(way: Way): Uint8Array {
  const model = decomposed();
  if (way === 'MultiHeadAttention') rewriteModel(model, { target: 'ort', provider: 'cuda' });
  return encodeModel(model);
}

/** float16 numbers from −1 to 1, alike everywhere. */
function hiddenStates(tokens: number): Tensor {
  let state = 1;
  const data = Uint16Array.from({ length: tokens * ENCODER_12_LAYERS.width }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    // Exponents 2⁻⁴ to 2⁻¹, either sign.
    return ((state >>> 16) & 0x8000) | ((11 + ((state >>> 20) & 3)) << 10) | ((state >>> 22) & 0x3ff);
  });
  return new Tensor('float16', data as unknown as Uint16Array, [1, tokens, ENCODER_12_LAYERS.width]);
}

async function measureLength(session: InferenceSession, tokens: number): Promise<Measured> {
  const run = async (x: Tensor) => (await session.run({ hidden_states: x })).last_hidden_state!;
  const first = hiddenStates(tokens);
  const output = await run(first);
  const bits = (await output.getData()) as Uint16Array;
  const meanMagnitude = meanOf(bits);
  // An output that stays on the GPU is the next input, so that nothing travels.
  const x = output.location === 'gpu-buffer' ? output : first;
  for (let i = 0; i < 3; i++) (await run(x)).dispose();
  const times: number[] = [];
  const end = performance.now() + Number(flags.seconds) * 1000;
  while (times.length < 3 || (performance.now() < end && times.length < MOST_RUNS)) {
    const start = performance.now();
    const result = await run(x);
    times.push(performance.now() - start);
    result.dispose();
  }
  if (x === output) x.dispose();
  return { tokens, milliseconds: times.sort((a, b) => a - b)[times.length >> 1]!, runs: times.length, meanMagnitude };
}

function meanOf(bits: Uint16Array): number {
  let sum = 0;
  for (const b of bits) sum += 2 ** (((b >> 10) & 31) - 15) * (1 + (b & 0x3ff) / 1024);
  return sum / bits.length;
}

async function measureWay(way: Way): Promise<void> {
  const isOurs = way.startsWith('ours');
  const entry: { explanation: string; measured: Measured[] } = { explanation: '', measured: [] };
  results[way] = entry;
  let session: InferenceSession | undefined;
  try {
    session = await InferenceSession.create(modelFor(way), {
      executionProviders: [flags.device],
      flash: isOurs ? 'auto' : 'off',
      logSeverityLevel: 3,
      ...(flags.device === 'cuda' ? { preferredOutputLocation: 'gpu-buffer' as const } : {}),
      ...(way === 'ours, captured' ? { enableGraphCapture: true } : {}),
    });
    entry.explanation = session.explain().text;
    for (const tokens of LENGTHS) {
      const failed = (error: unknown): Measured => ({
        tokens,
        error: error instanceof Error ? error.message : `${error}`,
      });
      entry.measured.push(await measureLength(session, tokens).catch(failed));
      write();
    }
  } catch (error) {
    entry.explanation = error instanceof Error ? error.message : String(error);
    write();
  } finally {
    await session?.release();
  }
}

function write(): void {
  const file =
    flags.out ?? (flags.device === 'cuda' ? join(packageFolder(), 'bench/results/encoder-cuda.json') : undefined);
  if (file === undefined) return;
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(report(), null, 2)}\n`);
}

function report() {
  return {
    subject: 'encoder-cuda',
    date: new Date().toISOString().slice(0, 10),
    machine: cpus()[0]?.model ?? 'unknown CPU',
    device: flags.device,
    versions: { node: process.versions.node },
    model: { ...ENCODER_12_LAYERS, layers: Number(flags.layers), type: 'float16', batch: 1 },
    results,
  };
}

/** Ours over the better of ONNX Runtime's two, which must not be above 1.03; and the decomposed one over ours. */
function printTable(): void {
  const at = (way: Way, tokens: number) => results[way]?.measured.find((m) => m.tokens === tokens);
  const cell = (way: Way, tokens: number) => {
    const measured = at(way, tokens);
    return measured?.milliseconds === undefined ? 'failed' : `${measured.milliseconds.toFixed(2)} ms`;
  };
  const head = ['tokens', ...WAYS, 'ours / better', 'decomposed / ours'];
  const lines = LENGTHS.map((tokens) => {
    const time = (way: Way) => at(way, tokens)?.milliseconds ?? Number.POSITIVE_INFINITY;
    const better = Math.min(time('decomposed'), time('MultiHeadAttention'));
    const ratios = [time('ours') / better, time('decomposed') / time('ours')];
    return [String(tokens), ...WAYS.map((way) => cell(way, tokens)), ...ratios.map((ratio) => ratio.toFixed(2))];
  });
  const widths = head.map((title, i) => Math.max(title.length, ...lines.map((line) => line[i]!.length)));
  for (const line of [head, ...lines]) console.log(line.map((text, i) => text.padStart(widths[i]!)).join('  '));
  for (const way of WAYS) console.log(`${way}: ${results[way]?.explanation || 'ONNX Runtime alone'}`);
}

const ALL: readonly Way[] = ['ours', 'ours, captured', 'decomposed', 'MultiHeadAttention'];
// A captured graph is CUDA's.
const WAYS = ALL.filter(
  (way) => (way !== 'ours, captured' || flags.device === 'cuda') && (flags.ways?.split(';').includes(way) ?? true),
);
for (const way of WAYS) await measureWay(way);
if (flags.json) console.log(JSON.stringify(report()));
else printTable();
