/**
 * The Hopper kernel's barriers in a model of them (test/barrier-model.ts), with steps that some warpgroups pass over; and the
 * decode kernel's count of blocks (test/tally-model.ts).
 */
import test from 'ava';
import fc from 'fast-check';
import { type Fault, runBarriers, type Schedule, type Steps } from './test/barrier-model.js';
import { runTally, type TallyCalls } from './test/tally-model.js';

const nothing: Steps = [0, 0];

/** Some of the steps, or none. */
const within = ([begin, end]: Steps) =>
  fc
    .tuple(fc.integer({ min: begin, max: end }), fc.integer({ min: begin, max: end }))
    .map(([a, b]): Steps => (a === b ? [end, end] : [Math.min(a, b), Math.max(a, b)]));

const schedules: fc.Arbitrary<Schedule> = fc
  .record({
    warpgroups: fc.constantFrom(2, 3),
    stages: fc.constantFrom(2, 3, 4),
    queryBuffers: fc.constantFrom(1, 2),
    keysFirst: fc.boolean(),
    turns: fc.boolean(),
    bias: fc.boolean(),
    skips: fc.boolean(),
  })
  .chain(({ skips, ...rest }) => {
    const item = fc
      .tuple(fc.nat(3), fc.nat(5))
      .map(([begin, count]): Steps => (count === 0 ? nothing : [begin, begin + count]))
      .chain((steps) => {
        const own = skips ? within(steps) : fc.constant(steps);
        return fc.record({ steps: fc.constant(steps), own: fc.array(own, { minLength: 3, maxLength: 3 }) });
      });
    return fc.array(item, { minLength: 1, maxLength: 7 }).map((items) => ({ ...rest, items }));
  });

/** A small generator of its own (mulberry32): one run draws thousands of numbers. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

test('no deadlock, no stage overwritten while it is read, whoever runs first', (t) => {
  fc.assert(
    fc.property(schedules, fc.integer(), (schedule, seed) => {
      const wrong = runBarriers(schedule, randomOf(seed));
      return wrong === undefined || t.log(wrong) === null;
    }),
    { numRuns: 300 },
  );
  t.pass();
});

test('the model notices barriers used wrongly', (t) => {
  const item = (steps: Steps, ...own: Steps[]) => ({ steps, own });
  const items = [item([0, 4], [0, 2], [2, 4]), item([1, 5], [5, 5], [1, 5]), item([0, 3], [0, 3], [0, 1])];
  const schedule: Schedule = {
    warpgroups: 2,
    stages: 2,
    queryBuffers: 1,
    keysFirst: false,
    turns: true,
    bias: false,
    items: [...items, ...items],
  };
  const faults: Fault[] = [
    'no wait before handing back',
    'no turn for skipped steps',
    'query kept',
    'query back too early',
  ];
  for (const fault of faults) {
    const seen = Array.from({ length: 40 }, (_, seed) => runBarriers({ ...schedule, fault }, randomOf(seed)));
    t.true(
      seen.some((wrong) => wrong !== undefined),
      fault,
    );
  }
  t.true(
    Array.from({ length: 40 }, (_, seed) => runBarriers(schedule, randomOf(seed))).every(
      (wrong) => wrong === undefined,
    ),
  );
});

test('of the blocks that share a row, the last alone combines, whatever memory holds before', (t) => {
  const calls = fc
    .record({
      garbage: fc.record({ tag: fc.constant(-1), count: fc.nat(9) }),
      tags: fc.array(fc.nat(2), { minLength: 1, maxLength: 5 }),
      blocks: fc.integer({ min: 2, max: 7 }),
    })
    .map((drawn): TallyCalls => drawn);
  fc.assert(
    fc.property(calls, fc.integer(), (drawn, seed) => {
      const wrong = runTally(drawn, randomOf(seed));
      return wrong === undefined || t.log(wrong) === null;
    }),
    { numRuns: 1000 },
  );
  const garbage = { tag: -1, count: 3 };
  for (const fault of ['not put back', 'set without comparing'] as const) {
    const seen = Array.from({ length: 40 }, (_, seed) =>
      runTally({ garbage, tags: [1, 1, 2], blocks: 4, fault }, randomOf(seed)),
    );
    t.true(
      seen.some((wrong) => wrong !== undefined),
      fault,
    );
  }
});
