import Long from 'long';
import { Tensor } from '#onnxruntime-web';
import { makeNode } from '../../graph-rewrite/graph/builder.js';
import { dataTypeOf } from '../../graph-rewrite/onnx/data-type.js';
import {
  GraphProto,
  ModelProto,
  OperatorSetIdProto,
  TensorShapeProto,
  TypeProto,
  ValueInfoProto,
} from '../../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../../graph-rewrite/onnx/tensor.js';
import { functionFor, overloadName } from '../../graph-rewrite/op/body.js';
import { DEFAULT_ATTRIBUTES } from '../../graph-rewrite/op/definition.js';
import { decodeHalf } from '../../graph-rewrite/op/half.js';
import { flashAttentionNode } from '../../graph-rewrite/op/node.js';
import type { AttentionKind } from './attention-kind.js';
import type { Engine } from './engine.js';
import {
  type AttentionCost,
  type FormCosts,
  operations,
  SESSION_FORMS,
  type SessionForm,
  scoreBytes,
} from './forms.js';
import type { FlashSessionHandler } from './handler.js';

/** How long measuring may take, and on what. */
interface Extent {
  /** Attentions of the model that is measured. */
  readonly layers: number;
  /** Tokens of a run that costs as little as any. */
  readonly fewTokens: number;
  /**
   * Lengths at which a form must give what the kernels give. ONNX Runtime has other kernels for more tokens, and not all
   * are right everywhere: onnxruntime-web 1.30's MultiHeadAttention is wrong from 32 tokens on where a subgroup has 4 threads.
   */
  readonly comparedTokens: readonly number[];
  /** Lengths to try until the GPU is what a run waits for. */
  readonly lengths: readonly number[];
  /** Milliseconds of one pass of runs. */
  readonly passMilliseconds: number;
  /** Copies that tell how fast the GPU's memory is. */
  readonly copies: number;
}

const ON_GPU: Extent = {
  layers: 4,
  fewTokens: 16,
  comparedTokens: [16, 40, 300],
  lengths: [512, 1024, 2048, 4096, 8192],
  passMilliseconds: 15,
  copies: 32,
};
/** A CPU that plays GPU waits for itself from the first token on. */
const ON_SOFTWARE: Extent = {
  layers: 2,
  fewTokens: 8,
  comparedTokens: [8, 40],
  lengths: [64, 256],
  passMilliseconds: 5,
  copies: 2,
};
/** No score matrix of the measurement is larger. */
const LARGEST_SCORES = 2 ** 28;
/** A run waits for the GPU where it takes so many times what the shortest one takes. */
const GPU_BOUND = 3;
const COPY_BYTES = 2 ** 24;
const OPSET = 17;

/** Opens the small model in a form; undefined where the form cannot be had. */
export type OpenSmallModel = (model: ModelProto, form: SessionForm) => Promise<FlashSessionHandler | undefined>;

/**
 * Measures what an attention of this kind costs in each form: runs of a small model, a chain of attentions with three
 * cheap operators before and one after each, as long as the CPU is what they wait for, and then as long as the GPU is.
 * A form whose outputs are not those of the kernels, at any of several lengths, is left out.
 */
export async function measureForms(engine: Engine, kind: AttentionKind, open: OpenSmallModel): Promise<FormCosts> {
  const extent = engine.flash.facts.isSoftware ? ON_SOFTWARE : ON_GPU;
  const costs: Partial<Record<SessionForm, AttentionCost>> = {};
  let expected: readonly number[][] | undefined;
  for (const form of SESSION_FORMS) {
    const handler = await open(smallModel(kind, extent.layers), form).catch(() => undefined);
    if (handler === undefined) continue;
    try {
      const meter = new Meter(engine, kind, handler, extent);
      const outputs: number[][] = [];
      for (const tokens of extent.comparedTokens) outputs.push(await meter.outputs(tokens));
      expected ??= outputs;
      const isRight = outputs.every((numbers, i) => isSame(numbers, expected![i]!, kind));
      if (isRight) costs[form] = await meter.cost(form);
    } catch {
      // What cannot run the small model is no alternative.
    } finally {
      await handler.dispose();
    }
  }
  return costs;
}

/** Outputs that differ by more than rounding are another computation. */
function isSame(outputs: readonly number[], expected: readonly number[], { type }: AttentionKind): boolean {
  const scale = expected.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0);
  const tolerance = (type === 'float16' ? 1e-2 : 1e-4) * scale;
  return outputs.length === expected.length && outputs.every((x, i) => Math.abs(x - expected[i]!) <= tolerance);
}

class Meter {
  constructor(
    readonly engine: Engine,
    readonly kind: AttentionKind,
    readonly handler: FlashSessionHandler,
    readonly extent: Extent,
  ) {}

  /** The outputs for a few tokens. */
  async outputs(tokens: number): Promise<number[]> {
    const input = this.#input(tokens);
    try {
      const { y } = (await this.handler.run({ x: input }, { y: null }, {})) as { y: Tensor };
      const data = await y.getData();
      y.dispose();
      // Where JavaScript has no float16 array, ONNX Runtime gives the bits.
      const numbers = data instanceof Uint16Array ? decodeHalf(data, 'float16') : (data as ArrayLike<number>);
      return Array.from(numbers, Number);
    } finally {
      (input.gpuBuffer as GPUBuffer).destroy();
    }
  }

  async cost(form: SessionForm): Promise<AttentionCost> {
    const { layers, fewTokens, lengths } = this.extent;
    const leastMilliseconds = (await this.#time(fewTokens)) / layers;
    let operationsPerMillisecond = operations(this.#sizes(fewTokens)) / leastMilliseconds;
    for (const tokens of lengths) {
      const sizes = this.#sizes(tokens);
      const limit = Math.min(LARGEST_SCORES, this.engine.flash.facts.bindingSize);
      if (form !== 'kernels' && scoreBytes(sizes) > limit) break;
      const milliseconds = (await this.#time(tokens)) / layers;
      operationsPerMillisecond = Math.max(operationsPerMillisecond, operations(sizes) / milliseconds);
      if (milliseconds >= GPU_BOUND * leastMilliseconds) break;
    }
    if (form === 'kernels') return { leastMilliseconds, operationsPerMillisecond };
    return { leastMilliseconds, operationsPerMillisecond, cacheBytesPerMillisecond: await this.#copyRate() };
  }

  /** Bytes a millisecond of copies on the GPU, in the fastest of three passes. */
  async #copyRate(): Promise<number> {
    const { device } = this.engine;
    const { copies } = this.extent;
    const usage = GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const [from, to] = [0, 1].map(() =>
      device.createBuffer({ label: 'ort-flash measurement', size: COPY_BYTES, usage }),
    );
    let least = Number.POSITIVE_INFINITY;
    for (let pass = 0; pass < 3; pass++) {
      await device.queue.onSubmittedWorkDone();
      const start = performance.now();
      const encoder = device.createCommandEncoder({ label: 'ort-flash measurement' });
      for (let i = 0; i < copies; i++) encoder.copyBufferToBuffer(from!, 0, to!, 0, COPY_BYTES);
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
      least = Math.min(least, performance.now() - start);
    }
    for (const buffer of [from!, to!]) buffer.destroy();
    return (copies * COPY_BYTES) / least;
  }

  #sizes(tokens: number) {
    const { type, queryHeads, keyHeads, headDimension } = this.kind;
    const length = { queries: tokens, keys: tokens, headDimension, valueDimension: headDimension };
    return {
      count: 1,
      cachedKeys: 0,
      batch: 1,
      queryHeads,
      keyHeads,
      ...length,
      elementBytes: type === 'float16' ? 2 : 4,
    };
  }

  /** Milliseconds of a run, while other runs follow it without waiting: the least of three passes. */
  async #time(tokens: number): Promise<number> {
    const input = this.#input(tokens);
    const { queue } = this.engine.device;
    const pass = async (runs: number) => {
      await queue.onSubmittedWorkDone();
      const start = performance.now();
      for (let i = 0; i < runs; i++) ((await this.handler.run({ x: input }, { y: null }, {})).y as Tensor).dispose();
      await queue.onSubmittedWorkDone();
      return (performance.now() - start) / runs;
    };
    try {
      await pass(1);
      const once = await pass(1);
      const runs = Math.max(1, Math.min(20, Math.ceil(this.extent.passMilliseconds / once)));
      return Math.min(await pass(runs), await pass(runs), await pass(runs));
    } finally {
      (input.gpuBuffer as GPUBuffer).destroy();
    }
  }

  /** Numbers between −1 and 1: zeros would run faster than data do. */
  #input(tokens: number): Tensor {
    const { type, queryHeads, headDimension } = this.kind;
    const dims = [1, tokens, queryHeads * headDimension];
    const count = dims.reduce((a, b) => a * b);
    let state = 1;
    const random = () => {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      return (state >>> 8) / 2 ** 23 - 1;
    };
    const { raw_data: bytes } = makeTensor('x', type, dims, Float32Array.from({ length: count }, random));
    const size = Math.ceil(bytes!.byteLength / 16) * 16;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const { device } = this.engine;
    const buffer = device.createBuffer({ label: 'ort-flash measurement', size, usage });
    device.queue.writeBuffer(buffer, 0, bytes as Uint8Array<ArrayBuffer>);
    return Tensor.fromGpuBuffer(buffer, { dataType: type, dims });
  }
}

/** x + attention of parts of x, again and again: (1, tokens, heads · dimension) to the same. */
function smallModel(kind: AttentionKind, layers: number): ModelProto {
  const { type, queryHeads, keyHeads, headDimension, isCausal } = kind;
  const layout = { queryLayout: 'BS(HD)', keyLayout: 'BS(HD)', valueLayout: 'BS(HD)', outputLayout: 'BS(HD)' };
  const attributes = { ...DEFAULT_ATTRIBUTES, ...layout, queryHeads, keyHeads, isCausal };
  const known = { queryHeads, keyHeads, headDimension, valueDimension: headDimension };
  const elementType = dataTypeOf(type);
  const variant = { attributes, elementType, opset: OPSET, known };
  const width = keyHeads * headDimension;
  const nodes = [];
  for (let i = 0; i < layers; i++) {
    const [x, q, k, v, y] = [i === 0 ? 'x' : `x${i}`, `q${i}`, `k${i}`, `v${i}`, `y${i}`];
    nodes.push(makeNode('Mul', [x, 'half'], [q]));
    for (const part of [k, v]) nodes.push(makeNode('Slice', [x, 'zero', 'width', 'axis'], [part]));
    const overload = overloadName(variant);
    nodes.push(flashAttentionNode({ attributes, inputs: { Q: q, K: k, V: v }, outputs: { Y: y }, name: y, overload }));
    nodes.push(makeNode('Add', [x, y], [i === layers - 1 ? 'y' : `x${i + 1}`]));
  }
  const value = (name: string) => {
    const fixed = (size: number) => new TensorShapeProto.Dimension({ dim_value: Long.fromNumber(size) });
    const tokens = new TensorShapeProto.Dimension({ dim_param: 'tokens' });
    const shape = new TensorShapeProto({ dim: [fixed(1), tokens, fixed(queryHeads * headDimension)] });
    const tensor_type = new TypeProto.Tensor({ elem_type: elementType, shape });
    return new ValueInfoProto({ name, type: new TypeProto({ tensor_type }) });
  };
  const integer = (name: string, number: number) => makeTensor(name, 'int64', [1], [number]);
  const imports = [
    ['', OPSET],
    ['ortflash', 1],
  ] as const;
  return new ModelProto({
    ir_version: Long.fromNumber(10),
    opset_import: imports.map(
      ([domain, version]) => new OperatorSetIdProto({ domain, version: Long.fromNumber(version) }),
    ),
    functions: [functionFor(variant)],
    graph: new GraphProto({
      name: 'attentions',
      node: nodes,
      input: [value('x')],
      output: [value('y')],
      initializer: [
        makeTensor('half', type, [1], [0.5]),
        integer('zero', 0),
        integer('width', width),
        integer('axis', 2),
      ],
    }),
  });
}
