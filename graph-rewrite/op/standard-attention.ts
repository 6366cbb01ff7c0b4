/**
 * The ONNX standard's `Attention` (versions 23 to 25) written in the operators by which the standard defines it, for
 * runtimes whose `Attention` does not give `qk_matmul_output`:
 *
 *     S0 = (√scale · Q) (√scale · K)ᵀ          mode 0
 *     S1 = softcap · tanh(S0 / softcap)        mode 1; S0 where softcap is 0
 *     S2 = S1 + bias                           mode 2; the bias is attn_mask, and −∞ where a key is taken out
 *     P  = softmax(S2), 0 in rows whose bias is −∞ throughout      mode 3
 *     Y  = P V
 *
 * Everything is of the type of Q but the softmax, which is computed in `softmax_precision`.
 */
import { DataType, type NodeProto } from '../onnx/proto.js';
import type { Refusal } from '../report.js';
import { allInfinite, type Broadcast, positionMask, zeroWhere } from './body-mask.js';
import { floatTypeName, NodeEmitter, once } from './emit.js';
import { AttributeReader, isRefusal, type NodeFacts, present, refuse } from './site.js';
import { STANDARD_ATTENTION_ATTRIBUTES, usedOutput } from './standard.js';

/** What `qk_matmul_output` shows; see above. */
export type ScoresMode = 0 | 1 | 2 | 3;

/** What is known of a node before any data. */
export interface StandardAttentionFacts extends NodeFacts {
  /** Elements of attn_mask's last axis: one for every key, 1 where there may be more keys, or not known. */
  readonly maskKeys: 'all' | 'one' | 'unknown';
}

/** Names of a node's inputs by their names in the standard. */
type Inputs = Readonly<
  Record<'Q' | 'K' | 'V', string> & Partial<Record<'mask' | 'pastKey' | 'pastValue' | 'lengths', string>>
>;

/** An `Attention` whose `qk_matmul_output` is used, with all that its definition depends on. */
export interface ScoresSite {
  readonly opset: number;
  readonly mode: ScoresMode;
  /** TensorProto data type of Q, K and V. */
  readonly elementType: number;
  /** The type in which the softmax is computed. */
  readonly softmaxType: number;
  readonly inputs: Inputs;
  /** Names of Y, present_key, present_value and qk_matmul_output, empty where they are left out. */
  readonly outputs: readonly string[];
  /** Whether Q, K, V and Y are (B, S, H · D) and not (B, H, S, D). */
  readonly isMerged: boolean;
  readonly queryHeads: number;
  readonly keyHeads: number;
  /** Size of the last axis of Q and K, and of V, for one head, where they are the same in every run. */
  readonly headDimension: number | undefined;
  readonly valueDimension: number | undefined;
  /** 1 / √D where it is not given. */
  readonly scale: number | undefined;
  /** 0 for none. */
  readonly softcap: number;
  readonly isCausal: boolean;
  /** −1 for no bound. */
  readonly leftWindow: number;
  readonly rightWindow: number;
  readonly mask: { readonly isBoolean: boolean; readonly rank: number; readonly mayBeShorter: boolean } | undefined;
}

/**
 * Reads a node whose `qk_matmul_output` is used; refuses what is not certain to be as the standard says, and a node
 * whose `qk_matmul_output` nothing uses.
 */
export function readScoresSite(node: NodeProto, facts: StandardAttentionFacts): ScoresSite | Refusal {
  const { opset } = facts;
  const unknown = new AttributeReader(node).unknown(STANDARD_ATTENTION_ATTRIBUTES);
  if (unknown !== undefined) return refuse(`Attention's attribute "${unknown}" is not known`);
  if (opset < 23 || opset > 25) return refuse(`Attention of opset ${opset} is none of the versions 23 to 25`);
  if (usedOutput(node, 3, facts) === undefined) return refuse('qk_matmul_output is not used');
  const inputs = readInputs(node, opset);
  if (isRefusal(inputs)) return inputs;
  const elementType = commonType(inputs, facts);
  if (elementType === undefined) return refuse('Q, K, V and the past are not known to be of one float type');
  const heads = readHeads(node, inputs, facts);
  if (isRefusal(heads)) return heads;
  const mask = readMask(inputs, elementType, facts);
  if (mask !== undefined && isRefusal(mask)) return mask;
  const formula = readFormula(node, elementType, opset);
  if (isRefusal(formula)) return formula;
  return { opset, elementType, inputs, outputs: node.output.slice(0, 4), ...heads, mask, ...formula };
}

function readInputs(node: NodeProto, opset: number): Inputs | Refusal {
  const [Q, K, V, mask, pastKey, pastValue, lengths] = Array.from({ length: 7 }, (_, i) => present(node.input, i));
  if (Q === undefined || K === undefined || V === undefined) return refuse('Q, K and V must be given');
  if ((pastKey === undefined) !== (pastValue === undefined)) return refuse('past_key or past_value is given alone');
  if (lengths !== undefined && (pastKey !== undefined || opset < 24))
    return refuse('nonpad_kv_seqlen is given beside a past, or before version 24', lengths);
  const optional = Object.entries({ mask, pastKey, pastValue, lengths }).filter(([, name]) => name !== undefined);
  return { Q, K, V, ...Object.fromEntries(optional) };
}

const FLOATS: ReadonlySet<number> = new Set([DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE]);

/** The type of all tensors that are multiplied. */
function commonType({ Q, K, V, pastKey, pastValue }: Inputs, facts: NodeFacts): number | undefined {
  const types = [Q, K, V, pastKey, pastValue].flatMap((name) => (name === undefined ? [] : [facts.typeOf(name)]));
  const [type] = types;
  return type !== undefined && FLOATS.has(type) && types.every((other) => other === type) ? type : undefined;
}

type Heads = Pick<ScoresSite, 'isMerged' | 'queryHeads' | 'keyHeads' | 'headDimension' | 'valueDimension'>;

function readHeads(node: NodeProto, { Q, K, V, pastKey, pastValue }: Inputs, facts: NodeFacts): Heads | Refusal {
  const read = new AttributeReader(node);
  const given = [read.int('q_num_heads', 0), read.int('kv_num_heads', 0)] as const;
  const rank = facts.rankOf(Q);
  if ((rank !== 3 && rank !== 4) || facts.rankOf(K) !== rank || facts.rankOf(V) !== rank)
    return refuse('Q, K and V are not known to have rank 3 or rank 4 alike');
  if ([pastKey, pastValue].some((name) => name !== undefined && facts.rankOf(name) !== 4))
    return refuse('the past is not known to have rank 4');
  const isMerged = rank === 3;
  // Version 25 forbids heads beside rank 4, and by the definition of those before they would make it rank 3.
  if (!isMerged && given.some((count) => count !== 0)) return refuse('q_num_heads or kv_num_heads beside rank 4');
  const size = (name: string, axis: number) => facts.dimensionOf?.(name, axis);
  const [queryHeads, keyHeads] = isMerged ? given : [size(Q, 1), size(K, 1)];
  if (!queryHeads || !keyHeads || queryHeads < 0 || keyHeads < 0 || queryHeads % keyHeads !== 0)
    return refuse('the numbers of heads are not known, or one is no multiple of the other');
  const others = [...(isMerged ? [] : [V]), ...[pastKey, pastValue].flatMap((name) => name ?? [])];
  if (others.some((name) => (size(name, 1) ?? keyHeads) !== keyHeads))
    return refuse('keys, values and past have different numbers of heads');
  const dimension = (name: string, heads: number) => {
    const last = size(name, rank - 1);
    return last !== undefined && isMerged ? last / heads : last;
  };
  const headDimension = dimension(Q, queryHeads);
  const valueDimension = dimension(V, keyHeads);
  if ([headDimension ?? 1, valueDimension ?? 1].some((n) => !Number.isInteger(n) || n < 1))
    return refuse('the hidden size is no multiple of the number of heads');
  return { isMerged, queryHeads, keyHeads, headDimension, valueDimension };
}

function readMask(
  { mask }: Inputs,
  elementType: number,
  facts: StandardAttentionFacts,
): ScoresSite['mask'] | Refusal | undefined {
  if (mask === undefined) return undefined;
  const type = facts.typeOf(mask);
  const rank = facts.rankOf(mask);
  if (type !== DataType.BOOL && type !== elementType)
    return refuse('attn_mask is not known to be boolean or of the type of Q', mask);
  if (rank === undefined || rank < 1 || rank > 4) return refuse('attn_mask is not known to have rank 1 to 4', mask);
  // Since version 24 a mask may be shorter than the keys, and one of one element could be meant to cover them all.
  const mayBeShorter = facts.opset >= 24 && facts.maskKeys !== 'all';
  if (mayBeShorter && facts.maskKeys === 'one')
    return refuse('attn_mask may be shorter than the keys or cover all', mask);
  return { isBoolean: type === DataType.BOOL, rank, mayBeShorter };
}

type Formula = Pick<
  ScoresSite,
  'mode' | 'softmaxType' | 'scale' | 'softcap' | 'isCausal' | 'leftWindow' | 'rightWindow'
>;

function readFormula(node: NodeProto, elementType: number, opset: number): Formula | Refusal {
  const read = new AttributeReader(node);
  const mode = read.int('qk_matmul_output_mode', 0);
  if (mode !== 0 && mode !== 1 && mode !== 2 && mode !== 3) return refuse(`qk_matmul_output_mode is ${mode}`);
  const softmaxType = read.int('softmax_precision', elementType);
  if (!FLOATS.has(softmaxType)) return refuse(`softmax_precision is ${softmaxType}`);
  const scale = node.attribute.some(({ name }) => name === 'scale') ? read.float('scale', Number.NaN) : undefined;
  if (scale !== undefined && !(scale >= 0 && scale < Infinity)) return refuse(`scale is ${scale}`);
  const softcap = read.float('softcap', 0);
  if (!(softcap >= 0 && softcap < Infinity)) return refuse(`softcap is ${softcap}`);
  const [leftWindow, rightWindow] = [read.int('left_window_size', -1), read.int('right_window_size', -1)];
  const hasWindow = leftWindow !== -1 || rightWindow !== -1;
  if (leftWindow < -1 || rightWindow < -1 || (hasWindow && opset < 25))
    return refuse('a window is less than -1, or given before version 25');
  const isCausal = read.int('is_causal', 0) === 1;
  return { mode, softmaxType, scale, softcap, isCausal, leftWindow, rightWindow };
}

/**
 * The nodes that compute a site, in order.
 * @param prefix begins the names of all values between, and no name of the model's
 */
export function emitStandardAttention(site: ScoresSite, prefix: string): NodeProto[] {
  const e = new NodeEmitter(site.opset, prefix);
  const { inputs, elementType, softmaxType, headDimension, valueDimension } = site;
  const query = splitHeads(e, site, inputs.Q, site.queryHeads, headDimension);
  const newKey = splitHeads(e, site, inputs.K, site.keyHeads, headDimension);
  const newValue = splitHeads(e, site, inputs.V, site.keyHeads, valueDimension);
  const key = inputs.pastKey === undefined ? newKey : e.concat([inputs.pastKey, newKey], 2, 'present_key');
  const value = inputs.pastValue === undefined ? newValue : e.concat([inputs.pastValue, newValue], 2, 'present_value');
  // Query heads of one key head become rows of one matrix, so that keys and values are never repeated.
  const isGrouped = site.queryHeads !== site.keyHeads;
  const group = (x: string) => (isGrouped ? e.reshape(x, [0, site.keyHeads, -1, 0], 'grouped') : x);
  const ungroup = (x: string) => (isGrouped ? e.reshape(x, [0, site.queryHeads, -1, 0], 'ungrouped') : x);

  const scaling = rootOfScale(e, site, query);
  const scaled = (x: string) => (scaling === undefined ? x : e.op('Mul', [x, scaling], { label: 'scaled' }));
  const transposed = scaled(e.transpose(key, [0, 1, 3, 2], 'key_transposed'));
  const products = ungroup(e.op('MatMul', [group(scaled(query)), transposed], { label: 'products' }));
  const capped = capScores(e, site, products);
  const bias = additiveBias(e, site, query, key);
  const scores = bias === undefined ? capped : e.op('Add', [capped, bias.name], { label: 'scores' });
  const isCast = softmaxType !== elementType;
  const weights = e.softmax(isCast ? e.cast(scores, softmaxType, 'scores_cast') : scores, 4);
  const probabilities = zeroEmptyRows(e, bias, isCast ? e.cast(weights, elementType, 'weights') : weights, elementType);
  const output = ungroup(e.op('MatMul', [group(probabilities), value], { label: 'output' }));

  const shown = [products, capped, scores, probabilities][site.mode]!;
  nameOutputs(e, [mergeHeads(e, site, output), key, value, shown], site.outputs);
  return e.nodes;
}

/** (B, H, S, D). */
function splitHeads(
  e: NodeEmitter,
  { isMerged }: ScoresSite,
  x: string,
  heads: number,
  dimension: number | undefined,
): string {
  return isMerged ? e.transpose(e.reshape(x, [0, 0, heads, dimension ?? -1], 'split'), [0, 2, 1, 3], 'heads') : x;
}

/** The output (B, H, S, D) in the form of the queries. */
function mergeHeads(e: NodeEmitter, { isMerged, queryHeads, valueDimension }: ScoresSite, x: string): string {
  if (!isMerged) return x;
  const hidden = valueDimension === undefined ? -1 : queryHeads * valueDimension;
  return e.reshape(e.transpose(x, [0, 2, 1, 3], 'output_rows'), [0, 0, hidden], 'merged');
}

/** √scale, computed in float32 as the standard has it, in the type of the queries; undefined for 1. */
function rootOfScale(e: NodeEmitter, site: ScoresSite, query: string): string | undefined {
  const { elementType, headDimension, scale } = site;
  if (scale === undefined && headDimension === undefined) {
    const size = e.cast(e.sizes(query, 3, 4, 'head_dimension'), DataType.FLOAT);
    const whole = e.op('Div', [e.scalar('float32', 1), e.op('Sqrt', [size])], { label: 'scale' });
    const root = e.op('Sqrt', [whole], { label: 'scale_root' });
    return elementType === DataType.FLOAT ? root : e.cast(root, elementType, 'scale_cast');
  }
  const { fround, sqrt } = Math;
  const root = fround(sqrt(scale ?? fround(1 / fround(sqrt(headDimension!)))));
  return root === 1 ? undefined : e.scalar(floatTypeName(elementType), root);
}

function capScores(e: NodeEmitter, { softcap, elementType }: ScoresSite, scores: string): string {
  if (softcap === 0) return scores;
  const cap = e.scalar(floatTypeName(elementType), softcap);
  return e.op('Mul', [e.op('Tanh', [e.op('Div', [scores, cap])]), cap], { label: 'capped' });
}

/** What is added to the scores; undefined for nothing. */
function additiveBias(e: NodeEmitter, site: ScoresSite, query: string, key: string): Broadcast | undefined {
  const { inputs, isCausal, leftWindow, rightWindow } = site;
  const queryCount = once(() => e.size(query, 2, 'query_count'));
  const keyCount = once(() => e.size(key, 2, 'key_count'));
  const { keep } = positionMask(e, {
    attributes: { isCausal, leftWindow, rightWindow, alignEnd: false },
    queryCount,
    keyCount,
    pastKey: inputs.pastKey,
    lengths: inputs.lengths,
  });
  const hidden = keep && { name: biasWhere(e, site, keep.name, 'hidden'), rank: keep.rank };
  const given = maskBias(e, site, keyCount);
  if (given === undefined || hidden === undefined) return given ?? hidden;
  return { name: e.op('Add', [given.name, hidden.name], { label: 'bias' }), rank: Math.max(given.rank, hidden.rank) };
}

/** 0 where a key is kept, else −∞. */
function biasWhere(e: NodeEmitter, { elementType }: ScoresSite, keep: string, label: string): string {
  const type = floatTypeName(elementType);
  return e.op('Where', [keep, e.scalar(type, 0), e.scalar(type, Number.NEGATIVE_INFINITY)], { label });
}

/** The mask in the scores' type, with −∞ for keys that it does not reach to. */
function maskBias(e: NodeEmitter, site: ScoresSite, keyCount: () => string): Broadcast | undefined {
  const { mask, inputs, elementType } = site;
  if (mask === undefined) return undefined;
  const { rank } = mask;
  const given = mask.isBoolean ? biasWhere(e, site, inputs.mask!, 'mask_bias') : inputs.mask!;
  if (!mask.mayBeShorter) return { name: given, rank };
  const missing = e.op('Sub', [e.unsqueeze(keyCount(), [0]), e.sizes(given, rank - 1, rank, 'mask_keys')]);
  const outer = rank === 1 ? [] : [e.sizes(given, 0, rank - 1)];
  const shape = e.concat([...outer, missing], 0, 'mask_filler_shape');
  const filler = e.op('Expand', [e.scalar(floatTypeName(elementType), Number.NEGATIVE_INFINITY), shape], {
    label: 'mask_filler',
  });
  return { name: e.concat([given, filler], rank - 1, 'mask_padded'), rank };
}

/** Probabilities with zeros in rows whose bias leaves no key. */
function zeroEmptyRows(
  e: NodeEmitter,
  bias: Broadcast | undefined,
  probabilities: string,
  elementType: number,
): string {
  if (bias === undefined) return probabilities;
  // Not every provider has the largest of 16-bit numbers.
  const isWide = elementType === DataType.FLOAT || elementType === DataType.DOUBLE;
  const wide = isWide ? bias.name : e.cast(bias.name, DataType.FLOAT, 'bias_wide');
  const empty = allInfinite(e, { name: wide, rank: bias.rank }, isWide ? elementType : DataType.FLOAT);
  return zeroWhere(e, empty, probabilities, elementType);
}

/** Gives values the names that the node's outputs had; what no own node computes is passed on under that name. */
function nameOutputs(e: NodeEmitter, values: readonly string[], outputs: readonly string[]): void {
  const names = new Map<string, string>();
  for (const [i, output] of outputs.entries()) {
    const value = values[i]!;
    if (output === '') continue;
    const isOwn = e.nodes.some((node) => node.output.includes(value));
    if (isOwn && !names.has(value)) names.set(value, output);
    else e.node('Identity', [value], [output]);
  }
  for (const node of e.nodes) {
    node.input = node.input.map((name) => names.get(name) ?? name);
    node.output = node.output.map((name) => names.get(name) ?? name);
  }
}
