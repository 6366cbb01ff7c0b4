import type { AdapterFacts } from '../adapter.js';

/** The kind of attention that is measured for all of a model's. */
export interface AttentionKind {
  readonly type: 'float32' | 'float16';
  readonly queryHeads: number;
  readonly keyHeads: number;
  readonly headDimension: number;
  readonly isCausal: boolean;
}

/** What costs are kept under: they hold for one kind of machine, and one kind of attention. */
export function costKey({ vendor, architecture }: AdapterFacts, kind: AttentionKind): string {
  const { type, queryHeads, keyHeads, headDimension, isCausal } = kind;
  const heads = queryHeads === keyHeads ? `${queryHeads}` : `${queryHeads} on ${keyHeads}`;
  const machine = `${vendor} ${architecture}`.trim() || 'unknown adapter';
  return `${machine}, ${type}, ${heads} heads × ${headDimension}${isCausal ? ', causal' : ''}`;
}
