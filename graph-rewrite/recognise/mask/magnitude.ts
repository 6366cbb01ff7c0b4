/** Whether a tensor may hold values so low that they stand for "masked". */
import type { Value } from '../../graph/graph.js';
import type { Inference } from '../../shape/inference.js';

/** Scores and biases are taken to be smaller than this; see {@link absorbs}. */
export const LARGEST_SCORE = 1e20;

const FLOAT = 1;
const FLOAT16 = 10;
const DOUBLE = 11;
const BFLOAT16 = 16;
const BOOL = 9;

/**
 * Whether x + fill is fill for every |x| ≤ {@link LARGEST_SCORE}, rounded to the data type: half a unit in the last
 * place of 1e30 in float32, and of 1e37 in float64, is more than that. No finite float16 is low enough.
 */
export function absorbs(fill: number, type: number): boolean {
  if (fill === Number.NEGATIVE_INFINITY) return true;
  return type === FLOAT || type === BFLOAT16 ? fill <= -1e30 : type === DOUBLE && fill <= -1e37;
}

/** Whether a bias, times its factor, is so small that under any fill as low as this one a key has no weight beside others. */
export function isSmallBeside(
  fill: number,
  { value, factor }: { readonly value: Value; readonly factor: number },
  inference: Inference,
): boolean {
  return !mayHoldFill(value, inference, -fill / 4 / Math.abs(factor));
}

/** A fill that {@link absorbs} and stays finite divided by this factor; undefined where there is none. */
export function absorbingFill(type: number, factor: number): number | undefined {
  if (type === DOUBLE) return Math.abs(factor) > 1e-200 ? -1e40 : undefined;
  return (type === FLOAT || type === BFLOAT16) && Math.abs(factor) > 1e-3 ? -1e35 : undefined;
}

const FLOATS: ReadonlySet<number | undefined> = new Set([FLOAT, FLOAT16, DOUBLE, BFLOAT16, undefined]);

/** Operators whose results are activations, or bounded: numbers of the size of scores whatever goes in. */
const COMPUTES = 'MatMul Gemm Conv Einsum Softmax Sigmoid Tanh Erf Sin Cos LayerNormalization RMSNormalization';
/** ONNX Runtime's own products of activations and weights. */
const FUSED = 'FusedMatMul TransposeMatMul FusedGemm FusedConv MatMulNBits MatMulIntegerToFloat DynamicQuantizeMatMul';
/** Operators whose results are elements of their inputs, or sums and products of a few. */
const PASSES =
  'Identity Reshape Transpose Unsqueeze Squeeze Flatten Expand Tile Slice Split Gather GatherND GatherElements ' +
  'Concat Cast CastLike Add Sub Mul Neg Abs Min Max Where Trilu Resize Pad Relu Clip ScatterND';
/** Those whose other inputs only say which elements. */
const MOVES_FIRST = 'Reshape Unsqueeze Squeeze Expand Tile Slice Split Gather GatherND GatherElements Trilu Resize';
const movesFirst: ReadonlySet<string> = new Set(MOVES_FIRST.split(' '));
const computes: ReadonlySet<string> = new Set(COMPUTES.split(' '));
const fused: ReadonlySet<string> = new Set(FUSED.split(' '));
const passes: ReadonlySet<string> = new Set(PASSES.split(' '));

/**
 * Whether anything that a tensor is made of, short of products of activations and weights, may be as large as the limit
 * or larger, of either sign, and smaller than `end`.
 */
export function mayHoldFill(
  value: Value,
  inference: Inference,
  limit = LARGEST_SCORE,
  end = Number.POSITIVE_INFINITY,
): boolean {
  const isFill = (x: number) => !(Math.abs(x) < limit) && (end === Number.POSITIVE_INFINITY || !(Math.abs(x) >= end));
  return search(value, { inference, limit, isFill, seen: new Map() });
}

interface Search {
  readonly inference: Inference;
  readonly limit: number;
  readonly isFill: (x: number) => boolean;
  readonly seen: Map<Value, boolean>;
}

function search(value: Value, how: Search): boolean {
  const { seen } = how;
  const known = seen.get(value);
  if (known !== undefined) return known;
  // Cycles do not exist; the entry only stops repeated visits.
  const result = examine(value, how);
  seen.set(value, result);
  return result;
}

function examine(value: Value, how: Search): boolean {
  const { inference, limit, isFill } = how;
  const { type, uniform, constant } = inference.of(value);
  if (type === BOOL) return false;
  // Integers are below 2⁶⁴.
  if (!FLOATS.has(type))
    return (
      limit < LARGEST_SCORE && uniform === undefined && (limit < LARGEST_DISTANCE || !isPosition(value, inference))
    );
  if (uniform !== undefined) return isFill(uniform);
  if (constant) {
    const numbers = constant.numbers();
    return !numbers || Array.prototype.some.call(numbers, isFill);
  }
  const node = value.producer;
  if (node?.domain === 'com.microsoft' && fused.has(node.opType)) return false;
  if (node?.domain !== '') return true;
  if (computes.has(node.opType)) return false;
  if (node.opType === 'Div') {
    const divisor = node.inputs[1] && inference.uniformOf(node.inputs[1]);
    return divisor === undefined || Math.abs(divisor) < 1e-9 || search(node.inputs[0]!, how);
  }
  const isElement = (_: unknown, i: number) =>
    i === 0 || (node.opType === 'Pad' ? i === 2 : !movesFirst.has(node.opType));
  const inputs = node.inputs.filter(isElement);
  return !passes.has(node.opType) || inputs.some((input) => input && search(input, how));
}

/** Positions are below 2²⁴, and so are numbers in their sums; this is above sums of a few. */
const LARGEST_DISTANCE = 2 ** 27;
const MOVES_POSITIONS = 'Add Sub Neg Abs Min Max Cast Identity Reshape Transpose Unsqueeze Squeeze Expand Tile Slice';
const movesPositions: ReadonlySet<string> = new Set(MOVES_POSITIONS.split(' '));

/** Whether integers are positions or distances between them: counted by Range or NonZero, and only added, moved and compared. */
function isPosition(value: Value, inference: Inference): boolean {
  const seen = new Set<Value>([value]);
  for (const current of seen) {
    const { type, uniform, constant } = inference.of(current);
    if (type === BOOL || Math.abs(uniform ?? Infinity) < LARGEST_DISTANCE) continue;
    if (constant && Array.prototype.every.call(constant.numbers() ?? [NaN], (x: number) => Math.abs(x) < 2 ** 24))
      continue;
    const node = current.producer;
    if (node?.is('Range', 'Shape', 'Size', 'NonZero')) continue;
    if (node?.domain !== '' || !movesPositions.has(node.opType)) return false;
    const inputs = movesFirst.has(node.opType) ? node.inputs.slice(0, 1) : node.inputs;
    for (const input of inputs) if (input) seen.add(input);
  }
  return true;
}

/** Operators that make what is no number from numbers. */
const UNDEFINED = 'Sqrt Log Pow Div Reciprocal Mod Asin Acos Acosh Atanh';
const mayUndefine: ReadonlySet<string> = new Set(UNDEFINED.split(' '));

/** Whether a tensor may hold NaN although nothing that goes into it does, products with weights left aside. */
export function mayBeUndefined(value: Value, inference: Inference): boolean {
  const seen = new Set<Value>([value]);
  for (const current of seen) {
    const { type, uniform, constant } = inference.of(current);
    const node = current.producer;
    if (!FLOATS.has(type) || uniform !== undefined || constant || node?.domain !== '') continue;
    const divisor = node.is('Div') ? node.inputs[1] && inference.uniformOf(node.inputs[1]) : undefined;
    if (mayUndefine.has(node.opType) && !divisor) return true;
    // 0 · ∞.
    if (node.is('Mul') && node.inputs.some((v) => v && Math.abs(inference.uniformOf(v) ?? 0) === Infinity)) return true;
    if (computes.has(node.opType)) continue;
    const inputs = movesFirst.has(node.opType) ? node.inputs.slice(0, 1) : node.inputs;
    for (const input of inputs) if (input) seen.add(input);
  }
  return false;
}
