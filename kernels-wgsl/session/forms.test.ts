import test from 'ava';
import fc from 'fast-check';
import {
  type AttentionSizes,
  cheapest,
  estimateRun,
  type FormCosts,
  FormLedger,
  type FormMilliseconds,
  RunTimes,
  SESSION_FORMS,
  type SessionForm,
  scoreBytes,
} from './forms.js';

/** A cut that costs 0.3 ms more than a fused operator, which reaches a tenth of the kernels' rate. */
const COSTS: FormCosts = {
  kernels: { leastMilliseconds: 0.6, operationsPerMillisecond: 1e11 },
  fused: { leastMilliseconds: 0.3, operationsPerMillisecond: 1e10 },
  decomposed: { leastMilliseconds: 0.9, operationsPerMillisecond: 2e9 },
};
const BINDING = 2 ** 31;

const encoder = (tokens: number, layers = 12): AttentionSizes[] => [
  {
    count: layers,
    batch: 1,
    queryHeads: 12,
    keyHeads: 12,
    queries: tokens,
    keys: tokens,
    cachedKeys: 0,
    headDimension: 64,
    valueDimension: 64,
    elementBytes: 2,
  },
];

const positive = (max: number) => fc.double({ min: 1e-3, max, noNaN: true });
const cost = fc.record({ leastMilliseconds: positive(10), operationsPerMillisecond: positive(1e12) });
const costs = fc.record({ kernels: cost, fused: fc.option(cost, { nil: undefined }), decomposed: cost });
const sizes: fc.Arbitrary<AttentionSizes> = fc.record({
  count: fc.integer({ min: 1, max: 40 }),
  batch: fc.integer({ min: 1, max: 8 }),
  queryHeads: fc.integer({ min: 1, max: 64 }),
  keyHeads: fc.constant(1),
  queries: fc.integer({ min: 0, max: 100_000 }),
  keys: fc.integer({ min: 0, max: 100_000 }),
  cachedKeys: fc.constant(0),
  headDimension: fc.integer({ min: 1, max: 256 }),
  valueDimension: fc.integer({ min: 1, max: 256 }),
  elementBytes: fc.constantFrom(2, 4),
});

test('short sequences go where an attention costs the least, long ones to the kernels', (t) => {
  t.is(cheapest(estimateRun(encoder(1), COSTS, BINDING)), 'fused');
  t.is(cheapest(estimateRun(encoder(512), COSTS, BINDING)), 'fused');
  t.is(cheapest(estimateRun(encoder(8192), COSTS, BINDING)), 'kernels');
});

test('one token after a long past goes to the kernels, which copy no cache, and after a short one where it costs least', (t) => {
  const copying = { cacheBytesPerMillisecond: 1e8 };
  const costs = { kernels: COSTS.kernels!, fused: { ...COSTS.fused!, ...copying } };
  const step = (cachedKeys: number) => [
    { ...encoder(1)[0]!, keyHeads: 8, headDimension: 128, valueDimension: 128, keys: cachedKeys + 1, cachedKeys },
  ];
  t.is(cheapest(estimateRun(step(100), costs, BINDING)), 'fused');
  t.is(cheapest(estimateRun(step(30_000), costs, BINDING)), 'kernels');
});

test('an estimate grows with the lengths, and with what each attention costs', (t) => {
  fc.assert(
    fc.property(sizes, costs, fc.integer({ min: 0, max: 1000 }), (one, given, more) => {
      const longer = { ...one, queries: one.queries + more, keys: one.keys + more };
      const [before, after] = [one, longer].map((s) => estimateRun([s], given as FormCosts, BINDING));
      return SESSION_FORMS.every((form) => (after![form] ?? Number.POSITIVE_INFINITY) >= (before![form] ?? 0));
    }),
  );
  t.pass();
});

test('once the kernels are the fastest they stay so for every longer sequence, where their rate is the best', (t) => {
  fc.assert(
    fc.property(costs, fc.integer({ min: 1, max: 4096 }), fc.integer({ min: 0, max: 8192 }), (given, tokens, more) => {
      const rates = Object.values(given).map((c) => c?.operationsPerMillisecond ?? 0);
      fc.pre(given.kernels.operationsPerMillisecond >= Math.max(...rates));
      const best = (n: number) => cheapest(estimateRun(encoder(n), given as FormCosts, BINDING));
      return best(tokens) !== 'kernels' || best(tokens + more) === 'kernels';
    }),
  );
  t.pass();
});

test('a model is never left whole where its scores exceed a binding or the limit of all devices', (t) => {
  fc.assert(
    fc.property(
      fc.array(sizes, { minLength: 1, maxLength: 4 }),
      costs,
      fc.integer({ max: 2 ** 31 }),
      (all, c, limit) => {
        const forms = Object.keys(estimateRun(all, c as FormCosts, limit));
        const largest = Math.max(...all.map(scoreBytes));
        if (largest > Math.min(limit, 2 ** 28)) return forms.join() === 'kernels';
        return forms.includes('decomposed');
      },
    ),
  );
  t.pass();
});

/** What runs cost in all with the ledger, and the least that they could have, openings included. */
function play(runs: readonly FormMilliseconds[], price: number, start: SessionForm) {
  const ledger = new FormLedger(start);
  let online = 0;
  let best = new Map<SessionForm, number>([[start, 0]]);
  let form = start;
  for (const run of runs) {
    const next = ledger.choose(run, price);
    if (next !== form) online += price;
    form = next;
    online += run[form]!;
    const cheapestBefore = Math.min(...best.values());
    const after = SESSION_FORMS.filter((f) => run[f] !== undefined).map((f) => {
      const stayed = best.get(f) ?? Number.POSITIVE_INFINITY;
      return [f, Math.min(stayed, cheapestBefore + price) + run[f]!] as const;
    });
    best = new Map(after);
  }
  return { online, offline: Math.min(...best.values()), form };
}

test('as long as one form stays the better one, no more than twice the least and one run is spent', (t) => {
  const run = fc.record({ kernels: positive(50), fused: positive(50), decomposed: positive(50) });
  fc.assert(
    fc.property(run, fc.integer({ min: 1, max: 300 }), positive(500), (milliseconds, count, price) => {
      const runs = Array.from({ length: count }, () => milliseconds);
      const { online, offline } = play(runs, price, 'kernels');
      const floor = count * Math.min(...Object.values(milliseconds));
      // What is lost beyond what every run takes at least.
      const longest = Math.max(...Object.values(milliseconds));
      return online - floor <= 2 * (offline - floor) + longest + 1e-6;
    }),
    { numRuns: 300 },
  );
  t.pass();
});

test('whatever runs come, no more than four times the least is spent beyond one opening and one run', (t) => {
  const run = fc.record({ kernels: positive(50), fused: positive(50) });
  fc.assert(
    fc.property(fc.array(run, { minLength: 1, maxLength: 200 }), positive(200), (runs, price) => {
      const { online, offline } = play(runs, price, 'kernels');
      return online <= 4 * offline + price + 50 + 1e-6;
    }),
    { numRuns: 300 },
  );
  t.pass();
});

test('a run that only the kernels can carry out goes there at once, and back pays only when loss has come up', (t) => {
  const ledger = new FormLedger('fused');
  t.is(ledger.choose({ kernels: 900 }, 1e9), 'kernels');
  const short = { kernels: 10, fused: 5 };
  for (let i = 1; i < 20; i++) t.is(ledger.choose(short, 100), 'kernels');
  t.is(ledger.lost('fused'), 95);
  t.is(ledger.choose(short, 100), 'fused');
  t.is(ledger.lost('kernels'), 0);
});

test('what runs took puts estimates right, once there are enough of them', (t) => {
  const times = new RunTimes();
  const estimates = { kernels: 10, fused: 6 };
  for (const milliseconds of [500, 30, 31]) times.record('a', 'kernels', milliseconds, 0);
  t.deepEqual(times.correct('a', estimates, 'kernels'), estimates);
  times.record('a', 'kernels', 29, 0);
  t.deepEqual(times.correct('a', estimates, 'kernels'), { kernels: 30, fused: 26 });
  for (const milliseconds of [400, 33, 33, 33]) times.record('a', 'fused', milliseconds, 0);
  t.deepEqual(times.correct('a', estimates, 'fused'), { kernels: 30, fused: 33 });
  t.deepEqual(times.correct('b', estimates, 'fused'), estimates);
  t.true(times.wants('a', 'fused', 0));
  for (let i = 0; i < 4; i++) times.record('a', 'fused', 33, 100);
  t.false(times.wants('a', 'fused', 5000));
  // What was optimised since is faster.
  t.true(times.wants('a', 'fused', 20_000));
  for (let i = 0; i < 8; i++) {
    t.true(times.wants('a', 'fused', 20_000 + i));
    times.record('a', 'fused', 12, 20_000 + i);
  }
  t.is(times.of('a', 'fused'), 12);
  t.false(times.wants('a', 'fused', 20_100));
});
