import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { WIDENED_NOTE } from '../graph-rewrite/widen.js';
import { compareTensors, type Difference, defaultTolerance } from './verify/compare.js';
import { Random } from './verify/inputs.js';
import {
  createSession,
  inFloat32,
  type ModelSource,
  openRunnable,
  readModel,
  readSamples,
  runModel,
  type Sample,
} from './verify/models.js';
import { type ModelSignature, readSignature } from './verify/signature.js';
import { fallbackSizes, type Hypothesis, hypotheses, isMaskName, planSizes, type SizeCase } from './verify/sizes.js';
import { type Feeds, makeFeeds } from './verify/values.js';

export type { ModelSource } from './verify/models.js';

export interface VerifyOptions {
  /**
   * Folder of inputs: `input_N.pb` files, or folders `test_data_set_*` of them. Without it, inputs are random, and
   * those recorded beside the first model (`test_data_set_0`) are used as well.
   */
  readonly inputs?: string;
  /** Largest difference allowed, as a share of the output's largest magnitude; default by element type. */
  readonly tolerance?: number;
  /** Seed of the random inputs; default 1. */
  readonly seed?: number;
  /** A run that would take longer than this, judged by a shorter one, is left out; default 30. */
  readonly secondsPerRun?: number;
  readonly onProgress?: (done: number, total: number) => void;
}

/** One run of both models. */
export interface VerifyCase {
  /** Sizes of the model's symbolic dimensions and the masks' patterns, or where the inputs came from. */
  readonly label: string;
  /**
   * - `compared`: both ran
   * - `refused`: the first model itself does not run at these sizes
   * - `undefined`: the first model gives NaN everywhere
   * - `left-out`: would take too long
   */
  readonly outcome: 'compared' | 'refused' | 'undefined' | 'left-out';
  /** Why it was refused or left out. */
  readonly reason?: string;
}

/** The worst of one output over all runs. */
export interface VerifyOutput {
  readonly name: string;
  readonly type: string;
  /** Largest |a − b| divided by the largest |a| of the same run. */
  readonly largestRelativeDifference: number;
  readonly largestDifference: number;
  readonly tolerance: number;
  /** Label of the run with the largest difference. */
  readonly worstCase: string;
}

export interface VerifyReport {
  /** Whether every output was within its tolerance in every run. */
  readonly holds: boolean;
  /** Runs that were compared. */
  readonly compared: number;
  /** Runs that the first model itself refused. */
  readonly refused: number;
  readonly cases: readonly VerifyCase[];
  readonly outputs: readonly VerifyOutput[];
  /** What did not hold, one sentence each. */
  readonly failures: readonly string[];
  /** What a reader should know about the result. */
  readonly notes: readonly string[];
}

/** Where few of the planned sizes suit a model, others are tried until this many runs were compared. */
const ENOUGH_RUNS = 4;

/**
 * Runs two models on the same inputs through onnxruntime-node, with its graph optimisations on, and compares every
 * output. The first is the untouched model: sizes that it refuses are left out, and counted.
 * @throws OrtFlashError where a model cannot be read or loaded, or the first one runs at no size tried
 */
export async function verifyModels(a: ModelSource, b: ModelSource, options: VerifyOptions = {}): Promise<VerifyReport> {
  const name = typeof a === 'string' ? a : undefined;
  const rewritten = readModel(b);
  const { model, session: first, isWidened } = await openRunnable(a, 'the untouched model');
  let second: InferenceSession | undefined;
  try {
    const signature = readSignature(model, name);
    const verification = new Verification(signature, first, options);
    try {
      second = await createSession((isWidened && inFloat32(rewritten)) || b, 'the rewritten model');
    } catch (error) {
      if (!(error instanceof OrtFlashError) || error.code !== 'runtime') throw error;
      return verification.fail(error.message);
    }
    const lacking = verification.compareSignatures(second);
    if (lacking) return verification.fail(lacking);
    if (options.inputs !== undefined) {
      for (const sample of await readSamples(options.inputs, signature)) await verification.runSample(second, sample);
    } else {
      const beside = name === undefined ? undefined : join(dirname(name), 'test_data_set_0');
      const recorded = beside && existsSync(beside) ? await readSamples(beside, signature).catch(() => []) : [];
      for (const sample of recorded) await verification.runSample(second, sample);
      await verification.runRandom(second, recorded[0]?.feeds);
    }
    const notes = isWidened ? [WIDENED_NOTE] : [];
    return verification.report(name, notes);
  } finally {
    await first.release();
    await second?.release();
  }
}

interface WorstDifference {
  type: string;
  relative: number;
  absolute: number;
  label: string;
}

type Outcome = VerifyCase['outcome'];

/** The state of one {@link verifyModels}. */
class Verification {
  readonly #signature: ModelSignature;
  readonly #first: InferenceSession;
  readonly #options: VerifyOptions;
  readonly #cases: VerifyCase[] = [];
  readonly #failures: string[] = [];
  readonly #worst = new Map<string, WorstDifference>();
  readonly #seen = new Set<string>();
  #undefinedElements = 0;
  /** The run with the most input elements so far, from which the time of a larger one is judged. */
  #largest = { seconds: 0, elements: 1 };

  constructor(signature: ModelSignature, first: InferenceSession, options: VerifyOptions) {
    this.#signature = signature;
    this.#first = first;
    this.#options = options;
  }

  /** What the second model lacks of the first one's inputs and outputs; `undefined` for nothing. */
  compareSignatures(second: InferenceSession): string | undefined {
    const missing = this.#first.outputNames.find((output) => !second.outputNames.includes(output));
    if (missing !== undefined) return `the rewritten model has no output ${missing}`;
    const given = new Set(this.#signature.inputs.map((input) => input.name));
    const unknown = second.inputNames.find((input) => !given.has(input) && !this.#first.inputNames.includes(input));
    return unknown === undefined ? undefined : `the rewritten model asks for an input ${unknown}`;
  }

  async runSample(second: InferenceSession, sample: Sample): Promise<void> {
    await this.#run(second, sample.feeds, sample.label);
  }

  /** Compares at the planned sizes, with the first guess at the dimensions' meaning that the model accepts. */
  async runRandom(second: InferenceSession, recorded: Feeds | undefined): Promise<void> {
    const shapes = recorded && new Map(Object.entries(recorded).map(([name, tensor]) => [name, tensor.dims]));
    const planned = planSizes(this.#signature);
    const fallback = fallbackSizes();
    const guesses = hypotheses(this.#signature, shapes);
    const hypothesis = await this.#choose(guesses, [...planned.slice(0, 5), ...fallback]);
    let done = 0;
    const total = planned.length;
    for (const sizes of planned) {
      await this.#runSizes(second, hypothesis, sizes);
      this.#options.onProgress?.(++done, total);
    }
    for (const sizes of fallback) {
      if (this.#count('compared') >= ENOUGH_RUNS) break;
      await this.#runSizes(second, hypothesis, sizes);
    }
  }

  /** The first guess under which the untouched model runs at any size; the first of all where it runs at none. */
  async #choose(guesses: readonly Hypothesis[], candidates: readonly SizeCase[]): Promise<Hypothesis> {
    if (guesses.length > 1) {
      for (const sizes of candidates) {
        for (const guess of guesses) {
          const feeds = makeFeeds(this.#signature, guess.bind(sizes), sizes, new Random(1));
          if (feeds && typeof (await runModel(this.#first, feeds)) !== 'string') return guess;
        }
      }
    }
    return guesses[0]!;
  }

  /** Runs at these sizes, or at shorter ones where the model's position table is too small for them. */
  async #runSizes(second: InferenceSession, hypothesis: Hypothesis, sizes: SizeCase): Promise<void> {
    let outcome = await this.#runOnce(second, hypothesis, sizes);
    for (const length of [47, 29, 21]) {
      if (outcome !== 'refused' && outcome !== 'left-out') return;
      if (Math.max(sizes.length, sizes.past) <= length) continue;
      const shorter = sizes.length > length ? { ...sizes, length } : { ...sizes, past: length };
      outcome = await this.#runOnce(second, hypothesis, shorter);
    }
  }

  async #runOnce(second: InferenceSession, hypothesis: Hypothesis, sizes: SizeCase): Promise<Outcome | undefined> {
    const binding = hypothesis.bind(sizes);
    const hasMask = this.#signature.inputs.some((input) => isMaskName(input.name));
    const masks = hasMask ? `, mask ${[...new Set(sizes.patterns.slice(0, sizes.batch))].join(' and ')}` : '';
    const label = ([...binding].map(([name, size]) => `${name}=${size}`).join(' ') || 'fixed sizes') + masks;
    if (this.#seen.has(label)) return undefined;
    this.#seen.add(label);
    const random = new Random((this.#options.seed ?? 1) + this.#seen.size);
    const feeds = makeFeeds(this.#signature, binding, sizes, random);
    if (!feeds) return this.#record(label, 'refused', 'the sizes of its dimensions are unknown');
    return this.#run(second, feeds, label);
  }

  async #run(second: InferenceSession, feeds: Feeds, label: string): Promise<Outcome> {
    const elements = Object.values(feeds).reduce((sum, tensor) => sum + tensor.size, 0);
    // At least in proportion: what grows with the square of the length comes on top.
    const predicted = (this.#largest.seconds * elements) / this.#largest.elements;
    if (predicted > (this.#options.secondsPerRun ?? 30)) {
      return this.#record(label, 'left-out', `would take ${Math.round(predicted)} s or more`);
    }
    const start = performance.now();
    const expected = await runModel(this.#first, feeds);
    if (typeof expected === 'string') return this.#record(label, 'refused', expected);
    const seconds = (performance.now() - start) / 1000;
    if (elements > this.#largest.elements) this.#largest = { seconds, elements };
    const actual = await runModel(second, feeds);
    if (typeof actual === 'string') {
      this.#failures.push(`the rewritten model does not run at ${label}, the untouched one does: ${actual}`);
      return this.#record(label, 'compared');
    }
    return this.#compareOutputs(expected, actual, label, leavesOutKeys(feeds));
  }

  #compareOutputs(
    expected: InferenceSession.OnnxValueMapType,
    actual: InferenceSession.OnnxValueMapType,
    label: string,
    masked: boolean,
  ): Outcome {
    let compared = 0;
    let empty = true;
    for (const [name, a] of Object.entries(expected)) {
      const difference = compareTensors(a as Tensor, actual[name] as Tensor);
      compared += difference.compared;
      if ((a as Tensor).size > 0) empty = false;
      this.#judge(name, (a as Tensor).type, difference, label, masked);
    }
    if (compared > 0 || empty || !masked) return this.#record(label, 'compared');
    return this.#record(label, 'undefined', 'the untouched model gives NaN everywhere');
  }

  #judge(name: string, type: string, difference: Difference, label: string, masked: boolean): void {
    const { mismatch, largest, scale, onlyFirstUndefined, onlySecondUndefined } = difference;
    if (mismatch) {
      this.#failures.push(`output ${name}: ${mismatch} at ${label}`);
      return;
    }
    if (onlySecondUndefined > 0) {
      this.#failures.push(
        `output ${name}: ${onlySecondUndefined} elements became NaN or infinite, or ceased to be infinite, at ${label}`,
      );
    }
    if (onlyFirstUndefined > 0 && masked) this.#undefinedElements += onlyFirstUndefined;
    else if (onlyFirstUndefined > 0) {
      this.#failures.push(`output ${name}: ${onlyFirstUndefined} elements ceased to be NaN, at ${label}`);
    }
    const relative = scale > 0 ? largest / scale : largest;
    const worst = this.#worst.get(name);
    if (!worst || relative > worst.relative) this.#worst.set(name, { type, relative, absolute: largest, label });
    const tolerance = this.#options.tolerance ?? defaultTolerance(type);
    if (relative > tolerance) {
      this.#failures.push(
        `output ${name} differs by ${relative.toExponential(1)} of its largest value at ${label}; ` +
          `${tolerance.toExponential(0)} is allowed`,
      );
    }
  }

  #record(label: string, outcome: Outcome, reason?: string): Outcome {
    this.#cases.push({ label, outcome, ...(reason === undefined ? {} : { reason }) });
    return outcome;
  }

  #count(outcome: Outcome): number {
    return this.#cases.filter((one) => one.outcome === outcome).length;
  }

  /** The report of a check that ended before anything ran. */
  fail(failure: string): VerifyReport {
    this.#failures.push(failure);
    return this.#build();
  }

  /** @param notes what is to be said of the models themselves */
  report(file: string | undefined, notes: readonly string[]): VerifyReport {
    if (this.#count('compared') === 0) {
      const reason = this.#cases.find((one) => one.reason !== undefined)?.reason ?? 'no inputs were found';
      throw new OrtFlashError(
        'runtime',
        `the untouched model gives no result at any of ${this.#cases.length} sizes tried, so nothing can be compared ` +
          `(first: ${reason})`,
        file === undefined ? {} : { file },
        'give inputs that suit it with --inputs',
      );
    }
    return this.#build(notes);
  }

  #build(given: readonly string[] = []): VerifyReport {
    const notes = [...given];
    if (this.#undefinedElements > 0) {
      notes.push(
        `${this.#undefinedElements} output elements are NaN in the untouched model, where a mask leaves out every key ` +
          'of a row, and defined in the rewritten one (FlashAttention gives zeros there); they were not compared',
      );
    }
    const leftOut = this.#count('left-out');
    if (leftOut > 0) notes.push(`${leftOut} runs were left out because they would take too long`);
    return {
      holds: this.#failures.length === 0,
      compared: this.#count('compared'),
      refused: this.#count('refused'),
      cases: this.#cases,
      outputs: [...this.#worst].map(([name, { type, relative, absolute, label }]) => ({
        name,
        type,
        largestRelativeDifference: relative,
        largestDifference: absolute,
        tolerance: this.#options.tolerance ?? defaultTolerance(type),
        worstCase: label,
      })),
      failures: this.#failures,
      notes,
    };
  }
}

/** Whether some mask leaves out a key, so that a row may have none left. */
function leavesOutKeys(feeds: Feeds): boolean {
  return Object.entries(feeds).some(([name, tensor]) => {
    if (!isMaskName(name) && tensor.type !== 'bool') return false;
    const data = tensor.data as ArrayLike<number | bigint>;
    return Array.from(data).some((element) => element !== data[0]) || Number(data[0] ?? 1) === 0;
  });
}
