/**
 * Every model of the corpus and every standard case of `Attention` through `ort-flash/node` on one device, against the
 * reference outputs that come with them, 16-bit types included.
 *
 *     npx tsx bench/corpus-cuda.ts [--device cuda|cpu|webgpu] [--only TEXT] [--part 1/6] [--out FILE]
 *
 * Writes a line of JSON a model, as it goes, and leaves out what the file has already: the same command goes on after
 * an interruption (`bundle.mjs` packs it for a machine without this package's dependencies). Ends with a table of what differs or failed, and code 1 where anything did.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { createTensor, InferenceSession, type Tensor } from '../kernels-cuda/index.js';
import { packageFolder } from '../kernels-cuda/node-paths.js';
import { allModels, readTestData, standardAttentionCases, type TestTensor } from '../models/corpus.js';

const { values: flags } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    only: { type: 'string', default: '' },
    /** `2/6`: the second of six parts, which may run side by side. */
    part: { type: 'string', default: '1/1' },
    out: { type: 'string' },
  },
});
const file = flags.out ?? join(packageFolder(), 'bench', 'results', `corpus-${flags.device}.jsonl`);

interface Example {
  readonly name: string;
  readonly modelFile: string;
  readonly dataFolder: string;
  /** Absolute and relative. */
  readonly tolerance: number;
}

interface Outcome {
  readonly name: string;
  /** Largest difference over the tolerance; 1 at most is right. */
  readonly worst?: number;
  readonly type?: string;
  /** How attention was carried out. */
  readonly explanation?: string;
  readonly error?: string;
}

function numbersOf(type: string, data: unknown): ArrayLike<number> {
  if (type !== 'float16' && type !== 'bfloat16') return Array.from(data as ArrayLike<number | bigint>, Number);
  const { buffer, byteOffset, length } = data as Uint16Array;
  return decodeHalf(new Uint16Array(buffer, byteOffset, length), type);
}

/** The largest difference in terms of the tolerance; infinite where shapes or one's NaN differ. */
function worstOf(actual: Tensor, expected: TestTensor, tolerance: number): number {
  const [a, b] = [numbersOf(actual.type, actual.data), numbersOf(expected.type, expected.data)];
  if (a.length !== b.length || actual.dims.join() !== expected.dims.join()) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < b.length; i++) {
    if (Object.is(a[i], b[i])) continue;
    const off = Math.abs(a[i]! - b[i]!) / (tolerance * (1 + Math.abs(b[i]!)));
    worst = Math.max(worst, Number.isNaN(off) ? Number.POSITIVE_INFINITY : off);
  }
  return worst;
}

async function runExample({ name, modelFile, dataFolder, tolerance }: Example): Promise<Outcome> {
  // ONNX Runtime's TF32 for float32 would be past the tolerances.
  const exact = { name: 'cuda', providerOptions: { use_tf32: '0' } } as const;
  const executionProviders = flags.device === 'cuda' ? [exact] : [flags.device];
  try {
    const session = await InferenceSession.create(modelFile, { executionProviders, logSeverityLevel: 4 });
    try {
      const { inputs, outputs } = readTestData(dataFolder);
      const feeds = inputs.map((input, i) => [
        input.name || session.inputNames[i]!,
        createTensor(input.type as Tensor.Type, input.data as Tensor.DataType, input.dims),
      ]);
      const results = await session.run(Object.fromEntries(feeds));
      const byName = (output: TestTensor, i: number) => results[output.name] ?? results[session.outputNames[i]!]!;
      const worst = Math.max(...outputs.map((output, i) => worstOf(byName(output, i), output, tolerance)));
      return { name, worst, type: outputs[0]!.type, explanation: session.explain().text };
    } finally {
      await session.release();
    }
  } catch (error) {
    return { name, error: error instanceof Error ? error.message : String(error) };
  }
}

function examples(): Example[] {
  const halves = /fp16|float16|bf16|bfloat16/;
  const cases = (standardAttentionCases() ?? []).map((standard) => ({
    ...standard,
    name: `onnx-attention/${standard.name}`,
    tolerance: halves.test(standard.name) ? 1e-2 : 1e-4,
  }));
  const [part, parts] = flags.part.split('/').map(Number) as [number, number];
  return [...allModels(), ...cases].filter(({ name }, i) => name.includes(flags.only) && i % parts === part - 1);
}

mkdirSync(dirname(file), { recursive: true });
const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').filter(Boolean) : [];
const outcomes = new Map<string, Outcome>();
for (const line of lines) {
  const outcome = JSON.parse(line, (_, value) => (value === 'Infinity' ? Number.POSITIVE_INFINITY : value)) as Outcome;
  outcomes.set(outcome.name, outcome);
}
const wanted = examples();
for (const example of wanted) {
  if (outcomes.has(example.name)) continue;
  const outcome = await runExample(example);
  outcomes.set(example.name, outcome);
  const text = JSON.stringify(outcome, (_, value) => (value === Number.POSITIVE_INFINITY ? 'Infinity' : value));
  appendFileSync(file, `${text}\n`);
}
const found = wanted.map(({ name }) => outcomes.get(name)!);
const wrong = found.filter(({ worst }) => !(worst !== undefined && worst <= 1));
const ways = new Map<string, number>();
for (const { explanation, type } of found) {
  const way = `${type ?? 'failed'}: ${explanation?.replace(/\d+ attentions?/g, 'attention').slice(0, 100) ?? ''}`;
  ways.set(way, (ways.get(way) ?? 0) + 1);
}
for (const [way, count] of [...ways].sort((a, b) => b[1] - a[1])) console.log(`${String(count).padStart(5)}  ${way}`);
for (const { name, worst, error } of wrong)
  console.log(`${name}: ${error ?? `off by ${worst!.toPrecision(3)} times the tolerance`}`);
console.log(`${found.length - wrong.length} of ${found.length} are right on ${flags.device}; ${file}`);
if (wrong.length > 0) process.exitCode = 1;
