/**
 * The `ortflash::FlashAttention` operator, version 1: names, inputs, outputs and attributes.
 *
 * A superset of ONNX `Attention` (opsets 23 to 25). What it computes, for batch b, query head h, query i, key j
 * (Q, K and V read through their layouts, past keys and values put before the new ones):
 *
 *     s[i,j] = scale · Σ_d Q[i,d]·K[j,d]                         key head = ⌊h / (query heads / key heads)⌋
 *     s      = softcap · tanh(s / softcap)                        where softcap > 0
 *     s[i,j] = s[i,j] + attn_mask[i,j]                            where the mask is additive
 *     s[i,j] = masked_value                                       where a boolean mask, causality, a window or
 *                                                                 nonpad_kv_seqlen takes the key out
 *     p[i,:] = exp(s[i,:] − m) / (Σ_j exp(s[i,j] − m) + exp(sink[h] − m))
 *     Y[i,:] = Σ_j p[i,j] · V[j,:]
 *
 * With o the position of query 0 among the keys, query i sees key j
 *   - causal:       j ≤ i + o
 *   - left window:  j ≥ i + o − left_window_size
 *   - right window: j ≤ i + o + right_window_size
 *   - length:       j < nonpad_kv_seqlen[b]
 * and o is the number of past keys; or nonpad_kv_seqlen[b] − queries where that input is given; or, with
 * `align_end`, keys − queries.
 *
 * A row whose scores are all −∞ gives zeros, never NaN. With a finite `masked_value` (exporters write the most
 * negative float in place of −∞) such a row is, as the formula says, the mean of all values.
 */

export const FLASH_ATTENTION_DOMAIN = 'ortflash';
/** The operator's name, in that domain. */
export const FLASH_ATTENTION_OP = 'FlashAttention';
/** The version of the domain that models import. */
export const FLASH_ATTENTION_VERSION = 1;

/** Inputs in order; all but the first three may be left out. */
export const FLASH_ATTENTION_INPUTS = [
  'Q',
  'K',
  'V',
  'attn_mask',
  'past_key',
  'past_value',
  'nonpad_kv_seqlen',
  'sink',
] as const;
/** An input's name. */
export type FlashAttentionInput = (typeof FLASH_ATTENTION_INPUTS)[number];

/** Outputs in order; the last two exist where past_key and past_value are given. */
export const FLASH_ATTENTION_OUTPUTS = ['Y', 'present_key', 'present_value'] as const;
/** An output's name. */
export type FlashAttentionOutput = (typeof FLASH_ATTENTION_OUTPUTS)[number];

/** Element types that Q, K and V may have. */
export type FloatType = 'float32' | 'float16' | 'bfloat16' | 'float64';

/** The node's attributes, with every default filled in. */
export interface FlashAttentionAttributes {
  /** Softmax scale; 0 stands for 1/√(head dimension). */
  readonly scale: number;
  readonly isCausal: boolean;
  /** Query heads; 0 where the layouts of Q and Y keep heads on an axis of their own. */
  readonly queryHeads: number;
  /** Key and value heads; 0 where the layouts of K and V keep heads on an axis of their own. */
  readonly keyHeads: number;
  /** 0 for none. */
  readonly softcap: number;
  /** How many keys before its own position a query sees; −1 for all. */
  readonly leftWindow: number;
  /** How many keys after its own position a query sees; −1 for all. */
  readonly rightWindow: number;
  /** Queries stand at the end of the keys (offset = keys − queries) and not where the standard puts them. */
  readonly alignEnd: boolean;
  /** The score of a key that a boolean mask, causality, a window or a length takes out; −∞ for none of its weight. */
  readonly maskedValue: number;
  /**
   * Where above 0, the first dimension of `attn_mask` is this number, divides the batch, and batch b reads mask
   * b mod this: Swin's shifted windows, whose mask is one a window and whose batch is images × windows.
   */
  readonly maskPeriod: number;
  /** TensorProto data type in which the softmax is computed at least; 0 for that of the scores. */
  readonly softmaxPrecision: number;
  /** How Q, K, V and Y lie in memory; see layout.ts. */
  readonly queryLayout: string;
  readonly keyLayout: string;
  readonly valueLayout: string;
  readonly outputLayout: string;
}

/** ONNX attribute name of each field of {@link FlashAttentionAttributes}, and how it is stored. */
export const FLASH_ATTENTION_ATTRIBUTES = {
  scale: { name: 'scale', kind: 'float' },
  isCausal: { name: 'is_causal', kind: 'flag' },
  queryHeads: { name: 'q_num_heads', kind: 'int' },
  keyHeads: { name: 'kv_num_heads', kind: 'int' },
  softcap: { name: 'softcap', kind: 'float' },
  leftWindow: { name: 'left_window_size', kind: 'int' },
  rightWindow: { name: 'right_window_size', kind: 'int' },
  alignEnd: { name: 'align_end', kind: 'flag' },
  maskedValue: { name: 'masked_value', kind: 'float' },
  maskPeriod: { name: 'attn_mask_period', kind: 'int' },
  softmaxPrecision: { name: 'softmax_precision', kind: 'int' },
  queryLayout: { name: 'q_layout', kind: 'string' },
  keyLayout: { name: 'k_layout', kind: 'string' },
  valueLayout: { name: 'v_layout', kind: 'string' },
  outputLayout: { name: 'y_layout', kind: 'string' },
} as const satisfies Record<
  keyof FlashAttentionAttributes,
  { name: string; kind: 'float' | 'int' | 'flag' | 'string' }
>;

/** Attributes of a node that sets none: rank-4 tensors (B, H, S, D), no mask, scale 1/√D. */
export const DEFAULT_ATTRIBUTES: FlashAttentionAttributes = {
  scale: 0,
  isCausal: false,
  queryHeads: 0,
  keyHeads: 0,
  softcap: 0,
  leftWindow: -1,
  rightWindow: -1,
  alignEnd: false,
  maskedValue: Number.NEGATIVE_INFINITY,
  maskPeriod: 0,
  softmaxPrecision: 0,
  queryLayout: 'BHSD',
  keyLayout: 'BHSD',
  valueLayout: 'BHSD',
  outputLayout: 'BHSD',
};
