import type { InferenceSession, InferenceSessionHandler } from 'onnxruntime-node';

/** A session over Dawn, with what is to be told of it. */
export interface OpenedWebGpu {
  readonly handler: InferenceSessionHandler;
  readonly notes: readonly string[];
}

/**
 * Opens a session of `ort-flash/web` over Dawn.
 *
 * The one place where the Node session meets the web session; onnxruntime-web is loaded when it is first asked for. The
 * two runtimes bring their own copies of onnxruntime-common, whose interfaces are alike.
 * @throws OrtFlashError `device` or `unsupported` with the reason, where there is none
 */
export async function openWebGpuSession(
  model: string | Uint8Array,
  options: InferenceSession.SessionOptions,
): Promise<OpenedWebGpu> {
  const { installNodeWebGpu } = await import('../kernels-wgsl/web-node.js');
  await installNodeWebGpu();
  const { env } = await import('#onnxruntime-web');
  // Its WebAssembly threads are web workers, which Node lacks.
  env.wasm.numThreads = 1;
  const { openWebSession } = await import('../kernels-wgsl/web-open.js');
  const given = { ...options, executionProviders: ['webgpu'] } as Parameters<typeof openWebSession>[1];
  const { handler, explanation } = await openWebSession(model, given);
  const { attentions, segments, reasons } = explanation;
  const how =
    attentions > 0
      ? [`${attentions} attentions in FlashAttention kernels between ${segments} parts in ONNX Runtime`]
      : [];
  return { handler: handler as unknown as InferenceSessionHandler, notes: [...how, ...reasons] };
}
