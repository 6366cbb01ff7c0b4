/** FlashAttention for WebGPU: the kernels alone, for anyone with a GPUDevice. */
export { type ErrorCode, type ErrorPlace, OrtFlashError } from '../graph-rewrite/errors.js';
export { type AdapterFacts, adapterFacts, DEFAULT_ADAPTER, type SubgroupMatrixShape } from './adapter.js';
export type { TuningTable } from './autotune.js';
export {
  type AttentionBuffers,
  FlashAttention,
  type FlashAttentionOptions,
  type PreparedAttention,
  type TensorBuffer,
} from './flash-attention.js';
export {
  type AttentionPlan,
  type CacheCapacities,
  type PlanBinding,
  type PlanDispatch,
  type PlanOptions,
  type PlanTensor,
  planAttention,
} from './plan.js';
export type { CombineTiles } from './plan-combine.js';
export type { DecodeTiles } from './plan-decode-lanes.js';
export type { MatrixTiles } from './plan-matrix.js';
export type { RowTiles } from './plan-rows.js';
export type { KernelName } from './shaders/linked.js';
export type { ShaderParameters } from './specialize.js';
export type { PrefillTiles } from './tiles.js';
