/** How a batch is carried out, sample by sample, and what becomes of it when something fails in the middle. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Tensor } from 'onnxruntime-node';
import { type ErrorCode, type ErrorPlace, OrtFlashError } from '../graph-rewrite/errors.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { toOrtFlashError } from './node-addon.js';
import { BatchFeeder, type FeederSettings, type ReadSample, type SampleGroup } from './node-batch-feeder.js';
import { prepareOutputs } from './node-batch-folder.js';
import type { BatchSummary, FailedSample, RunBatchOptions, TensorFileFormat } from './node-batch-types.js';
import { findSequenceAxes, planBatching, type SequenceAxes, sameResults, takeApart } from './node-batching.js';
import type { ArrayData, ArrayTensor } from './node-npy.js';
import type { Sample, SampleSource } from './node-samples.js';
import type { InferenceSession } from './node-session.js';
import { createTensor } from './node-tensor.js';
import { outputFiles, writeOutputs } from './node-tensor-files.js';

/** Results that may wait for the disk, in batches, before the next batch runs. */
const MOST_WRITES = 2;

/** What ended a batch before its samples. */
interface Stop {
  readonly code: ErrorCode;
  readonly what: string;
  readonly place: ErrorPlace;
  readonly cause: unknown;
}

/** What came of a group of samples. */
interface GroupOutcome {
  /** By the samples' indices; those that failed are missing, and reported. */
  readonly results: ReadonlyMap<number, Sample>;
  /** Set where the device does not work any more. */
  readonly loss?: OrtFlashError;
  /** Samples that are to be run elsewhere, then. */
  readonly undone?: readonly ReadSample[];
}

/** A batch on its way: workers, one a session, take groups of samples from one feeder and write their results. */
export class BatchRun {
  readonly #options: RunBatchOptions;
  readonly #sessions: readonly InferenceSession[];
  readonly #source: SampleSource;
  readonly #format: TensorFileFormat;
  readonly #settings: FeederSettings;
  readonly #failed: FailedSample[] = [];
  readonly #notes: string[] = [];
  /** Of each session, a sample that it has run: one that it does not run again has lost its device. */
  readonly #known = new WeakMap<InferenceSession, Sample>();
  #stopped: Stop | undefined;
  #finished = 0;
  #skipped = 0;
  #runs = 0;
  #started = 0;
  /** Set when a batch has run both ways with the same results. */
  #checked: { readonly equal: boolean; readonly filled: boolean; readonly axes: SequenceAxes } = {
    equal: false,
    filled: false,
    axes: new Map(),
  };

  constructor(options: RunBatchOptions, sessions: readonly InferenceSession[], source: SampleSource) {
    this.#options = options;
    this.#sessions = sessions;
    this.#source = source;
    this.#format = options.format ?? source.format;
    const { inputMetadata, outputMetadata } = sessions[0]!;
    const plan = planBatching(inputMetadata, outputMetadata);
    this.#settings = { plan, batch: options.batch ?? 1, batching: true, padding: true };
    if (this.#settings.batch > 1 && !plan.batchable)
      this.#notes.push('samples run one by one, because the model fixes the first axis of an input or output');
  }

  async run(): Promise<BatchSummary> {
    const { model, outputs, resume = true, signal } = this.#options;
    const all = this.#source.names.map((_, index) => index);
    const files = () => all.flatMap((index) => this.#filesOf(index));
    await prepareOutputs({ outputs, model, format: this.#format, resume, files });
    const left = resume ? all.filter((index) => !this.#isFinished(index)) : all;
    this.#skipped = all.length - left.length;
    this.#started = performance.now();
    const feeder = new BatchFeeder(this.#source, left, this.#settings, (index, error) => this.#fail(index, error));
    await this.#workAll(feeder);
    this.#report();
    if (this.#stopped !== undefined) throw this.#endOf(this.#stopped, left.length);
    return this.#summary(signal?.aborted === true && this.#finished + this.#failed.length < left.length);
  }

  /** All workers, until no samples are left, or nobody to run them. */
  async #workAll(feeder: BatchFeeder): Promise<void> {
    let working = this.#sessions;
    do {
      const losses = await Promise.all(working.map((session) => this.#work(session, feeder)));
      working = working.filter((_, i) => losses[i] === undefined);
      for (const loss of losses) {
        if (loss === undefined) continue;
        this.#notes.push(`a device failed, and the others did its part (${loss.message})`);
        if (working.length === 0) this.#stop('device', `the device fails: ${loss.message}`, {}, loss);
      }
      // A device may have given samples back when the other workers had none left, and had ended.
    } while (working.length > 0 && feeder.hasMore && !this.#isOver());
  }

  /** Ends the batch: what runs is finished and written as far as that goes, nothing new is started. */
  #stop(code: ErrorCode, what: string, place: ErrorPlace, cause: unknown): void {
    this.#stopped ??= { code, what, place, cause };
  }

  #isOver(): boolean {
    return this.#stopped !== undefined || this.#options.signal?.aborted === true;
  }

  /** What ended the batch, and how far it had come. */
  #endOf({ code, what, place, cause }: Stop, left: number): OrtFlashError {
    const hint = `${this.#finished} of ${left} samples were finished and are kept: the same command goes on from there`;
    return new OrtFlashError(code, what, place, hint, { cause });
  }

  /** One worker: runs batches until there are no more. Returns the error where its device does not work any more. */
  async #work(session: InferenceSession, feeder: BatchFeeder): Promise<OrtFlashError | undefined> {
    const writes = new Set<Promise<void>>();
    let loss: OrtFlashError | undefined;
    let next = feeder.next();
    for (;;) {
      const group = await next;
      if (group === undefined || this.#isOver()) break;
      next = feeder.next();
      const done = await this.#runGroup(session, group);
      const write = this.#write(done.results).finally(() => writes.delete(write));
      writes.add(write);
      if (done.loss !== undefined) {
        loss = done.loss;
        feeder.giveBack(done.undone ?? []);
        feeder.giveBack((await next.catch(() => undefined))?.members ?? []);
        break;
      }
      if (writes.size >= MOST_WRITES) await Promise.race(writes);
    }
    await Promise.all(writes);
    await next.catch(() => undefined);
    return loss;
  }

  async #runGroup(session: InferenceSession, group: SampleGroup): Promise<GroupOutcome> {
    const { assembled, members } = group;
    if (assembled === undefined) return this.#runEach(session, members);
    const filled = assembled.lengths.some((length) => length < assembled.longest);
    if (filled ? !this.#checked.filled : !this.#checked.equal) return this.#runBothWays(session, group, filled);
    try {
      const together = takeApart(await this.#runOnce(session, assembled.feeds), assembled, this.#checked.axes);
      if (together !== undefined) return { results: new Map(members.map(({ index }, i) => [index, together[i]!])) };
    } catch {
      // One of the samples is at fault, or there are too many for the memory: each alone shows which.
    }
    return this.#runEach(session, members);
  }

  async #runEach(session: InferenceSession, members: readonly ReadSample[]): Promise<GroupOutcome> {
    const results = new Map<number, Sample>();
    for (const [i, { index, sample }] of members.entries()) {
      try {
        results.set(index, await this.#runOnce(session, sample));
        this.#known.set(session, sample);
      } catch (error) {
        if (await this.#isLost(session)) return { results, loss: toOrtFlashError(error), undone: members.slice(i) };
        this.#fail(index, toOrtFlashError(error));
      }
    }
    return { results };
  }

  /** Whether a session whose run failed does not run any more what it has run before. */
  async #isLost(session: InferenceSession): Promise<boolean> {
    const known = this.#known.get(session);
    if (known === undefined) return false;
    return this.#runOnce(session, known).then(
      () => false,
      () => true,
    );
  }

  /** Runs a group as a batch and one by one; gives up batching where the results differ. */
  async #runBothWays(session: InferenceSession, group: SampleGroup, filled: boolean): Promise<GroupOutcome> {
    const { members } = group;
    const assembled = group.assembled!;
    const alone = await this.#runEach(session, members);
    const single = members.map(({ index }) => alone.results.get(index));
    if (single.some((result) => result === undefined)) return alone;
    const results = single as Sample[];
    const batched = await this.#runOnce(session, assembled.feeds).catch(() => undefined);
    const axes = batched === undefined ? new Map() : findSequenceAxes(batched, results, assembled);
    const together = batched && takeApart(batched, assembled, axes);
    if (together?.every((result, i) => sameResults(result, results[i]!)) === true) {
      this.#checked = { ...this.#checked, ...(filled ? { filled: true, axes } : { equal: true }) };
    } else if (filled && this.#settings.padding) {
      this.#settings.padding = false;
      this.#notes.push('only samples of equal shapes run together, because filling up changes the results');
    } else if (!filled && this.#settings.batching) {
      this.#settings.batching = false;
      this.#notes.push('samples run one by one, because running them together changes the results');
    }
    return alone;
  }

  async #runOnce(session: InferenceSession, sample: Sample): Promise<Sample> {
    const feeds = Array.from(sample, ([name, tensor]) => [name, toTensor(tensor)]);
    this.#runs++;
    const results = await session.run(Object.fromEntries(feeds));
    return new Map(session.outputNames.map((name) => [name, fromTensor(results[name]!)]));
  }

  async #write(results: ReadonlyMap<number, Sample>): Promise<void> {
    for (const [index, sample] of results) {
      try {
        const outputs = Array.from(sample, ([name, tensor]) => ({ name, ...tensor }));
        await writeOutputs(this.#options.outputs, this.#source.names[index]!, this.#format, outputs);
        this.#finished++;
      } catch (error) {
        const why = cannotWriteAny(error);
        if (why !== undefined) {
          this.#stop('file-access', `cannot write the results: ${why}`, { file: this.#options.outputs }, error);
          break;
        }
        this.#fail(index, toOrtFlashError(error));
      }
    }
    this.#report();
  }

  /** A sample's result files, inside the folder for all results. */
  #filesOf(index: number): string[] {
    const files = outputFiles(this.#format, this.#sessions[0]!.outputNames);
    return files.map((file) => join(this.#source.names[index]!, file));
  }

  #isFinished(index: number): boolean {
    const files = this.#filesOf(index);
    return files.length > 0 && files.every((file) => existsSync(join(this.#options.outputs, file)));
  }

  #fail(index: number, error: OrtFlashError): void {
    const failure = { sample: this.#source.names[index]! || this.#options.inputs, error };
    this.#failed.push(failure);
    this.#options.onFailure?.(failure);
  }

  #progress() {
    const seconds = (performance.now() - this.#started) / 1000;
    return {
      total: this.#source.names.length,
      finished: this.#finished,
      skipped: this.#skipped,
      seconds,
      samplesPerSecond: seconds > 0 ? this.#finished / seconds : 0,
    };
  }

  #report(): void {
    this.#options.onProgress?.({ ...this.#progress(), failed: this.#failed.length });
  }

  #summary(interrupted: boolean): BatchSummary {
    const explanations = this.#sessions.map((session) => session.explain());
    return {
      ...this.#progress(),
      failed: this.#failed,
      devices: explanations.map(({ device }) => device),
      explanation: [explanations[0]!.text, ...this.#notes].join('; '),
      runs: this.#runs,
      interrupted,
    };
  }
}

/** Faults of the disk, and not of the one file that meets them first. */
const DISK_FAULTS = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EIO', 'EMFILE', 'ENFILE']);

/** Why no other results can be written either; undefined where only these cannot. */
function cannotWriteAny(error: unknown): string | undefined {
  const cause = error instanceof OrtFlashError ? error.cause : error;
  if (!(cause instanceof Error) || !DISK_FAULTS.has(String((cause as NodeJS.ErrnoException).code))) return undefined;
  return cause.message;
}

const toTensor = ({ type, dims, data }: ArrayTensor): Tensor =>
  createTensor(type as Tensor.Type, data as Tensor.DataType, dims);

const fromTensor = ({ type, dims, data }: Tensor): ArrayTensor => ({
  type: type as DataTypeName,
  dims,
  data: data as ArrayData,
});
