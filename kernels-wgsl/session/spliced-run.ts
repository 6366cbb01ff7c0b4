import type { Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import type { FlashAttentionOutput } from '../../graph-rewrite/op/definition.js';
import type { AttentionProblem } from '../../graph-rewrite/op/problem.js';
import { type AttentionRunner, bufferBytes, gpuTensor } from './attention.js';
import { type CachePlacement, placeCache } from './cache-placement.js';
import type { AttentionCall, SegmentStep } from './cut.js';
import type { Engine } from './engine.js';
import { type CacheView, cacheOf, cacheTensor } from './growing-cache.js';
import type { ScheduledStep } from './schedule.js';
import { checkTarget, cpuBytes, cpuTensor, denseRows, fillTensor, readBack, tensorBytes } from './tensors.js';

type Tensors = Readonly<Record<string, Tensor>>;

/** A part of the model in ONNX Runtime. */
export interface SegmentRunner {
  run(feeds: Tensors, fetches: Readonly<Record<string, Tensor | null>>): Promise<Tensors>;
}

export interface RunContext {
  readonly engine: Engine;
  readonly segments: ReadonlyMap<number, SegmentRunner>;
  readonly attentions: ReadonlyMap<AttentionCall, AttentionRunner>;
  /** Constants that steps read, on the GPU. */
  readonly constants: Tensors;
  /** Where an output stays that the caller gave no tensor for. */
  readonly location: (name: string) => Tensor.DataLocation;
}

type Results = Record<string, Tensor>;

/** Outputs of a run whose work is submitted. In an object, because a promise of a promise would wait for both. */
export interface SubmittedRun {
  readonly outputs: Promise<Results>;
}

/** Outputs whose elements may still be on their way. */
interface Collected {
  /** The elements of those that are read back. */
  readonly contents: Promise<readonly ArrayBuffer[]>;
  /** All outputs, given these elements. */
  readonly finish: (contents: readonly ArrayBuffer[]) => Results;
  /** Frees the outputs in place of giving them to the caller. */
  readonly drop: () => void;
}

/** A value during a run. */
interface Held {
  readonly tensor: Tensor;
  /** Where the tensor is a view of a cache: one of the run's own, which stays whatever becomes of the tensor. */
  readonly cache?: CacheView;
  /** Its copy on the GPU, where it is in CPU memory and attention reads it. */
  uploaded?: GPUBuffer;
  /** Gives its memory back; absent for what the caller owns. */
  readonly free?: () => void;
}

/** One run of a spliced model: carries out the steps, holding each value as long as a later step needs it. */
export class SplicedRun {
  readonly #context: RunContext;
  readonly #fetches: Readonly<Record<string, Tensor | null>>;
  readonly #values = new Map<string, Held>();

  constructor(context: RunContext, feeds: Tensors, fetches: Readonly<Record<string, Tensor | null>>) {
    this.#context = context;
    this.#fetches = fetches;
    for (const [name, tensor] of Object.entries({ ...context.constants, ...feeds })) {
      const cache = cacheOf(tensor, context.engine.pool)?.hold();
      this.#values.set(name, cache ? { tensor, cache, free: () => cache.release() } : { tensor });
    }
  }

  /**
   * Submits the steps in order; nothing waits for the GPU. Where outputs are read back, what the GPU refuses of the run
   * rejects them; else it is told as the device tells errors, because asking would be to wait.
   * @throws OrtFlashError where a step cannot be submitted
   */
  async carryOut(steps: readonly ScheduledStep[]): Promise<SubmittedRun> {
    if (Object.entries(this.#fetches).every(([name, target]) => this.#staysOnGpu(name, target)))
      return { outputs: Promise.resolve((await this.#submit(steps)).finish([])) };
    const { result, refusal } = await this.#context.engine.watch(() => this.#submit(steps));
    const outputs = this.#finish(result, refusal);
    // Told through the run's own promise.
    outputs.catch(() => undefined);
    return { outputs };
  }

  async #finish({ contents, finish, drop }: Collected, refusal: Promise<OrtFlashError | undefined>): Promise<Results> {
    const [read] = await Promise.allSettled([contents]);
    // A read that fails because of what was refused before is told by that.
    const error = await refusal;
    if (error === undefined && read.status === 'fulfilled') return finish(read.value);
    drop();
    throw error ?? (read as PromiseRejectedResult).reason;
  }

  async #submit(steps: readonly ScheduledStep[]): Promise<Collected> {
    try {
      for (const step of steps) {
        if (step.step.kind === 'segment') await this.#runSegment(step);
        else await this.#runAttention(step);
        for (const name of step.release) this.#free(name);
      }
      return this.#collect();
    } finally {
      for (const name of [...this.#values.keys()]) this.#free(name);
    }
  }

  /** Puts the outputs where the caller wants them; what is to be read back is copied at once. */
  #collect(): Collected {
    const { device } = this.#context.engine;
    const wanted = Object.entries(this.#fetches).map(([name, target]) => ({
      name,
      target,
      tensor: this.#value(name).tensor,
    }));
    for (const { name, target, tensor } of wanted) if (target) checkTarget(name, target, tensor.type, tensor.dims);
    const onGpu = wanted.filter(({ tensor }) => tensor.location === 'gpu-buffer');
    const kept = onGpu.filter(({ name, target }) => this.#staysOnGpu(name, target));
    const read = onGpu.filter((output) => !kept.includes(output));
    const handedOver: Tensor[] = [];
    for (const { name, target, tensor } of wanted) {
      if (target?.location === 'gpu-buffer') this.#copyInto(target, tensor);
      else if (kept.some((output) => output.name === name)) {
        // It is the caller's now, who frees it with `dispose`.
        this.#values.delete(name);
        handedOver.push(tensor);
      }
    }
    const contents = readBack(
      device,
      read.map(({ name }) => {
        const { cache, tensor } = this.#value(name);
        return cache?.rows ?? denseRows(tensor.gpuBuffer as GPUBuffer, tensor.type, tensor.dims);
      }),
    );
    const finish = (elements: readonly ArrayBuffer[]) => {
      const results: Results = {};
      for (const output of wanted) {
        const { name, target, tensor } = output;
        const at = read.indexOf(output);
        const value = at < 0 ? tensor : cpuTensor(tensor.type, elements[at]!, tensor.dims);
        if (target?.location === 'cpu') fillTensor(name, target, value);
        results[name] = target ?? value;
      }
      return results;
    };
    const drop = () => {
      for (const tensor of handedOver) tensor.dispose();
    };
    return { contents, finish, drop };
  }

  /** Whether an output is wanted on the GPU. */
  #staysOnGpu(name: string, target: Tensor | null): boolean {
    return (target?.location ?? this.#context.location(name)) === 'gpu-buffer';
  }

  async #runSegment({ index, step, outputs }: ScheduledStep): Promise<void> {
    if (step.kind !== 'segment') return;
    const feeds = Object.fromEntries(step.inputs.map((name) => [name, this.#feed(name, step)]));
    const fetches = Object.fromEntries(outputs.map((name) => [name, this.#gpuTarget(name) ?? null]));
    const results = await this.#context.segments.get(index)!.run(feeds, fetches);
    for (const name of outputs) {
      const tensor = results[name]!;
      const isOwn = tensor.location !== 'cpu' && fetches[name] === null;
      this.#values.set(name, isOwn ? { tensor, free: () => tensor.dispose() } : { tensor });
    }
  }

  /** A segment's input. Where it reads the shape alone, a cache is not made dense for it. */
  #feed(name: string, { shapeInputs }: SegmentStep): Tensor {
    const { tensor, cache } = this.#value(name);
    if (cache === undefined || !shapeInputs.includes(name)) return tensor;
    return gpuTensor({ type: tensor.type, dims: cache.dims, buffer: cache.buffer });
  }

  async #runAttention({ step }: ScheduledStep): Promise<void> {
    if (step.kind !== 'attention') return;
    const { engine } = this.#context;
    const encoder = engine.device.createCommandEncoder({ label: 'ort-flash attention' });
    // Free again once it is submitted, and not before: an upload for the next call would come too early.
    const scratch: GPUBuffer[] = [];
    try {
      await this.#encodeCalls(step.calls, encoder, scratch);
      engine.device.queue.submit([encoder.finish()]);
    } finally {
      for (const buffer of scratch) engine.pool.release(buffer);
    }
  }

  async #encodeCalls(calls: readonly AttentionCall[], encoder: GPUCommandEncoder, scratch: GPUBuffer[]): Promise<void> {
    for (const call of calls) {
      const runner = this.#context.attentions.get(call)!;
      const inputs = Object.entries(call.inputs).map(([input, name]) => [input, this.#value(name)] as const);
      const problem = runner.resolve(Object.fromEntries(inputs.map(([input, { tensor }]) => [input, tensor])));
      const { options, present } = this.#placeCache(call, problem);
      const buffers: Record<string, { buffer: GPUBuffer }> = {};
      for (const [output, { type, dims }] of Object.entries(runner.outputsOf(problem))) {
        const name = call.outputs[output as FlashAttentionOutput];
        const cache = present?.[output as keyof typeof present];
        buffers[output] = { buffer: cache?.buffer ?? this.#allocate(name, type, dims, scratch) };
      }
      const prepared = await runner.prepare(problem, options);
      for (const [input, held] of inputs)
        buffers[input] = { buffer: (input.startsWith('past_') && held.cache?.buffer) || this.#onGpu(held) };
      runner.encode(prepared, encoder, buffers);
    }
  }

  /** Where a call's present keys and values go; what is a view of a cache is a value of the run at once. */
  #placeCache(call: AttentionCall, problem: AttentionProblem): CachePlacement {
    const { engine, location } = this.#context;
    const { past_key: pastKey, past_value: pastValue } = call.inputs;
    if (pastKey === undefined || pastValue === undefined) return { options: {}, present: undefined };
    const names = [call.outputs.present_key, call.outputs.present_value];
    const isFree = names.every((name) => name !== undefined && this.#gpuTarget(name) === undefined);
    const staysOnGpu = names.every((name) => this.#fetches[name!] === null && location(name!) === 'gpu-buffer');
    const placement = placeCache(
      problem,
      { key: this.#value(pastKey).cache, value: this.#value(pastValue).cache },
      { staysInPlace: call.growsCache && isFree, grows: call.growsCache && isFree && staysOnGpu },
      engine.pool,
    );
    for (const [output, cache] of Object.entries(placement.present ?? {})) {
      const tensor = cacheTensor(cache, engine.device);
      this.#values.set(call.outputs[output as FlashAttentionOutput]!, { tensor, cache, free: () => tensor.dispose() });
    }
    return placement;
  }

  /** Memory for an output of attention: the caller's tensor where there is one. */
  #allocate(name: string | undefined, type: Tensor.Type, dims: readonly number[], scratch: GPUBuffer[]): GPUBuffer {
    const { pool, device } = this.#context.engine;
    const target = name === undefined ? undefined : this.#gpuTarget(name);
    if (target) {
      checkTarget(name!, target, type, dims);
      this.#values.set(name!, { tensor: target });
      return target.gpuBuffer as GPUBuffer;
    }
    const buffer = pool.acquire(bufferBytes(type, dims));
    const free = () => pool.release(buffer);
    if (name === undefined) scratch.push(buffer);
    else if (tensorBytes(type, dims) === 0) {
      // As the runtime has it, a tensor without elements is in CPU memory.
      this.#values.set(name, { tensor: cpuTensor(type, new ArrayBuffer(0), dims), uploaded: buffer });
    } else {
      const read = async () => {
        const [content] = await readBack(device, [denseRows(buffer, type, dims)]);
        return cpuTensor(type, content!, dims).data;
      };
      this.#values.set(name, { tensor: gpuTensor({ type, dims, buffer }, free, read), free });
    }
    return buffer;
  }

  /** The tensor on the GPU that the caller gave for an output. */
  #gpuTarget(name: string): Tensor | undefined {
    const target = this.#fetches[name];
    return target?.location === 'gpu-buffer' ? target : undefined;
  }

  #value(name: string): Held {
    const held = this.#values.get(name);
    if (held === undefined) throw new OrtFlashError('malformed-model', 'a value is missing', { tensor: name });
    return held;
  }

  /** The value's buffer; what is in CPU memory is uploaded once. */
  #onGpu(held: Held): GPUBuffer {
    const { tensor } = held;
    if (tensor.location === 'gpu-buffer') return tensor.gpuBuffer as GPUBuffer;
    if (held.uploaded === undefined) {
      const { pool, device } = this.#context.engine;
      held.uploaded = pool.acquire(bufferBytes(tensor.type, tensor.dims));
      const bytes = cpuBytes(tensor);
      if (bytes.length > 0) device.queue.writeBuffer(held.uploaded, 0, bytes);
    }
    return held.uploaded;
  }

  #copyInto(target: Tensor, tensor: Tensor): void {
    const { device } = this.#context.engine;
    const buffer = target.gpuBuffer as GPUBuffer;
    if (tensor.location === 'cpu') device.queue.writeBuffer(buffer, 0, cpuBytes(tensor));
    else if (buffer !== tensor.gpuBuffer) {
      const encoder = device.createCommandEncoder({ label: 'ort-flash output' });
      const bytes = Math.ceil(tensorBytes(tensor.type, tensor.dims) / 4) * 4;
      encoder.copyBufferToBuffer(tensor.gpuBuffer as GPUBuffer, 0, buffer, 0, bytes);
      device.queue.submit([encoder.finish()]);
    }
  }

  #free(name: string): void {
    const held = this.#values.get(name);
    if (held === undefined) return;
    this.#values.delete(name);
    held.free?.();
    if (held.uploaded) this.#context.engine.pool.release(held.uploaded);
  }
}
