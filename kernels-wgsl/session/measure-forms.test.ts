/** Attention's costs measured with the small model, over Dawn. */
import anyTest from 'ava';
import { hasWebGpu, loadWeb } from '../../test/web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const _ort = hasWebGpu ? await loadWeb() : (undefined as never);

test('every form that gives what the kernels give is measured with a model like the one to be run', async (t) => {
  t.timeout(900_000);
  const { Engine } = await import('./engine.js');
  const { measureCosts } = await import('./open-auto.js');
  const engine = await Engine.default();
  const floats = [
    { type: 'float32', queryHeads: 2, keyHeads: 2, headDimension: 32, isCausal: false },
    { type: 'float32', queryHeads: 4, keyHeads: 2, headDimension: 16, isCausal: true },
  ] as const;
  const halves = { type: 'float16', queryHeads: 2, keyHeads: 2, headDimension: 64, isCausal: false } as const;
  for (const kind of engine.flash.facts.halfFloats ? [...floats, halves] : floats) {
    const start = performance.now();
    const costs = await measureCosts(engine, kind, {});
    t.log(`${Math.round(performance.now() - start)} ms: ${JSON.stringify(costs)}`);
    // With subgroups of 4 threads, SwiftShader's, onnxruntime-web 1.30's fused operators are wrong from 32 tokens on.
    const { isSoftware } = engine.flash.facts;
    t.deepEqual(Object.keys(costs), isSoftware ? ['kernels', 'decomposed'] : ['kernels', 'fused', 'decomposed']);
    for (const { leastMilliseconds, operationsPerMillisecond } of Object.values(costs))
      t.true(leastMilliseconds > 0 && operationsPerMillisecond > 0);
  }
});
