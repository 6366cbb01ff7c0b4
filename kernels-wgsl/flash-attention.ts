import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import { type AdapterFacts, adapterFacts } from './adapter.js';
import { measureCandidates, type TuningTable, tuningCandidates, tuningKey } from './autotune.js';
import { type AttentionPlan, type PlanDispatch, type PlanOptions, type PlanTensor, planAttention } from './plan.js';
import { specialize } from './specialize.js';

/** A tensor's memory: its buffer, and the byte at which the tensor begins, a multiple of 256 (0 where left out). */
export interface TensorBuffer {
  readonly buffer: GPUBuffer;
  readonly offset?: number;
}

/** What the caller binds; the rest this object keeps. */
type CallerTensor = Exclude<PlanTensor, 'scratch'>;

/** Buffers of one call, by tensor; those that the problem has must be there. */
export type AttentionBuffers = Readonly<Partial<Record<CallerTensor, TensorBuffer>>>;

/** How a FlashAttention object is made; all of it may be left out. */
export interface FlashAttentionOptions {
  /** The adapter's description, where the device does not carry it (`device.adapterInfo`). */
  readonly adapterInfo?: GPUAdapterInfo;
  /** Choices measured before, as {@link FlashAttention.tuning} gave them. */
  readonly tuning?: TuningTable;
  /** Check every encoded call in an error scope. Slower; for development. */
  readonly debug?: boolean;
  /** Told of each error that an error scope catches; by default it is written to the console. */
  readonly onError?: (error: OrtFlashError) => void;
}

/** A call ready to be encoded any number of times: pipelines compiled, uniforms on the GPU. */
export interface PreparedAttention {
  readonly problem: AttentionProblem;
  readonly plan: AttentionPlan;
}

interface Step {
  readonly dispatch: PlanDispatch;
  readonly pipeline: GPUComputePipeline;
  readonly uniformOffset: number;
}

/** Bind groups made for one set of buffers, kept because the next call most likely has the same ones. */
interface BoundBuffers {
  readonly buffers: readonly (GPUBuffer | undefined)[];
  readonly offsets: readonly number[];
  readonly groups: readonly GPUBindGroup[];
}

class Prepared implements PreparedAttention {
  readonly bound: BoundBuffers[] = [];
  /** Its uniforms are gone. */
  isForgotten = false;
  constructor(
    readonly problem: AttentionProblem,
    readonly plan: AttentionPlan,
    readonly steps: readonly Step[],
    readonly uniforms: GPUBuffer | undefined,
    /** Tensors that the caller binds, in the order of BoundBuffers. */
    readonly tensors: readonly CallerTensor[],
  ) {}
}

const UNIFORM_STRIDE = 256;
/** Sets of buffers and prepared problems that are remembered; beyond, the oldest goes. */
const REMEMBERED_BUFFERS = 16;
const REMEMBERED_PROBLEMS = 512;

/**
 * FlashAttention on one GPUDevice: the softmax is computed block by block of keys (Dao, “FlashAttention-2”, 2023,
 * section 3.1), and the scores are never in memory.
 *
 *     const flash = FlashAttention.create(device);
 *     const prepared = await flash.prepare(resolveProblem(attributes, inputs)); // both from `ort-flash`: types and shapes
 *     flash.encode(prepared, encoder, { Q: { buffer: q }, K: { buffer: k }, V: { buffer: v }, Y: { buffer: y } });
 *     device.queue.submit([encoder.finish()]);
 */
export class FlashAttention {
  readonly device: GPUDevice;
  readonly facts: AdapterFacts;
  readonly #options: FlashAttentionOptions;
  readonly #pipelines = new Map<string, Promise<GPUComputePipeline>>();
  readonly #compiled = new Map<string, GPUComputePipeline>();
  readonly #layouts = new Map<string, GPUBindGroupLayout>();
  readonly #prepared = new Map<string, Prepared>();
  /** Bound in place of tensors that a problem does not have: one for reading, one for writing. */
  readonly #absent: { readonly read: GPUBuffer; readonly write: GPUBuffer };
  readonly #tuning: Record<string, PlanOptions>;
  #scratch: GPUBuffer | undefined;

  private constructor(device: GPUDevice, options: FlashAttentionOptions) {
    this.device = device;
    this.#options = options;
    this.#tuning = { ...options.tuning };
    this.facts = adapterFacts(device, options.adapterInfo ?? device.adapterInfo);
    const absent = (use: string) =>
      device.createBuffer({ label: `FlashAttention absent ${use}`, size: 16, usage: GPUBufferUsage.STORAGE });
    this.#absent = { read: absent('input'), write: absent('output') };
  }

  /** For a device that the caller keeps; features that it was created with decide which kernels there are. */
  static create(device: GPUDevice, options: FlashAttentionOptions = {}): FlashAttention {
    return new FlashAttention(device, options);
  }

  /**
   * Plans a problem and compiles its pipelines; both are remembered.
   * @throws OrtFlashError `unsupported` where this device cannot do it, `device` where a pipeline does not compile.
   */
  async prepare(problem: AttentionProblem, options: PlanOptions = {}): Promise<PreparedAttention> {
    const key = problemKey(problem, options);
    const known = this.#prepared.get(key);
    if (known !== undefined) return known;
    const plan = planAttention(problem, this.facts, this.#tuned(problem, options));
    await this.compile(plan);
    return this.#finish(key, problem, plan);
  }

  /**
   * Compiles a plan's pipelines, which are remembered: to warm up before the first call.
   * @throws OrtFlashError `device` where one does not compile.
   */
  async compile(plan: AttentionPlan): Promise<void> {
    await Promise.all(plan.dispatches.map((dispatch) => this.#compile(dispatch)));
  }

  /**
   * As {@link prepare}, at once; undefined where a pipeline has yet to be compiled. For loops in which only sizes
   * change, as when decoding: no pipeline depends on the number of queries, keys, batches or heads alone.
   */
  prepareNow(problem: AttentionProblem, options: PlanOptions = {}): PreparedAttention | undefined {
    const key = problemKey(problem, options);
    const known = this.#prepared.get(key);
    if (known !== undefined) return known;
    const plan = planAttention(problem, this.facts, this.#tuned(problem, options));
    const isCompiled = plan.dispatches.every((dispatch) => this.#compiled.has(sourceOf(dispatch)));
    return isCompiled ? this.#finish(key, problem, plan) : undefined;
  }

  /**
   * Encodes a call. With the buffers of an earlier call of this problem nothing is allocated.
   * @param target an encoder, or a pass that the caller has begun.
   * @throws OrtFlashError `invalid-argument` where a buffer is missing, too small, or begins at an odd place.
   */
  encode(
    prepared: PreparedAttention,
    target: GPUCommandEncoder | GPUComputePassEncoder,
    buffers: AttentionBuffers,
  ): void {
    if (!(prepared instanceof Prepared) || prepared.isForgotten)
      throw new OrtFlashError(
        'invalid-argument',
        'FlashAttention.encode takes what prepare returned, until it is pruned',
      );
    if (this.#options.debug) this.device.pushErrorScope('validation');
    const { groups } = this.#findBound(prepared, buffers) ?? this.#bind(prepared, buffers);
    const ownsPass = 'beginComputePass' in target;
    const computePass = ownsPass ? target.beginComputePass(PASS_DESCRIPTOR) : target;
    for (let i = 0; i < prepared.steps.length; i++) {
      const { pipeline, dispatch } = prepared.steps[i]!;
      computePass.setPipeline(pipeline);
      computePass.setBindGroup(0, groups[i]!);
      computePass.dispatchWorkgroups(dispatch.workgroups[0], dispatch.workgroups[1], dispatch.workgroups[2]);
    }
    if (ownsPass) computePass.end();
    if (this.#options.debug) this.#report(this.device.popErrorScope());
  }

  /** Everything that {@link autotune} found, and what was given at creation: store it, and give it to the next one. */
  get tuning(): TuningTable {
    return { ...this.#tuning };
  }

  /**
   * Measures the plans that suit a problem and remembers the best for its kind: what is prepared from now on uses it.
   * Takes seconds (each candidate is compiled) and as much memory as the problem's tensors.
   * @returns the choice.
   */
  async autotune(
    problem: AttentionProblem,
    options: Pick<PlanOptions, 'allowsHalfPrecision'> = {},
  ): Promise<PlanOptions> {
    const half = options.allowsHalfPrecision ?? false;
    const best = await measureCandidates(this, problem, tuningCandidates(problem, this.facts, half));
    this.#tuning[tuningKey(problem, this.facts, half)] = best;
    this.#prepared.clear();
    return best;
  }

  /** The caller's options, with what was measured for this kind of problem where the caller leaves the choice open. */
  #tuned(problem: AttentionProblem, options: PlanOptions): PlanOptions {
    const { kernel, splits, prefillTiles, matrixTiles, rowTiles, decodeTiles, decodeThreads, combineTiles } = options;
    const tiles = prefillTiles ?? matrixTiles ?? rowTiles ?? decodeTiles ?? combineTiles;
    if ((kernel ?? splits ?? decodeThreads ?? tiles) !== undefined) return options;
    return { ...this.#tuning[tuningKey(problem, this.facts, options.allowsHalfPrecision)], ...options };
  }

  /**
   * Forgets all problems but those prepared last, and frees their buffers: where lengths change with every call, memory
   * stays level. What was encoded must have been submitted; calls that are forgotten have to be prepared again.
   */
  prune(kept: number): void {
    for (const [key, prepared] of this.#prepared) {
      if (this.#prepared.size <= kept) break;
      this.#prepared.delete(key);
      prepared.isForgotten = true;
      prepared.uniforms?.destroy();
    }
  }

  /** Frees the buffers that this object keeps; calls that were encoded must have been submitted. */
  destroy(): void {
    this.#absent.read.destroy();
    this.#absent.write.destroy();
    this.#scratch?.destroy();
    for (const { uniforms } of this.#prepared.values()) uniforms?.destroy();
    this.#prepared.clear();
  }

  #compile(dispatch: PlanDispatch): Promise<GPUComputePipeline> {
    const source = sourceOf(dispatch);
    let pending = this.#pipelines.get(source);
    if (pending === undefined) {
      pending = this.#createPipeline(dispatch, source);
      this.#pipelines.set(source, pending);
      // A failure is told to who waits for it, and may be tried again.
      pending.then(
        (pipeline) => this.#compiled.set(source, pipeline),
        () => this.#pipelines.delete(source),
      );
    }
    return pending;
  }

  async #createPipeline(dispatch: PlanDispatch, code: string): Promise<GPUComputePipeline> {
    const label = `FlashAttention ${dispatch.kernel}`;
    try {
      return await this.device.createComputePipelineAsync({
        label,
        layout: this.device.createPipelineLayout({ label, bindGroupLayouts: [this.#layoutOf(dispatch)] }),
        compute: { module: this.device.createShaderModule({ label, code }), entryPoint: 'main' },
      });
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new OrtFlashError('device', `${label} does not compile on this device: ${why}`, {}, undefined, {
        cause: error,
      });
    }
  }

  #layoutOf(dispatch: PlanDispatch): GPUBindGroupLayout {
    const key = dispatch.bindings.map((b) => `${b.index}${b.writable ? 'w' : 'r'}`).join();
    let layout = this.#layouts.get(key);
    if (layout === undefined) {
      const entry = (binding: number, type: GPUBufferBindingType): GPUBindGroupLayoutEntry => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type },
      });
      layout = this.device.createBindGroupLayout({
        label: `FlashAttention ${dispatch.kernel}`,
        entries: [
          entry(0, 'uniform'),
          ...dispatch.bindings.map((b) => entry(b.index, b.writable ? 'storage' : 'read-only-storage')),
        ],
      });
      this.#layouts.set(key, layout);
    }
    return layout;
  }

  #finish(key: string, problem: AttentionProblem, plan: AttentionPlan): Prepared {
    const steps = plan.dispatches.map((dispatch, i) => ({
      dispatch,
      pipeline: this.#compiled.get(sourceOf(dispatch))!,
      uniformOffset: i * UNIFORM_STRIDE,
    }));
    const tensors = new Set(plan.dispatches.flatMap((d) => d.bindings.map((b) => b.tensor)));
    const prepared = new Prepared(
      problem,
      plan,
      steps,
      this.#uploadUniforms(steps),
      [...tensors].filter((t) => t !== undefined && t !== 'scratch') as CallerTensor[],
    );
    this.#prepared.set(key, prepared);
    if (this.#prepared.size > REMEMBERED_PROBLEMS) {
      const [oldest] = this.#prepared.keys();
      // Not destroyed: a call that uses it may be encoded and not yet submitted.
      this.#prepared.delete(oldest!);
    }
    return prepared;
  }

  #uploadUniforms(steps: readonly Step[]): GPUBuffer | undefined {
    if (steps.length === 0) return undefined;
    const uniforms = this.device.createBuffer({
      label: 'FlashAttention problem',
      size: steps.length * UNIFORM_STRIDE,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
      mappedAtCreation: true,
    });
    const mapped = new Uint32Array(uniforms.getMappedRange());
    for (const { dispatch, uniformOffset } of steps) mapped.set(dispatch.uniform, uniformOffset / 4);
    uniforms.unmap();
    return uniforms;
  }

  #findBound(prepared: Prepared, buffers: AttentionBuffers): BoundBuffers | undefined {
    const { bound, tensors } = prepared;
    search: for (let i = 0; i < bound.length; i++) {
      const candidate = bound[i]!;
      for (let t = 0; t < tensors.length; t++) {
        const given = buffers[tensors[t]!];
        if (candidate.buffers[t] !== given?.buffer || candidate.offsets[t] !== (given?.offset ?? 0)) continue search;
      }
      return candidate;
    }
    return undefined;
  }

  #bind(prepared: Prepared, buffers: AttentionBuffers): BoundBuffers {
    for (const tensor of prepared.tensors) this.#check(tensor, buffers[tensor], prepared.plan);
    const scratch = this.#grownScratch(prepared.plan.scratchBytes);
    const groups = prepared.steps.map(({ dispatch, uniformOffset }) =>
      this.device.createBindGroup({
        label: dispatch.label,
        layout: this.#layoutOf(dispatch),
        entries: [
          {
            binding: 0,
            resource: {
              buffer: prepared.uniforms!,
              offset: uniformOffset,
              size: dispatch.uniform.byteLength,
            },
          },
          ...dispatch.bindings.map(({ index, tensor, offset, size, writable }) => {
            if (tensor === undefined)
              return { binding: index, resource: { buffer: writable ? this.#absent.write : this.#absent.read } };
            const { buffer, offset: base = 0 } = tensor === 'scratch' ? { buffer: scratch! } : buffers[tensor]!;
            return { binding: index, resource: { buffer, offset: base + offset, size } };
          }),
        ],
      }),
    );
    const bound = {
      buffers: prepared.tensors.map((t) => buffers[t]?.buffer),
      offsets: prepared.tensors.map((t) => buffers[t]?.offset ?? 0),
      groups,
    };
    prepared.bound.unshift(bound);
    prepared.bound.length = Math.min(prepared.bound.length, REMEMBERED_BUFFERS);
    return bound;
  }

  #check(tensor: CallerTensor, given: TensorBuffer | undefined, plan: AttentionPlan): void {
    const refuse = (why: string): never => {
      throw new OrtFlashError('invalid-argument', `FlashAttention: the buffer of ${tensor} ${why}`, { tensor });
    };
    if (given === undefined) refuse('is missing');
    const offset = given!.offset ?? 0;
    if (offset % this.facts.bindingAlignment !== 0)
      refuse(`begins at byte ${offset}, which is no multiple of ${this.facts.bindingAlignment}`);
    const needed = plan.tensorBytes[tensor] ?? 0;
    if (given!.buffer.size - offset < needed)
      refuse(`has ${given!.buffer.size - offset} bytes, the problem needs ${needed}`);
  }

  /** One buffer for all calls: they follow each other on the queue. It grows, and what was bound keeps the old one. */
  #grownScratch(bytes: number): GPUBuffer | undefined {
    if (bytes > (this.#scratch?.size ?? 0))
      this.#scratch = this.device.createBuffer({
        label: 'FlashAttention scratch',
        size: bytes,
        usage: GPUBufferUsage.STORAGE,
      });
    return this.#scratch;
  }

  #report(caught: Promise<GPUError | null>): void {
    const tell = this.#options.onError ?? ((error: OrtFlashError) => console.error(error.message));
    caught.then(
      (error) => error && tell(new OrtFlashError('device', `FlashAttention: ${error.message}`)),
      (error) =>
        tell(new OrtFlashError('device', 'FlashAttention: the device was lost', {}, undefined, { cause: error })),
    );
  }
}

const PASS_DESCRIPTOR: GPUComputePassDescriptor = { label: 'FlashAttention' };

const sources = new WeakMap<PlanDispatch, string>();

function sourceOf(dispatch: PlanDispatch): string {
  let source = sources.get(dispatch);
  if (source === undefined) {
    source = specialize(dispatch.kernel, dispatch.parameters, dispatch.enables);
    sources.set(dispatch, source);
  }
  return source;
}

function problemKey(problem: AttentionProblem, options: PlanOptions): string {
  return JSON.stringify([problem, options, String(problem.maskedValue)]);
}
