/** What the page of web-models.test.ts runs: models through `ort-flash/web`, on inputs that the test gives. */
import { env, InferenceSession, Tensor, type WebSessionOptions } from '../kernels-wgsl/web.js';

export interface PageTensor {
  readonly name: string;
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: unknown;
}

export interface PageResult {
  readonly device: string;
  readonly attentions: number;
  readonly segments: number;
  readonly text: string;
  readonly outputs: readonly PageTensor[];
  /** Readbacks between the call of `run` and its end. */
  readonly maps: number;
  readonly milliseconds: { readonly create: number; readonly run: number };
}

async function runModel(
  address: string,
  inputs: readonly PageTensor[],
  options: WebSessionOptions,
): Promise<PageResult> {
  const counted = globalThis as unknown as { maps: number };
  const begin = performance.now();
  const session = await InferenceSession.create(address, { logSeverityLevel: 4, ...options });
  try {
    const feeds = inputs.map(({ name, type, dims, data }, i) => {
      return [name || session.inputNames[i]!, new Tensor(type as 'float32', data as Float32Array, dims)] as const;
    });
    const created = performance.now();
    counted.maps = 0;
    const results = await session.run(Object.fromEntries(feeds));
    const { maps } = counted;
    const end = performance.now();
    const outputs = session.outputNames.map((name) => {
      const { type, dims, data } = results[name]!;
      return { name, type, dims, data };
    });
    const { device, attentions, segments, text } = session.explain();
    return {
      device,
      attentions,
      segments,
      text,
      outputs,
      maps,
      milliseconds: { create: created - begin, run: end - created },
    };
  } finally {
    await session.release();
  }
}

export type RunModel = typeof runModel;
env.wasm.wasmPaths = '/onnxruntime-web/';
env.wasm.numThreads = 1;
env.logLevel = 'fatal';
Object.assign(globalThis, { runModel });
document.body.append('ready');
