import type { StridedTensor } from '../graph-rewrite/op/layout.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';

/** Fields of `Problem` in shaders/problem.wesl, in order, each 4 bytes. */
export const PROBLEM_FIELDS = [
  'batches',
  'query_heads',
  'queries',
  'keys',
  'group_size',
  'depth',
  'value_depth',
  'first_batch',
  'first_head',
  'first_query',
  'covered_queries',
  'first_key_head',
  'query_batch',
  'query_head',
  'query_position',
  'query_depth',
  'query_offset',
  'key_batch',
  'key_head',
  'key_position',
  'key_depth',
  'key_offset',
  'value_batch',
  'value_head',
  'value_position',
  'value_depth_stride',
  'value_offset',
  'output_batch',
  'output_head',
  'output_position',
  'output_depth',
  'output_offset',
  'mask_batch',
  'mask_head',
  'mask_query',
  'mask_key',
  'mask_offset',
  'mask_batches',
  'mask_keys',
  'position_offset',
  'left_window',
  'right_window',
  'scale',
  'softcap',
  'masked_score',
  'negative_infinity',
  'split_keys',
  'splits',
] as const;
export type ProblemField = (typeof PROBLEM_FIELDS)[number];

const FLOATS: ReadonlySet<ProblemField> = new Set(['scale', 'softcap', 'masked_score', 'negative_infinity']);

/** Where a dispatch begins and how far it reaches. */
export interface Coverage {
  readonly firstBatch: number;
  readonly batches: number;
  readonly firstHead: number;
  readonly heads: number;
  readonly firstQuery: number;
  readonly queries: number;
}

/** Element index at which each binding begins; taken off the tensors' offsets. */
export interface BindingStarts {
  readonly Q: number;
  readonly K: number;
  readonly V: number;
  readonly Y: number;
  readonly mask: number;
}

/** Wide enough that no window edge is met, small enough that positions do not overflow. */
const UNBOUNDED_WINDOW = 2 ** 30;
/** LOWEST_SCORE in problem.wesl. */
const LOWEST_SCORE = -1.5e38;

export interface UniformOptions {
  readonly starts: BindingStarts;
  readonly splitKeys: number;
  readonly key: StridedTensor;
  readonly value: StridedTensor;
}

/** Values of the shaders' uniform for one dispatch. */
export function problemUniform(problem: AttentionProblem, coverage: Coverage, options: UniformOptions): Uint32Array {
  const { starts, key, value } = options;
  const { mask, softcap } = problem;
  const unit = mask?.kind === 'additive' ? 1 : Math.LOG2E;
  const right = problem.rightWindow >= 0 ? problem.rightWindow : UNBOUNDED_WINDOW;
  const values: Record<ProblemField, number> = {
    batches: problem.batch,
    query_heads: problem.queryHeads,
    queries: problem.queries,
    keys: problem.keys,
    group_size: problem.queryHeads / problem.keyHeads,
    depth: problem.headDimension,
    value_depth: problem.valueDimension,
    first_batch: coverage.firstBatch,
    first_head: coverage.firstHead,
    first_query: coverage.firstQuery,
    covered_queries: coverage.queries,
    first_key_head: Math.floor(coverage.firstHead / (problem.queryHeads / problem.keyHeads)),
    query_batch: problem.query.stride.B,
    query_head: problem.query.stride.H,
    query_position: problem.query.stride.S,
    query_depth: problem.query.stride.D,
    query_offset: problem.query.offset - starts.Q,
    key_batch: key.stride.B,
    key_head: key.stride.H,
    key_position: key.stride.S,
    key_depth: key.stride.D,
    key_offset: key.offset - starts.K,
    value_batch: value.stride.B,
    value_head: value.stride.H,
    value_position: value.stride.S,
    value_depth_stride: value.stride.D,
    value_offset: value.offset - starts.V,
    output_batch: problem.output.stride.B,
    output_head: problem.output.stride.H,
    output_position: problem.output.stride.S,
    output_depth: problem.output.stride.D,
    output_offset: problem.output.offset - starts.Y,
    mask_batch: mask?.stride.batch ?? 0,
    mask_head: mask?.stride.head ?? 0,
    mask_query: mask?.stride.query ?? 0,
    mask_key: mask?.stride.key ?? 0,
    mask_offset: -starts.mask,
    mask_batches: mask?.batch ?? 1,
    mask_keys: mask?.keys ?? problem.keys,
    position_offset: problem.alignEnd ? problem.keys - problem.queries : problem.pastKeys,
    left_window: problem.leftWindow >= 0 ? problem.leftWindow : UNBOUNDED_WINDOW,
    right_window: problem.isCausal ? 0 : right,
    scale: softcap > 0 ? problem.scale / softcap : problem.scale * unit,
    softcap: softcap * unit,
    masked_score: Math.max(problem.maskedValue * unit, LOWEST_SCORE),
    negative_infinity: Number.NEGATIVE_INFINITY,
    split_keys: options.splitKeys,
    splits: Math.ceil(problem.keys / options.splitKeys),
  };
  const words = new Uint32Array(Math.ceil(PROBLEM_FIELDS.length / 4) * 4);
  const floats = new Float32Array(words.buffer);
  for (const [index, field] of PROBLEM_FIELDS.entries()) {
    if (FLOATS.has(field)) floats[index] = values[field];
    else words[index] = values[field];
  }
  return words;
}
