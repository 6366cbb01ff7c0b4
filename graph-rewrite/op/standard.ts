/** The ONNX standard's `Attention` (opsets 23 to 25) as FlashAttention. */
import { defined } from '../defined.js';
import { DataType, type NodeProto } from '../onnx/proto.js';
import type { Refusal } from '../report.js';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from './definition.js';
import { AttributeReader, type FusedSite, isRefusal, type NodeFacts, present, refuse } from './site.js';

/** The attributes of versions 23 to 25. */
export const STANDARD_ATTENTION_ATTRIBUTES = [
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
  const inputs = readInputs(node);
  if (!hasTensors(inputs)) return refuse('Q, K and V must be given');
  const outputs = {
    Y: node.output[0] ?? '',
    ...defined({ present_key: usedOutput(node, 1, facts), present_value: usedOutput(node, 2, facts) }),
  };
  const wrong = checkVersion(node, facts) ?? checkPast(inputs, outputs) ?? checkWeights(node, facts);
  if (wrong !== undefined) return wrong;
  const mask = readMask(inputs, facts);
  if (mask !== undefined && isRefusal(mask)) return mask;
  const attributes = readAttributes(node, inputs, facts);
  if (isRefusal(attributes)) return attributes;
  return {
    attributes,
    inputs,
    outputs,
    nodes: [],
    nodesAfter: [],
    ...defined({ mask }),
    maskMayBeShorter: mask !== undefined,
  };
}

type Inputs = Partial<FusedSite['inputs']>;

/** In the standard's order, which is that of FlashAttention's inputs. */
function readInputs(node: NodeProto): Inputs {
  return defined({
    Q: present(node.input, 0),
    K: present(node.input, 1),
    V: present(node.input, 2),
    attn_mask: present(node.input, 3),
    past_key: present(node.input, 4),
    past_value: present(node.input, 5),
    nonpad_kv_seqlen: present(node.input, 6),
  });
}

function hasTensors(inputs: Inputs): inputs is FusedSite['inputs'] {
  return [inputs.Q, inputs.K, inputs.V].every((name) => name !== undefined);
}

function checkVersion(node: NodeProto, { opset }: NodeFacts): Refusal | undefined {
  const unknown = new AttributeReader(node).unknown(STANDARD_ATTENTION_ATTRIBUTES);
  if (unknown !== undefined) return refuse(`Attention's attribute "${unknown}" is not known`);
  return opset > 25 ? refuse(`Attention of opset ${opset} is newer than the 25 that is understood`) : undefined;
}

function checkPast({ past_key, past_value }: Inputs, outputs: FusedSite['outputs']): Refusal | undefined {
  if ((past_key === undefined) !== (past_value === undefined)) return refuse('past_key or past_value is given alone');
  const made = outputs.present_key ?? outputs.present_value;
  if (past_key !== undefined || made === undefined) return undefined;
  return refuse('present_key or present_value is used without a past', made);
}

function checkWeights(node: NodeProto, facts: NodeFacts): Refusal | undefined {
  const weights = usedOutput(node, 3, facts);
  if (weights === undefined) return undefined;
  return refuse('qk_matmul_output is used, which FlashAttention never holds', weights);
}

function readAttributes(
  node: NodeProto,
  { Q, K, V }: FusedSite['inputs'],
  facts: NodeFacts,
): FlashAttentionAttributes | Refusal {
  const layouts = readLayouts([Q, K, V], facts);
  if (isRefusal(layouts)) return layouts;
  const read = new AttributeReader(node);
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
  return attributes;
}

export function usedOutput(node: NodeProto, index: number, facts: NodeFacts): string | undefined {
  const name = present(node.output, index);
  return name !== undefined && facts.isUsed(name) ? name : undefined;
}

function readMask({ attn_mask: mask, Q }: FusedSite['inputs'], facts: NodeFacts): FusedSite['mask'] | Refusal {
  if (mask === undefined) return undefined;
  const type = facts.typeOf(mask);
  const rank = facts.rankOf(mask);
  if (type === undefined || rank === undefined) return refuse('type or rank of attn_mask is not known', mask);
  if (type !== DataType.BOOL && type !== facts.typeOf(Q)) {
    return refuse('attn_mask is neither boolean nor of the type of Q', mask);
  }
  if (rank > 4) return refuse(`attn_mask has rank ${rank}, 4 is the most`, mask);
  return { kind: type === DataType.BOOL ? 'boolean' : 'additive', rank };
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
