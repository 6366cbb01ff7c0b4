import type { FlashAttentionAttributes } from './op/definition.js';

/** A dimension for people: a number, or an expression over the model's symbolic dimensions. */
export type Size = number | string;

/** Why a site was left as it is. */
export interface Refusal {
  /** One sentence: what was expected and what was found. */
  readonly reason: string;
  /** The value at which recognition stopped. */
  readonly value?: string;
}

/** What a site masks, as far as it is understood. */
export interface MaskReport {
  readonly kind: 'none' | 'additive' | 'boolean';
  /** Shape of the mask tensor that is left, where one is. */
  readonly shape?: readonly Size[];
  readonly causal: boolean;
  /** −1 for unlimited. */
  readonly leftWindow: number;
  readonly rightWindow: number;
}

/** One place of the model that computes attention, or looks like it. */
export interface SiteReport {
  /** Position among the model's sites, in graph order. */
  readonly index: number;
  /** The node it was recognised by: its Softmax, or the attention operator itself. */
  readonly node: string;
  /** The value that holds the site's result. */
  readonly output: string;
  readonly fused: boolean;
  /** Set where `fused` is false. */
  readonly refusal?: Refusal;
  /** How the exporter wrote it, e.g. `MatMul · Softmax · MatMul`, `Attention`, `com.microsoft.MultiHeadAttention`. */
  readonly form: string;
  /** The rest is set where it is known. */
  readonly queryHeads?: Size;
  readonly keyHeads?: Size;
  readonly headDimension?: Size;
  readonly valueDimension?: Size;
  readonly batch?: Size;
  readonly queries?: Size;
  readonly keys?: Size;
  readonly elementType?: string;
  readonly mask?: MaskReport;
  readonly attributes?: FlashAttentionAttributes;
  /** Bytes of the score matrix for one token pair, all heads: what the unfused form writes, several times over. */
  readonly scoreBytesPerPair?: number;
}

/** One `FlashAttention` node of a lowered model. */
export interface LoweredSite {
  readonly node: string;
  readonly output: string;
  /** The operator that computes it now; `FlashAttention` where it stayed. */
  readonly operator: string;
  /** Why it stayed. */
  readonly refusal?: Refusal;
  /** Whether its body takes queries a block at a time, so that memory grows with the sequence, not with its square. */
  readonly inBlocks?: boolean;
}

/** Data movement that is no arithmetic: Transpose, Expand, Concat, Split and the like. */
export interface MovementReport {
  readonly nodes: number;
  /** Read and written for each token, at 4,096 tokens and batch 1. */
  readonly bytesPerToken: number;
}

/** What a rewrite did. */
export interface RewriteReport {
  readonly sites: readonly SiteReport[];
  /** `FlashAttention` nodes that the model had already; they are no sites. */
  readonly fusedBefore: number;
  readonly nodesBefore: number;
  readonly nodesAfter: number;
  /** Nodes that only move data, and what they move, in this order: before, after. */
  readonly movement: readonly [before: MovementReport, after: MovementReport];
  /** Nodes of each operator before and after, where they differ. */
  readonly operators: Readonly<Record<string, readonly [before: number, after: number]>>;
  /** What became of each `FlashAttention` node, where another target was asked for. */
  readonly lowered?: readonly LoweredSite[];
}
