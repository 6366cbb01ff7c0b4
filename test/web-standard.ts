/** The ONNX standard's own tests of `Attention` (opsets 23 to 25), for the tests that run them through `ort-flash/web`. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { decodeHalf } from '../graph-rewrite/op/half.js';
import { readTestData, type StandardCase, standardAttentionCases, type TestTensor } from '../models/corpus.js';
import { asFloat32 } from './runtime.js';
import { root } from './web-browser.js';

export type WebCase = Pick<StandardCase, 'name' | 'modelFile' | 'dataFolder'>;

export const bundledCaseFolder = join(root, 'models', 'onnx-attention');

/** The bundled cases; all 75 with ORT_FLASH_WEB=all or on a GPU, where the corpus is. */
export function webCases(): WebCase[] {
  const wantsAll = process.env.ORT_FLASH_WEB === 'all' || process.env.ORT_FLASH_GPU === '1';
  const all = wantsAll ? standardAttentionCases() : undefined;
  if (all !== undefined) return all;
  const place = (name: string) => join(bundledCaseFolder, name);
  return readdirSync(bundledCaseFolder).map((name) => ({
    name,
    modelFile: join(place(name), 'model.onnx'),
    dataFolder: join(place(name), 'test_data_set_0'),
  }));
}

/** Type of a case's queries. */
export const typeOf = ({ dataFolder }: WebCase) => readTestData(dataFolder).inputs[0]!.type;

const graphOf = ({ modelFile }: WebCase) => decodeModel(readFileSync(modelFile), modelFile).graph!;

/** A case's inputs, by the names that the model has for them; bfloat16 as `ort-flash/web` takes it, in float32. */
export function inputsOf(item: WebCase): TestTensor[] {
  const graph = graphOf(item);
  return readTestData(item.dataFolder).inputs.map((input, i) => ({ ...asFloat32(input), name: graph.input[i]!.name! }));
}

/** As the standard's own runner compares: |difference| ≤ absolute + relative · |expected|. */
const TOLERANCE: Readonly<Record<string, { absolute: number; relative: number }>> = {
  float32: { absolute: 1e-7, relative: 1e-3 },
  float16: { absolute: 1e-3, relative: 4e-3 },
  // What the precision of the expected outputs is, 2⁻⁷.
  bfloat16: { absolute: 4e-3, relative: 2e-2 },
};

const asFloats = (type: string, data: unknown) =>
  type === 'float16' || type === 'bfloat16'
    ? decodeHalf(new Uint16Array((data as Uint16Array).buffer), type)
    : (data as Float32Array);

interface Output {
  readonly type: string;
  readonly data: unknown;
  readonly dims: readonly number[];
}

function difference(actual: Output | undefined, { type, data, dims }: TestTensor): string | undefined {
  if (actual === undefined) return 'an output is missing';
  if (actual.dims.join() !== dims.join()) return `shape ${actual.dims}, expected ${dims}`;
  const { absolute, relative } = TOLERANCE[type]!;
  const expected = asFloats(type, data);
  const values = asFloats(actual.type, actual.data);
  const isSame = (actual: number, e: number) =>
    Object.is(actual, e) || Math.abs(e - actual) <= absolute + (Number.isFinite(e) ? relative * Math.abs(e) : 0);
  const at = expected.findIndex((e, i) => !isSame(values[i]!, e));
  return at < 0 ? undefined : `element ${at} is ${values[at]}, expected ${expected[at]}`;
}

/** One run of a case: its outputs, and what the session says of itself. */
export interface CaseRun {
  readonly attentions: number;
  readonly text: string;
  readonly outputs: Readonly<Record<string, Output>>;
}

export type RunCase = (item: WebCase, flash: 'auto' | 'on' | 'off') => Promise<CaseRun>;

/** The first element of a case's outputs that is not the standard's, or undefined. */
function firstDifference(item: WebCase, { outputs }: CaseRun): string | undefined {
  const { output } = graphOf(item);
  const expected = readTestData(item.dataFolder).outputs;
  const all = expected.map((tensor, i) => difference(outputs[output[i]!.name!], tensor));
  return all.find((found) => found !== undefined);
}

/**
 * Checks that a case gives the standard's outputs: in a kernel where it can be, and in plain operators where it asks for
 * the scores (`qk_matmul_output`), which a kernel never holds. bfloat16 is computed in float32.
 */
export async function checkCase(t: ExecutionContext, item: WebCase, run: RunCase): Promise<void> {
  const givesScores = Boolean(graphOf(item).node[0]!.output[3]);
  // `auto` would leave so small a model whole on a GPU.
  const result = await run(item, givesScores ? 'auto' : 'on');
  t.is(firstDifference(item, result), undefined, result.text);
  t.is(result.attentions, givesScores ? 0 : 1, result.text);
  if (givesScores) t.regex(result.text, /in plain operators/);
  const isWidened = typeOf(item) === 'bfloat16';
  t.is(/bfloat16 is computed in float32 here/.test(result.text), isWidened, result.text);
  if (isWidened) for (const { type } of Object.values(result.outputs)) t.is(type, 'float32');
}
