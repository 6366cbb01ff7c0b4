/** What the planner could choose instead of its default, each as a case of bench/webgpu-attention.ts. */

import { tuningCandidates } from '../../kernels-wgsl/autotune.js';
import type { FlashAttention } from '../../kernels-wgsl/index.js';
import { type Case, decode, goalCases, problemOf } from './cases.js';

type Facts = FlashAttention['facts'];

/** Cases on which choices are told apart: of each head dimension and type one long and one short one. */
const SAMPLES = /, (4096|512)( causal)?( matrix| portable)?$|decode/;

export function variantsOf(facts: Facts): Case[] {
  const bases = facts.isSoftware
    ? goalCases(facts).filter(({ keys }) => keys <= 256)
    : goalCases(facts).filter(({ name }) => SAMPLES.test(name));
  const all = facts.isSoftware ? [...bases, decode('float32', 512)] : bases;
  return all.flatMap((base) => {
    const isPortable = base.options.kernel === 'prefill';
    const problem = problemOf(base);
    const matricesOff = { ...facts, subgroupMatrices: [] };
    return tuningCandidates(problem, isPortable ? matricesOff : facts).map((options) => ({
      ...base,
      options: { ...base.options, ...options },
      peers: [],
    }));
  });
}
