import type { Tensor } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { type AttentionRunner, bufferBytes, gpuTensor } from './attention.js';
import type { AttentionCall, SplicePlan } from './cut.js';
import type { Engine } from './engine.js';
import type { ScheduledStep } from './schedule.js';
import { checkTarget, cpuBytes, cpuTensor, fillTensor, readBack, tensorBytes } from './tensors.js';

type Tensors = Readonly<Record<string, Tensor>>;

/** A part of the model in ONNX Runtime. */
export interface SegmentRunner {
  run(feeds: Tensors, fetches: Readonly<Record<string, Tensor | null>>): Promise<Tensors>;
}

export interface RunContext {
  readonly engine: Engine;
  readonly plan: SplicePlan;
  readonly segments: ReadonlyMap<number, SegmentRunner>;
  readonly attentions: ReadonlyMap<AttentionCall, AttentionRunner>;
  /** Constants that steps read, on the GPU. */
  readonly constants: Tensors;
}

/** A value during a run. */
interface Held {
  readonly tensor: Tensor;
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
    for (const [name, tensor] of Object.entries({ ...context.constants, ...feeds })) this.#values.set(name, { tensor });
  }

  /** Submits the steps in order; nothing waits for the GPU. */
  async submit(steps: readonly ScheduledStep[]): Promise<void> {
    try {
      for (const step of steps) {
        if (step.step.kind === 'segment') await this.#runSegment(step);
        else await this.#runAttention(step);
        for (const name of step.release) this.#free(name);
      }
    } catch (error) {
      this.freeAll();
      throw error;
    }
  }

  /**
   * The outputs, where the caller wants them. What is to be read back is copied at once; the promise settles when the
   * GPU is done.
   * @param location where an output stays that the caller gave no tensor for
   */
  collect(location: (name: string) => Tensor.DataLocation): Promise<Record<string, Tensor>> {
    const results: Record<string, Tensor> = {};
    const pending: { readonly name: string; readonly tensor: Tensor }[] = [];
    for (const [name, target] of Object.entries(this.#fetches)) {
      const { tensor } = this.#values.get(name)!;
      if (tensor.location === 'cpu') {
        if (target === null) results[name] = tensor;
        else if (target.location === 'cpu') fillTensor(name, target, tensor);
        else this.#context.engine.device.queue.writeBuffer(target.gpuBuffer as GPUBuffer, 0, cpuBytes(tensor));
      } else if (target?.location === 'cpu') pending.push({ name, tensor });
      else if (target === null && location(name) === 'gpu-buffer') {
        results[name] = tensor;
        // It is the caller's now, who frees it with `dispose`.
        this.#values.delete(name);
      } else if (target === null) pending.push({ name, tensor });
      else this.#copyInto(target, tensor);
    }
    const buffers = pending.map(({ tensor }) => ({
      buffer: tensor.gpuBuffer as GPUBuffer,
      bytes: tensorBytes(tensor.type, tensor.dims),
    }));
    const read = pending.length > 0 ? readBack(this.#context.engine.device, buffers) : Promise.resolve([]);
    const shapes = pending.map(({ name, tensor: { type, dims } }) => ({ name, type, dims }));
    this.freeAll();
    return read.then((contents) => {
      for (const [i, { name, type, dims }] of shapes.entries()) {
        const result = cpuTensor(type, contents[i]!, dims);
        const target = this.#fetches[name];
        if (target) fillTensor(name, target, result);
        else results[name] = result;
      }
      const wanted = Object.entries(this.#fetches);
      return Object.fromEntries(wanted.map(([name, target]) => [name, target ?? results[name]!]));
    });
  }

  /** Gives back the memory of everything that the run still holds. */
  freeAll(): void {
    for (const name of [...this.#values.keys()]) this.#free(name);
  }

  async #runSegment({ index, step, outputs }: ScheduledStep): Promise<void> {
    if (step.kind !== 'segment') return;
    const feeds = Object.fromEntries(step.inputs.map((name) => [name, this.#value(name).tensor]));
    const fetches = Object.fromEntries(outputs.map((name) => [name, this.#gpuTarget(name) ?? null]));
    const results = await this.#context.segments.get(index)!.run(feeds, fetches);
    for (const name of outputs) {
      const tensor = results[name]!;
      const isOwn = tensor.location !== 'cpu' && fetches[name] === null;
      this.#values.set(name, isOwn ? { tensor, free: () => tensor.dispose() } : { tensor });
    }
  }

  async #runAttention({ step }: ScheduledStep): Promise<void> {
    if (step.kind !== 'attention') return;
    const { engine } = this.#context;
    const encoder = engine.device.createCommandEncoder({ label: 'ort-flash attention' });
    // Free again once it is submitted, and not before: an upload for the next call would come too early.
    const scratch: GPUBuffer[] = [];
    for (const call of step.calls) {
      const runner = this.#context.attentions.get(call)!;
      const inputs = Object.entries(call.inputs).map(([input, name]) => [input, this.#value(name)] as const);
      const prepared = await runner.prepare(Object.fromEntries(inputs.map(([input, { tensor }]) => [input, tensor])));
      const buffers: Record<string, { buffer: GPUBuffer }> = {};
      for (const [input, held] of inputs) buffers[input] = { buffer: this.#onGpu(held) };
      for (const [output, { type, dims }] of Object.entries(runner.outputsOf(prepared))) {
        const name = call.outputs[output as keyof typeof call.outputs];
        const buffer = this.#allocate(name, type, dims, scratch);
        buffers[output] = { buffer };
      }
      runner.encode(prepared, encoder, buffers);
    }
    engine.device.queue.submit([encoder.finish()]);
    for (const buffer of scratch) engine.pool.release(buffer);
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
        const [content] = await readBack(device, [{ buffer, bytes: tensorBytes(type, dims) }]);
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
    if (target === tensor || target.gpuBuffer === tensor.gpuBuffer) return;
    const { device } = this.#context.engine;
    const encoder = device.createCommandEncoder();
    const bytes = Math.ceil(tensorBytes(tensor.type, tensor.dims) / 4) * 4;
    encoder.copyBufferToBuffer(tensor.gpuBuffer as GPUBuffer, 0, target.gpuBuffer as GPUBuffer, 0, bytes);
    device.queue.submit([encoder.finish()]);
  }

  #free(name: string): void {
    const held = this.#values.get(name);
    if (held === undefined) return;
    this.#values.delete(name);
    held.free?.();
    if (held.uploaded) this.#context.engine.pool.release(held.uploaded);
  }
}
