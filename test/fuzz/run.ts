/** Runs one random graph before and after its rewriting and judges the result. */
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { compareTensors } from '../../cli/verify/compare.js';
import { decodeModel, encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { validateModel } from '../../graph-rewrite/onnx/validate.js';
import { numberToHalf } from '../../graph-rewrite/op/half.js';
import { rewriteModel } from '../../graph-rewrite/rewrite.js';
import type { FuzzModel } from './attention.js';
import type { FuzzInput } from './graph.js';

export type Outcome =
  | { readonly kind: 'fused'; readonly runs: number }
  | { readonly kind: 'refused'; readonly reason: string }
  /** ONNX Runtime does not take the graph itself. */
  | { readonly kind: 'invalid'; readonly reason: string }
  | { readonly kind: 'wrong'; readonly reason: string };

/** One set of sizes for the axes that are dynamic. */
type Sizes = Readonly<Record<'b' | 'q' | 'k' | 'p', number>>;

const CROSS: readonly Sizes[] = [
  { b: 2, q: 3, k: 5, p: 2 },
  { b: 1, q: 1, k: 1, p: 1 },
  { b: 3, q: 4, k: 2, p: 3 },
];

/** Largest difference allowed as a share of the largest magnitude: a few float32 roundings of short sums. */
const TOLERANCE = 2e-5;
/** Results are means of values between −2 and 2: where these cancel, their roundings do not. */
const LEAST_SCALE = 1;

/** Two units in float16's last place: the original rounds scores and probabilities as well as the result. */
const HALF_TOLERANCE = 2e-3;

const OPTIONS: InferenceSession.SessionOptions = {
  logSeverityLevel: 4,
  intraOpNumThreads: 1,
  interOpNumThreads: 1,
  graphOptimizationLevel: 'disabled',
  enableCpuMemArena: false,
  enableMemPattern: false,
};

export async function judge(fuzz: FuzzModel): Promise<Outcome> {
  const original = encodeModel(fuzz.model);
  const proto = decodeModel(original);
  let rewritten: Uint8Array;
  let reason: string | undefined;
  try {
    const { sites } = rewriteModel(proto);
    reason = sites.find((s) => !s.fused)?.refusal?.reason ?? (sites.length === 0 ? 'no site' : undefined);
    const fused = sites.some((s) => s.fused);
    rewritten = encodeModel(proto);
    if (!fused) {
      const same = Buffer.compare(original, rewritten) === 0;
      return same ? { kind: 'refused', reason: reason! } : { kind: 'wrong', reason: 'refused, and the file changed' };
    }
    validateModel(decodeModel(rewritten));
  } catch (error) {
    return { kind: 'wrong', reason: `the rewriter throws ${String(error)}` };
  }
  return compareRuns(fuzz, original, rewritten);
}

async function compareRuns(fuzz: FuzzModel, original: Uint8Array, rewritten: Uint8Array): Promise<Outcome> {
  let first: InferenceSession;
  try {
    first = await InferenceSession.create(original, OPTIONS);
  } catch (error) {
    return { kind: 'invalid', reason: String(error) };
  }
  let second: InferenceSession | undefined;
  try {
    try {
      second = await InferenceSession.create(rewritten, OPTIONS);
    } catch (error) {
      return { kind: 'wrong', reason: `the rewritten model does not load: ${String(error)}` };
    }
    let runs = 0;
    let refusal = '';
    for (const [n, sizes] of CROSS.entries()) {
      // With fewer keys than queries causality alone may leave none.
      const size = (label: 'q' | 'k') => fuzz.sizes.get(label) ?? sizes[label];
      if (fuzz.keepsAll && fuzz.lengths === 'cross' && size('k') < size('q')) continue;
      const feeds = makeFeeds(fuzz, sizes, n);
      let expected: InferenceSession.OnnxValueMapType;
      try {
        expected = await first.run(feeds);
      } catch (error) {
        refusal = String(error);
        continue;
      }
      runs++;
      const wrong = await compareOne(fuzz, second, feeds, expected);
      if (wrong) return { kind: 'wrong', reason: `${wrong}, run ${n}` };
    }
    return runs > 0 || refusal === '' ? { kind: 'fused', runs } : { kind: 'invalid', reason: refusal };
  } finally {
    await first.release();
    await second?.release();
  }
}

async function compareOne(
  fuzz: FuzzModel,
  second: InferenceSession,
  feeds: Record<string, Tensor>,
  expected: InferenceSession.OnnxValueMapType,
): Promise<string | undefined> {
  let actual: InferenceSession.OnnxValueMapType;
  try {
    actual = await second.run(Object.fromEntries(Object.entries(feeds).filter(([n]) => second.inputNames.includes(n))));
  } catch (error) {
    return `the rewritten model does not run: ${String(error)}`;
  }
  for (const [name, a] of Object.entries(expected)) {
    const b = actual[name];
    if (!b) return `output ${name} is gone`;
    const difference = compareTensors(a as Tensor, b as Tensor);
    if (difference.mismatch) return `${name}: ${difference.mismatch}`;
    if (difference.onlySecondUndefined > 0) return `${name}: NaN`;
    if (difference.onlyFirstUndefined > 0 && !fuzz.mayEmptyRows) return `${name}: was NaN`;
    const tolerance = (a as Tensor).type === 'float16' ? HALF_TOLERANCE : TOLERANCE;
    if (difference.largest > (fuzz.isCoarse ? 100 : 1) * tolerance * Math.max(difference.scale, LEAST_SCALE))
      return `${name} differs by ${difference.largest} of ${difference.scale}`;
  }
  return undefined;
}

/** Numbers from a seed, from 0 to below 1 (Mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function makeFeeds({ inputs, sizes, lengths, keepsAll }: FuzzModel, open: Sizes, seed: number): Record<string, Tensor> {
  const random = randomNumbers(seed + 1);
  const sizeOf = (label: string): number => {
    const fixed = sizes.get(label);
    if (fixed !== undefined) return fixed;
    if (label === 'k')
      return lengths === 'self' ? sizeOf('q') : lengths === 'past' ? sizeOf('q') + sizeOf('p') : open.k;
    return open[label as keyof Sizes];
  };
  const feed = ({ type, dims }: FuzzInput): Tensor => {
    const shape = dims.map((labels) => labels.reduce((n, l) => n * sizeOf(l), 1));
    const count = shape.reduce((a, b) => a * b, 1);
    const numbers = Array.from({ length: count }, () => random());
    // In the last run a mask may leave rows without a key.
    const share = keepsAll ? 1 : seed === 2 ? 0.4 : 0.75;
    switch (type) {
      case 'bool':
        return new Tensor(
          'bool',
          Uint8Array.from(numbers, (n) => (n < share ? 1 : 0)),
          shape,
        );
      case 'int64':
        return new Tensor(
          'int64',
          BigInt64Array.from(numbers, (n) => (n < share ? 1n : 0n)),
          shape,
        );
      case 'float16':
        return new Tensor(
          'float16',
          Uint16Array.from(numbers, (n) => numberToHalf(n * 4 - 2, 'float16')),
          shape,
        );
      case 'float64':
        return new Tensor(
          'float64',
          Float64Array.from(numbers, (n) => n * 4 - 2),
          shape,
        );
      default:
        return new Tensor(
          'float32',
          Float32Array.from(numbers, (n) => n * 4 - 2),
          shape,
        );
    }
  };
  return Object.fromEntries(inputs.map((input) => [input.name, feed(input)]));
}
