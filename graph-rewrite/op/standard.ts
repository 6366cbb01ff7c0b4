/** The ONNX standard's `Attention` (opsets 23 to 25) as FlashAttention. */
import { DataType, type NodeProto } from '../onnx/proto.js';
import type { Refusal } from '../report.js';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from './definition.js';
import { AttributeReader, type FusedSite, type NodeFacts, present, refuse } from './site.js';

const KNOWN_ATTRIBUTES = [
  'is_causal',
  'q_num_heads',
  'kv_num_heads',
  'qk_matmul_output_mode',
  'scale',
  'softcap',
  'softmax_precision',
  'left_window_size',
  'right_window_size',
];

/** Whether the node is the standard's `Attention`. */
export function isStandardAttention(node: NodeProto): boolean {
  return node.op_type === 'Attention' && (node.domain ?? '') === '';
}

/**
 * Reads `ai.onnx::Attention`, versions 23, 24 (with nonpad_kv_seqlen) and 25 (with windows).
 *
 * In all three the standard's own function applies softcap before the mask, counts past keys in the causal offset
 * (version 24: nonpad_kv_seqlen less queries where that is given) and zeroes rows without keys, as FlashAttention does.
 */
export function readStandardAttention(node: NodeProto, facts: NodeFacts): FusedSite | Refusal {
  const [Q, K, V] = [0, 1, 2].map((i) => present(node.input, i));
  if (Q === undefined || K === undefined || V === undefined) return refuse('Q, K and V must be given');
  const read = new AttributeReader(node);
  const unknown = read.unknown(KNOWN_ATTRIBUTES);
  if (unknown !== undefined) return refuse(`Attention's attribute "${unknown}" is not known`);
  if (facts.opset > 25) return refuse(`Attention of opset ${facts.opset} is newer than the 25 that is understood`);

  const attn_mask = present(node.input, 3);
  const past_key = present(node.input, 4);
  const past_value = present(node.input, 5);
  const nonpad_kv_seqlen = present(node.input, 6);
  if ((past_key === undefined) !== (past_value === undefined)) return refuse('past_key or past_value is given alone');
  const present_key = usedOutput(node, 1, facts);
  const present_value = usedOutput(node, 2, facts);
  if (past_key === undefined && (present_key ?? present_value) !== undefined) {
    return refuse('present_key or present_value is used without a past', present_key ?? present_value);
  }
  const weights = usedOutput(node, 3, facts);
  if (weights !== undefined) return refuse('qk_matmul_output is used, which FlashAttention never holds', weights);
  const wrongMask = checkMask(attn_mask, Q, facts);
  if (wrongMask !== undefined) return wrongMask;

  const layouts = readLayouts([Q, K, V], facts);
  if ('reason' in layouts) return layouts;
  const attributes: FlashAttentionAttributes = {
    ...DEFAULT_ATTRIBUTES,
    ...layouts,
    scale: read.float('scale', 0),
    isCausal: read.int('is_causal', 0) === 1,
    queryHeads: read.int('q_num_heads', 0),
    keyHeads: read.int('kv_num_heads', 0),
    softcap: read.float('softcap', 0),
    leftWindow: read.int('left_window_size', -1),
    rightWindow: read.int('right_window_size', -1),
    softmaxPrecision: read.int('softmax_precision', 0),
  };
  const isMerged = [attributes.queryLayout, attributes.keyLayout, attributes.valueLayout].some((l) => l !== 'BHSD');
  if (isMerged && (attributes.queryHeads === 0 || attributes.keyHeads === 0)) {
    return refuse('inputs of rank 3 need q_num_heads and kv_num_heads');
  }
  // A scale of 0 is FlashAttention's word for the default.
  if (attributes.scale === 0 && node.attribute.some((a) => a.name === 'scale')) return refuse('scale is 0');
  return {
    attributes,
    inputs: {
      Q,
      K,
      V,
      ...(attn_mask === undefined ? {} : { attn_mask }),
      ...(past_key === undefined || past_value === undefined ? {} : { past_key, past_value }),
      ...(nonpad_kv_seqlen === undefined ? {} : { nonpad_kv_seqlen }),
    },
    outputs: {
      Y: node.output[0] ?? '',
      ...(present_key === undefined ? {} : { present_key }),
      ...(present_value === undefined ? {} : { present_value }),
    },
    nodes: [],
    nodesAfter: [],
    ...(attn_mask === undefined
      ? {}
      : {
          mask: {
            kind: facts.typeOf(attn_mask) === DataType.BOOL ? 'boolean' : 'additive',
            rank: facts.rankOf(attn_mask) ?? 0,
          },
        }),
    maskMayBeShorter: attn_mask !== undefined,
  };
}

function usedOutput(node: NodeProto, index: number, facts: NodeFacts): string | undefined {
  const name = present(node.output, index);
  return name !== undefined && facts.isUsed(name) ? name : undefined;
}

function checkMask(mask: string | undefined, Q: string, facts: NodeFacts): Refusal | undefined {
  if (mask === undefined) return undefined;
  const type = facts.typeOf(mask);
  const rank = facts.rankOf(mask);
  if (type === undefined || rank === undefined) return refuse('type or rank of attn_mask is not known', mask);
  if (type !== DataType.BOOL && type !== facts.typeOf(Q)) {
    return refuse('attn_mask is neither boolean nor of the type of Q', mask);
  }
  return rank > 4 ? refuse(`attn_mask has rank ${rank}, 4 is the most`, mask) : undefined;
}

type Layouts = Pick<FlashAttentionAttributes, 'queryLayout' | 'keyLayout' | 'valueLayout' | 'outputLayout'>;

/** Rank 4 is (B, H, S, D), rank 3 is (B, S, H·D); the output is as Q. */
function readLayouts(values: readonly string[], facts: NodeFacts): Layouts | Refusal {
  const layouts: string[] = [];
  for (const value of values) {
    const rank = facts.rankOf(value);
    if (rank !== 3 && rank !== 4) return refuse(`rank 3 or 4 expected, found ${rank ?? 'an unknown one'}`, value);
    layouts.push(rank === 4 ? 'BHSD' : 'BS(HD)');
  }
  const [queryLayout, keyLayout, valueLayout] = layouts as [string, string, string];
  return { queryLayout, keyLayout, valueLayout, outputLayout: queryLayout };
}
