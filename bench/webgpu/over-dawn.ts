import { setFlagsFromString } from 'node:v8';

/** `ort-flash/web` under Node, over Dawn: on a GPU, or on SwiftShader. To be called once, before anything else loads it. */
export async function loadWebOverDawn(isHardware: boolean): Promise<typeof import('../../kernels-wgsl/web.js')> {
  if (!isHardware) {
    process.env.VK_ICD_FILENAMES ??= '/usr/lib/chromium/vk_swiftshader_icd.json';
    // V8 would spend a minute on optimising onnxruntime-web, which gains nothing here.
    setFlagsFromString('--liftoff-only');
  }
  const { installNodeWebGpu } = await import('../../kernels-wgsl/web-node.js');
  await installNodeWebGpu();
  const web = await import('../../kernels-wgsl/web.js');
  // Its WebAssembly threads are web workers, which Node lacks.
  web.env.wasm.numThreads = 1;
  web.env.logLevel = 'error';
  return web;
}
