import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { FlashAttentionInput, FlashAttentionOutput } from '../graph-rewrite/op/definition.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { AdapterFacts } from './adapter.js';
import { coverProblem, type PlannedTensors, resolveTensors, splitScratch } from './coverage.js';
import { outputParameters } from './features.js';
import { planAppend, resolveCache } from './plan-append.js';
import { type CombineTiles, planCombine } from './plan-combine.js';
import { isDecode, planDecode } from './plan-decode.js';
import { type DecodeTiles, planDecodeLanes } from './plan-decode-lanes.js';
import { type MatrixTiles, planMatrix } from './plan-matrix.js';
import { planPrefill } from './plan-prefill.js';
import { planRows, type RowTiles } from './plan-rows.js';
import type { KernelName } from './shaders/linked.js';
import { knownParameters, type ShaderParameters } from './specialize.js';
import type { PrefillTiles } from './tiles.js';
import { type Coverage, problemUniform } from './uniforms.js';

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

/** Which kernel, how it is parametrised, and how a problem is cut for it. */
export interface KernelChoice {
  readonly kernel: KernelName;
  readonly parameters: ShaderParameters;
  readonly enables: readonly string[];
  /** Queries and query heads are cut at multiples of these, keys split at multiples of keyUnit. */
  readonly queryUnit: number;
  readonly headUnit: number;
  readonly keyUnit: number;
  /** Splits wished for. */
  readonly splits: number;
  readonly grid: (coverage: Coverage, splits: number) => readonly [number, number, number];
}

/** Positions that the memory of a cache's keys and of its values has room for, in each head. */
export interface CacheCapacities {
  readonly key: number;
  readonly value: number;
}

/** What a call does besides attention, and choices that the planner would make itself. */
export interface PlanOptions {
  /** Also write log-sum-exp, (B, H, queries) in float32. */
  readonly writesLse?: boolean;
  /** Use this kernel, where it can do the problem at all; 'prefill' is whichever is best without matrices. */
  readonly kernel?: KernelName;
  /**
   * The cache grows in place: past_key and present_key are one buffer, (B, key heads, this many positions, D), bound as
   * present_key; only the new positions are written. Values likewise. Given together with `pastCapacity`, only present_key
   * and present_value have this many positions.
   */
  readonly cacheCapacity?: number;
  /**
   * Positions that there is room for in past_key and past_value, which are copied into present_key and present_value. By
   * default, without `cacheCapacity`, as many as there are past keys.
   */
  readonly pastCapacity?: CacheCapacities;
  /** Split the keys into so many parts at most. */
  readonly splits?: number;
  /** Use the decode kernel without barriers, with these tiles. */
  readonly decodeTiles?: DecodeTiles;
  /** Use these tiles for the kernel that combines splits. */
  readonly combineTiles?: CombineTiles;
  /** Threads of the workgroups of the decode kernel with barriers. */
  readonly decodeThreads?: number;
  /** Shader parameters that replace the planner's own; for experiments. */
  readonly parameters?: ShaderParameters;
  /** Use these tiles for the subgroup-matrix kernel. */
  readonly matrixTiles?: MatrixTiles;
  /**
   * Let float32 problems use the subgroup-matrix kernel, which rounds queries, keys, values and weights to float16: many
   * times as fast, with float16's precision and range.
   */
  readonly allowsHalfPrecision?: boolean;
  /** Use these tiles for the portable prefill kernel. */
  readonly prefillTiles?: PrefillTiles;
  /** Use the prefill kernel that keeps its rows in registers, with these tiles. */
  readonly rowTiles?: RowTiles;
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
  const cache = resolveCache(problem, options);
  const tensors = resolveTensors(problem, options.writesLse ?? false, cache);
  const append = planAppend(problem, facts, tensors, cache);
  const choice = chooseKernel(problem, facts, tensors, options);
  if (problem.batch * problem.queries * problem.valueDimension === 0)
    return { kernel: choice.kernel, dispatches: append, scratchBytes: 0, tensorBytes: tensors.bytes };
  const splitKeys = Math.ceil(problem.keys / choice.splits / choice.keyUnit) * choice.keyUnit;
  const splits = Math.max(1, Math.ceil(problem.keys / splitKeys));
  return {
    kernel: choice.kernel,
    dispatches: [
      ...append,
      ...planKernel(
        problem,
        facts,
        tensors,
        { ...choice, parameters: { ...choice.parameters, ...options.parameters } },
        splits,
        splitKeys,
        options,
      ),
    ],
    scratchBytes: splits > 1 ? splitScratch(problem, facts, splits).bytes : 0,
    tensorBytes: tensors.bytes,
  };
}

function chooseKernel(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  options: PlanOptions,
): KernelChoice {
  const { prefillTiles, matrixTiles, rowTiles, decodeTiles } = options;
  const hasTiles = (prefillTiles ?? matrixTiles ?? rowTiles) !== undefined;
  const isFew = decodeTiles !== undefined || (isDecode(problem) && !hasTiles);
  const wanted = options.kernel ?? (isFew ? 'decode-lanes' : 'prefill');
  if (wanted === 'decode-lanes' || wanted === 'decode') {
    const lanes = options.kernel === 'decode' ? undefined : planDecodeLanes(problem, facts, tensors, options);
    return lanes ?? planDecode(problem, facts, tensors, options);
  }
  const takesMatrices = problem.type === 'float16' || options.allowsHalfPrecision === true;
  const isOpen = options.kernel === undefined || options.kernel === 'prefill-matrix';
  if (isOpen && takesMatrices && (prefillTiles ?? rowTiles) === undefined) {
    const choice = planMatrix(problem, facts, tensors, options);
    if (choice !== undefined) return choice;
  }
  const rows = prefillTiles === undefined ? planRows(problem, facts, tensors, options) : undefined;
  return rows ?? planPrefill(problem, facts, tensors, options);
}

/** The attention kernel's dispatches, each followed by the combination of its splits. */
function planKernel(
  problem: AttentionProblem,
  facts: AdapterFacts,
  tensors: PlannedTensors,
  choice: KernelChoice,
  splits: number,
  splitKeys: number,
  options: PlanOptions,
): PlanDispatch[] {
  const { kernel, enables, grid } = choice;
  const isSplit = splits > 1;
  const parameters = {
    ...outputParameters(problem, isSplit),
    ...choice.parameters,
    IS_SPLIT: isSplit,
  };
  const parts = coverProblem(problem, facts, tensors, { ...choice, splits });
  return parts.flatMap(({ coverage, bindings, starts }, i): PlanDispatch[] => {
    const number = parts.length > 1 ? ` ${i + 1}/${parts.length}` : '';
    const layout = { splitKeys, key: tensors.key, value: tensors.value };
    const attention: PlanDispatch = {
      kernel,
      label: `FlashAttention ${kernel}${number}`,
      parameters: knownParameters(kernel, parameters),
      enables,
      uniform: problemUniform(problem, coverage, { ...layout, starts }),
      bindings,
      workgroups: grid(coverage, splits),
    };
    if (!isSplit) return [attention];
    const combine = planCombine(problem, facts, tensors, coverage, splits, layout, options);
    return [attention, { ...combine, label: `FlashAttention combine${number}` }];
  });
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
