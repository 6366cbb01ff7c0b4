/** ONNX Runtime's own fused attention operators (domain com.microsoft, version 1) as FlashAttention. */
import type { NodeProto } from '../onnx/proto.js';
import type { Refusal } from '../report.js';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from './definition.js';
import { floatTypeName, NodeEmitter } from './emit.js';
import { AttributeReader, type FusedSite, isRefusal, type NodeFacts, present, refuse } from './site.js';

const DOMAIN = 'com.microsoft';

const READERS: Readonly<Record<string, (site: Site) => FusedSite | Refusal>> = {
  MultiHeadAttention: readMultiHead,
  DecoderMaskedMultiHeadAttention: readDecoderMasked,
  GroupQueryAttention: readGroupQuery,
  Attention: readPacked,
};

/** Whether the node is one that {@link readContribAttention} knows. */
export function isContribAttention(node: NodeProto): boolean {
  return node.domain === DOMAIN && Object.hasOwn(READERS, node.op_type ?? '');
}

/** Reads MultiHeadAttention, DecoderMaskedMultiHeadAttention, GroupQueryAttention or Attention of com.microsoft. */
export function readContribAttention(node: NodeProto, facts: NodeFacts): FusedSite | Refusal {
  const read = READERS[node.op_type ?? ''];
  if (node.domain !== DOMAIN || read === undefined) return refuse(`${node.domain}.${node.op_type} is not known`);
  const first = present(node.input, 0);
  const elementType = first === undefined ? undefined : facts.typeOf(first);
  if (first === undefined || elementType === undefined)
    return refuse('the type of the first input is not known', first);
  const e = new NodeEmitter(facts.opset, `${node.name || node.output[0]}/`);
  return read({ node, facts, attributes: new AttributeReader(node), elementType, e });
}

interface Site {
  readonly node: NodeProto;
  readonly facts: NodeFacts;
  readonly attributes: AttributeReader;
  readonly elementType: number;
  readonly e: NodeEmitter;
}

type Mask = { readonly name: string; readonly rank: number };
type Tensors = Pick<FlashAttentionAttributes, 'queryLayout' | 'keyLayout' | 'valueLayout'> &
  Readonly<Record<'Q' | 'K' | 'V', string>>;

/** What the four readers have in common: heads, scale, the outputs, and a result (B, S, H·Dv). */
function assemble(
  { node, facts, attributes, e }: Site,
  { Q, K, V, ...layouts }: Tensors,
  extra: {
    readonly keyHeads: number;
    readonly mask?: Mask | undefined;
    readonly past?: { readonly key: string; readonly value: string } | undefined;
    readonly sink?: string | undefined;
    readonly attributes?: Partial<FlashAttentionAttributes>;
    readonly outputs?: FusedSite['outputs'];
    readonly nodesAfter?: readonly NodeProto[];
  },
): FusedSite | Refusal {
  const { past, mask, sink } = extra;
  const used = (index: number) => {
    const name = present(node.output, index);
    return name !== undefined && facts.isUsed(name) ? name : undefined;
  };
  const weights = used(3);
  if (weights !== undefined) return refuse('the weights are used, which FlashAttention never holds', weights);
  const present_key = used(1);
  const present_value = used(2);
  if (extra.outputs === undefined && past === undefined && (present_key ?? present_value) !== undefined)
    return refuse('present keys or values are used without a past', present_key ?? present_value);
  return {
    attributes: {
      ...DEFAULT_ATTRIBUTES,
      scale: attributes.float('scale', 0),
      isCausal: attributes.int('unidirectional', 0) === 1,
      queryHeads: attributes.int('num_heads', 0),
      keyHeads: extra.keyHeads,
      outputLayout: 'BS(HD)',
      ...layouts,
      ...extra.attributes,
    },
    inputs: {
      Q,
      K,
      V,
      ...(mask === undefined ? {} : { attn_mask: mask.name }),
      ...(past === undefined ? {} : { past_key: past.key, past_value: past.value }),
      ...(sink === undefined ? {} : { sink }),
    },
    outputs: extra.outputs ?? {
      Y: node.output[0] ?? '',
      ...(present_key === undefined ? {} : { present_key }),
      ...(present_value === undefined ? {} : { present_value }),
    },
    nodes: e.nodes,
    nodesAfter: extra.nodesAfter ?? [],
    ...(mask === undefined ? {} : { mask: { kind: 'additive', rank: mask.rank } }),
    maskMayBeShorter: false,
  };
}

/** query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value, past_sequence_length, … */
function readMultiHead(site: Site): FusedSite | Refusal {
  const { node, facts, attributes } = site;
  const heads = attributes.int('num_heads', 0);
  if ((present(node.input, 8) ?? present(node.input, 9)) !== undefined)
    return refuse('past_sequence_length and cache_indirection are for a cache in place, which FlashAttention has not');
  const tensors = readTensors(site, heads);
  if (isRefusal(tensors)) return tensors;
  const biased = addBias(site, tensors, present(node.input, 3));
  if (isRefusal(biased)) return biased;
  const mask = readMask(site, present(node.input, 4), present(node.input, 5));
  if (mask !== undefined && isRefusal(mask)) return mask;
  const past = readPast(node, 6);
  if (past !== undefined && isRefusal(past)) return past;
  const isCausal = attributes.int('unidirectional', 0) === 1;
  const isSelf = facts.isSelfAttention === true || (tensors.Q === tensors.K && tensors.K === tensors.V);
  // With one query and several keys the operator leaves all of them in, with more queries it does not.
  if (isCausal && !isSelf) return refuse('unidirectional where queries and new keys may not be as many');
  return assemble(site, biased, { keyHeads: heads, mask, past });
}

/** query, key, value, mask_index, attention_bias, past_key, past_value, past_sequence_length, beam_width, …, bias */
function readDecoderMasked(site: Site): FusedSite | Refusal {
  const { node, attributes } = site;
  const heads = attributes.int('num_heads', 0);
  if ((present(node.input, 5) ?? present(node.input, 6)) !== undefined)
    return refuse('its past is a cache that is written in place, which FlashAttention has not');
  if ((present(node.input, 8) ?? present(node.input, 9)) !== undefined) return refuse('beam search is not expressible');
  const tensors = readTensors(site, heads);
  if (isRefusal(tensors)) return tensors;
  const biased = addBias(site, tensors, present(node.input, 10));
  if (isRefusal(biased)) return biased;
  const mask = readMask(site, present(node.input, 3), present(node.input, 4));
  if (mask !== undefined && isRefusal(mask)) return mask;
  return assemble(site, biased, { keyHeads: heads, mask });
}

/** Query of rank 3, or 5 where it holds keys and values too; keys of rank 3, 4 (heads first) or 5 (with values). */
function readTensors({ node, facts }: Site, heads: number): Tensors | Refusal {
  if (heads <= 0) return refuse('num_heads is not set');
  const [Q, K, V] = [0, 1, 2].map((i) => present(node.input, i));
  const rank = (value: string | undefined) => (value === undefined ? undefined : facts.rankOf(value));
  if (Q === undefined) return refuse('query is not given');
  if (K === undefined && rank(Q) === 5) {
    const layouts = { queryLayout: 'BSH[0/3]D', keyLayout: 'BSH[1/3]D', valueLayout: 'BSH[2/3]D' };
    return { Q, K: Q, V: Q, ...layouts };
  }
  if (K === undefined || rank(Q) !== 3) return refuse(`a query of rank ${rank(Q) ?? 'unknown'} without keys`, Q);
  if (V === undefined && rank(K) === 5) {
    return { Q, K, V: K, queryLayout: 'BS(HD)', keyLayout: 'BSH[0/2]D', valueLayout: 'BSH[1/2]D' };
  }
  const layoutOf = (value: string | undefined) => ({ 3: 'BS(HD)', 4: 'BHSD' })[rank(value) ?? 0];
  const keyLayout = layoutOf(K);
  const valueLayout = layoutOf(V);
  if (V === undefined || keyLayout === undefined || valueLayout === undefined)
    return refuse('keys and values of rank 3 or 4 expected', K);
  return { Q, K, V, queryLayout: 'BS(HD)', keyLayout, valueLayout };
}

/** Adds the bias of the three projections, a vector of the three one after the other. */
function addBias({ e, facts }: Site, tensors: Tensors, bias: string | undefined): Tensors | Refusal {
  if (bias === undefined) return tensors;
  const { Q, K, V } = tensors;
  const widths = [Q, K, V].map((value) => facts.dimensionOf?.(value, 2));
  const isSplit = [tensors.queryLayout, tensors.keyLayout, tensors.valueLayout].every((l) => l === 'BS(HD)');
  if (!isSplit || widths.includes(undefined))
    return refuse('a bias on inputs other than rank 3 of known widths is not understood', bias);
  let start = 0;
  const added = [Q, K, V].map((value, i) => {
    const part = e.slice(bias, 0, start, start + widths[i]!, 'bias_part');
    start += widths[i]!;
    return e.op('Add', [value, part], { label: 'biased' });
  }) as [string, string, string];
  return { ...tensors, Q: added[0], K: added[1], V: added[2] };
}

/** A padding mask of 0 and 1 adds mask_filter_value where it is 0; a bias is added as it is. */
function readMask(
  { e, facts, attributes, elementType }: Site,
  padding: string | undefined,
  bias: string | undefined,
): Mask | Refusal | undefined {
  const biasMask = bias === undefined ? undefined : { name: bias, rank: facts.rankOf(bias) ?? -1 };
  if (biasMask !== undefined && biasMask.rank !== 4) return refuse('attention_bias has not rank 4', bias);
  if (padding === undefined) return biasMask;
  const rank = facts.rankOf(padding);
  if (rank !== 2 && rank !== 3)
    return refuse(
      `a padding mask of rank ${rank ?? 'unknown'}; (B, keys) and (B, queries, keys) are understood`,
      padding,
    );
  const type = floatTypeName(elementType);
  const kept = e.cast(padding, elementType, 'kept');
  const out = e.op('Sub', [e.scalar(type, 1), kept], { label: 'out' });
  const filter = e.scalar(type, attributes.float('mask_filter_value', -10000));
  const added = e.unsqueeze(e.op('Mul', [out, filter]), rank === 2 ? [1, 2] : [1], 'padding_bias');
  if (biasMask === undefined) return { name: added, rank: 4 };
  return { name: e.op('Add', [added, biasMask.name], { label: 'mask' }), rank: 4 };
}

function readPast(node: NodeProto, index: number): { key: string; value: string } | Refusal | undefined {
  const key = present(node.input, index);
  const value = present(node.input, index + 1);
  if (key === undefined && value === undefined) return undefined;
  if (key === undefined || value === undefined) return refuse('past_key or past_value is given alone', key ?? value);
  return { key, value };
}

/** query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache, position_ids, … */
function readGroupQuery(site: Site): FusedSite | Refusal {
  const { node, facts, attributes, e, elementType } = site;
  const heads = attributes.int('num_heads', 0);
  const keyHeads = attributes.int('kv_num_heads', 0);
  if (heads <= 0 || keyHeads <= 0) return refuse('num_heads or kv_num_heads is not set');
  if (present(node.input, 12) !== undefined || present(node.input, 13) !== undefined)
    return refuse('quantised keys and values are not understood');
  if (facts.isUnpadded !== true)
    return refuse('seqlens_k may tell sequences of several lengths, whose keys it puts into the cache in place');
  const past = readPast(node, 3);
  if (past !== undefined && isRefusal(past)) return past;
  const tensors = readGroupTensors(site, heads, keyHeads);
  if (isRefusal(tensors)) return tensors;
  const rotated = attributes.int('do_rotary', 0) === 1 ? rotate(site, tensors, heads, keyHeads, past?.key) : tensors;
  if (isRefusal(rotated)) return rotated;
  const mask = readMask(site, undefined, present(node.input, 10));
  if (mask !== undefined && isRefusal(mask)) return mask;
  let sink = present(node.input, 11);
  if (sink === undefined && attributes.int('smooth_softmax', 0) === 1)
    sink = e.constant(floatTypeName(elementType), [heads], new Array<number>(heads).fill(0), 'sink');
  const window = attributes.int('local_window_size', -1);
  return assemble(site, rotated, {
    keyHeads,
    mask,
    past,
    sink,
    attributes: {
      isCausal: true,
      softcap: attributes.float('softcap', 0),
      // Counts the query's own key too.
      leftWindow: window > 0 ? window - 1 : -1,
    },
  });
}

/** Three tensors of rank 3; or one, in which the query's heads, the keys' and the values' follow each other. */
function readGroupTensors({ node, facts, e }: Site, heads: number, keyHeads: number): Tensors | Refusal {
  const [Q, K, V] = [0, 1, 2].map((i) => present(node.input, i));
  const layouts = { queryLayout: 'BS(HD)', keyLayout: 'BS(HD)', valueLayout: 'BS(HD)' };
  if (Q !== undefined && K !== undefined && V !== undefined) {
    if ([Q, K, V].some((value) => facts.rankOf(value) !== 3)) return refuse('inputs of rank 3 expected', Q);
    return { Q, K, V, ...layouts };
  }
  const width = Q === undefined ? undefined : facts.dimensionOf?.(Q, 2);
  if (Q === undefined || width === undefined) return refuse('a packed query of unknown width', Q);
  const dimension = width / (heads + 2 * keyHeads);
  const keyStart = heads * dimension;
  const valueStart = keyStart + keyHeads * dimension;
  return {
    Q: e.slice(Q, 2, 0, keyStart, 'query'),
    K: e.slice(Q, 2, keyStart, valueStart, 'key'),
    V: e.slice(Q, 2, valueStart, width, 'value'),
    ...layouts,
  };
}

/** Positions go on from the past; the embedding becomes an operator of its own. */
function rotate(
  { node, facts, attributes, e }: Site,
  tensors: Tensors,
  heads: number,
  keyHeads: number,
  pastKey: string | undefined,
): Tensors | Refusal {
  const [cos, sin] = [7, 8].map((i) => present(node.input, i));
  if (cos === undefined || sin === undefined) return refuse('do_rotary without cos_cache and sin_cache');
  const half = facts.dimensionOf?.(cos, 1);
  const width = facts.dimensionOf?.(present(node.input, 0) ?? '', 2);
  if (half === undefined || width === undefined) return refuse('the width of the rotary embedding is not known', cos);
  const isPacked = present(node.input, 1) === undefined;
  const dimension = width / (isPacked ? heads + 2 * keyHeads : heads);
  // A single number is where the positions start.
  const start = pastKey === undefined ? e.ints([0]) : e.sizes(pastKey, 2, 3, 'past_keys');
  const positions = present(node.input, 9) ?? start;
  const embed = (x: string, count: number, label: string) =>
    e.op('RotaryEmbedding', [x, positions, cos, sin], {
      domain: DOMAIN,
      label,
      attributes: {
        interleaved: attributes.int('rotary_interleaved', 0),
        ...(half * 2 < dimension ? { num_heads: count, rotary_embedding_dim: half * 2 } : {}),
      },
    });
  return { ...tensors, Q: embed(tensors.Q, heads, 'query_rotated'), K: embed(tensors.K, keyHeads, 'key_rotated') };
}

/** input, weights, bias, mask_index, past, attention_bias, past_sequence_length: the projection is part of it. */
function readPacked(site: Site): FusedSite | Refusal {
  const { node, facts, attributes, e } = site;
  const heads = attributes.int('num_heads', 0);
  const [input, weights, bias, padding, past, attentionBias, pastLength] = [0, 1, 2, 3, 4, 5, 6].map((i) =>
    present(node.input, i),
  );
  if (heads <= 0) return refuse('num_heads is not set');
  if (input === undefined || weights === undefined) return refuse('weights are not given');
  if (attributes.int('do_rotary', 0) === 1) return refuse('do_rotary of Attention has no tables that could be read');
  if (pastLength !== undefined)
    return refuse('past_sequence_length is for a cache in place, which FlashAttention has not');
  const mask = readMask(site, padding, attentionBias);
  if (mask !== undefined && isRefusal(mask)) return mask;
  const product = e.op('MatMul', [input, weights], { label: 'projected' });
  const packed = bias === undefined ? product : e.op('Add', [product, bias], { label: 'projection' });
  const tensors = splitProjection(site, packed);
  if (past === undefined) return assemble(site, tensors, { keyHeads: heads, mask });

  // Keys and values of the past are one tensor (2, B, H, P, D), and so are those of the present.
  const pick = (index: number, label: string) =>
    e.op('Gather', [past, e.int(index)], { attributes: { axis: 0 }, label });
  const pastPair = { key: pick(0, 'past_key'), value: pick(1, 'past_value') };
  const joined = present(node.output, 1);
  if (joined === undefined || !facts.isUsed(joined)) {
    return assemble(site, tensors, { keyHeads: heads, mask, past: pastPair, outputs: { Y: node.output[0] ?? '' } });
  }
  const after = new NodeEmitter(facts.opset, `${node.name || node.output[0]}/after/`);
  const outputs = {
    Y: node.output[0] ?? '',
    present_key: e.fresh('present_key'),
    present_value: e.fresh('present_value'),
  };
  const parts = [outputs.present_key, outputs.present_value].map((name) => after.unsqueeze(name, [0]));
  after.node('Concat', parts, [joined], { attributes: { axis: 0 } });
  return assemble(site, tensors, { keyHeads: heads, mask, past: pastPair, outputs, nodesAfter: after.nodes });
}

/** The packed projection as three parts of one tensor, or, where their widths differ, as three slices. */
function splitProjection({ attributes, e }: Site, packed: string): Tensors {
  const [query, key, value] = attributes.ints('qkv_hidden_sizes') ?? [];
  if (query === undefined || key === undefined || value === undefined || (query === key && key === value)) {
    const layout = (part: number) => `BS([${part}/3]HD)`;
    return { Q: packed, K: packed, V: packed, queryLayout: layout(0), keyLayout: layout(1), valueLayout: layout(2) };
  }
  return {
    Q: e.slice(packed, 2, 0, query, 'query'),
    K: e.slice(packed, 2, query, query + key, 'key'),
    V: e.slice(packed, 2, query + key, query + key + value, 'value'),
    queryLayout: 'BS(HD)',
    keyLayout: 'BS(HD)',
    valueLayout: 'BS(HD)',
  };
}
