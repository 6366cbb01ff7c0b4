/**
 * The body of `FlashAttention` as a model-local ONNX function, for runtimes without our kernels.
 *
 * ONNX Runtime reads a function's nodes by the model's own opset, so each body is written for that opset; and a body
 * holds only what its variant needs, so that a plain attention is what a careful exporter would have written.
 */

import { OrtFlashError } from '../errors.js';
import { opsetImports } from '../onnx/make.js';
import { DataType, FunctionProto } from '../onnx/proto.js';
import { areFewScores, BLOCKS_ORDER, type BlockSizes, emitBlocks, type Operands } from './body-blocks.js';
import { axisSize, fromLayout, type KnownSizes, toLayout } from './body-layout.js';
import { applyMasks, describeMaskVariant, type MaskVariant, type QueryBlock } from './body-mask.js';
import {
  DEFAULT_ATTRIBUTES,
  FLASH_ATTENTION_ATTRIBUTES,
  FLASH_ATTENTION_DOMAIN,
  FLASH_ATTENTION_INPUTS,
  FLASH_ATTENTION_OP,
  type FlashAttentionAttributes,
  type FlashAttentionInput,
} from './definition.js';
import { floatTypeName, NodeEmitter, once, type Size, widerFloat } from './emit.js';
import { type Axis, parseLayout } from './layout.js';
import { sameAttribute, writeAttributes } from './node.js';

export type { MaskVariant } from './body-mask.js';

/** Everything that a body depends on. Nodes of equal variants share one function. */
export interface FunctionVariant {
  readonly attributes: FlashAttentionAttributes;
  /** TensorProto data type of Q, K and V. */
  readonly elementType: number;
  /** The model's ai.onnx opset, 7 at least. */
  readonly opset: number;
  readonly mask?: MaskVariant;
  /** Whether past_key and past_value are given. */
  readonly hasPast?: boolean;
  /** Whether nonpad_kv_seqlen is given. */
  readonly hasLengths?: boolean;
  readonly hasSink?: boolean;
  /** Given, the queries are taken a block at a time where the scores are many (body-blocks.ts). Needs opset 11. */
  readonly blocks?: BlockSizes;
  /** Sizes that are the same in every run, where the caller knows them: the body then need not compute them. */
  readonly known?: {
    readonly queryHeads?: number;
    readonly keyHeads?: number;
    readonly headDimension?: number;
    readonly valueDimension?: number;
  };
}

/** The opset from which a body can take queries in blocks: a Loop need carry no value from turn to turn. */
export const BLOCKWISE_OPSET = 11;

/** The IR version from which functions of one name are told apart by `overload`. */
const OVERLOAD_IR_VERSION = 10;

/** The least IR version that a model needs to hold functions made here. */
export function requiredIrVersion(): number {
  return OVERLOAD_IR_VERSION;
}

/** A readable name for a variant, the same for variants that {@link functionFor} treats alike. */
export function overloadName(variant: FunctionVariant): string {
  const { attributes, mask, known } = variant;
  const parts = [floatTypeName(variant.elementType), `opset${variant.opset}`];
  const layouts = [attributes.queryLayout, attributes.keyLayout, attributes.valueLayout, attributes.outputLayout];
  parts.push(layouts.every((l) => l === layouts[0]) ? layouts[0]! : layouts.join(','));
  for (const field of Object.keys(FLASH_ATTENTION_ATTRIBUTES) as (keyof FlashAttentionAttributes)[]) {
    const value = attributes[field];
    if (field.endsWith('Layout') || sameAttribute(value, DEFAULT_ATTRIBUTES[field])) continue;
    const { name, kind } = FLASH_ATTENTION_ATTRIBUTES[field];
    if (kind === 'flag') parts.push(name);
    else parts.push(`${name}=${kind === 'float' ? Number(Math.fround(value as number).toPrecision(9)) : value}`);
  }
  if (mask !== undefined) parts.push(`mask=${describeMaskVariant(mask, variant.elementType)}`);
  if (variant.hasPast) parts.push('past');
  if (variant.hasLengths) parts.push('lengths');
  if (variant.hasSink) parts.push('sink');
  if (variant.blocks) parts.push(`blocks=${variant.blocks.scores},${variant.blocks.leastQueries}`);
  const sizes = [known?.queryHeads, known?.keyHeads, known?.headDimension, known?.valueDimension];
  if (sizes.some((size) => size !== undefined)) parts.push(`sizes=${sizes.map((size) => size ?? '?').join(',')}`);
  return parts.join(' ');
}

/**
 * The function that computes a variant in standard operators, each value as definition.ts states it.
 * @throws OrtFlashError `unsupported` for what the model's opset cannot say, `invalid-argument` for attributes that
 *   contradict each other
 */
export function functionFor(variant: FunctionVariant): FunctionProto {
  const e = new NodeEmitter(variant.opset);
  const inputs = functionInputs(variant);
  const outputs = ['Y', ...(variant.hasPast ? ['present_key', 'present_value'] : [])];
  for (const name of [...inputs, ...outputs]) e.fresh(name);
  checkVariant(variant);
  emitBody(e, variant);
  return FunctionProto.create({
    name: FLASH_ATTENTION_OP,
    domain: FLASH_ATTENTION_DOMAIN,
    overload: overloadName(variant),
    input: inputs,
    output: outputs,
    attribute_proto: writeAttributes(variant.attributes),
    node: e.nodes,
    opset_import: opsetImports({ '': variant.opset }),
  });
}

function functionInputs(variant: FunctionVariant): FlashAttentionInput[] {
  const has: Record<FlashAttentionInput, boolean> = {
    Q: true,
    K: true,
    V: true,
    attn_mask: variant.mask !== undefined,
    past_key: variant.hasPast === true,
    past_value: variant.hasPast === true,
    nonpad_kv_seqlen: variant.hasLengths === true,
    sink: variant.hasSink === true,
  };
  return FLASH_ATTENTION_INPUTS.slice(0, FLASH_ATTENTION_INPUTS.findLastIndex((input) => has[input]) + 1);
}

function checkVariant({ attributes, opset, hasSink, mask, blocks }: FunctionVariant): void {
  const { maskedValue, softcap, maskPeriod } = attributes;
  const need = (holds: boolean, what: string) => {
    if (!holds) throw new OrtFlashError('invalid-argument', `FlashAttention: ${what}`);
  };
  need(!Number.isNaN(maskedValue) && maskedValue < Infinity, `masked_value is ${maskedValue}`);
  need(softcap >= 0, `softcap is ${softcap}, and must not be negative`);
  need(maskPeriod >= 0, `attn_mask_period is ${maskPeriod}, and must not be negative`);
  need(mask === undefined || (mask.rank >= 0 && mask.rank <= 4), `the mask has rank ${mask?.rank}, 4 is the most`);
  const hint = 'convert the model to opset 9 or later';
  if (opset < 7) throw new OrtFlashError('unsupported', `opset ${opset}: operators do not broadcast`, {}, hint);
  if (opset < BLOCKWISE_OPSET && blocks !== undefined)
    throw new OrtFlashError('unsupported', `opset ${opset}: a Loop must carry a value`, {}, 'convert it to opset 11');
  if (opset < 8 && hasSink) throw new OrtFlashError('unsupported', 'a sink in opset 7, which has no Expand', {}, hint);
}

/** Sizes of the axes of each tensor as far as they are fixed. */
function knownSizes({ attributes, known = {} }: FunctionVariant) {
  const sizes = (heads: number | undefined, dimension: number | undefined): KnownSizes => ({
    ...(heads === undefined ? {} : { H: heads }),
    ...(dimension === undefined ? {} : { D: dimension }),
  });
  const queryHeads = attributes.queryHeads || known.queryHeads;
  const keyHeads = attributes.keyHeads || known.keyHeads;
  return {
    queryHeads,
    keyHeads,
    query: sizes(queryHeads, known.headDimension),
    key: sizes(keyHeads, known.headDimension),
    value: sizes(keyHeads, known.valueDimension),
    output: sizes(queryHeads, known.valueDimension),
  };
}

function emitBody(e: NodeEmitter, variant: FunctionVariant): void {
  const { blocks, elementType } = variant;
  const sizes = knownSizes(variant);
  const layout = parseLayout(variant.attributes.outputLayout);
  const scores = blocks && !variant.hasPast ? scoresSizes(e, variant, sizes) : undefined;
  // Each branch reads the tensors itself where it can: what is read before is in memory till the branch ends.
  const shared = scores === undefined ? readOperands(e, variant, sizes) : undefined;
  const operandsIn = (scope: NodeEmitter) => operandsOf(scope, shared ?? readOperands(scope, variant, sizes), sizes);
  const whole = (scope: NodeEmitter) =>
    toLayout(scope, attend(scope, variant, operandsIn(scope)), layout, sizes.output);
  if (blocks === undefined) {
    finish(e, whole(e));
    return;
  }
  const inBlocks = (scope: NodeEmitter) => {
    const output = emitBlocks(scope, variant, blocks, operandsIn(scope), attend);
    return toLayout(scope, output, layout, sizes.output, BLOCKS_ORDER);
  };
  const shape = scores ?? [e.sizes(shared!.query, 0, 3, 'rows_sizes'), e.sizes(shared!.key, 3, 4, 'keys_size')];
  finish(e, e.choose(areFewScores(e, shape, blocks), elementType, whole, inBlocks, 'output'));
}

type Tensors = Pick<Operands, 'query' | 'key' | 'value'>;

/** Sizes whose product is the number of scores, where query and key tell them as they are. */
function scoresSizes(
  e: NodeEmitter,
  { attributes, opset }: FunctionVariant,
  sizes: ReturnType<typeof knownSizes>,
): Size[] | undefined {
  const query = parseLayout(attributes.queryLayout);
  const key = parseLayout(attributes.keyLayout);
  const read = (scope: NodeEmitter) => [
    ...(['B', 'H', 'S'] as const).map((axis) => axisSize(scope, 'Q', query, axis, sizes.query)),
    axisSize(scope, 'K', key, 'S', sizes.key),
  ];
  // Nothing of a vain try is to stay in the body.
  const tried = read(new NodeEmitter(opset));
  if (tried.includes(undefined) || !tried.some((size) => typeof size === 'string')) return undefined;
  return read(e).filter((size) => size !== undefined);
}

function readOperands(e: NodeEmitter, variant: FunctionVariant, sizes: ReturnType<typeof knownSizes>): Tensors {
  const tensors = readTensors(e, variant, sizes);
  return variant.hasPast ? { ...tensors, key: e.transpose(tensors.key, [0, 1, 3, 2], 'key_transposed') } : tensors;
}

/** Operands whose sizes, where they are computed, are values of this scope. */
function operandsOf(e: NodeEmitter, { query, key, value }: Tensors, sizes: ReturnType<typeof knownSizes>): Operands {
  const isGrouped =
    sizes.queryHeads === undefined || sizes.keyHeads === undefined || sizes.queryHeads !== sizes.keyHeads;
  return {
    query,
    key,
    value,
    heads: isGrouped
      ? {
          query: sizes.queryHeads ?? e.sizes(query, 1, 2, 'query_heads'),
          key: sizes.keyHeads ?? e.sizes(key, 1, 2, 'key_heads'),
        }
      : undefined,
    queryCount: once(() => e.size(query, 2, 'query_count')),
    keyCount: once(() => e.size(key, 3, 'key_count')),
  };
}

/** The attention of query (B, H, S, D): (B, H, S, Dv). */
function attend(e: NodeEmitter, variant: FunctionVariant, operands: Operands, block?: QueryBlock): string {
  const { attributes, elementType, mask, hasPast = false, hasLengths = false, hasSink = false } = variant;
  const { query, key, value, heads } = operands;
  // Query heads of one key head become rows of one matrix, so that keys and values are never repeated.
  const group = (x: string) => (heads ? e.reshape(x, [0, heads.key, -1, 0], 'grouped') : x);
  const ungroup = (x: string) => (heads ? e.reshape(x, [0, heads.query, -1, 0], 'ungrouped') : x);

  const scaling = splitScale(e, variant, query);
  const scoreType = widerFloat(elementType, attributes.softmaxPrecision);
  let scores = e.op('MatMul', [group(scaling.query), key], { label: 'scores' });
  if (scoreType !== elementType) scores = e.cast(scores, scoreType, 'scores_cast');
  scores = applyScale(e, scores, scaling.rest, attributes.softcap, scoreType);

  const masking =
    mask !== undefined ||
    attributes.isCausal ||
    attributes.leftWindow >= 0 ||
    attributes.rightWindow >= 0 ||
    hasLengths;
  const isUngrouped = masking || hasSink;
  if (isUngrouped) scores = ungroup(scores);
  const { queryCount, keyCount } = operands;
  const masked = applyMasks(e, scores, {
    attributes,
    queryCount,
    keyCount,
    scoreType,
    elementType,
    mask,
    pastKey: hasPast ? 'past_key' : undefined,
    lengths: hasLengths ? 'nonpad_kv_seqlen' : undefined,
    block,
  });
  let weights = hasSink ? softmaxWithSink(e, masked.scores, elementType, scoreType) : e.softmax(masked.scores, 4);
  if (scoreType !== elementType) weights = e.cast(weights, elementType, 'weights');
  if (isUngrouped) weights = group(weights);
  return masked.zeroEmptyRows(ungroup(e.op('MatMul', [weights, value], { label: 'output' })));
}

/** Names the last value Y. */
function finish(e: NodeEmitter, output: string): void {
  const last = e.nodes.find((node) => node.output[0] === output)!;
  last.output[0] = 'Y';
  last.name = 'Y';
}

/** Query (B, H, S, D), key (B, H, D, S), or (B, H, S, D) with the past ones before, and value (B, H, S, Dv). */
function readTensors(e: NodeEmitter, variant: FunctionVariant, sizes: ReturnType<typeof knownSizes>) {
  const { attributes, hasPast } = variant;
  const rows: readonly Axis[] = ['B', 'H', 'S', 'D'];
  const columns: readonly Axis[] = ['B', 'H', 'D', 'S'];
  const keyOrder = hasPast ? rows : columns;
  const layouts = {
    Q: parseLayout(attributes.queryLayout),
    K: parseLayout(attributes.keyLayout),
    V: parseLayout(attributes.valueLayout),
  };
  const isSliced = (name: 'Q' | 'K' | 'V') =>
    layouts[name].some((d) => d.slice !== undefined && d.factors.includes('D'));
  // A slice takes the head dimension from the other of query and key, from the past, or from the values.
  const query: () => string = once(() => fromLayout(e, 'Q', layouts.Q, rows, sizes.query, dimension));
  const key: () => string = once(() => fromLayout(e, 'K', layouts.K, keyOrder, sizes.key, dimension));
  const value: () => string = once(() => fromLayout(e, 'V', layouts.V, rows, sizes.value, valueDimension));
  const dimension = once((): string => {
    if (!isSliced('Q')) return e.sizes(query(), 3, 4, 'head_dimension');
    if (!isSliced('K')) return e.sizes(key(), hasPast ? 3 : 2, hasPast ? 4 : 3, 'head_dimension');
    if (hasPast) return e.sizes('past_key', 3, 4, 'head_dimension');
    if (!isSliced('V')) return e.sizes(value(), 3, 4, 'head_dimension');
    throw new OrtFlashError('invalid-argument', 'FlashAttention: no input tells the head dimension');
  });
  const valueDimension = once((): string =>
    hasPast
      ? e.sizes('past_value', 3, 4, 'value_dimension')
      : variant.known?.headDimension === undefined
        ? dimension()
        : e.ints([variant.known.headDimension]),
  );
  const tensors = { query: query(), key: key(), value: value() };
  if (!hasPast) return tensors;
  e.node('Concat', ['past_key', tensors.key], ['present_key'], { attributes: { axis: 2 } });
  e.node('Concat', ['past_value', tensors.value], ['present_value'], { attributes: { axis: 2 } });
  return { query: tensors.query, key: 'present_key', value: 'present_value' };
}

/**
 * Scales the query, which is the smallest tensor, and leaves in `rest` what the scores are still to be multiplied by.
 *
 * In the 16-bit types only a power of two goes onto the query, where it rounds nothing: the result is then no less
 * exact than with the scale on the scores, and cannot overflow sooner.
 */
function splitScale(e: NodeEmitter, { attributes, elementType, known }: FunctionVariant, query: string) {
  const { softcap } = attributes;
  const type = floatTypeName(elementType);
  const scale =
    attributes.scale || (known?.headDimension === undefined ? undefined : 1 / Math.sqrt(known.headDimension));
  const multiply = (factor: string) => e.op('Mul', [query, factor], { label: 'query_scaled' });
  if (scale === undefined) {
    const size = e.cast(e.size(query, 3, 'head_dimension'), DataType.FLOAT);
    let factor = e.op('Reciprocal', [e.op('Sqrt', [size])], { label: 'scale' });
    if (softcap > 0) factor = e.op('Div', [factor, e.scalar('float32', softcap)]);
    if (elementType !== DataType.FLOAT) factor = e.cast(factor, elementType);
    return { query: multiply(factor), rest: 1 };
  }
  const whole = softcap > 0 ? scale / softcap : scale;
  const isHalf = type === 'float16' || type === 'bfloat16';
  const onQuery = isHalf ? 2 ** Math.floor(Math.log2(Math.abs(scale))) : whole;
  if (onQuery === 1) return { query, rest: whole };
  return { query: multiply(e.scalar(type, onQuery)), rest: whole / onQuery };
}

function applyScale(e: NodeEmitter, scores: string, rest: number, softcap: number, scoreType: number): string {
  const type = floatTypeName(scoreType);
  const scaled = rest === 1 ? scores : e.op('Mul', [scores, e.scalar(type, rest)], { label: 'scores_scaled' });
  if (softcap === 0) return scaled;
  return e.op('Mul', [e.op('Tanh', [scaled]), e.scalar(type, softcap)], { label: 'scores_capped' });
}

/** Softmax with one more column, which is dropped after. */
function softmaxWithSink(e: NodeEmitter, scores: string, elementType: number, scoreType: number): string {
  const sink = scoreType === elementType ? 'sink' : e.cast('sink', scoreType);
  const column = e.reshape(sink, [1, -1, 1, 1], 'sink_column');
  const rows = e.concat([e.sizes(scores, 0, 3), e.ints([1])], 0);
  const expanded = e.op('Expand', [column, rows]);
  const weights = e.softmax(e.concat([scores, expanded], 3, 'scores_sink'), 4);
  return e.slice(weights, 3, 0, -1, 'weights');
}
