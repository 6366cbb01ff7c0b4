import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import type { PlannedTensors } from './coverage.js';
import { elementBytes, readingParameters } from './features.js';
import type { KernelChoice, PlanOptions } from './plan.js';
import { type HeadShape, prefillCandidates } from './tiles.js';

export function headShape(problem: AttentionProblem): HeadShape {
  return {
    depthQuads: Math.ceil(problem.headDimension / 4),
    valueQuads: Math.ceil(problem.valueDimension / 4),
    elementBytes: elementBytes(problem),
  };
}

/** The portable kernel: any problem, any adapter. */
export function planPrefill(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): KernelChoice {
  const head = headShape(problem);
  const tiles = options.prefillTiles ?? prefillCandidates(head, facts, problem.queries)[0];
  if (tiles === undefined)
    throw new OrtFlashError('unsupported', 'FlashAttention on WebGPU: no tile fits this adapter');
  return {
    kernel: 'prefill',
    parameters: {
      ...readingParameters(problem, tensors),
      QUERY_TILE: tiles.queryTile,
      KEY_TILE: tiles.keyTile,
      ROW_THREADS: tiles.rowThreads,
      COLUMN_THREADS: tiles.columnThreads,
      DEPTH_QUADS: head.depthQuads,
      VALUE_QUADS: head.valueQuads,
      DEPTH_CHUNK: tiles.depthChunk,
      VALUE_STEPS: tiles.valueSteps,
      QUERIES_STAY: tiles.queriesStay,
      WEIGHT_QUADS: tiles.weightQuads ?? tiles.keyTile / tiles.columnThreads / 4,
      WeightQuad: tiles.halfWeights && problem.type === 'float16' ? 'vec4<f16>' : 'vec4<f32>',
      PREFETCHES: tiles.prefetches ?? true,
      QUERY_BATCH: tiles.prefetches === false ? 1 : 8,
    },
    enables: problem.type === 'float16' ? ['f16'] : [],
    queryUnit: tiles.queryTile,
    headUnit: 1,
    keyUnit: tiles.keyTile,
    splits: options.splits ?? 1,
    grid: (coverage, splits) => [
      Math.ceil(coverage.queries / tiles.queryTile) * splits,
      coverage.heads,
      coverage.batches,
    ],
  };
}
