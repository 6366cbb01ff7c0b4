/** ONNX Runtime's WebGPU provider under Node, over Dawn, on attention alone: the peer of bench/webgpu-attention.ts. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import Long from 'long';
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { opsetImports, tensorInfo } from '../../graph-rewrite/onnx/make.js';
import { AttributeProto, GraphProto, ModelProto, NodeProto } from '../../graph-rewrite/onnx/proto.js';

/** The part of onnxruntime-web that is used here. */
export interface OrtWeb {
  readonly env: { readonly wasm: { wasmPaths?: string; numThreads?: number } };
  readonly InferenceSession: {
    create(model: Uint8Array, options: Record<string, unknown>): Promise<InferenceSession>;
  };
  readonly Tensor: { fromGpuBuffer(buffer: GPUBuffer, options: { dataType: string; dims: number[] }): Tensor };
}

export interface AttentionShape {
  readonly type: 'float16' | 'float32';
  readonly heads: number;
  readonly dimension: number;
  readonly tokens: number;
  readonly isCausal?: boolean;
}

/**
 * Loads onnxruntime-web's WebGPU build with what Node lacks: `navigator.gpu`, and writes from shared memory.
 *
 * Keeps the process alive until it exits by itself: while the runtime's WebAssembly is compiled nothing else is pending,
 * and Node, which takes that for the end, would block everything until V8 has optimised the last of its 20 MB.
 */
export async function loadOrtWeb(gpu: GPU): Promise<OrtWeb> {
  setInterval(() => undefined, 60_000);
  Object.defineProperty(globalThis, 'navigator', { value: { gpu, userAgent: 'node' }, configurable: true });
  const queue = GPUQueue.prototype as { writeBuffer: (...args: unknown[]) => void };
  const write = queue.writeBuffer;
  queue.writeBuffer = function (buffer, offset, data, start, size) {
    const view = data as Uint8Array;
    const isShared = ArrayBuffer.isView(view) && view.buffer instanceof SharedArrayBuffer;
    if (!isShared) return write.call(this, buffer, offset, data, start, size);
    const first = (start as number | undefined) ?? 0;
    const count = (size as number | undefined) ?? view.length - first;
    return write.call(this, buffer, offset, view.slice(first, first + count));
  };
  const dist = join(findPackage('onnxruntime-web'), 'dist');
  const ort = (await import(pathToFileURL(join(dist, 'ort.webgpu.min.mjs')).href)) as OrtWeb;
  ort.env.wasm.wasmPaths = `${pathToFileURL(dist).href}/`;
  ort.env.wasm.numThreads = 1;
  return ort;
}

function findPackage(name: string): string {
  for (let folder = process.cwd(); ; folder = dirname(folder)) {
    const found = join(folder, 'node_modules', name);
    if (existsSync(found)) return found;
    if (folder === dirname(folder)) throw new Error(`${name} is not installed`);
  }
}

/** A session on this device, and its run with everything on the GPU; inputs (1, tokens, heads · dimension). */
export async function ortAttention(
  ort: OrtWeb,
  device: GPUDevice,
  form: 'MultiHeadAttention' | 'decomposed',
  shape: AttentionShape,
  inputs: { readonly Q: GPUBuffer; readonly K: GPUBuffer; readonly V: GPUBuffer },
): Promise<{ run: () => Promise<void>; output: () => Promise<GPUBuffer>; release: () => Promise<void> }> {
  const { type, heads, dimension, tokens } = shape;
  const model = form === 'MultiHeadAttention' ? multiHeadAttention(shape) : decomposed(shape);
  const session = await ort.InferenceSession.create(model, {
    executionProviders: [{ name: 'webgpu', device }],
    preferredOutputLocation: 'gpu-buffer',
  });
  const dims = form === 'MultiHeadAttention' ? [1, tokens, heads * dimension] : [1, heads, tokens, dimension];
  const feeds = Object.fromEntries(
    Object.entries(inputs).map(([name, buffer]) => [name, ort.Tensor.fromGpuBuffer(buffer, { dataType: type, dims })]),
  );
  return {
    run: async () => {
      const { Y } = await session.run(feeds);
      Y!.dispose();
    },
    output: async () => (await session.run(feeds)).Y!.gpuBuffer as GPUBuffer,
    release: () => session.release(),
  };
}

/** Inputs and output (B, S, H·D), as the operator wants them. */
function multiHeadAttention({ type, heads, dimension, tokens, isCausal }: AttentionShape): Uint8Array {
  const node = NodeProto.create({
    op_type: 'MultiHeadAttention',
    domain: 'com.microsoft',
    input: ['Q', 'K', 'V'],
    output: ['Y'],
    attribute: [
      AttributeProto.create({ name: 'num_heads', type: 2, i: Long.fromNumber(heads) }),
      AttributeProto.create({ name: 'unidirectional', type: 2, i: Long.fromNumber(isCausal ? 1 : 0) }),
    ],
  });
  return build([node], type, [1, tokens, heads * dimension]);
}

/** Transpose, MatMul, Softmax, MatMul, with heads on an axis of their own and no scale: no decomposed form has less. */
function decomposed({ type, heads, dimension, tokens }: AttentionShape): Uint8Array {
  const op = (op_type: string, input: string[], output: string, attribute: AttributeProto[] = []) =>
    NodeProto.create({ op_type, input, output: [output], attribute });
  const ints = (name: string, values: number[]) =>
    AttributeProto.create({ name, type: 7, ints: values.map((v) => Long.fromNumber(v)) });
  const nodes = [
    op('Transpose', ['K'], 'KT', [ints('perm', [0, 1, 3, 2])]),
    op('MatMul', ['Q', 'KT'], 'S'),
    op('Softmax', ['S'], 'P', [AttributeProto.create({ name: 'axis', type: 2, i: Long.fromNumber(-1) })]),
    op('MatMul', ['P', 'V'], 'Y'),
  ];
  return build(nodes, type, [1, heads, tokens, dimension]);
}

function build(nodes: NodeProto[], type: AttentionShape['type'], dims: number[]): Uint8Array {
  return encodeModel(
    ModelProto.create({
      ir_version: Long.fromNumber(10),
      opset_import: opsetImports({ '': 17, 'com.microsoft': 1 }),
      graph: GraphProto.create({
        name: 'attention',
        node: nodes,
        input: ['Q', 'K', 'V'].map((name) => tensorInfo(name, type, dims)),
        output: [tensorInfo('Y', type)],
      }),
    }),
  );
}
