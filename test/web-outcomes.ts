/** How the models of the corpus fare on WebGPU, for tests that run them and for docs/web-models.md. */
import { appendFileSync, existsSync, readFileSync } from 'node:fs';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { DataType } from '../graph-rewrite/onnx/proto.js';
import { forEachTensor } from '../graph-rewrite/onnx/walk.js';
import { allModels, bundledModels, type ModelExample, readTestData, wholeCorpus } from '../models/corpus.js';
import { type NumericOutput, relativeDifference } from './runtime.js';

/** How a model fared. */
export interface WebOutcome {
  readonly name: string;
  /** Attentions that there are. */
  readonly sites: number;
  /**
   * `right`: PyTorch's outputs. `not runnable`: onnxruntime-web fails on the untouched model. `not right`:
   * onnxruntime-web's own outputs for the untouched model are not PyTorch's. `failed`: neither, the fault is ours.
   */
  readonly outcome: 'right' | 'not runnable' | 'not right' | 'failed';
  /** Attentions in kernels. */
  readonly attentions: number;
  /** ONNX Runtime sessions that the model was cut into. */
  readonly segments: number;
  /** Largest difference from PyTorch's outputs, relative to their magnitude. */
  readonly difference?: number;
  /** Readbacks of one run. */
  readonly maps?: number;
  /** Readbacks of the untouched model in onnxruntime-web, where ours reads back more than the outputs. */
  readonly mapsUntouched?: number;
  /** Outputs that the model has. */
  readonly outputs?: number;
  readonly seconds: number;
  /** Why the outcome is not `right`, or not all attentions are in kernels. */
  readonly why?: string;
}

/** One run of a model. */
export interface WebRun {
  readonly attentions: number;
  readonly segments: number;
  /** What the session says of itself. */
  readonly text: string;
  readonly outputs: readonly Pick<NumericOutput, 'name' | 'numbers'>[];
  readonly maps: number;
}

/** Runs a model on its reference inputs: with this package's session, or untouched in onnxruntime-web. */
export type RunExample = (example: ModelExample, flash: 'auto' | 'off') => Promise<WebRun>;

function differenceOf({ outputs }: WebRun, example: ModelExample): number {
  const expected = readTestData(example.dataFolder).outputs;
  const differences = expected.map((tensor, i) => {
    const { numbers } = outputs.find(({ name }) => name === tensor.name) ?? outputs[i]!;
    return relativeDifference(numbers, tensor);
  });
  return Math.max(...differences);
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error)).replace(/\s+/g, ' ');

/** Runs a model, and where its outputs are not PyTorch's also the untouched one, which tells whose fault that is. */
export async function judge(run: RunExample, example: ModelExample): Promise<WebOutcome> {
  const begin = Date.now();
  const facts = () => ({ name: example.name, sites: example.sites, seconds: Math.round((Date.now() - begin) / 1000) });
  const none = { attentions: 0, segments: 0 };
  let fault: string;
  try {
    const result = await run(example, 'auto');
    const difference = differenceOf(result, example);
    if (difference <= example.tolerance) {
      return { ...facts(), outcome: 'right', difference, ...(await told(result, run, example)) };
    }
    fault = `differs by ${difference}: ${result.text}`;
  } catch (error) {
    fault = messageOf(error);
  }
  try {
    const difference = differenceOf(await run(example, 'off'), example);
    if (difference <= example.tolerance) return { ...facts(), outcome: 'failed', ...none, why: fault };
    return { ...facts(), outcome: 'not right', ...none, difference, why: fault };
  } catch (error) {
    return { ...facts(), outcome: 'not runnable', ...none, why: messageOf(error) };
  }
}

/** What there is to tell of a run whose outputs are right. */
async function told({ attentions, segments, maps, text, outputs }: WebRun, run: RunExample, example: ModelExample) {
  const why = attentions === example.sites ? {} : { why: text };
  const facts = { attentions, segments, maps, outputs: outputs.length, ...why };
  if (maps <= outputs.length) return facts;
  const untouched = await run(example, 'off').catch(() => undefined);
  return untouched === undefined ? facts : { ...facts, mapsUntouched: untouched.maps };
}

/** Whether a model has weights or constants of one of these types. */
function hasTensors({ modelFile }: ModelExample, types: readonly DataType[]): boolean {
  const model = decodeModel(readFileSync(modelFile), modelFile);
  let found = false;
  forEachTensor(model, ({ data_type: type }) => {
    found ||= types.includes(type!);
  });
  return found;
}

const isFloat32 = (example: ModelExample) => !hasTensors(example, [DataType.FLOAT16, DataType.BFLOAT16]);

/** The exports in bfloat16, of the whole corpus where it is there. */
export function bfloat16Models(): ModelExample[] {
  return allModels().filter((example) => example.unrunnableOnCpu && hasTensors(example, [DataType.BFLOAT16]));
}

/** The exports of float32 with dynamic shapes: the whole corpus with ORT_FLASH_WEB=all, else the bundled selection. */
export function dynamicModels(): ModelExample[] {
  const whole = process.env.ORT_FLASH_WEB === 'all' ? wholeCorpus() : undefined;
  return (whole ?? bundledModels()).filter((example) => !example.static && isFloat32(example));
}

/** Reads outcomes, one a line. */
export function readOutcomes(file: string): WebOutcome[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, 'utf8').split('\n').filter(Boolean);
  return lines.map((line) => JSON.parse(line) as WebOutcome);
}

/** A file in which outcomes are kept as they come, so that a long run may be interrupted; none where `file` is not given. */
export class OutcomeLog {
  readonly #file: string | undefined;
  readonly #known: ReadonlySet<string>;

  constructor(file: string | undefined) {
    this.#file = file;
    this.#known = new Set(file === undefined ? [] : readOutcomes(file).map(({ name }) => name));
  }

  has({ name }: ModelExample): boolean {
    return this.#known.has(name);
  }

  add(outcome: WebOutcome): void {
    if (this.#file) appendFileSync(this.#file, `${JSON.stringify(outcome)}\n`);
  }
}
