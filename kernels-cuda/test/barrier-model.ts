/**
 * A model of how kernels/hopper.cuh synchronises: its producer and every consumer warp as a coroutine, memory barriers and
 * named barriers as the PTX ISA (mbarrier, bar.sync) has them, run in random order. It finds deadlocks, arrivals too many,
 * stages overwritten while they are read and data read before it is there. It follows the kernel by hand, step for step.
 */

/** Where the model departs from the kernel, to show that the model would notice. */
export type Fault = 'no wait before handing back' | 'no turn for skipped steps' | 'query kept' | 'query back too early';

/** A half-open range of steps. */
export type Steps = readonly [begin: number, end: number];

export interface WorkItem {
  readonly steps: Steps;
  /** Of each warpgroup, within the item's; empty where it sees none. */
  readonly own: readonly Steps[];
}

export interface Schedule {
  readonly warpgroups: number;
  readonly stages: number;
  /** Work items whose queries are in shared memory at once. */
  readonly queryBuffers: number;
  /** Whether an item's first keys are asked for before its queries. */
  readonly keysFirst: boolean;
  readonly turns: boolean;
  readonly bias: boolean;
  readonly items: readonly WorkItem[];
  readonly fault?: Fault;
}

type Coroutine = Generator<void, void, void>;

/** An mbarrier: a phase completes when all arrivals and all announced copies have come. */
class MemoryBarrier {
  private phase = 0;
  private pending: number;
  private copies = 0;
  constructor(private readonly arrivals: number) {
    this.pending = arrivals;
  }
  arrive() {
    if (this.pending === 0) throw new Error('an arrival too many');
    this.pending -= 1;
    this.complete();
  }
  expect() {
    this.copies += 1;
    this.arrive();
  }
  deliver() {
    this.copies -= 1;
    this.complete();
  }
  *wait(parity: number): Coroutine {
    while (this.phase === parity) yield;
  }
  private complete() {
    if (this.pending > 0 || this.copies > 0) return;
    this.phase ^= 1;
    this.pending = this.arrivals;
  }
}

/** A hardware barrier for 256 threads; a warp counts as 32. */
class NamedBarrier {
  private threads = 0;
  private generation = 0;
  arrive() {
    this.threads += 32;
    if (this.threads < 256) return;
    this.threads = 0;
    this.generation += 1;
  }
  *wait(): Coroutine {
    const { generation } = this;
    this.arrive();
    while (this.generation === generation) yield;
  }
}

/** Something the copy engine fills and warps read, with its pair of barriers. */
class Stage {
  readonly full = new MemoryBarrier(1);
  readonly empty: MemoryBarrier;
  private content = '';
  private readers = 0;
  constructor(warps: number) {
    this.empty = new MemoryBarrier(warps);
  }
  /** Starts a copy; the result ends it. */
  copy(content: string): () => void {
    if (this.readers > 0) throw new Error(`${content} overwrites what is read`);
    this.full.expect();
    this.content = '';
    return () => {
      this.content = content;
      this.full.deliver();
    };
  }
  startReading(content: string) {
    this.check(content);
    this.readers += 1;
  }
  endReading(content: string) {
    this.check(content);
    this.readers -= 1;
  }
  check(content: string) {
    if (this.content !== content) throw new Error(`"${this.content}" where ${content} should be`);
  }
}

class Ring {
  private count = 0;
  constructor(private readonly stages: number) {}
  get stage(): number {
    return this.count % this.stages;
  }
  get parity(): number {
    return Math.floor(this.count / this.stages) % 2;
  }
  advance() {
    this.count += 1;
  }
}

const many = <T>(count: number, make: () => T): T[] => Array.from({ length: count }, make);

class Model {
  readonly copies: (() => void)[] = [];
  finished = 0;
  private readonly work = [-1, -1];
  private readonly workFull = many(2, () => new MemoryBarrier(1));
  private readonly workEmpty: MemoryBarrier[];
  private readonly query: Stage[][];
  private readonly key: Stage[];
  private readonly value: Stage[];
  private readonly mask: Stage[][];
  private readonly turn: NamedBarrier[];

  constructor(private readonly schedule: Schedule) {
    const { warpgroups, stages, queryBuffers } = schedule;
    this.workEmpty = many(2, () => new MemoryBarrier(4 * warpgroups));
    this.query = many(queryBuffers, () => many(warpgroups, () => new Stage(4)));
    this.key = many(stages, () => new Stage(4 * warpgroups));
    this.value = many(stages, () => new Stage(4 * warpgroups));
    this.mask = many(stages, () => many(warpgroups, () => new Stage(4)));
    this.turn = many(warpgroups, () => new NamedBarrier());
  }

  /** produce() */
  *produce(): Coroutine {
    const { items, warpgroups, stages, queryBuffers, keysFirst, bias } = this.schedule;
    const ring = new Ring(stages);
    const workRing = new Ring(2);
    const queryRing = new Ring(queryBuffers);
    const copy = function* (this: Model, stage: Stage, parity: number, content: string): Coroutine {
      yield* stage.empty.wait(parity ^ 1);
      this.copies.push(stage.copy(content));
      yield;
    }.bind(this);
    for (let n = 0; ; ++n, workRing.advance()) {
      yield* this.workEmpty[workRing.stage]!.wait(workRing.parity ^ 1);
      this.work[workRing.stage] = n < items.length ? n : -1;
      this.workFull[workRing.stage]!.arrive();
      yield;
      const item = items[n];
      if (item === undefined) return;
      const [begin, end] = item.steps;
      if (begin >= end) continue;
      const queries = this.query[queryRing.stage]!;
      if (!keysFirst) yield* copy(queries[0]!, queryRing.parity, `${n}`);
      for (let step = begin; step < end; ++step, ring.advance()) {
        const content = `${n}:${step}`;
        yield* copy(this.key[ring.stage]!, ring.parity, content);
        if (step === begin) {
          for (const query of queries.slice(keysFirst ? 0 : 1)) yield* copy(query, queryRing.parity, `${n}`);
        }
        for (let w = 0; bias && w < warpgroups; ++w) {
          yield* copy(this.mask[ring.stage]![w]!, ring.parity, content);
        }
        yield* copy(this.value[ring.stage]!, ring.parity, content);
      }
      queryRing.advance();
    }
  }

  /** consume(), one warp of warpgroup w */
  *consume(w: number): Coroutine {
    const { warpgroups, stages, queryBuffers, items, fault } = this.schedule;
    const rings = { key: new Ring(stages), value: new Ring(stages), mask: new Ring(stages) };
    const workRing = new Ring(2);
    const queryRing = new Ring(queryBuffers);
    if (w === warpgroups - 1) this.passTurn(w);
    for (; ; workRing.advance()) {
      yield* this.workFull[workRing.stage]!.wait(workRing.parity);
      const n = this.work[workRing.stage]!;
      if (n < 0) break;
      const { steps, own } = items[n]!;
      const [begin, end] = own[w]!;
      if (steps[0] < steps[1]) {
        yield* this.skip(w, n, [steps[0], begin], rings);
        const query = this.query[queryRing.stage]![w]!;
        yield* query.full.wait(queryRing.parity);
        if (begin < end) yield* this.attend(w, n, [begin, end], query, rings);
        else if (fault !== 'query kept') query.empty.arrive();
        yield* this.skip(w, n, [Math.max(end, begin), steps[1]], rings);
        queryRing.advance();
      }
      if (this.work[workRing.stage] !== n) throw new Error('the work item has changed under its reader');
      yield;
      this.workEmpty[workRing.stage]!.arrive();
    }
    this.finished += 1;
  }

  private *waitTurn(w: number): Coroutine {
    if (this.schedule.turns) yield* this.turn[w]!.wait();
  }

  private passTurn(w: number) {
    if (this.schedule.turns) this.turn[(w + 1) % this.schedule.warpgroups]!.arrive();
  }

  /** skip_steps() */
  private *skip(w: number, n: number, [begin, end]: Steps, rings: Record<'key' | 'value' | 'mask', Ring>): Coroutine {
    const { bias, fault } = this.schedule;
    const handBack = function* (stage: Stage, ring: Ring, content: string): Coroutine {
      if (fault !== 'no wait before handing back') {
        yield* stage.full.wait(ring.parity);
        stage.check(content);
      }
      stage.empty.arrive();
      ring.advance();
      yield;
    };
    for (let step = begin; step < end; ++step) {
      const content = `${n}:${step}`;
      const s = rings.key.stage;
      yield* handBack(this.key[s]!, rings.key, content);
      if (fault !== 'no turn for skipped steps') {
        yield* this.waitTurn(w);
        this.passTurn(w);
      }
      if (bias) yield* handBack(this.mask[s]![w]!, rings.mask, content);
      yield* handBack(this.value[s]!, rings.value, content);
    }
  }

  /** The steps that the warpgroup has a part in; where the kernel waits for a product, others may run. */
  private *attend(
    w: number,
    n: number,
    [begin, end]: Steps,
    query: Stage,
    rings: Record<'key' | 'value' | 'mask', Ring>,
  ): Coroutine {
    const { bias, fault } = this.schedule;
    for (let step = begin; step <= end; ++step) {
      const content = `${n}:${step}`;
      const last = `${n}:${step - 1}`;
      const key = this.key[rings.key.stage]!;
      const value = this.value[rings.value.stage]!;
      if (step < end) {
        yield* key.full.wait(rings.key.parity);
        yield* this.waitTurn(w);
        key.startReading(content);
        query.startReading(`${n}`);
      }
      if (step > begin) {
        yield* value.full.wait(rings.value.parity);
        value.startReading(last);
      }
      if (step < end) {
        this.passTurn(w);
        yield;
        key.endReading(content);
        query.endReading(`${n}`);
        key.empty.arrive();
        if (step + 1 === end || (fault === 'query back too early' && step === begin)) query.empty.arrive();
        rings.key.advance();
        if (bias) {
          const mask = this.mask[rings.mask.stage]![w]!;
          yield* mask.full.wait(rings.mask.parity);
          mask.startReading(content);
          yield;
          mask.endReading(content);
          mask.empty.arrive();
          rings.mask.advance();
        }
      }
      yield;
      if (step > begin) {
        value.endReading(last);
        value.empty.arrive();
        rings.value.advance();
      }
    }
  }
}

/** Runs a schedule, `random(n)` choosing who goes next; what went wrong, or undefined. */
export function runBarriers(schedule: Schedule, random: (below: number) => number): string | undefined {
  const model = new Model(schedule);
  const warps = Array.from({ length: 4 * schedule.warpgroups }, (_, i) => model.consume(Math.floor(i / 4)));
  const running: Coroutine[] = [model.produce(), ...warps];
  // Nothing that is not stuck goes this long without an end: far more turns than all steps of all coroutines.
  const steps = schedule.items.reduce((sum, { steps: [begin, end] }) => sum + end - begin + 1, 1);
  try {
    for (let left = 4000 * steps; running.length > 0; --left) {
      if (left === 0) return 'deadlock';
      if (model.copies.length > 0 && random(4) === 0) model.copies.splice(random(model.copies.length), 1)[0]!();
      const which = random(running.length);
      if (running[which]!.next().done) running.splice(which, 1);
    }
  } catch (error) {
    return (error as Error).message;
  }
  return model.finished === warps.length ? undefined : 'not all warps have finished';
}
