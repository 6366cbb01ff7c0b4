/** Exponentials whose masks come behind them, as zeros: e · b, or Where(b, e, 0). */
import type { Node, Value } from '../graph/graph.js';
import { DataType } from '../onnx/proto.js';
import type { Inference } from '../shape/inference.js';
import { contractionTo } from './contraction.js';
import { refuse } from './refusal.js';
import { type ScoreStep, type ScoreTrace, uniformValue } from './scores.js';
import { isWeight } from './weights.js';

/** What takes keys out of exponentials. */
export interface ExponentialMask {
  /** A tensor of zeros and ones, or of truth values. */
  readonly value: Value;
  readonly keepWhere: boolean;
  readonly node: Node;
}

/** Exponentials and what was made of them before they were summed. */
export interface MaskedExponentials {
  /** The output of Exp. */
  readonly exponential: Value;
  readonly masks: readonly ExponentialMask[];
}

const MOST_MASKS = 3;

/** Reads exponentials, perhaps masked, up to their Exp; undefined where they are none. */
export function readMasked(value: Value, inference: Inference, depth = 0): MaskedExponentials | undefined {
  const node = value.producer;
  if (!node || depth > MOST_MASKS) return undefined;
  if (node.is('Exp')) return { exponential: value, masks: [] };
  for (const [kept, mask, keepWhere] of maskedBy(node, inference)) {
    const inner = kept.isOutput || readersOf(kept).length > 1 ? undefined : readMasked(kept, inference, depth + 1);
    if (inner) return { ...inner, masks: [...inner.masks, { value: mask, keepWhere, node }] };
  }
  return undefined;
}

/** Follows exponentials from their Exp to where they are masked no more. */
export function lastMasked(exponential: Value, inference: Inference): Value {
  let value = exponential;
  for (;;) {
    const [node, ...others] = readersOf(value);
    const output = node?.outputs[0];
    const isMasked = output && others.length === 0 && readMasked(output, inference)?.exponential === exponential;
    if (!isMasked) return value;
    value = output;
  }
}

/** The nodes that need more than a value's shape. */
function readersOf(value: Value): Node[] {
  return [...new Set(value.uses.map((u) => u.node))].filter((node) => !node.is('Shape'));
}

/** Ways to read a node as a mask on one of its inputs. */
function maskedBy(node: Node, inference: Inference): (readonly [kept: Value, mask: Value, keepWhere: boolean])[] {
  const [a, b, c] = node.inputs;
  if (!a || !b || a === b) return [];
  if (node.is('Mul'))
    return [
      [a, b, true],
      [b, a, true],
    ];
  if (!node.is('Where') || !c) return [];
  if (uniformValue(c, inference) === 0) return [[b, a, true]];
  return uniformValue(b, inference) === 0 ? [[c, a, false]] : [];
}

const MOVES =
  'Identity Cast Reshape Unsqueeze Squeeze Expand Tile Slice Gather Transpose Trilu Mul Where Sub And Or Not';
const moves: ReadonlySet<string> = new Set(MOVES.split(' '));
const MOVES_FIRST: ReadonlySet<string> = new Set('Reshape Unsqueeze Squeeze Expand Tile Slice Gather Trilu'.split(' '));

/** Whether a tensor holds zeros and ones alone. */
function isBinary(value: Value, inference: Inference): boolean {
  const { type, constant, uniform } = inference.of(value);
  if (type === DataType.BOOL || uniform === 0 || uniform === 1) return true;
  const numbers = constant?.numbers();
  if (numbers) return Array.prototype.every.call(numbers, (x: number) => x === 0 || x === 1);
  const node = value.producer;
  if (node?.domain !== '' || !moves.has(node.opType)) return false;
  const [first, ...others] = node.inputs.filter((v) => v !== undefined);
  if (node.is('Sub')) return inference.uniformOf(first!) === 1 && isBinary(others[0]!, inference);
  const inputs = MOVES_FIRST.has(node.opType) ? [first!] : node.is('Where') ? others : [first!, ...others];
  return inputs.every((input) => isBinary(input, inference));
}

/** Whether masked exponentials may be those of scores: under masks of zeros and ones, or of a product of sequences. */
export function mayBeScores({ exponential, masks }: MaskedExponentials, inference: Inference): boolean {
  return masks.every(({ value }) => isBinary(value, inference)) || isOfSequences(exponential, inference);
}

/** Values between the operands of a product and exponentials of it, with those that masks are computed from. */
const MOST_VALUES = 200;

/** Whether what is exponentiated comes of a product of two sequences, and so may be scores; features are no sites. */
export function isOfSequences(exponential: Value, inference: Inference): boolean {
  const seen = new Set<Value>([exponential]);
  for (const value of seen) {
    const product = contractionTo(value, inference);
    const [a, b] = product?.operands ?? [];
    if (a && b && a.value !== b.value && !isWeight(a.value, inference) && !isWeight(b.value, inference)) return true;
    if (product || !value.producer || seen.size > MOST_VALUES) continue;
    for (const input of value.producer.inputs) if (input) seen.add(input);
  }
  return false;
}

/** The scores with the masks that come behind their exponentials: a key that is out has the score −∞. */
export function withMasks(trace: ScoreTrace, masks: readonly ExponentialMask[], inference: Inference): ScoreTrace {
  const { dimensions } = trace.view;
  const steps = masks.map(({ value, keepWhere, node }): ScoreStep => {
    if (!isBinary(value, inference))
      refuse('the exponentials are multiplied by what is not proven to hold zeros and ones alone', value);
    const shape = inference.of(value).shape;
    const added = dimensions.length - (shape?.length ?? Number.POSITIVE_INFINITY);
    if (added < 0 || shape?.some((size, i) => !size.equals(1) && dimensions[i + added]!.length === 0))
      refuse('a mask repeats the exponentials along a dimension that they do not have', node);
    return { kind: 'select', condition: value, keepWhere, fill: Number.NEGATIVE_INFINITY, dimensions };
  });
  return { ...trace, steps: [...trace.steps, ...steps] };
}
