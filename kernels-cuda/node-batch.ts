/** Batch inference: a model over any number of samples. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, readFile, rename, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Tensor } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import type { DataTypeName } from '../graph-rewrite/onnx/data-type.js';
import { toOrtFlashError } from './node-addon.js';
import { BatchFeeder, type FeederSettings, type SampleGroup } from './node-batch-feeder.js';
import type { BatchSummary, FailedSample, RunBatchOptions, TensorFileFormat } from './node-batch-types.js';
import { findSequenceAxes, planBatching, type SequenceAxes, sameResults, takeApart } from './node-batching.js';
import type { ArrayData, ArrayTensor } from './node-npy.js';
import { openSamples, type Sample, type SampleSource } from './node-samples.js';
import { InferenceSession } from './node-session.js';
import { createTensor } from './node-tensor.js';
import { outputFiles, writeOutputs } from './node-tensor-files.js';

/**
 * Runs a model over many samples, and writes each one's results when they are there.
 *
 * While a batch runs, the next is read and put together, and results of the last are written. Samples of equal shapes
 * run together, along the first axis; sequences of different lengths, too, where the model has an `attention_mask`.
 * That a model treats batched samples as it does single ones is checked on the first batch, which runs both ways; one
 * that does not gets its samples one by one. Several GPUs take batches from one queue.
 * @throws OrtFlashError `invalid-argument` or `file-access` where options, model or the samples' place are at fault. A
 *   fault in one sample ends up in the summary instead.
 */
export async function runBatch(options: RunBatchOptions): Promise<BatchSummary> {
  checkOptions(options);
  const sessions = await openSessions(options);
  try {
    const source = await openSamples(options.inputs, sessions[0]!.inputMetadata);
    try {
      return await new BatchRun(options, sessions, source).run();
    } finally {
      await source.close();
    }
  } finally {
    await Promise.all(sessions.map((session) => session.release()));
  }
}

const BATCH_DEVICES: readonly string[] = ['cpu', 'wasm', 'webgpu', 'cuda'];

function checkOptions({ batch = 1, deviceIds, device = 'cpu', inputs, outputs, format }: RunBatchOptions): void {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-argument', why);
  };
  if (!Number.isSafeInteger(batch) || batch < 1) fail(`batch must be a whole number from 1 on, not ${batch}`);
  if (!BATCH_DEVICES.includes(device)) fail(`device "${device}" is not known; ${BATCH_DEVICES.join(', ')} are`);
  if (format !== undefined && format !== 'pb' && format !== 'npy') fail(`format "${format}" is not known`);
  if (deviceIds !== undefined && device !== 'cuda') fail('deviceIds are for device cuda');
  if (deviceIds?.length === 0 || (new Set(deviceIds).size !== deviceIds?.length && deviceIds !== undefined))
    fail('deviceIds must name each GPU once');
  if (resolve(inputs) === resolve(outputs)) fail('inputs and outputs are the same folder: choose another for outputs');
}

async function openSessions({ model, device = 'cpu', deviceIds = [0] }: RunBatchOptions): Promise<InferenceSession[]> {
  const providers = device === 'cuda' ? deviceIds.map((deviceId) => ({ name: 'cuda', deviceId }) as const) : [device];
  const opened = await Promise.allSettled(
    providers.map((provider) => InferenceSession.create(model, { executionProviders: [provider] })),
  );
  const sessions = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = opened.find((result) => result.status === 'rejected');
  if (failed === undefined) return sessions;
  await Promise.all(sessions.map((session) => session.release()));
  throw toOrtFlashError(failed.reason, model);
}

/** Results that may wait for the disk, in batches, before the next batch runs. */
const MOST_WRITES = 2;

class BatchRun {
  readonly #options: RunBatchOptions;
  readonly #sessions: readonly InferenceSession[];
  readonly #source: SampleSource;
  readonly #format: TensorFileFormat;
  readonly #settings: FeederSettings;
  readonly #failed: FailedSample[] = [];
  readonly #notes: string[] = [];
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
    const { outputs, resume = true, signal } = this.#options;
    await mkdir(outputs, { recursive: true }).catch((error: unknown) => {
      throw new OrtFlashError('file-access', 'cannot make the folder', { file: outputs }, undefined, { cause: error });
    });
    await this.#checkManifest(resume);
    const all = this.#source.names.map((_, index) => index);
    const left = resume ? all.filter((index) => !this.#isFinished(index)) : all;
    this.#skipped = all.length - left.length;
    this.#started = performance.now();
    const feeder = new BatchFeeder(this.#source, left, this.#settings, (index, error) => this.#fail(index, error));
    await Promise.all(this.#sessions.map((session) => this.#work(session, feeder)));
    this.#report();
    return this.#summary(signal?.aborted === true && this.#finished + this.#failed.length < left.length);
  }

  /** One worker: runs batches until there are no more. */
  async #work(session: InferenceSession, feeder: BatchFeeder): Promise<void> {
    const writes = new Set<Promise<void>>();
    let next = feeder.next();
    for (;;) {
      const group = await next;
      if (group === undefined || this.#options.signal?.aborted === true) break;
      next = feeder.next();
      const results = await this.#runGroup(session, group);
      const write = this.#write(results).finally(() => writes.delete(write));
      writes.add(write);
      if (writes.size >= MOST_WRITES) await Promise.race(writes);
    }
    await Promise.all(writes);
    await next.catch(() => undefined);
  }

  /** The results of a group's samples by their indices; those that failed are missing, and reported. */
  async #runGroup(session: InferenceSession, group: SampleGroup): Promise<Map<number, Sample>> {
    const { assembled, members } = group;
    if (assembled === undefined) return this.#runEach(session, group);
    const filled = assembled.lengths.some((length) => length < assembled.longest);
    if (filled ? !this.#checked.filled : !this.#checked.equal) return this.#runBothWays(session, group, filled);
    try {
      const together = takeApart(await this.#runOnce(session, assembled.feeds), assembled, this.#checked.axes);
      if (together !== undefined) return new Map(members.map(({ index }, i) => [index, together[i]!]));
    } catch {
      // One of the samples is at fault, or there are too many for the memory: each alone shows which.
    }
    return this.#runEach(session, group);
  }

  async #runEach(session: InferenceSession, { members }: SampleGroup): Promise<Map<number, Sample>> {
    const results = new Map<number, Sample>();
    for (const { index, sample } of members) {
      try {
        results.set(index, await this.#runOnce(session, sample));
      } catch (error) {
        this.#fail(index, toOrtFlashError(error));
      }
    }
    return results;
  }

  /** Runs a group as a batch and one by one; gives up batching where the results differ. */
  async #runBothWays(session: InferenceSession, group: SampleGroup, filled: boolean): Promise<Map<number, Sample>> {
    const { members } = group;
    const assembled = group.assembled!;
    const alone = await this.#runEach(session, group);
    const single = members.map(({ index }) => alone.get(index));
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
        await writeOutputs(this.#folderOf(index), this.#format, outputs);
        this.#finished++;
      } catch (error) {
        this.#fail(index, toOrtFlashError(error));
      }
    }
    this.#report();
  }

  #folderOf(index: number): string {
    return join(this.#options.outputs, this.#source.names[index]!);
  }

  #isFinished(index: number): boolean {
    const files = outputFiles(this.#format, this.#sessions[0]!.outputNames);
    return files.every((file) => existsSync(join(this.#folderOf(index), file)));
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

  /** Results of another model must not pass for this one's: a file beside them says whose they are. */
  async #checkManifest(resume: boolean): Promise<void> {
    const { model, outputs } = this.#options;
    const file = join(outputs, '.ort-flash-run.json');
    const manifest = JSON.stringify({ model: await fingerprint(model), format: this.#format });
    const before = resume ? await readFile(file, 'utf8').catch(() => undefined) : undefined;
    if (before !== undefined && before !== manifest) {
      const hint = 'choose another folder, or do not resume';
      throw new OrtFlashError('invalid-argument', 'the folder holds results of another model', { file: outputs }, hint);
    }
    try {
      await writeFile(`${file}.partial`, manifest);
      await rename(`${file}.partial`, file);
    } catch (error) {
      throw new OrtFlashError('file-access', 'cannot write', { file }, undefined, { cause: error });
    }
  }
}

/** A model file's size, and the hash of its first 64 MiB, which hold the graph. */
async function fingerprint(model: string): Promise<string> {
  const handle = await open(model);
  try {
    const { size } = await handle.stat();
    const head = Buffer.alloc(Math.min(size, 64 << 20));
    await handle.read(head, 0, head.length, 0);
    return `${size}-${createHash('sha256').update(head).digest('hex')}`;
  } finally {
    await handle.close();
  }
}

const toTensor = ({ type, dims, data }: ArrayTensor): Tensor =>
  createTensor(type as Tensor.Type, data as Tensor.DataType, dims);

const fromTensor = ({ type, dims, data }: Tensor): ArrayTensor => ({
  type: type as DataTypeName,
  dims,
  data: data as ArrayData,
});
