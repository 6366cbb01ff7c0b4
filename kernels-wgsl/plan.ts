import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { FlashAttentionInput, FlashAttentionOutput } from '../graph-rewrite/op/definition.js';
import type { StridedTensor } from '../graph-rewrite/op/layout.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import { coverProblem, type PlannedTensors, resolveTensors } from './coverage.js';
import type { KernelName } from './shaders/linked.js';
import { knownParameters, type ShaderParameters } from './specialize.js';
import { type PrefillTiles, prefillCandidates } from './tiles.js';
import { problemUniform } from './uniforms.js';

/** A tensor of the call, or the scratch memory that its dispatches share. */
export type PlanTensor = FlashAttentionInput | FlashAttentionOutput | 'lse' | 'scratch';

/** What one binding of a dispatch shows. */
export interface PlanBinding {
  readonly index: number;
  /** Undefined for an input that the problem does not have: the shader declares it, and does not touch it. */
  readonly tensor: PlanTensor | undefined;
  /** Bytes; the offset is a multiple of the adapter's binding alignment. */
  readonly offset: number;
  readonly size: number;
  readonly writable: boolean;
}

/** One dispatch of one kernel. */
export interface PlanDispatch {
  readonly kernel: KernelName;
  readonly label: string;
  readonly parameters: ShaderParameters;
  /** WGSL extensions that the kernel enables. */
  readonly enables: readonly string[];
  /** Contents of the uniform at binding 0. */
  readonly uniform: Uint32Array;
  readonly bindings: readonly PlanBinding[];
  readonly workgroups: readonly [number, number, number];
}

/** Everything that one call of FlashAttention does on the GPU. */
export interface AttentionPlan {
  /** The kernel that computes attention; the dispatches may hold others around it. */
  readonly kernel: KernelName;
  readonly dispatches: readonly PlanDispatch[];
  readonly scratchBytes: number;
  /** Bytes that the caller's buffer of each tensor must have. */
  readonly tensorBytes: Readonly<Partial<Record<PlanTensor, number>>>;
}

export interface PlanOptions {
  /** Also write log-sum-exp, (B, H, queries) in float32. */
  readonly writesLse?: boolean;
  /** Use this kernel, where it can do the problem at all. */
  readonly kernel?: KernelName;
  /** Use these tiles for the portable prefill kernel. */
  readonly prefillTiles?: PrefillTiles;
}

/**
 * Plans one call: which kernel, with which tiles, in how many dispatches, on which parts of which tensors.
 * Pure: the same problem and facts give the same plan.
 * @throws OrtFlashError `unsupported` where WebGPU or this adapter cannot do it.
 */
export function planAttention(
  problem: AttentionProblem,
  facts: AdapterFacts,
  options: PlanOptions = {},
): AttentionPlan {
  checkType(problem, facts);
  const tensors = resolveTensors(problem, options.writesLse ?? false);
  if (problem.batch * problem.queries * problem.valueDimension === 0)
    return { kernel: 'prefill', dispatches: [], scratchBytes: 0, tensorBytes: tensors.bytes };
  const dispatches = planPrefill(problem, facts, tensors, options);
  return { kernel: 'prefill', dispatches, scratchBytes: 0, tensorBytes: tensors.bytes };
}

function checkType(problem: AttentionProblem, facts: AdapterFacts): void {
  const { type, headDimension, valueDimension } = problem;
  const refuse = (why: string, hint?: string): never => {
    throw new OrtFlashError('unsupported', `FlashAttention on WebGPU: ${why}`, {}, hint);
  };
  if (type !== 'float32' && type !== 'float16') refuse(`there is no ${type} in WGSL`, 'convert the model to float16');
  if (type === 'float16' && !facts.halfFloats)
    refuse('float16 needs the feature shader-f16', 'create the device with it, or use a float32 model');
  if (headDimension > 256 || valueDimension > 256)
    refuse(`head dimensions go up to 256, this problem has ${headDimension} and ${valueDimension}`);
}

/** Bytes of one element. */
export function elementBytes(problem: AttentionProblem): number {
  return problem.type === 'float16' ? 2 : 4;
}

/** Parameters that every kernel reading the problem shares. */
export function featureParameters(problem: AttentionProblem, writesLse: boolean): ShaderParameters {
  const { mask } = problem;
  const element = problem.type === 'float16' ? 'f16' : 'f32';
  return {
    Element: element,
    MaskItem: mask?.kind === 'additive' ? element : 'u32',
    MASK: mask === undefined ? 0 : mask.kind === 'boolean' ? 1 : 2,
    HAS_LENGTHS: problem.hasLengths,
    LENGTH_SETS_POSITION: problem.hasLengths && !problem.alignEnd,
    HAS_SINK: problem.hasSink,
    HAS_SOFTCAP: problem.softcap > 0,
    MASKED_IS_FINITE: Number.isFinite(problem.maskedValue),
    WRITES_LSE: writesLse,
  };
}

/** Whether four consecutive elements of the head dimension can be read at once, everywhere in the tensor. */
export function isVector(tensor: StridedTensor): boolean {
  const { stride, size, offset } = tensor;
  const rest = [size.B > 1 ? stride.B : 0, size.H > 1 ? stride.H : 0, size.S > 1 ? stride.S : 0, size.D, offset];
  return stride.D === 1 && rest.every((n) => n % 4 === 0);
}

function planPrefill(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): PlanDispatch[] {
  const bytes = elementBytes(problem);
  const head = {
    depthQuads: Math.ceil(problem.headDimension / 4),
    valueQuads: Math.ceil(problem.valueDimension / 4),
    elementBytes: bytes,
  };
  const tiles = options.prefillTiles ?? prefillCandidates(head, facts, problem.queries)[0];
  if (tiles === undefined)
    throw new OrtFlashError('unsupported', 'FlashAttention on WebGPU: no tile fits this adapter', {});
  const features = featureParameters(problem, options.writesLse ?? false);
  const vector = { Q: isVector(problem.query), K: isVector(tensors.key), V: isVector(tensors.value) };
  const item = (isVectorItem: boolean) => (isVectorItem ? `vec4<${features.Element}>` : `${features.Element}`);
  const parameters: ShaderParameters = {
    ...features,
    QUERY_TILE: tiles.queryTile,
    KEY_TILE: tiles.keyTile,
    ROW_THREADS: tiles.rowThreads,
    COLUMN_THREADS: tiles.columnThreads,
    DEPTH_QUADS: head.depthQuads,
    VALUE_QUADS: head.valueQuads,
    DEPTH_CHUNK: tiles.depthChunk,
    VALUE_CHUNK: tiles.valueChunk,
    QUERIES_STAY: tiles.queriesStay,
    QUERY_IS_VECTOR: vector.Q,
    KEY_IS_VECTOR: vector.K,
    VALUE_IS_VECTOR: vector.V,
    QueryItem: item(vector.Q),
    KeyItem: item(vector.K),
    ValueItem: item(vector.V),
    OutputElement: `${features.Element}`,
  };
  const parts = coverProblem(problem, facts, tensors, tiles.queryTile);
  return parts.map(({ coverage, bindings, starts }, part) => ({
    kernel: 'prefill',
    label: `FlashAttention prefill${parts.length > 1 ? ` ${part + 1}/${parts.length}` : ''}`,
    parameters: knownParameters('prefill', parameters),
    enables: problem.type === 'float16' ? ['f16'] : [],
    uniform: problemUniform(problem, coverage, {
      starts,
      splitKeys: problem.keys,
      emptyLse: Number.NEGATIVE_INFINITY,
      key: tensors.key,
      value: tensors.value,
    }),
    bindings,
    workgroups: [Math.ceil(coverage.queries / tiles.queryTile), coverage.heads, coverage.batches],
  }));
}
