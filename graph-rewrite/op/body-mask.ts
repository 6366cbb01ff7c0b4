/** The part of a function body that takes keys out: masks, causality, windows, lengths, and rows left without keys. */
import { OrtFlashError } from '../errors.js';
import { type DataTypeName, dataTypeName } from '../onnx/data-type.js';
import { DataType } from '../onnx/proto.js';
import { makeTensor } from '../onnx/tensor.js';
import type { FlashAttentionAttributes } from './definition.js';
import { floatTypeName, type NodeEmitter, once } from './emit.js';
import { halfToNumber } from './half.js';

/** What is known of the mask before its data. */
export interface MaskVariant {
  readonly kind: 'boolean' | 'additive';
  /** 0 to 4. */
  readonly rank: number;
  /** False where the mask is known to span all keys, or to be broadcast over them. */
  readonly mayBeShorter: boolean;
  /** False where the mask is known to leave every row a key. */
  readonly mayEmptyRows: boolean;
}

/** The values that masking starts from. */
export interface MaskingInputs {
  readonly attributes: FlashAttentionAttributes;
  /** (B, H, queries, D) or grouped; only axes 2 and 3 of query and key are read. */
  readonly queryCount: () => string;
  readonly keyCount: () => string;
  /** Type of the scores; the mask is cast to it. */
  readonly scoreType: number;
  readonly elementType: number;
  readonly mask: MaskVariant | undefined;
  /** The past keys, (B, H, past keys, D), where there are any. */
  readonly pastKey: string | undefined;
  /** How many keys each batch has, (B), where that is given. */
  readonly lengths: string | undefined;
  /** The queries that the scores are of, where these are not all; `queryCount` counts all. */
  readonly block?: QueryBlock | undefined;
}

/** Consecutive queries: from `start` to `start + size`, vectors of one int64, or up to the last query. */
export interface QueryBlock {
  readonly start: string;
  readonly size: string;
  /** The indices of the block's queries. */
  readonly indices: () => string;
}

export interface Masked {
  readonly scores: string;
  /** Puts zeros into the rows of an output (B, H, queries, Dv) that had no key. */
  readonly zeroEmptyRows: (output: string) => string;
}

/** A tensor that broadcasts to the scores. */
export interface Broadcast {
  readonly name: string;
  readonly rank: number;
}

/** Most negative finite number of a float type. */
export function lowest(elementType: number): number {
  switch (floatTypeName(elementType)) {
    case 'float16':
      return halfToNumber(0xfbff, 'float16');
    case 'bfloat16':
      return halfToNumber(0xff7f, 'bfloat16');
    case 'float32':
      return -(2 ** 128 - 2 ** 104);
    case 'float64':
      return -Number.MAX_VALUE;
  }
}

/** Applies everything that takes keys out to scores (B, H, queries, keys). */
export function applyMasks(e: NodeEmitter, scores: string, inputs: MaskingInputs): Masked {
  return e.opset < 9 ? maskWithoutWhere(e, scores, inputs) : maskWithWhere(e, scores, inputs);
}

function maskWithWhere(e: NodeEmitter, scores: string, inputs: MaskingInputs): Masked {
  const { attributes, mask, elementType, scoreType } = inputs;
  const type = floatTypeName(scoreType);
  const isHard = attributes.maskedValue === Number.NEGATIVE_INFINITY;
  const value = isHard ? attributes.maskedValue : Math.max(attributes.maskedValue, lowest(scoreType));
  const where = (keep: string, kept: string, label: string) =>
    e.op('Where', [keep, kept, e.scalar(type, value)], { label });
  const add = (bias: string) => e.op('Add', [scores, bias], { label: 'masked_scores' });
  const onScores = (keep: string, kept: string) => where(keep, kept, 'masked_scores');
  const positions = positionMask(e, inputs);
  if (mask === undefined) {
    const { keep } = positions;
    if (keep === undefined) return { scores, zeroEmptyRows: (y) => y };
    const zeroEmptyRows = (y: string) => (isHard ? zeroWhere(e, positions.empty(), y, elementType) : y);
    if (!absorbsScores(value, scoreType)) return { scores: onScores(keep.name, scores), zeroEmptyRows };
    return { scores: add(where(keep.name, e.scalar(type, 0), 'bias')), zeroEmptyRows };
  }
  const { tensor, keep: covered } = fullMask(e, inputs, isHard);
  const keep = both(e, positions.keep, covered);
  if (attributes.maskPeriod > 1) return maskPeriodically(e, scores, inputs, tensor, keep, onScores);

  const isBoolean = mask.kind === 'boolean';
  const allKeep = isBoolean ? both(e, tensor, keep) : keep;
  const rank = Math.max(tensor.rank, allKeep?.rank ?? 0);
  const added = isBoolean ? e.scalar(type, 0) : tensor.name;
  // All that is masked is put together while it is small: only one addition, in place, then touches the scores.
  const bias = once(() => ({ name: allKeep === undefined ? added : where(allKeep.name, added, 'bias'), rank }));
  const kept = () => (isBoolean ? scores : add(tensor.name));
  const isSum = allKeep === undefined || absorbsScores(value, scoreType);
  const masked = isSum ? add(bias().name) : onScores(allKeep.name, kept());
  const mayEmpty = (mask.mayEmptyRows || keep !== undefined) && (isHard || !isBoolean);
  const zeroEmptyRows = (y: string) => (mayEmpty ? zeroWhere(e, allInfinite(e, bias(), scoreType), y, elementType) : y);
  return { scores: masked, zeroEmptyRows };
}

/**
 * Whether a score that the masked value is added to is rounded to the masked value itself, for every score below 10²⁰:
 * adding can be done in place, and ONNX Runtime's `Where` takes three times the memory of the scores.
 */
export function absorbsScores(maskedValue: number, scoreType: number): boolean {
  const isWide = scoreType === DataType.FLOAT || scoreType === DataType.DOUBLE;
  return (
    maskedValue === Number.NEGATIVE_INFINITY || (isWide && maskedValue < (scoreType === DataType.FLOAT ? -1e30 : -1e38))
  );
}

/** Where a mask is one of several for consecutive batches, scores are seen as (B / period, period, H, queries, keys). */
function maskPeriodically(
  e: NodeEmitter,
  scores: string,
  inputs: MaskingInputs,
  mask: Broadcast,
  keep: Broadcast | undefined,
  where: (keep: string, kept: string) => string,
): Masked {
  const period = inputs.attributes.maskPeriod;
  if (mask.rank !== 4) {
    throw new OrtFlashError('invalid-tensor', `a mask with attn_mask_period ${period} must have rank 4`, {
      tensor: 'attn_mask',
    });
  }
  const shape = e.op('Shape', [scores], { label: 'scores_shape' });
  const periods = e.reshape(scores, [-1, period, e.slice(shape, 0, 1, 4)], 'scores_periods');
  const added = inputs.mask?.kind === 'boolean' ? where(mask.name, periods) : e.op('Add', [periods, mask.name]);
  const back = e.op('Reshape', [added, shape], { label: 'periodic_scores' });
  const masked = keep === undefined ? back : where(keep.name, back);
  const mayEmpty = inputs.mask?.mayEmptyRows === true || keep !== undefined;
  const zeroEmptyRows = (y: string) =>
    mayEmpty ? zeroWhere(e, allInfinite(e, { name: masked, rank: 4 }, inputs.scoreType), y, inputs.elementType) : y;
  return { scores: masked, zeroEmptyRows };
}

/** The mask with rank 1 at least, in the scores' type, with every key; and which keys it covers, where that matters. */
function fullMask(
  e: NodeEmitter,
  inputs: MaskingInputs,
  isHard: boolean,
): { tensor: Broadcast; keep: Broadcast | undefined } {
  const mask = inputs.mask!;
  const rank = Math.max(mask.rank, 1);
  let name = inputs.block !== undefined && rank >= 2 ? maskOfBlock(e, rank, inputs.block) : 'attn_mask';
  let type: DataTypeName = 'bool';
  if (mask.kind === 'additive') {
    type = floatTypeName(inputs.scoreType);
    if (inputs.scoreType !== inputs.elementType) name = e.cast(name, inputs.scoreType, 'mask_cast');
  }
  if (mask.rank === 0) name = e.unsqueeze(name, [0], 'mask_axes');
  if (!mask.mayBeShorter || mask.rank === 0) return { tensor: { name, rank }, keep: undefined };

  const own = e.sizes(name, rank - 1, rank, 'mask_keys');
  const total = e.unsqueeze(inputs.keyCount(), [0]);
  const isWhole = e.op('Equal', [own, e.ints([1])]);
  const isShort = e.cast(e.op('Not', [isWhole]), DataType.INT64);
  const missing = e.op('Mul', [e.op('Sub', [total, own]), isShort], { label: 'mask_missing' });
  const outer = rank === 1 ? [] : [e.sizes(name, 0, rank - 1)];
  const fillerShape = e.concat([...outer, missing], 0, 'mask_filler_shape');
  const fill = mask.kind === 'additive' && isHard ? Number.NEGATIVE_INFINITY : 0;
  const filler = e.op('ConstantOfShape', [fillerShape], {
    attributes: { value: makeTensor('', type, [1], [fill]) },
    label: 'mask_filler',
  });
  const tensor = { name: e.concat([name, filler], rank - 1, 'mask_padded'), rank };
  if (mask.kind === 'boolean' || isHard) return { tensor, keep: undefined };
  // A finite masked value takes a score's place and is not added to it.
  const covered = e.op('Sub', [total, missing]);
  const keys = e.countTo(inputs.keyCount(), 'key_positions');
  return { tensor, keep: { name: e.op('Less', [keys, covered], { label: 'covered' }), rank: 1 } };
}

/** The mask's rows for a block of queries; all of it where it has one row for every query. */
function maskOfBlock(e: NodeEmitter, rank: number, { start, size }: QueryBlock): string {
  const rows = e.sizes('attn_mask', rank - 2, rank - 1, 'mask_rows');
  const hasRows = e.cast(e.op('Not', [e.op('Equal', [rows, e.ints([1])])]), DataType.INT64);
  const first = e.op('Mul', [start, hasRows]);
  return e.sliceAt('attn_mask', rank - 2, first, e.op('Add', [first, size]), 'mask_block');
}

/** What {@link positionMask} depends on. */
export type PositionInputs = Pick<MaskingInputs, 'queryCount' | 'keyCount' | 'pastKey' | 'lengths' | 'block'> & {
  readonly attributes: Pick<FlashAttentionAttributes, 'isCausal' | 'leftWindow' | 'rightWindow' | 'alignEnd'>;
};

export interface Positions {
  /** Keys that causality, windows and lengths leave; undefined where they take none out. */
  readonly keep: Broadcast | undefined;
  /** Which rows they leave without a key; undefined where that cannot be. */
  readonly empty: () => string | undefined;
}

/**
 * Keys that query i, at position p = i + offset, sees: p − left ≤ j ≤ p + right, and j < length. Every bound is written
 * as one `Less`.
 */
export function positionMask(e: NodeEmitter, inputs: PositionInputs): Positions {
  const { isCausal, leftWindow, rightWindow, alignEnd } = inputs.attributes;
  const upper = isCausal ? 0 : rightWindow >= 0 ? rightWindow : undefined;
  const lower = leftWindow >= 0 ? leftWindow : undefined;
  if (upper === undefined && lower === undefined && inputs.lengths === undefined)
    return { keep: undefined, empty: () => undefined };

  const keys = e.countTo(inputs.keyCount(), 'key_positions');
  const lengths = inputs.lengths === undefined ? undefined : e.reshape(inputs.lengths, [-1, 1, 1, 1], 'lengths');
  const hasRows = upper !== undefined || lower !== undefined;
  const rows = hasRows ? queryPositions(e, inputs, lengths) : undefined;
  const shifted = (by: number): string =>
    by === 0 ? rows!.name : e.op('Add', [rows!.name, e.int(by)], { label: 'bound' });

  let keep: Broadcast | undefined;
  const keepLess = (a: string, b: string, label: string, rank: number) => {
    keep = both(e, keep, { name: e.op('Less', [a, b], { label }), rank });
  };
  const end = upper === undefined ? undefined : shifted(upper + 1);
  if (end !== undefined) keepLess(keys, end, isCausal ? 'causal' : 'right_window', rows!.rank);
  const beforeFirst = lower === undefined ? undefined : shifted(-lower - 1);
  if (beforeFirst !== undefined) keepLess(beforeFirst, keys, 'left_window', rows!.rank);
  // A causal query that stands at the end of its keys sees none past them.
  const endsAtLength = upper === 0 && !alignEnd;
  if (lengths !== undefined && !endsAtLength) keepLess(keys, lengths, 'in_length', 4);

  const empty = (): string | undefined => {
    const causes: string[] = [];
    const offsetMayBeNegative = alignEnd || lengths !== undefined;
    if (end !== undefined && offsetMayBeNegative) causes.push(e.op('Less', [end, e.int(1)]));
    if (beforeFirst !== undefined) {
      const last = e.op('Sub', [lengths ?? inputs.keyCount(), e.int(2)]);
      causes.push(e.op('Less', [last, beforeFirst]));
    }
    if (lengths !== undefined && !endsAtLength) causes.push(e.op('Less', [lengths, e.int(1)]));
    if (causes.length === 0) return undefined;
    return causes.reduce((a, b) => e.op('Or', [a, b], { label: 'empty_rows' }));
  };
  return { keep, empty };
}

/** Positions of the queries among the keys: (queries, 1), or (B, 1, queries, 1) where they differ by batch. */
function queryPositions(e: NodeEmitter, inputs: PositionInputs, lengths: string | undefined): Broadcast {
  const queries = inputs.queryCount();
  const column = e.unsqueeze(inputs.block?.indices() ?? e.countTo(queries, 'query_positions'), [1]);
  const moved = (offset: string, rank: number) => ({
    name: e.op('Add', [column, offset], { label: 'positions' }),
    rank,
  });
  if (inputs.attributes.alignEnd) return moved(e.op('Sub', [inputs.keyCount(), queries], { label: 'offset' }), 2);
  if (lengths !== undefined) return moved(e.op('Sub', [lengths, queries], { label: 'offset' }), 4);
  const { pastKey } = inputs;
  return pastKey === undefined ? { name: column, rank: 2 } : moved(e.size(pastKey, 2, 'past_keys'), 2);
}

export function both(e: NodeEmitter, a: Broadcast | undefined, b: Broadcast | undefined): Broadcast | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  return { name: e.op('And', [a.name, b.name], { label: 'keep' }), rank: Math.max(a.rank, b.rank) };
}

export function zeroWhere(e: NodeEmitter, empty: string | undefined, output: string, elementType: number): string {
  if (empty === undefined) return output;
  return e.op('Where', [empty, e.scalar(floatTypeName(elementType), 0), output], { label: 'output_rows' });
}

/**
 * Rows whose values are all −∞. Told value by value, as the largest of such a row is a finite number in ONNX Runtime's CUDA
 * provider; and by `Less`, as `Equal` takes no floats before opset 11.
 */
export function allInfinite(e: NodeEmitter, bias: Broadcast, type: number): string {
  const isInfinite = e.op('Less', [bias.name, e.scalar(floatTypeName(type), lowest(type))]);
  const finite = e.cast(e.op('Not', [isInfinite]), DataType.FLOAT, 'finite');
  const some = e.reduceMax(finite, bias.rank - 1, 'row_max');
  return e.op('Less', [some, e.scalar('float32', 0.5)], { label: 'empty_rows' });
}

/**
 * Opsets 7 and 8 have no `Where`, no way to count, and no tensor of a given shape.
 * @throws OrtFlashError `unsupported` for what they cannot say
 */
function maskWithoutWhere(e: NodeEmitter, scores: string, inputs: MaskingInputs): Masked {
  const { attributes, mask } = inputs;
  const { isCausal, leftWindow, rightWindow, maskedValue, maskPeriod } = attributes;
  const cannot = [
    (isCausal || leftWindow >= 0 || rightWindow >= 0) && 'causality and windows',
    inputs.lengths !== undefined && 'nonpad_kv_seqlen',
    mask?.mayBeShorter === true && 'a mask that may be shorter than the keys',
    maskPeriod > 1 && 'attn_mask_period',
    // ONNX Runtime's Clip takes no float64 there.
    mask?.mayEmptyRows === true && inputs.scoreType === DataType.DOUBLE && 'a mask on a float64 softmax',
  ].find((what) => what !== false);
  if (cannot !== undefined) {
    throw new OrtFlashError(
      'unsupported',
      `${cannot} in opset ${e.opset}, whose operators cannot say it`,
      {},
      'convert the model to opset 9 or later',
    );
  }
  if (mask === undefined) return { scores, zeroEmptyRows: (y) => y };
  const type = floatTypeName(inputs.scoreType);
  const rank = Math.max(mask.rank, 1);
  const given = mask.rank === 0 ? e.unsqueeze('attn_mask', [0]) : 'attn_mask';
  const needsCast = mask.kind === 'boolean' || inputs.scoreType !== inputs.elementType;
  const numbers = needsCast ? e.cast(given, inputs.scoreType) : given;
  if (mask.kind === 'boolean' && maskedValue !== Number.NEGATIVE_INFINITY) {
    const value = e.scalar(type, Math.max(maskedValue, lowest(inputs.scoreType)));
    const put = e.op('Mul', [e.op('Sub', [e.scalar(type, 1), numbers]), value]);
    return { scores: e.op('Add', [e.op('Mul', [scores, numbers]), put]), zeroEmptyRows: (y) => y };
  }
  // ln 1 = 0 and ln 0 = −∞. A row of −∞ would give NaN, so the bias stops short of it and the row is zeroed after.
  const bias = mask.kind === 'boolean' ? e.op('Log', [numbers]) : numbers;
  if (!mask.mayEmptyRows) return { scores: e.op('Add', [scores, bias]), zeroEmptyRows: (y) => y };
  const clipped = e.op('Clip', [bias], {
    attributes: { min: { float: Math.max(lowest(inputs.scoreType) / 2, -1e38) } },
  });
  const empty = e.cast(allInfinite(e, { name: bias, rank }, inputs.scoreType), inputs.elementType);
  const factor = e.op('Sub', [e.scalar(floatTypeName(inputs.elementType), 1), empty]);
  return { scores: e.op('Add', [scores, clipped]), zeroEmptyRows: (y) => e.op('Mul', [y, factor]) };
}

/** For messages and names: the mask's kind and rank. */
export function describeMaskVariant(mask: MaskVariant, elementType: number): string {
  const kind = mask.kind === 'boolean' ? 'bool' : dataTypeName(elementType);
  return `${kind}${mask.rank}${mask.mayBeShorter ? ' short' : ''}${mask.mayEmptyRows ? '' : ' no-empty'}`;
}
