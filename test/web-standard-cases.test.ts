/**
 * The ONNX standard's own tests of `Attention` through `ort-flash/web` over Dawn: those bundled, and with ORT_FLASH_WEB=all
 * or on a GPU (`npm run test:gpu`) all 75. Half precision needs a GPU that has it.
 */
import anyTest from 'ava';
import { hasWebGpu, loadWeb } from './web-runtime.js';
import { checkCase, inputsOf, type RunCase, typeOf, webCases } from './web-standard.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);

const run: RunCase = async (item, flash) => {
  const session = await ort.InferenceSession.create(item.modelFile, { logSeverityLevel: 4, flash });
  try {
    const feeds = inputsOf(item).map(
      ({ name, type, data, dims }) => [name, new ort.Tensor(type as 'float32', data as Float32Array, dims)] as const,
    );
    const outputs = await session.run(Object.fromEntries(feeds));
    return { ...session.explain(), outputs };
  } finally {
    await session.release();
  }
};

for (const item of webCases()) {
  if (typeOf(item) === 'float16' && process.env.ORT_FLASH_GPU !== '1') continue;
  test(`${item.name}: the standard's outputs through ort-flash/web`, async (t) => {
    t.timeout(600_000);
    await checkCase(t, item, run);
  });
}
