import { Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import type { FlashAttentionOutput } from '../../graph-rewrite/op/definition.js';
import { type ProblemInputs, type ProblemType, resolveProblem } from '../../graph-rewrite/op/problem.js';
import type { FlashAttention, PreparedAttention, TensorBuffer } from '../flash-attention.js';
import type { AttentionCall } from './cut.js';
import type { Engine } from './engine.js';
import { tensorBytes } from './tensors.js';

/** Sets of shapes that one call remembers: a model is used at a few lengths, or at one more each step. */
const REMEMBERED_SHAPES = 32;

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
  readonly #prepared = new Map<string, PreparedAttention>();
  #flash: FlashAttention;

  constructor(call: AttentionCall, engine: Engine) {
    this.call = call;
    this.#engine = engine;
    this.#flash = engine.flash;
  }

  /**
   * Resolves the call for its inputs' shapes and compiles what is not compiled yet.
   * @throws OrtFlashError `invalid-tensor` where the shapes do not fit the node, `unsupported` where the kernels do not
   *   take them
   */
  async prepare(inputs: Readonly<Record<string, { type: Tensor.Type; dims: readonly number[] }>>) {
    const { flash } = this.#engine;
    if (flash !== this.#flash) this.#prepared.clear();
    this.#flash = flash;
    const key = JSON.stringify(Object.entries(inputs).map(([name, { type, dims }]) => [name, type, dims]));
    const known = this.#prepared.get(key);
    if (known !== undefined) return known;
    const described = Object.entries(inputs).map(
      ([name, { type, dims }]) => [name, { type: type as ProblemType, shape: dims }] as const,
    );
    try {
      const problem = resolveProblem(this.call.attributes, Object.fromEntries(described) as unknown as ProblemInputs);
      const prepared = flash.prepareNow(problem) ?? (await flash.prepare(problem));
      this.#prepared.set(key, prepared);
      if (this.#prepared.size > REMEMBERED_SHAPES) this.#prepared.delete(this.#prepared.keys().next().value!);
      return prepared;
    } catch (error) {
      if (!(error instanceof OrtFlashError)) throw error;
      const place = { ...error.place, node: this.call.label };
      throw new OrtFlashError(error.code, `attention: ${error.message}`, place, undefined, { cause: error });
    }
  }

  /** Shapes of what the call computes. */
  outputsOf(prepared: PreparedAttention): Partial<Record<FlashAttentionOutput, { type: Tensor.Type; dims: number[] }>> {
    const { type, outputShape, presentKeyShape, presentValueShape } = prepared.problem;
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
