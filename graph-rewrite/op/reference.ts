import { OrtFlashError } from '../errors.js';
import type { FlashAttentionInput } from './definition.js';
import { decodeHalf } from './half.js';
import type { StridedTensor } from './layout.js';
import type { AttentionProblem } from './problem.js';

/**
 * Numbers; or, where the tensor's type is float16 or bfloat16, a Uint16Array of its bits. A boolean mask is a
 * Uint8Array (or any numbers) in which 0 stands for false.
 */
export type ReferenceData = ArrayLike<number> | ArrayLike<bigint>;

/** Data of the inputs, each as long as its shape in the problem says. */
export type ReferenceInputs = Readonly<
  Record<'Q' | 'K' | 'V', ReferenceData> & Partial<Record<FlashAttentionInput, ReferenceData>>
>;

/** What the reference computes, in double precision, row-major. */
export interface ReferenceOutputs {
  /** Shape `problem.outputShape`. */
  readonly Y: Float64Array;
  /** Shape `problem.presentKeyShape`, where there is a past. */
  readonly presentKey?: Float64Array;
  /** Shape `problem.presentValueShape`, where there is a past. */
  readonly presentValue?: Float64Array;
  /** Natural logarithm of the softmax's denominator, sink included, (B, H, queries); −∞ for a row without keys. */
  readonly lse: Float64Array;
}

/**
 * FlashAttention as definition.ts states it, in double precision: what every kernel and every function body is tested
 * against. Plain loops in the order of the formula, nothing shared with what it tests.
 * @throws OrtFlashError `invalid-tensor` where an input that the problem needs is absent.
 */
export function referenceAttention(problem: AttentionProblem, inputs: ReferenceInputs): ReferenceOutputs {
  const { batch, queryHeads, queries, headDimension, valueDimension } = problem;
  const data = readInputs(problem, inputs);
  const key = withPast(problem, problem.key, data.K, data.past_key, headDimension);
  const value = withPast(problem, problem.value, data.V, data.past_value, valueDimension);
  const masked = maskOf(problem, data);

  const Y = new Float64Array(problem.outputShape.reduce((a, b) => a * b, 1));
  const lse = new Float64Array(batch * queryHeads * queries);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < queryHeads; h++) {
      const keyHead = Math.floor((h * problem.keyHeads) / queryHeads);
      for (let i = 0; i < queries; i++) {
        const scores = scoresOf(problem, data.Q, key, masked, { b, h, keyHead, i });
        const { weights, logSum } = softmax(scores, data.sink?.[h] ?? Number.NEGATIVE_INFINITY);
        for (let d = 0; d < valueDimension; d++) {
          let sum = 0;
          // A key without weight adds nothing, whatever stands in its place in the cache.
          weights.forEach((weight, j) => {
            if (weight !== 0) sum += weight * value(b, keyHead, j, d);
          });
          Y[indexOf(problem.output, b, h, i, d)] = sum;
        }
        lse[(b * queryHeads + h) * queries + i] = logSum;
      }
    }
  }
  if (problem.presentKeyShape === undefined || problem.presentValueShape === undefined) return { Y, lse };
  return {
    Y,
    lse,
    presentKey: present(problem.presentKeyShape, key),
    presentValue: present(problem.presentValueShape, value),
  };
}

/** Element (batch, head, position, dimension) of a tensor. */
type Element = (b: number, h: number, s: number, d: number) => number;

/** One row of the score matrix. */
interface Row {
  readonly b: number;
  readonly h: number;
  readonly keyHead: number;
  readonly i: number;
}

interface Mask {
  /** Whether a boolean mask, causality, a window or a length takes key j out. */
  readonly isOut: (row: Row, j: number) => boolean;
  /** What an additive mask adds; 0 without one. */
  readonly bias: (row: Row, j: number) => number;
}

function scoresOf(
  problem: AttentionProblem,
  Q: ArrayLike<number>,
  key: Element,
  mask: Mask,
  row: Row,
): readonly number[] {
  const scores: number[] = [];
  for (let j = 0; j < problem.keys; j++) {
    if (mask.isOut(row, j)) {
      scores.push(problem.maskedValue);
      continue;
    }
    let dot = 0;
    for (let d = 0; d < problem.headDimension; d++) {
      dot += Q[indexOf(problem.query, row.b, row.h, row.i, d)]! * key(row.b, row.keyHead, j, d);
    }
    let score = problem.scale * dot;
    if (problem.softcap > 0) score = problem.softcap * Math.tanh(score / problem.softcap);
    scores.push(score + mask.bias(row, j));
  }
  return scores;
}

function softmax(scores: readonly number[], sink: number): { weights: readonly number[]; logSum: number } {
  // Not Math.max, which would lose nothing here but refuses more arguments than the stack holds.
  const max = scores.reduce((a, b) => (b > a || Number.isNaN(b) ? b : a), sink);
  if (max === Number.NEGATIVE_INFINITY) return { weights: scores.map(() => 0), logSum: max };
  const exponentials = scores.map((s) => Math.exp(s - max));
  const sum = exponentials.reduce((a, b) => a + b, Math.exp(sink - max));
  return { weights: exponentials.map((e) => e / sum), logSum: max + Math.log(sum) };
}

function maskOf(problem: AttentionProblem, data: Data): Mask {
  const { mask, leftWindow, rightWindow } = problem;
  const maskAt = ({ b, h, i }: Row, j: number): number => {
    const { stride, batch } = mask!;
    const values = data.attn_mask!;
    return values[(b % batch) * stride.batch + h * stride.head + i * stride.query + j * stride.key]!;
  };
  const isOut = (row: Row, j: number): boolean => {
    const length = data.nonpad_kv_seqlen?.[row.b];
    if (length !== undefined && j >= length) return true;
    const position = row.i + offsetOf(problem, length);
    if (problem.isCausal && j > position) return true;
    if (leftWindow >= 0 && j < position - leftWindow) return true;
    if (rightWindow >= 0 && j > position + rightWindow) return true;
    if (mask === undefined) return false;
    return j >= mask.keys || (mask.kind === 'boolean' && maskAt(row, j) === 0);
  };
  const bias = (row: Row, j: number): number => (mask?.kind === 'additive' ? maskAt(row, j) : 0);
  return { isOut, bias };
}

/** Position of query 0 among the keys. */
function offsetOf(problem: AttentionProblem, length: number | undefined): number {
  if (problem.alignEnd) return problem.keys - problem.queries;
  return length === undefined ? problem.pastKeys : length - problem.queries;
}

function indexOf(tensor: StridedTensor, b: number, h: number, s: number, d: number): number {
  const { offset, stride } = tensor;
  return offset + b * stride.B + h * stride.H + s * stride.S + d * stride.D;
}

/** Keys or values with the past ones before the new ones. */
function withPast(
  problem: AttentionProblem,
  tensor: StridedTensor,
  current: ArrayLike<number>,
  past: ArrayLike<number> | undefined,
  dimension: number,
): Element {
  const { keyHeads, pastKeys } = problem;
  return (b, h, s, d) =>
    s < pastKeys
      ? past![((b * keyHeads + h) * pastKeys + s) * dimension + d]!
      : current[indexOf(tensor, b, h, s - pastKeys, d)]!;
}

function present(shape: readonly number[], element: Element): Float64Array {
  const [batch, heads, keys, dimension] = shape as [number, number, number, number];
  const out = new Float64Array(batch * heads * keys * dimension);
  let index = 0;
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let s = 0; s < keys; s++) for (let d = 0; d < dimension; d++) out[index++] = element(b, h, s, d);
  return out;
}

type Data = Readonly<Record<'Q' | 'K' | 'V', ArrayLike<number>>> &
  Readonly<Partial<Record<FlashAttentionInput, ArrayLike<number>>>>;

function readInputs(problem: AttentionProblem, inputs: ReferenceInputs): Data {
  const read = (name: FlashAttentionInput): ArrayLike<number> => {
    const values = inputs[name];
    if (values === undefined)
      throw new OrtFlashError('invalid-tensor', `reference attention: input ${name} has no data`, { tensor: name });
    const isBits = values instanceof Uint16Array && (problem.type === 'float16' || problem.type === 'bfloat16');
    if (isBits) return decodeHalf(values, problem.type as 'float16' | 'bfloat16');
    return typeof values[0] === 'bigint' ? Array.from(values as ArrayLike<bigint>, Number) : (values as Float64Array);
  };
  const hasPast = problem.presentKeyShape !== undefined;
  return {
    Q: read('Q'),
    K: read('K'),
    V: read('V'),
    ...(problem.mask === undefined ? {} : { attn_mask: read('attn_mask') }),
    ...(hasPast ? { past_key: read('past_key'), past_value: read('past_value') } : {}),
    ...(problem.hasLengths ? { nonpad_kv_seqlen: read('nonpad_kv_seqlen') } : {}),
    ...(problem.hasSink ? { sink: read('sink') } : {}),
  };
}
