import { Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import type { FlashAttentionOutput } from '../../graph-rewrite/op/definition.js';
import {
  type AttentionProblem,
  type ProblemInputs,
  type ProblemType,
  resolveProblem,
} from '../../graph-rewrite/op/problem.js';
import type { PreparedAttention, TensorBuffer } from '../flash-attention.js';
import type { PlanOptions } from '../plan.js';
import type { AttentionCall } from './cut.js';
import type { Engine } from './engine.js';
import { tensorBytes } from './tensors.js';

/** Sets of shapes that one call remembers: a model is used at a few lengths, or at one more each step. */
const REMEMBERED_SHAPES = 32;

/** How past and present keys and values lie in memory. */
export type CacheOptions = Pick<PlanOptions, 'cacheCapacity' | 'pastCapacity'>;

/** A tensor's memory on the GPU. */
export interface GpuTensor {
  readonly type: Tensor.Type;
  readonly dims: readonly number[];
  readonly buffer: GPUBuffer;
}

/** One `FlashAttention` node, ready for inputs of any shape. */
export class AttentionRunner {
  readonly call: AttentionCall;
  readonly #engine: Engine;
  readonly #problems = new Map<string, AttentionProblem>();

  constructor(call: AttentionCall, engine: Engine) {
    this.call = call;
    this.#engine = engine;
  }

  /**
   * Resolves the call for its inputs' shapes.
   * @throws OrtFlashError `invalid-tensor` where the shapes do not fit the node
   */
  resolve(inputs: Readonly<Record<string, { type: Tensor.Type; dims: readonly number[] }>>): AttentionProblem {
    const key = JSON.stringify(Object.entries(inputs).map(([name, { type, dims }]) => [name, type, dims]));
    const known = this.#problems.get(key);
    if (known !== undefined) return known;
    const described = Object.entries(inputs).map(
      ([name, { type, dims }]) => [name, { type: type as ProblemType, shape: dims }] as const,
    );
    try {
      const problem = resolveProblem(this.call.attributes, Object.fromEntries(described) as unknown as ProblemInputs);
      this.#problems.set(key, problem);
      if (this.#problems.size > REMEMBERED_SHAPES) this.#problems.delete(this.#problems.keys().next().value!);
      return problem;
    } catch (error) {
      throw this.#placed(error);
    }
  }

  /**
   * Plans the call and compiles what is not compiled yet.
   * @throws OrtFlashError `unsupported` where the kernels do not take the problem
   */
  async prepare(problem: AttentionProblem, cache: CacheOptions): Promise<PreparedAttention> {
    const { flash } = this.#engine;
    try {
      return flash.prepareNow(problem, cache) ?? (await flash.prepare(problem, cache));
    } catch (error) {
      throw this.#placed(error);
    }
  }

  #placed(error: unknown): unknown {
    if (!(error instanceof OrtFlashError)) return error;
    const place = { ...error.place, node: this.call.label };
    return new OrtFlashError(error.code, `attention: ${error.message}`, place, undefined, { cause: error });
  }

  /** Shapes of what the call computes. */
  outputsOf(problem: AttentionProblem): Partial<Record<FlashAttentionOutput, { type: Tensor.Type; dims: number[] }>> {
    const { type, outputShape, presentKeyShape, presentValueShape } = problem;
    const describe = (dims: readonly number[] | undefined) => dims && { type: type as Tensor.Type, dims: [...dims] };
    const all = {
      Y: describe(outputShape),
      present_key: describe(presentKeyShape),
      present_value: describe(presentValueShape),
    };
    return Object.fromEntries(Object.entries(all).filter(([, shape]) => shape !== undefined));
  }

  /** Encodes the call; buffers that its tensors of no elements lack are filled in. */
  encode(
    prepared: PreparedAttention,
    encoder: GPUCommandEncoder,
    buffers: Readonly<Record<string, TensorBuffer>>,
  ): void {
    this.#engine.flash.encode(prepared, encoder, buffers);
  }
}

/** A tensor in one of our buffers, as the runtime's own: `dispose` gives the buffer back, `download` reads it. */
export function gpuTensor(
  { type, dims, buffer }: GpuTensor,
  dispose?: () => void,
  download?: () => Promise<Tensor.DataType>,
) {
  return Tensor.fromGpuBuffer(buffer, {
    dataType: type as Tensor.GpuBufferDataTypes,
    dims,
    ...(dispose === undefined ? {} : { dispose }),
    ...(download === undefined ? {} : { download: download as () => Promise<Float32Array> }),
  });
}

/** Bytes of a tensor's elements, and at least one word: no binding may be empty. */
export function bufferBytes(type: Tensor.Type, dims: readonly number[]): number {
  return Math.max(4, tensorBytes(type, dims));
}
