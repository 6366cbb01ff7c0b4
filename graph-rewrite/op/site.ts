/** What readers of existing attention operators give: the site as FlashAttention would have it, or why it cannot be. */

import Long from 'long';
import { AttributeType, type NodeProto } from '../onnx/proto.js';
import type { Refusal } from '../report.js';
import type { FlashAttentionAttributes, FlashAttentionInput, FlashAttentionOutput } from './definition.js';

/** What is known about a node's surroundings. */
export interface NodeFacts {
  /** The ai.onnx opset that the model imports. */
  readonly opset: number;
  /** Rank of a value, where it is known. */
  readonly rankOf: (value: string) => number | undefined;
  /** TensorProto data type of a value, where it is known. */
  readonly typeOf: (value: string) => number | undefined;
  /** Whether a value is read by a node or is an output of the graph. */
  readonly isUsed: (value: string) => boolean;
  /** Size of one axis of a value, where it is the same in every run. */
  readonly dimensionOf?: (value: string, axis: number) => number | undefined;
  /** Whether the node always has as many queries as new keys. */
  readonly isSelfAttention?: boolean;
  /**
   * Whether no sequence of a batch is padded and past_key holds exactly the keys before the new ones. Some operators
   * leave that to their inputs' data; where it is not known, they are refused.
   */
  readonly isUnpadded?: boolean;
}

/** A node's attention in FlashAttention's terms; names are those of the node's own inputs and outputs. */
export interface FusedSite {
  readonly attributes: FlashAttentionAttributes;
  readonly inputs: Readonly<Record<'Q' | 'K' | 'V', string> & Partial<Record<FlashAttentionInput, string>>>;
  readonly outputs: Readonly<Record<'Y', string> & Partial<Record<FlashAttentionOutput, string>>>;
  /** Nodes to be put before, which make inputs that the original node did not have as such. */
  readonly nodes: readonly NodeProto[];
  /** Nodes to be put after, which make outputs that FlashAttention does not have as such. */
  readonly nodesAfter: readonly NodeProto[];
  /** The mask's kind and rank, where there is one. */
  readonly mask?: { readonly kind: 'boolean' | 'additive'; readonly rank: number };
  /** Whether the mask may cover fewer keys than there are; see MaskVariant in body.ts. */
  readonly maskMayBeShorter: boolean;
}

/** A refusal, to be returned where a site was expected. */
export function refuse(reason: string, value?: string): Refusal {
  return value === undefined ? { reason } : { reason, value };
}

/** Whether something that reads a site has refused it. */
export function isRefusal(result: object): result is Refusal {
  return 'reason' in result;
}

/** Reads a node's attributes by name; an absent or differently typed one gives the fallback. */
export class AttributeReader {
  constructor(readonly node: NodeProto) {}

  #find(name: string, type: AttributeType) {
    return this.node.attribute.find((a) => a.name === name && a.type === type);
  }

  int(name: string, fallback: number): number {
    const attribute = this.#find(name, AttributeType.INT);
    return attribute === undefined ? fallback : Long.fromValue(attribute.i ?? 0).toNumber();
  }

  float(name: string, fallback: number): number {
    return this.#find(name, AttributeType.FLOAT)?.f ?? fallback;
  }

  ints(name: string): number[] | undefined {
    return this.#find(name, AttributeType.INTS)?.ints.map((i) => Long.fromValue(i).toNumber());
  }

  /** The first attribute that is set and that the caller does not know. */
  unknown(known: readonly string[]): string | undefined {
    return this.node.attribute.find((a) => !known.includes(a.name ?? ''))?.name ?? undefined;
  }
}

/** Names of a node's inputs or outputs; empty ones are absent. */
export function present(names: readonly string[], index: number): string | undefined {
  return names[index] === undefined || names[index] === '' ? undefined : names[index];
}
