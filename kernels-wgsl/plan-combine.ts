import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import { bindCombine, type PlannedTensors } from './coverage.js';
import { featureParameters } from './features.js';
import type { PlanDispatch, PlanOptions } from './plan.js';
import { isDecode } from './plan-decode.js';
import { headShape } from './plan-prefill.js';
import { knownParameters } from './specialize.js';
import { type Coverage, problemUniform, type UniformOptions } from './uniforms.js';

/** Sizes of the kernel that combines splits; see the top of shaders/combine.wesl. */
export interface CombineTiles {
  readonly threads: number;
  /** Quads of the value dimension that a workgroup takes; divides `threads`. */
  readonly quads: number;
  /** Splits that a thread has in flight. */
  readonly batch: number;
}

/** Decoding has few rows and many splits, prefill the other way round. */
function combineTiles(problem: AttentionProblem, facts: AdapterFacts): CombineTiles {
  const { valueQuads } = headShape(problem);
  const quads = Math.min(16, 2 ** Math.ceil(Math.log2(valueQuads)));
  return { threads: isDecode(problem) && !facts.isSoftware ? 256 : 64, quads, batch: 4 };
}

/** Tiles worth measuring beside the default. */
export function combineCandidates(problem: AttentionProblem): CombineTiles[] {
  const { valueQuads } = headShape(problem);
  const quads = 2 ** Math.ceil(Math.log2(valueQuads));
  return [
    { threads: 256, quads: Math.min(32, quads), batch: 4 },
    { threads: 256, quads: Math.min(8, quads), batch: 2 },
    { threads: 128, quads: Math.min(8, quads), batch: 4 },
    { threads: 64, quads: Math.min(8, quads), batch: 4 },
  ];
}

/** The dispatch that joins the partial outputs of a share of the problem. */
export function planCombine(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  coverage: Coverage,
  splits: number,
  layout: Omit<UniformOptions, 'starts'>,
  options: PlanOptions,
): Omit<PlanDispatch, 'label'> {
  const { bindings, starts } = bindCombine(problem, facts, tensors, coverage, splits);
  const { threads, quads, batch } = options.combineTiles ?? combineTiles(problem, facts);
  const blocks = Math.ceil(headShape(problem).valueQuads / quads);
  const isVector = problem.valueDimension % 4 === 0;
  return {
    kernel: 'combine',
    parameters: knownParameters('combine', {
      ...featureParameters(problem, tensors.writesLse),
      THREADS: threads,
      QUADS: quads,
      BLOCKS: blocks,
      BATCH: batch,
      PartialItem: isVector ? 'vec4<f32>' : 'f32',
      PARTIAL_IS_VECTOR: isVector,
    }),
    enables: problem.type === 'float16' ? ['f16'] : [],
    uniform: problemUniform(problem, coverage, { ...layout, starts }),
    bindings,
    workgroups: [coverage.queries, coverage.heads * blocks, coverage.batches],
  };
}
