/** Reads samples ahead and groups those that can run together. */
import type { OrtFlashError } from '../graph-rewrite/errors.js';
import { toOrtFlashError } from './node-addon.js';
import { type Assembled, assemble, type BatchPlan, batchKey, sequenceLength } from './node-batching.js';
import type { Sample, SampleSource } from './node-samples.js';

/** A sample that has been read. */
export interface ReadSample {
  readonly index: number;
  readonly sample: Sample;
}

/** Samples for one run, put together. */
export interface SampleGroup {
  readonly members: readonly ReadSample[];
  /** Undefined for a single sample, which runs as it is. */
  readonly assembled: Assembled | undefined;
}

/** What a feeder is told about batching; it may change while it works. */
export interface FeederSettings {
  readonly plan: BatchPlan;
  readonly batch: number;
  /** False once a run has shown that the model does not treat batched samples alike. */
  batching: boolean;
  /** Likewise for sequences that were filled up. */
  padding: boolean;
}

/** Files that are read at a time. */
const READS_AT_ONCE = 8;
/** Sequences of this many batches are read before they are sorted by length, so that little is filled up. */
const SORTED_BATCHES = 4;
/** Samples of odd shapes wait for their like until this many batches are waiting. */
const WAITING_BATCHES = 16;

/** Gives groups of samples, to one worker or to several. */
export class BatchFeeder {
  readonly #source: SampleSource;
  readonly #settings: FeederSettings;
  readonly #onFailure: (index: number, error: OrtFlashError) => void;
  /** Indices that are still to be read, last first. */
  readonly #unread: number[];
  readonly #waiting = new Map<string, ReadSample[]>();
  readonly #ready: ReadSample[][] = [];
  #turn: Promise<unknown> = Promise.resolve();

  constructor(
    source: SampleSource,
    indices: readonly number[],
    settings: FeederSettings,
    onFailure: (index: number, error: OrtFlashError) => void,
  ) {
    this.#source = source;
    this.#settings = settings;
    this.#onFailure = onFailure;
    this.#unread = indices.toReversed();
  }

  /** The next group; undefined at the end. Calls are answered one after the other. */
  next(): Promise<SampleGroup | undefined> {
    const group = this.#turn.then(() => this.#next());
    this.#turn = group;
    return group;
  }

  /** Takes samples back that were not run; they come again, one by one. */
  giveBack(members: readonly ReadSample[]): void {
    this.#ready.push(...members.map((member) => [member]));
  }

  /** Whether there are samples that were not given yet. */
  get hasMore(): boolean {
    return this.#ready.length > 0 || this.#waiting.size > 0 || this.#unread.length > 0;
  }

  async #next(): Promise<SampleGroup | undefined> {
    while (this.#ready.length === 0 && this.#unread.length > 0) await this.#read();
    if (this.#ready.length === 0) this.#release(() => true);
    const members = this.#ready.shift();
    if (members === undefined) return undefined;
    if (members.length > 1 && !this.#mayRunTogether(members)) {
      this.#ready.unshift(...members.map((member) => [member]));
      return this.#next();
    }
    if (members.length === 1) return { members, assembled: undefined };
    const samples = members.map(({ sample }) => sample);
    return { members, assembled: assemble(samples, this.#maskInput()) };
  }

  /** False for a group that was formed before batching or filling up was given up. */
  #mayRunTogether(members: readonly ReadSample[]): boolean {
    const keys = new Set(members.map(({ sample }) => batchKey(sample, this.#maskInput())));
    return this.#settings.batching && keys.size === 1;
  }

  #maskInput(): string | undefined {
    return this.#settings.padding ? this.#settings.plan.maskInput : undefined;
  }

  async #read(): Promise<void> {
    const indices = Array.from({ length: Math.min(READS_AT_ONCE, this.#unread.length) }, () => this.#unread.pop()!);
    const read = await Promise.all(indices.map((index) => this.#readOne(index)));
    for (const sample of read) if (sample !== undefined) this.#put(sample);
    const waiting = Array.from(this.#waiting.values()).reduce((sum, group) => sum + group.length, 0);
    // The oldest group has waited longest for its like.
    if (waiting >= WAITING_BATCHES * this.#settings.batch) {
      const oldest = this.#waiting.keys().next().value;
      this.#release((key) => key === oldest);
    }
  }

  async #readOne(index: number): Promise<ReadSample | undefined> {
    try {
      return { index, sample: await this.#source.read(index) };
    } catch (error) {
      this.#onFailure(index, toOrtFlashError(error));
      return undefined;
    }
  }

  #put(sample: ReadSample): void {
    const { batch, batching, plan } = this.#settings;
    if (batch === 1 || !batching || !plan.batchable) {
      this.#ready.push([sample]);
      return;
    }
    const key = batchKey(sample.sample, this.#maskInput());
    const group = this.#waiting.get(key) ?? [];
    this.#waiting.set(key, group);
    group.push(sample);
    const wanted = this.#maskInput() === undefined ? batch : batch * SORTED_BATCHES;
    if (group.length >= wanted) this.#release((other) => other === key);
  }

  /** Makes batches of the waiting samples of these keys. */
  #release(chosen: (key: string) => boolean): void {
    const { plan, batch } = this.#settings;
    const lengthOf = ({ sample }: ReadSample) => sequenceLength(sample, plan.maskInput) ?? 0;
    for (const [key, group] of Array.from(this.#waiting)) {
      if (!chosen(key)) continue;
      this.#waiting.delete(key);
      group.sort((a, b) => lengthOf(a) - lengthOf(b));
      for (let at = 0; at < group.length; at += batch) this.#ready.push(group.slice(at, at + batch));
    }
  }
}
