/**
 * A whole model on CUDA: the 12-layer encoder (768 wide, 12 heads, float16, batch 1) with this package's kernels, with
 * them in captured graphs, and by ONNX Runtime alone, decomposed and as its MultiHeadAttention; same process, same
 * bindings, the hidden states on the GPU throughout.
 *
 *     npx tsx bench/encoder-cuda.ts [--tokens 128,512,…] [--seconds 3] [--layers 12] [--device cuda|cpu] [--ways 'ours;decomposed'] [--out FILE]
 *
 * Takes under four minutes on an H100, and writes what it has after every length, to `bench/results/encoder-cuda.json` on
 * CUDA. `bundle.mjs` packs it for a machine without this package's dependencies. `--device cpu` with few tokens tries the
 * benchmark itself. Times are wall time of one run after the other, the median of all, the ways in turns; the column before
 * the last is ours over the better of ONNX Runtime's two.
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
/** In a turn. */
const MOST_RUNS = 40;
const TURNS = 4;

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

/** One way at one length: its input, which stays on the GPU, and the times of its runs so far. */
class Series {
  readonly times: number[] = [];
  private constructor(
    readonly run: () => Promise<Tensor>,
    readonly meanMagnitude: number,
    readonly free: () => void,
  ) {}

  static async start(session: InferenceSession, tokens: number): Promise<Series> {
    const run = async (x: Tensor) => (await session.run({ hidden_states: x })).last_hidden_state!;
    const first = hiddenStates(tokens);
    const output = await run(first);
    const meanMagnitude = meanOf((await output.getData()) as Uint16Array);
    // An output that stays on the GPU is the next input, so that nothing travels.
    const isOnGpu = output.location === 'gpu-buffer';
    const x = isOnGpu ? output : first;
    for (let i = 0; i < 3; i++) (await run(x)).dispose();
    return new Series(
      () => run(x),
      meanMagnitude,
      () => isOnGpu && output.dispose(),
    );
  }

  async measure(milliseconds: number): Promise<void> {
    (await this.run()).dispose();
    const end = performance.now() + milliseconds;
    for (let i = 0; i < 2 || (performance.now() < end && i < MOST_RUNS); i++) {
      const start = performance.now();
      const result = await this.run();
      this.times.push(performance.now() - start);
      result.dispose();
    }
  }

  get measured(): Omit<Measured, 'tokens'> {
    const sorted = [...this.times].sort((a, b) => a - b);
    return { milliseconds: sorted[sorted.length >> 1]!, runs: sorted.length, meanMagnitude: this.meanMagnitude };
  }
}

function meanOf(bits: Uint16Array): number {
  let sum = 0;
  for (const b of bits) sum += 2 ** (((b >> 10) & 31) - 15) * (1 + (b & 0x3ff) / 1024);
  return sum / bits.length;
}

async function openWay(way: Way): Promise<InferenceSession | undefined> {
  const isOurs = way.startsWith('ours');
  try {
    const session = await InferenceSession.create(modelFor(way), {
      executionProviders: [flags.device],
      flash: isOurs ? 'auto' : 'off',
      logSeverityLevel: 3,
      ...(flags.device === 'cuda' ? { preferredOutputLocation: 'gpu-buffer' as const } : {}),
      ...(way === 'ours, captured' ? { enableGraphCapture: true } : {}),
    });
    results[way] = { explanation: session.explain().text, measured: [] };
    return session;
  } catch (error) {
    results[way] = { explanation: messageOf(error), measured: [] };
    return undefined;
  }
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** All ways at one length, in turns: clocks and temperatures change as time goes by. */
async function measureLength(sessions: ReadonlyMap<Way, InferenceSession>, tokens: number): Promise<void> {
  const series = new Map<Way, Series>();
  const outcomes = new Map<Way, Omit<Measured, 'tokens'>>();
  const attempt = (way: Way, work: () => Promise<void>) =>
    work().catch((error: unknown) => {
      series.delete(way);
      outcomes.set(way, { error: messageOf(error) });
    });
  for (const [way, session] of sessions)
    await attempt(way, async () => void series.set(way, await Series.start(session, tokens)));
  for (let turn = 0; turn < TURNS; turn++)
    for (const [way, one] of [...series]) await attempt(way, () => one.measure((Number(flags.seconds) * 1000) / TURNS));
  for (const [way, one] of series) {
    outcomes.set(way, one.measured);
    one.free();
  }
  for (const [way, outcome] of outcomes) results[way]!.measured.push({ tokens, ...outcome });
  write();
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
const sessions = new Map<Way, InferenceSession>();
for (const way of WAYS) {
  const session = await openWay(way);
  if (session !== undefined) sessions.set(way, session);
}
for (const tokens of LENGTHS) await measureLength(sessions, tokens);
for (const session of sessions.values()) await session.release();
if (flags.json) console.log(JSON.stringify(report()));
else printTable();
