/** What bench/webgpu-attention.ts measures: the project's table of cases on a GPU, small ones on a CPU that plays GPU. */
import { DEFAULT_ATTRIBUTES } from '../../graph-rewrite/op/definition.js';
import { type AttentionProblem, resolveProblem } from '../../graph-rewrite/op/problem.js';
import type { FlashAttention, PlanOptions } from '../../kernels-wgsl/index.js';

export type Peer = 'MultiHeadAttention' | 'decomposed';

export interface Case {
  readonly name: string;
  readonly type: 'float16' | 'float32';
  readonly heads: number;
  readonly keyHeads: number;
  readonly queries: number;
  readonly keys: number;
  readonly dimension: number;
  readonly isCausal: boolean;
  readonly options: PlanOptions;
  /** ONNX Runtime's forms to run beside; the decomposed one takes memory quadratic in the tokens. */
  readonly peers: readonly Peer[];
}

/** What the adapter at hand offers. */
type Facts = FlashAttention['facts'];

/** Inputs (1, tokens, heads · dimension), as MultiHeadAttention takes them; a decode reads a cache, (1, heads, keys, dimension). */
export function problemOf(c: Case): AttentionProblem {
  const isDecode = c.queries === 1;
  const flat = (heads: number, tokens: number) => ({ type: c.type, shape: [1, tokens, heads * c.dimension] });
  const cache = { type: c.type, shape: [1, c.keyHeads, c.keys, c.dimension] };
  const layout = 'BS(HD)';
  const keyLayout = isDecode ? 'BHSD' : layout;
  return resolveProblem(
    {
      ...DEFAULT_ATTRIBUTES,
      isCausal: c.isCausal,
      alignEnd: true,
      queryHeads: c.heads,
      keyHeads: c.keyHeads,
      queryLayout: layout,
      keyLayout,
      valueLayout: keyLayout,
      outputLayout: layout,
    },
    {
      Q: flat(c.heads, c.queries),
      K: isDecode ? cache : flat(c.keyHeads, c.keys),
      V: isDecode ? cache : flat(c.keyHeads, c.keys),
    },
  );
}

function prefill(
  type: Case['type'],
  heads: number,
  dimension: number,
  tokens: number,
  extra: Partial<Case> & { readonly label?: string } = {},
): Case {
  const { label = '', ...rest } = extra;
  return {
    name: `${type} ${heads}×${dimension}, ${tokens}${extra.isCausal ? ' causal' : ''}${label}`,
    type,
    heads,
    keyHeads: heads,
    queries: tokens,
    keys: tokens,
    dimension,
    isCausal: false,
    options: {},
    peers: [],
    ...rest,
  };
}

export function decode(type: Case['type'], keys: number, options: PlanOptions = {}, label = ''): Case {
  return {
    name: `${type} decode 32 on 8×128, ${keys}${label}`,
    type,
    heads: 32,
    keyHeads: 8,
    queries: 1,
    keys,
    dimension: 128,
    isCausal: false,
    options,
    peers: [],
  };
}

/** The table of the project's goals, what matters most first. */
export function goalCases(facts: Facts): Case[] {
  if (facts.isSoftware) return softwareCases();
  const shapes = [
    [32, 64],
    [16, 128],
  ] as const;
  const kernels: { type: Case['type']; options: PlanOptions; label: string }[] = [
    ...(facts.subgroupMatrices.length > 0 ? [{ type: 'float16' as const, options: {}, label: ' matrix' }] : []),
    ...(facts.halfFloats
      ? [{ type: 'float16' as const, options: { kernel: 'prefill' as const }, label: ' portable' }]
      : []),
    { type: 'float32', options: {}, label: '' },
  ];
  const list: Case[] = [];
  for (const tokens of [4096, 512, 8192])
    for (const [heads, dimension] of shapes)
      for (const isCausal of [false, true])
        for (const { label, ...kernel } of kernels) {
          // What ONNX Runtime takes does not depend on which of our kernels runs: measured once, beside the first.
          const isFirst = kernel.type === 'float32' || label === kernels[0]!.label;
          const peers: Peer[] = !isFirst
            ? []
            : tokens === 4096 && !isCausal
              ? ['MultiHeadAttention', 'decomposed']
              : ['MultiHeadAttention'];
          list.push(prefill(kernel.type, heads, dimension, tokens, { ...kernel, label, isCausal, peers }));
        }
  const best = facts.halfFloats ? 'float16' : 'float32';
  list.push(decode(best, 8192), decode(best, 65536));
  list.push(prefill(best, 16, 128, 65536));
  for (const { label, ...kernel } of kernels)
    list.push(
      prefill(kernel.type, 8, 256, 4096, {
        ...kernel,
        label,
        peers: label === kernels[0]!.label || kernel.type === 'float32' ? ['MultiHeadAttention'] : [],
      }),
    );
  return list;
}

function softwareCases(): Case[] {
  const peers = ['MultiHeadAttention'] as const;
  return [
    prefill('float32', 12, 64, 1024, { peers }),
    prefill('float32', 2, 64, 256, { peers: ['MultiHeadAttention', 'decomposed'] }),
    prefill('float32', 2, 64, 256, { isCausal: true, peers }),
    prefill('float32', 2, 128, 128, { peers }),
    decode('float32', 1024),
  ];
}
