/**
 * The ONNX standard's own tests of `Attention` (opsets 23 to 25) through `ort-flash/web` over Dawn: those bundled, and with
 * ORT_FLASH_WEB=all or on a GPU (`npm run test:gpu`) all 75. Half precision needs a GPU that has it.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import anyTest from 'ava';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { readTestData, type StandardCase, standardAttentionCases, type TestTensor } from '../models/corpus.js';
import { root } from './web-browser.js';
import { hasWebGpu, loadWeb } from './web-runtime.js';

const test = hasWebGpu ? anyTest.serial : anyTest.skip;
const ort = hasWebGpu ? await loadWeb() : (undefined as never);

function bundledCases(): Pick<StandardCase, 'name' | 'modelFile' | 'dataFolder'>[] {
  const folder = join(root, 'models', 'onnx-attention');
  const place = (name: string) => join(folder, name);
  return readdirSync(folder).map((name) => ({
    name,
    modelFile: join(place(name), 'model.onnx'),
    dataFolder: join(place(name), 'test_data_set_0'),
  }));
}

const wantsAll = process.env.ORT_FLASH_WEB === 'all' || process.env.ORT_FLASH_GPU === '1';
const cases = (wantsAll ? standardAttentionCases() : undefined) ?? bundledCases();

/** As the standard's own runner compares: |difference| ≤ absolute + relative · |expected|. */
const TOLERANCE: Readonly<Record<string, { absolute: number; relative: number }>> = {
  float32: { absolute: 1e-7, relative: 1e-3 },
  float16: { absolute: 1e-3, relative: 4e-3 },
};

const asFloats = (type: string, data: unknown) =>
  type === 'float16' ? decodeHalf(new Uint16Array((data as Uint16Array).buffer), 'float16') : (data as Float32Array);

/** The first element that differs, or undefined. */
function firstDifference(actual: Float32Array, { type, data }: TestTensor): string | undefined {
  const { absolute, relative } = TOLERANCE[type]!;
  const expected = asFloats(type, data);
  if (actual.length !== expected.length) return `${actual.length} elements, expected ${expected.length}`;
  const at = expected.findIndex((e, i) => !(Math.abs(e - actual[i]!) <= absolute + relative * Math.abs(e)));
  return at < 0 ? undefined : `element ${at} is ${actual[at]}, expected ${expected[at]}`;
}

const isHalfGpu = process.env.ORT_FLASH_GPU === '1';

/** Whether the scores are an output (`qk_matmul_output`). */
function givesScores({ modelFile }: (typeof cases)[number]): boolean {
  return Boolean(decodeModel(readFileSync(modelFile), modelFile).graph!.node[0]!.output[3]);
}

/** The case run through a session; how it was carried out, and the first element that differs. */
async function runCase({ modelFile, dataFolder }: (typeof cases)[number], flash: 'auto' | 'on' | 'off') {
  const { inputs, outputs } = readTestData(dataFolder);
  const graph = decodeModel(readFileSync(modelFile), modelFile).graph!;
  const session = await ort.InferenceSession.create(modelFile, { logSeverityLevel: 4, flash });
  try {
    const feeds = inputs.map(({ type, data, dims }, i) => {
      return [graph.input[i]!.name!, new ort.Tensor(type as 'float32', data as Float32Array, dims)] as const;
    });
    const results = await session.run(Object.fromEntries(feeds));
    const differences = outputs.map((expected, i) => {
      const { type, data, dims } = results[graph.output[i]!.name!]!;
      const isSame = dims.length === expected.dims.length && dims.every((size, axis) => size === expected.dims[axis]);
      return isSame ? firstDifference(asFloats(type, data), expected) : `shape ${dims}, expected ${expected.dims}`;
    });
    return { ...session.explain(), difference: differences.find((found) => found !== undefined) };
  } finally {
    await session.release();
  }
}

for (const item of cases) {
  const { name, dataFolder } = item;
  const { type } = readTestData(dataFolder).inputs[0]!;
  if (type === 'float16' && !isHalfGpu) continue;
  test(`${name}: the standard's outputs through ort-flash/web`, async (t) => {
    t.timeout(600_000);
    // WebGPU has no bfloat16, and a kernel that never holds the scores cannot give them: ONNX Runtime has these whole.
    if (type === 'bfloat16' || givesScores(item)) {
      const untouched = await runCase(item, 'off').catch((error: Error) => error);
      if (untouched instanceof Error) {
        t.log(`onnxruntime-web cannot run it: ${untouched.message}`);
        await t.throwsAsync(runCase(item, 'auto'), { code: 'runtime', message: untouched.message });
        return;
      }
    }
    // `auto` would leave so small a model whole on a GPU.
    const { attentions, text, difference } = await runCase(
      item,
      type === 'bfloat16' || givesScores(item) ? 'auto' : 'on',
    );
    t.is(difference, undefined, text);
    t.is(attentions, givesScores(item) ? 0 : 1, text);
  });
}
