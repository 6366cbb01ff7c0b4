/** Guards around probabilities: Where that acts on nothing, or on nothing but rows without a key, which are 0/0. */
import { feedsOnly, type Node, type Value } from '../graph/graph.js';
import { DataType } from '../onnx/proto.js';
import type { Inference } from '../shape/inference.js';
import { uniformValue } from './scores.js';
import type { SoftmaxForm } from './softmax.js';
import { reducedAxis } from './view.js';

/** Guards one after another, each on the result of the one before. */
export interface GuardTrace {
  /** The probabilities behind all of them. */
  readonly value: Value;
  /** The guards and what they are decided by. */
  readonly nodes: readonly Node[];
  /** Whether rows without a key are zeros behind them. */
  readonly zeroes: boolean;
}

/**
 * What a test gives: in rows whose scores are all −∞, where probabilities are NaN; and in other rows, where a score is
 * −∞ and where it is not. Undefined where that is not known.
 */
interface Truth {
  readonly empty: boolean | undefined;
  readonly masked: boolean | undefined;
  readonly kept: boolean | undefined;
}

/** What tests are made on. */
interface Tested {
  /** Set where rows of the probabilities are still where those of the scores are. */
  readonly softmax: SoftmaxForm | undefined;
  /** The probabilities before and behind each guard; whether rows without a key are zeros there. */
  readonly stages: ReadonlyMap<Value, boolean>;
  readonly inference: Inference;
}

type Tri = boolean | undefined;
const UNKNOWN: Truth = { empty: undefined, masked: undefined, kept: undefined };
const DEEPEST = 8;

/**
 * Follows guards on probabilities as far as they go.
 * @param softmax where the probabilities have the softmax's own dimensions.
 * @returns undefined where there are none, or what they are decided by is read elsewhere too.
 */
export function traceGuards(
  start: Value,
  softmax: SoftmaxForm | undefined,
  inference: Inference,
): GuardTrace | undefined {
  const stages = new Map([[start, false]]);
  const guards = new Set<Node>();
  let value = start;
  let zeroes = false;
  for (;;) {
    const tested = { softmax, stages, inference };
    const next = value.uses.map(({ node }) => ({ node, effect: effectOf(node, value, zeroes, tested) }));
    const guard = next.find(({ effect }) => effect !== undefined);
    if (!guard) break;
    guards.add(guard.node);
    zeroes ||= guard.effect === 'zeroes';
    value = guard.node.outputs[0]!;
    stages.set(value, zeroes);
  }
  const passed = [...stages.keys()].filter((stage) => stage !== value);
  if (passed.length === 0 || passed.some((stage) => stage.isOutput)) return undefined;
  const readers = passed.flatMap((stage) => stage.uses.map((u) => u.node));
  if (!readers.every((node) => feedsOnly(node, guards))) return undefined;
  return { value, nodes: [...new Set([...readers, ...guards])], zeroes };
}

/** Whether Where leaves probabilities as they are, or rows without a key as zeros; undefined where it does neither. */
function effectOf(node: Node, value: Value, zeroed: boolean, tested: Tested): 'none' | 'zeroes' | undefined {
  const [condition, whenTrue, whenFalse] = node.inputs;
  if (!node.is('Where') || !condition || !whenTrue || !whenFalse || whenTrue === whenFalse) return undefined;
  if (whenTrue !== value && whenFalse !== value) return undefined;
  const { inference } = tested;
  const [shape, result] = [inference.of(value).shape, inference.of(node.outputs[0]!).shape];
  if (!shape || shape.length !== result?.length || shape.some((s, i) => !s.equals(result[i]!))) return undefined;
  const keeps = whenTrue === value;
  const { empty, masked, kept } = truthOf(condition, tested, DEEPEST);
  if (masked !== keeps || kept !== keeps) return undefined;
  const replacesBy = uniformValue(keeps ? whenFalse : whenTrue, inference);
  if (empty === keeps || (zeroed && replacesBy === 0)) return 'none';
  return empty === !keeps && replacesBy === 0 ? 'zeroes' : undefined;
}

/** What a test of probabilities or of scores gives. */
function truthOf(value: Value, tested: Tested, depth: number): Truth {
  const node = value.producer;
  const [a, b] = node?.inputs ?? [];
  if (!node || !a || depth === 0 || node.domain !== '') return UNKNOWN;
  const of = (input: Value | undefined) => (input ? truthOf(input, tested, depth - 1) : UNKNOWN);
  switch (node.opType) {
    case 'Not':
      return each([of(a)], (x) => (x === undefined ? undefined : !x));
    case 'And':
      return each([of(a), of(b)], (x, y) => (x === false || y === false ? false : x && y));
    case 'Or':
      return each([of(a), of(b)], (x, y) => (x === true || y === true ? true : x === false ? y : undefined));
    case 'Cast':
    case 'Identity':
      return of(a);
    case 'ReduceMax':
    case 'ReduceMin':
      return isOverKeys(node, tested) ? reduced(of(a), node.is('ReduceMax')) : UNKNOWN;
    default:
      return comparison(node, a, b, tested);
  }
}

function each(truths: readonly Truth[], f: (x: Tri, y: Tri) => Tri): Truth {
  const of = (key: keyof Truth) => f(truths[0]![key], truths[1]?.[key]);
  return { empty: of('empty'), masked: of('masked'), kept: of('kept') };
}

/** Any or all over the keys: rows that have a key may have lost others, or not. */
function reduced({ empty, masked, kept }: Truth, isAny: boolean): Truth {
  const row = kept === isAny || masked === kept ? kept : undefined;
  return { empty, masked: row, kept: row };
}

/** Over the softmax's axis alone, which stays as one of size 1. */
function isOverKeys(node: Node, { softmax, inference }: Tested): boolean {
  const rank = (softmax && inference.of(softmax.input).shape?.length) ?? 0;
  const axis = reducedAxis(node, rank, inference);
  return axis !== undefined && axis === softmax?.axis && node.int('keepdims') !== 0;
}

/** Lowest and highest; none stands for NaN. */
type Range = readonly [number, number] | undefined;
const FINITE: Range = [-Number.MAX_VALUE, Number.MAX_VALUE];
const LEAST: Range = [-Infinity, -Infinity];

/** IsNaN, IsInf, x = x, and comparisons with a number. */
function comparison(node: Node, a: Value, b: Value | undefined, tested: Tested): Truth {
  const subject = subjectOf(a, tested);
  const number = b && tested.inference.scalarOf(b);
  if (!subject) return UNKNOWN;
  const test = (range: Range): Tri => {
    if (node.is('IsNaN')) return range === undefined;
    if (node.is('IsInf')) return range?.[1] === -Infinity && node.int('detect_negative') !== 0;
    if (node.is('Equal') && a === b) return range !== undefined;
    return number === undefined ? undefined : compare(node, range, number);
  };
  return { empty: test(subject.empty), masked: test(subject.masked), kept: test(subject.kept) };
}

function compare(node: Node, range: Range, number: number): Tri {
  if (!range) return node.is('Equal', 'Greater', 'Less') ? false : undefined;
  const [low, high] = range;
  const surely = (yes: boolean, no: boolean): Tri => (yes ? true : no ? false : undefined);
  if (node.is('Equal')) return surely(low === number && high === number, number < low || number > high);
  if (node.is('Greater')) return surely(low > number, high <= number);
  return node.is('Less') ? surely(high < number, low >= number) : undefined;
}

/** What is tested: probabilities at some stage, or their magnitudes; or scores. */
function subjectOf(
  value: Value,
  { softmax, stages, inference }: Tested,
): Readonly<Record<keyof Truth, Range>> | undefined {
  const magnitude = value.producer?.is('Abs') ? value.producer.inputs[0] : undefined;
  const zeroed = stages.get(magnitude ?? value);
  if (zeroed !== undefined) return { empty: zeroed ? [0, 0] : undefined, masked: [0, 1], kept: [0, 1] };
  if (!softmax || !widenings(softmax.input, inference).some((s) => widenings(value, inference).includes(s)))
    return undefined;
  return { empty: LEAST, masked: LEAST, kept: FINITE };
}

/** A value and those that it was widened from, in which nothing else is −∞. */
function widenings(value: Value, inference: Inference): Value[] {
  const source = value.producer?.is('Cast') ? value.producer.inputs[0] : undefined;
  const [from, to] = [source && inference.of(source).type, inference.of(value).type];
  const isWider = to === DataType.DOUBLE || (to === DataType.FLOAT && from !== DataType.DOUBLE);
  return source && isWider ? [value, ...widenings(source, inference)] : [value];
}
