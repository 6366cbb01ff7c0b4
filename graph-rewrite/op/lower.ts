/**
 * Replaces a `FlashAttention` node by the operator of the runtime at hand that computes the same: ONNX Runtime's own
 * fused operators, or the standard's `Attention`. Only attributes, ranks and data types decide, no concrete shape.
 */
import { OrtFlashError } from '../errors.js';
import { DataType, type NodeProto } from '../onnx/proto.js';
import type { Refusal } from '../report.js';
import type { FunctionVariant } from './body.js';
import { fromLayout, type KnownSizes, toLayout } from './body-layout.js';
import { absorbsScores, type Broadcast, both, lowest, positionMask } from './body-mask.js';
import type { FlashAttentionAttributes, FlashAttentionInput } from './definition.js';
import { type AttributeValue, floatTypeName, NodeEmitter, once } from './emit.js';
import { type Axis, parseLayout } from './layout.js';
import { readAttributes, readInputs } from './node.js';
import { isRefusal, refuse } from './site.js';

/** The execution providers of ONNX Runtime that a node can be lowered for; `cpu` is also that of WebAssembly. */
export type OrtProvider = 'cpu' | 'cuda' | 'webgpu';

/** What is known of the node, as for its function body, and how its sequences stand. */
export interface LoweringFacts extends Omit<FunctionVariant, 'attributes'> {
  /** Whether there are always as many queries as new keys, so that every convention of causality agrees. */
  readonly isSelfAttention?: boolean;
  /** Batch and number of queries, where they are the same in every run. */
  readonly batch?: number;
  readonly queries?: number;
  /** The execution provider that is to run the node. */
  readonly provider: OrtProvider;
}

/** What stands in the place of one `FlashAttention` node, in operators of a runtime. */
export interface Lowered {
  /** In topological order; the last values have the names of the replaced node's outputs. */
  readonly nodes: readonly NodeProto[];
  /** Operator sets that the nodes need beside ai.onnx. */
  readonly domains: readonly string[];
  /** Set where the provider, the CPU's, holds all scores of the operator at a time, and why. */
  readonly holdsScores?: string;
}

const MICROSOFT = 'com.microsoft';
const SEQUENCE_FIRST: readonly Axis[] = ['B', 'S', 'H', 'D'];
const HEADS_FIRST: readonly Axis[] = ['B', 'H', 'S', 'D'];

interface Site {
  readonly node: NodeProto;
  readonly attributes: FlashAttentionAttributes;
  readonly inputs: Partial<Record<FlashAttentionInput, string>> & Record<'Q' | 'K' | 'V', string>;
  readonly facts: LoweringFacts;
  readonly queryHeads: number | undefined;
  readonly keyHeads: number | undefined;
  readonly e: NodeEmitter;
}

function readSite(node: NodeProto, facts: LoweringFacts): Site {
  const attributes = readAttributes(node);
  return {
    node,
    attributes,
    inputs: readInputs(node) as Site['inputs'],
    facts,
    queryHeads: attributes.queryHeads || facts.known?.queryHeads,
    keyHeads: attributes.keyHeads || facts.known?.keyHeads,
    e: new NodeEmitter(facts.opset, `${node.name || node.output[0]}/lowered/`),
  };
}

/**
 * `com.microsoft.MultiHeadAttention`, or, where the attention is causal and the operator can have it,
 * `GroupQueryAttention`.
 *
 * On the CPU provider of ONNX Runtime 1.29 these take memory linear in the sequence only in part: MultiHeadAttention
 * without mask, past and causality and with keys and values of rank 3; GroupQueryAttention of float32 without softcap
 * and sink. Every other form holds the scores once, which the result says.
 */
export function lowerToOrt(node: NodeProto, facts: LoweringFacts): Lowered | Refusal {
  const site = readSite(node, facts);
  const { attributes } = site;
  const wrong = checkLayouts(site);
  if (wrong !== undefined) return wrong;
  if (site.queryHeads === undefined || site.keyHeads === undefined) return refuse('the number of heads is not known');
  if (facts.hasLengths) return refuse('nonpad_kv_seqlen has no equal in ONNX Runtime’s operators');
  if (attributes.softmaxPrecision === DataType.DOUBLE && facts.elementType !== DataType.DOUBLE)
    return refuse('ONNX Runtime’s operators compute no softmax in float64');
  if (facts.elementType === DataType.DOUBLE) return refuse('ONNX Runtime’s operators take no float64');
  const isMultiHead =
    site.queryHeads === site.keyHeads && attributes.softcap === 0 && attributes.leftWindow < 0 && !facts.hasSink;
  if (isMultiHead && !attributes.isCausal) return lowerToMultiHead(site, site.queryHeads);
  const grouped = lowerToGroupQuery(site, site.queryHeads, site.keyHeads);
  return isRefusal(grouped) && isMultiHead ? lowerToMultiHead(readSite(node, facts), site.queryHeads) : grouped;
}

/** Causality means the same in every operator where queries and new keys are as many. */
function checkCausality({ attributes, facts }: Site): Refusal | undefined {
  if (attributes.rightWindow >= 0 && !attributes.isCausal) return refuse('a right window without causality');
  if (attributes.isCausal && facts.isSelfAttention !== true)
    return refuse('causality where queries and new keys may not be as many: operators differ in what it means');
  return undefined;
}

function checkMultiHead({ attributes, facts }: Site): Refusal | undefined {
  if (facts.provider === 'cuda' && facts.elementType === DataType.BFLOAT16)
    return refuse('MultiHeadAttention on CUDA takes float32 and float16 only');
  if (facts.provider === 'webgpu') {
    if (attributes.isCausal) return refuse('MultiHeadAttention on WebGPU knows no causality');
    // Its answers there have differed from release to release and from GPU to GPU.
    if (facts.mask || facts.hasPast) return refuse('MultiHeadAttention on WebGPU with a mask or a past is not trusted');
  }
  const { headDimension, valueDimension } = facts.known ?? {};
  const isSameDimension = headDimension !== undefined && headDimension === valueDimension;
  if (!facts.hasPast || isSameDimension) return undefined;
  return refuse('MultiHeadAttention with a past needs keys and values of the same known head dimension');
}

function lowerToMultiHead(site: Site, heads: number): Lowered | Refusal {
  const { attributes, facts, inputs, e } = site;
  const wrong = checkCausality(site) ?? checkBias(site) ?? checkMultiHead(site);
  if (wrong !== undefined) return wrong;
  const sizes = knownSizes(site);
  const query = sequenceFirst(site, 'Q', attributes.queryLayout, sizes.query);
  // The operator takes keys and values heads first too, but then holds the scores.
  const key = sequenceFirst(site, 'K', attributes.keyLayout, sizes.key);
  const value = sequenceFirst(site, 'V', attributes.valueLayout, sizes.value);
  const bias = attentionBias(site, { name: query, sequenceAxis: 1 }, { name: key, sequenceAxis: 1 });
  const [Y, ...presents] = outputNames(site);
  const result = isRankThree(attributes.outputLayout) ? Y! : e.fresh('attention');
  e.node(
    'MultiHeadAttention',
    trimmed([query, key, value, '', '', bias ?? '', inputs.past_key ?? '', inputs.past_value ?? '']),
    trimmed([result, ...presents]),
    {
      domain: MICROSOFT,
      attributes: {
        num_heads: heads,
        ...scaleAttribute(attributes),
        ...(attributes.isCausal ? { unidirectional: 1 } : {}),
      },
    },
  );
  const why = [facts.mask && 'a mask', attributes.isCausal && 'causality', facts.hasPast && 'a past'].find((w) => w);
  return withScores(site, finish(site, result, sizes.output, [MICROSOFT]), 'MultiHeadAttention', why);
}

function withScores({ facts }: Site, lowered: Lowered, operator: string, why: string | false | undefined): Lowered {
  return why && facts.provider === 'cpu'
    ? { ...lowered, holdsScores: `${operator} with ${why} holds all scores at a time` }
    : lowered;
}

function checkGroupQuery({ attributes, facts }: Site): Refusal | undefined {
  const { known } = facts;
  if (facts.provider === 'cuda' && facts.elementType === DataType.FLOAT)
    return refuse('GroupQueryAttention on CUDA takes 16-bit types only');
  if (facts.mask !== undefined) return refuse('GroupQueryAttention with a mask is not in every provider');
  if (facts.provider === 'webgpu' && (attributes.softcap > 0 || attributes.leftWindow >= 0 || facts.hasSink))
    return refuse('GroupQueryAttention on WebGPU with a softcap, a window or a sink is not trusted');
  if (known?.headDimension === undefined || known.headDimension !== known.valueDimension)
    return refuse('GroupQueryAttention needs keys and values of the same known head dimension');
  if (known.headDimension % 8 !== 0)
    return refuse(`GroupQueryAttention needs a head dimension divisible by 8, not ${known.headDimension}`);
  if (facts.hasPast && facts.batch !== 1 && facts.queries !== 1)
    return refuse('GroupQueryAttention puts several queries after a past in a batch of one only');
  return undefined;
}

/** GroupQueryAttention is always causal, and writes the present keys and values that it is asked for or not. */
function lowerToGroupQuery(site: Site, queryHeads: number, keyHeads: number): Lowered | Refusal {
  const { attributes, facts, inputs, e } = site;
  if (!attributes.isCausal) return refuse('GroupQueryAttention is always causal, and this is not');
  const wrong = checkCausality(site) ?? checkGroupQuery(site);
  if (wrong !== undefined) return wrong;
  const sizes = knownSizes(site);
  const query = sequenceFirst(site, 'Q', attributes.queryLayout, sizes.query);
  const key = sequenceFirst(site, 'K', attributes.keyLayout, sizes.key);
  const value = sequenceFirst(site, 'V', attributes.valueLayout, sizes.value);
  const newKeys = e.size(key, 1, 'new_keys');
  const keys = inputs.past_key === undefined ? newKeys : e.op('Add', [newKeys, e.size(inputs.past_key, 2)]);
  const total = e.cast(keys, DataType.INT32, 'total_keys');
  const last = e.op('Sub', [total, e.scalar('int32', 1)]);
  const lengths = e.op('Expand', [last, e.sizes(query, 0, 1, 'batch')], { label: 'last_keys' });
  const [Y, presentKey, presentValue] = outputNames(site);
  const result = isRankThree(attributes.outputLayout) ? Y! : e.fresh('attention');
  const past = [inputs.past_key ?? '', inputs.past_value ?? ''];
  const sink = inputs.sink === undefined ? [] : ['', '', '', '', inputs.sink];
  e.node(
    'GroupQueryAttention',
    [query, key, value, ...past, lengths, total, ...sink],
    [result, presentKey || e.fresh('present_key'), presentValue || e.fresh('present_value')],
    {
      domain: MICROSOFT,
      attributes: {
        num_heads: queryHeads,
        kv_num_heads: keyHeads,
        ...scaleAttribute(attributes),
        ...(attributes.softcap > 0 ? { softcap: { float: attributes.softcap } } : {}),
        // Counts the query's own key too.
        ...(attributes.leftWindow >= 0 ? { local_window_size: attributes.leftWindow + 1 } : {}),
      },
    },
  );
  const why = [
    attributes.softcap > 0 && 'softcap',
    facts.hasSink && 'a sink',
    facts.elementType !== DataType.FLOAT && 'elements of 16 bits',
  ].find((w) => w);
  return withScores(site, finish(site, result, sizes.output, [MICROSOFT]), 'GroupQueryAttention', why);
}

/** The standard's `Attention`, where the model's opset has it and means the same. */
export function lowerToOnnx(node: NodeProto, facts: LoweringFacts): Lowered | Refusal {
  const site = readSite(node, facts);
  const { attributes, inputs, e } = site;
  const { mask } = facts;
  const wrong = checkLayouts(site);
  if (wrong !== undefined) return wrong;
  if (facts.opset < 23) return refuse(`opset ${facts.opset} has no Attention; 23 has`);
  if (facts.hasLengths && facts.opset < 24) return refuse('nonpad_kv_seqlen is in Attention since opset 24');
  if (facts.hasSink) return refuse('Attention has no sink');
  if (attributes.maskPeriod > 1) return refuse('Attention has no attn_mask_period');
  if (mask?.mayBeShorter) return refuse('what a mask shorter than the keys means differs from runtime to runtime');
  if (attributes.scale < 0) return refuse('ONNX Runtime’s Attention takes no negative scale');
  const isWide = facts.elementType === DataType.FLOAT || facts.elementType === DataType.DOUBLE;
  if (mask?.kind === 'additive' && !isWide)
    return refuse('ONNX Runtime’s Attention gives zeros where a 16-bit mask is the lowest number for every key');
  const isFilled = fillsEmptyRows(site);
  const wrongPositions = isFilled ? checkFill(site) : checkPositions(site);
  if (wrongPositions !== undefined) return wrongPositions;

  const sizes = knownSizes(site);
  const layouts = [attributes.queryLayout, attributes.keyLayout, attributes.valueLayout, attributes.outputLayout];
  const isMerged = layouts.every((l) => isRankThree(l)) && site.queryHeads !== undefined && site.keyHeads !== undefined;
  const read = (name: 'Q' | 'K' | 'V', layout: string, known: KnownSizes) =>
    isMerged
      ? inputs[name]
      : fromLayout(e, inputs[name], parseLayout(layout), HEADS_FIRST, known, noDimension, name.toLowerCase());
  const query = read('Q', attributes.queryLayout, sizes.query);
  const key = read('K', attributes.keyLayout, sizes.key);
  const value = read('V', attributes.valueLayout, sizes.value);
  const [Y, ...presents] = outputNames(site);
  const isDirect = isMerged || attributes.outputLayout === 'BHSD';
  const result = isDirect ? Y! : e.fresh('attention');
  const sequenceAxis = isMerged ? 1 : 2;
  const rows = { name: query, sequenceAxis };
  const columns = { name: key, sequenceAxis };
  const attnMask = fullMask(site, standardMask(site, isFilled, rows, columns), 2, rows, columns);
  const rest = [attnMask, inputs.past_key, inputs.past_value, inputs.nonpad_kv_seqlen];
  e.node('Attention', trimmed([query, key, value, ...rest.map((name) => name ?? '')]), trimmed([result, ...presents]), {
    attributes: {
      ...scaleAttribute(attributes),
      ...(attributes.isCausal && !isFilled ? { is_causal: 1 } : {}),
      ...(isMerged ? { q_num_heads: site.queryHeads!, kv_num_heads: site.keyHeads! } : {}),
      ...(attributes.softcap > 0 ? { softcap: { float: attributes.softcap } } : {}),
      ...(attributes.softmaxPrecision > 0 ? { softmax_precision: attributes.softmaxPrecision } : {}),
      ...(attributes.leftWindow >= 0 && !isFilled ? { left_window_size: attributes.leftWindow } : {}),
      ...(attributes.rightWindow >= 0 && !isFilled ? { right_window_size: attributes.rightWindow } : {}),
    },
  });
  if (isDirect) return { nodes: e.nodes, domains: [] };
  return renameLast(site, toLayout(e, result, parseLayout(attributes.outputLayout), sizes.output), []);
}

const hasWindow = ({ leftWindow, rightWindow }: FlashAttentionAttributes) => leftWindow >= 0 || rightWindow >= 0;

/** Whether a row may have no key, and then, with a finite `masked_value`, is the mean of all values. */
function fillsEmptyRows({ attributes, facts: { mask, hasLengths } }: Site): boolean {
  if (attributes.maskedValue === Number.NEGATIVE_INFINITY) return false;
  return (
    hasLengths === true || hasWindow(attributes) || (mask !== undefined && (attributes.isCausal || mask.mayEmptyRows))
  );
}

/** Attention itself gives rows without keys zeros: to say otherwise, all that is taken out must be added. */
function checkFill({ attributes, facts }: Site): Refusal | undefined {
  if (!facts.hasLengths && absorbsScores(attributes.maskedValue, facts.elementType)) return undefined;
  return refuse('a finite masked_value gives rows without keys the mean of all values, Attention gives zeros');
}

/** Where the queries stand among the keys, Attention and its versions in runtimes must agree about. */
function checkPositions({ attributes, facts }: Site): Refusal | undefined {
  const isSelf = facts.isSelfAttention === true;
  if (hasWindow(attributes) && facts.opset < 25) return refuse('windows are in Attention since opset 25');
  if (attributes.isCausal && facts.hasPast && !isSelf)
    return refuse('causality after a past where queries and new keys may not be as many: runtimes differ in it');
  if (attributes.alignEnd && (attributes.isCausal || hasWindow(attributes)) && !isSelf)
    return refuse('Attention does not align queries with the end of the keys');
  return undefined;
}

/**
 * The mask as Attention takes it. With `isFilled`, what causality and windows take out is in it too, as a number that
 * takes in every score.
 */
function standardMask(site: Site, isFilled: boolean, query: Sequence, key: Sequence): Broadcast | undefined {
  const { attributes, facts, inputs, e } = site;
  const { elementType, mask } = facts;
  const given = inputs.attn_mask === undefined || !mask ? undefined : { name: inputs.attn_mask, rank: mask.rank };
  const isBoolean = mask?.kind === 'boolean';
  const own = given && (isBoolean ? given : { name: raiseLowest(e, given.name, elementType), rank: given.rank });
  if (!isFilled) return own;
  const newKeys = once(() => e.size(key.name, key.sequenceAxis, 'new_keys'));
  const { keep } = positionMask(e, {
    attributes,
    queryCount: once(() => e.size(query.name, query.sequenceAxis, 'query_count')),
    keyCount: once(() =>
      inputs.past_key === undefined ? newKeys() : e.op('Add', [newKeys(), e.size(inputs.past_key, 2, 'past_keys')]),
    ),
    pastKey: inputs.past_key,
    lengths: undefined,
  });
  const allKeep = isBoolean ? both(e, own, keep) : keep;
  if (allKeep === undefined) return own;
  const type = floatTypeName(elementType);
  const kept = isBoolean || !own ? { name: e.scalar(type, 0), rank: 0 } : own;
  const taken = e.scalar(type, Math.max(attributes.maskedValue, aboveLowest(elementType)));
  const name = e.op('Where', [allKeep.name, kept.name, taken], { label: 'bias' });
  return { name, rank: Math.max(allKeep.rank, kept.rank) };
}

/** The number after the lowest of float32 or float64. */
function aboveLowest(elementType: number): number {
  return elementType === DataType.FLOAT ? -(2 ** 128 - 2 ** 105) : -Number.MAX_VALUE * (1 - 2 ** -53);
}

/**
 * ONNX Runtime 1.29 gives zeros to rows whose largest score is the lowest number. Exporters write that number for what
 * is masked, and by the standard such a row is the mean of all values: as it is with the number after it.
 */
function raiseLowest(e: NodeEmitter, mask: string, elementType: number): string {
  const type = floatTypeName(elementType);
  const isLowest = e.op('Equal', [mask, e.scalar(type, lowest(elementType))], { label: 'is_lowest' });
  return e.op('Where', [isLowest, e.scalar(type, aboveLowest(elementType)), mask], { label: 'raised_mask' });
}

function scaleAttribute({ scale }: FlashAttentionAttributes): Record<string, AttributeValue> {
  return scale === 0 ? {} : { scale: { float: scale } };
}

const isRankThree = (layout: string): boolean => layout === 'BS(HD)';

/** (batch, sequence, heads · dimension). */
function sequenceFirst(site: Site, name: 'Q' | 'K' | 'V', layout: string, known: KnownSizes): string {
  const { e, inputs } = site;
  const value = inputs[name];
  if (isRankThree(layout)) return value;
  const label = name.toLowerCase();
  const split = fromLayout(e, value, parseLayout(layout), SEQUENCE_FIRST, known, noDimension, label);
  return toLayout(e, split, parseLayout('BS(HD)'), known, SEQUENCE_FIRST);
}

/** Slices are read with known sizes only; see {@link checkLayouts}. */
const noDimension = (): never => {
  throw new OrtFlashError('invalid-argument', 'the head dimension of a slice is not known');
};

function checkLayouts({ attributes, facts: { known } }: Site): Refusal | undefined {
  const isOpen = (layout: string, dimension: number | undefined) => layout.includes('@') && dimension === undefined;
  const { queryLayout, keyLayout, valueLayout } = attributes;
  const open = [queryLayout, keyLayout].some((l) => isOpen(l, known?.headDimension));
  if (!open && !isOpen(valueLayout, known?.valueDimension)) return undefined;
  return refuse('the head dimension of a sliced input is not known');
}

function knownSizes({ facts, queryHeads, keyHeads }: Site) {
  const sizes = (heads: number | undefined, dimension: number | undefined): KnownSizes => ({
    ...(heads === undefined ? {} : { H: heads }),
    ...(dimension === undefined ? {} : { D: dimension }),
  });
  return {
    query: sizes(queryHeads, facts.known?.headDimension),
    key: sizes(keyHeads, facts.known?.headDimension),
    value: sizes(keyHeads, facts.known?.valueDimension),
    output: sizes(queryHeads, facts.known?.valueDimension),
  };
}

function checkBias({ attributes, facts: { mask } }: Site): Refusal | undefined {
  if (mask === undefined) return undefined;
  if (attributes.maskPeriod > 1) return refuse('attn_mask_period has no equal in MultiHeadAttention');
  if (mask.mayBeShorter) return refuse('a mask that may be shorter than the keys has no equal in MultiHeadAttention');
  if (attributes.isCausal)
    return refuse('a mask and causality together may leave rows no key: operators differ in those');
  if (mask.mayEmptyRows) return refuse('MultiHeadAttention gives NaN for rows that the mask leaves no key');
  return undefined;
}

interface Sequence {
  readonly name: string;
  readonly sequenceAxis: number;
}

/** The mask as MultiHeadAttention takes it: added, and of rank 4. */
function attentionBias(site: Site, query: Sequence, key: Sequence): string | undefined {
  const { facts, inputs, e } = site;
  if (facts.mask === undefined || inputs.attn_mask === undefined) return undefined;
  let name = inputs.attn_mask;
  if (facts.mask.kind === 'boolean') {
    const type = floatTypeName(facts.elementType);
    name = e.op('Where', [name, e.scalar(type, 0), e.scalar(type, Number.NEGATIVE_INFINITY)], { label: 'bias' });
  }
  return fullMask(site, { name, rank: facts.mask.rank }, 4, query, key);
}

/** The mask with this rank at least, and with every query and key: ONNX Runtime broadcasts batch and heads only. */
function fullMask(
  { inputs, e }: Site,
  mask: Broadcast | undefined,
  rank: 2 | 4,
  query: Sequence,
  key: Sequence,
): string | undefined {
  if (mask === undefined) return undefined;
  const missing = Array.from({ length: Math.max(0, rank - mask.rank) }, (_, i) => i);
  const ranked = missing.length > 0 ? e.unsqueeze(mask.name, missing, 'mask_axes') : mask.name;
  const sizeOf = ({ name, sequenceAxis }: Sequence, label: string) =>
    e.sizes(name, sequenceAxis, sequenceAxis + 1, label);
  let keys = sizeOf(key, 'keys');
  if (inputs.past_key !== undefined) keys = e.op('Add', [keys, e.sizes(inputs.past_key, 2, 3)]);
  return e.op('Expand', [ranked, e.concat([sizeOf(query, 'queries'), keys], 0)], { label: 'full_mask' });
}

function outputNames({ node }: Site): string[] {
  return [node.output[0] ?? '', node.output[1] ?? '', node.output[2] ?? ''];
}

function trimmed(names: readonly string[]): string[] {
  return names.slice(0, names.findLastIndex((name) => name !== '') + 1);
}

/** Brings a result (B, S, H·D) into the output's layout, under the output's name. */
function finish(site: Site, result: string, known: KnownSizes, domains: readonly string[]): Lowered {
  const { e, attributes } = site;
  if (isRankThree(attributes.outputLayout)) return { nodes: e.nodes, domains };
  const split = fromLayout(e, result, parseLayout('BS(HD)'), SEQUENCE_FIRST, known, noDimension, 'output');
  return renameLast(site, toLayout(e, split, parseLayout(attributes.outputLayout), known, SEQUENCE_FIRST), domains);
}

function renameLast({ e, node }: Site, value: string, domains: readonly string[]): Lowered {
  const last = e.nodes.find((n) => n.output[0] === value)!;
  last.output[0] = node.output[0] ?? '';
  return { nodes: e.nodes, domains };
}
