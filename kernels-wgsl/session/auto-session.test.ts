/** How a session goes from form to form, with a clock and sessions that are made up. */

import anyTest, { type TestFn } from 'ava';
import { Tensor } from 'onnxruntime-common';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { Expression } from '../../graph-rewrite/shape/expression.js';
import { AutoSession, type AutoSessionParts } from './auto-session.js';
import type { Engine } from './engine.js';
import type { FormCosts, SessionForm } from './forms.js';
import { type Feeds, FlashSessionHandler, type ModelMetadata, type Results } from './handler.js';

const test = anyTest as TestFn;

const metadata: ModelMetadata = {
  inputs: [{ name: 'x', isTensor: true, type: 'float32', shape: ['n'] }],
  outputs: [{ name: 'y', isTensor: true, type: 'float32', shape: ['n'] }],
};
const FUSED_IS_FASTER: FormCosts = {
  kernels: { leastMilliseconds: 10, operationsPerMillisecond: 1e9 },
  fused: { leastMilliseconds: 4, operationsPerMillisecond: 1e6 },
  decomposed: { leastMilliseconds: 20, operationsPerMillisecond: 1e6 },
};

/** A world with a clock of its own: what opens and runs moves it. */
class World {
  now = 0;
  readonly open = new Set<SessionForm>();
  readonly log: string[] = [];
  /** Milliseconds of a run. */
  readonly takes: Record<SessionForm, number> = { kernels: 10, fused: 4, decomposed: 20 };
  opening = 100;
  /** Forms that fail: as they are loaded, or as they are opened. */
  fails: Partial<Record<SessionForm, 'load' | 'open' | 'run'>> = {};
  costs: FormCosts | undefined = FUSED_IS_FASTER;
  measured = 0;
  lose: (error: Error) => void = () => undefined;

  session(parts: Partial<AutoSessionParts> = {}): AutoSession {
    const lost = new Promise<never>((_, reject) => {
      this.lose = reject;
    });
    lost.catch(() => undefined);
    const engine = {
      check: () => undefined,
      lost,
      flash: { facts: { isSoftware: false, bindingSize: 2 ** 30 } },
      device: { queue: { onSubmittedWorkDone: async () => undefined } },
    } as unknown as Engine;
    const n = Expression.symbol('n');
    const one = Expression.constant(1);
    const sizes = { batch: one, queryHeads: one, keyHeads: one, headDimension: Expression.constant(8) };
    const rest = { valueDimension: Expression.constant(8), elementBytes: Expression.constant(4) };
    return new AutoSession({
      engine,
      metadata,
      attentions: [{ ...sizes, ...rest, queries: n, keys: n, cachedKeys: Expression.constant(0) }],
      inputShapes: new Map([['x', [n]]]),
      form: 'kernels',
      handler: new FakeHandler(this, 'kernels'),
      openMilliseconds: this.opening,
      costs: undefined,
      measure: async () => {
        this.measured++;
        this.log.push('measured');
        if (this.costs === undefined) throw new Error('nothing runs');
        return this.costs;
      },
      prepare: async (form) => {
        if (this.fails[form] === 'load') throw new OrtFlashError('file-access', `no ${form} to load`);
        return async () => {
          if (this.fails[form] === 'open') throw new OrtFlashError('runtime', `no ${form} to open`);
          this.now += this.opening;
          return new FakeHandler(this, form);
        };
      },
      ...parts,
    });
  }
}

class FakeHandler extends FlashSessionHandler {
  constructor(
    readonly world: World,
    readonly form: SessionForm,
  ) {
    super(metadata);
    world.open.add(form);
    world.log.push(form);
    if (world.open.size > 1) throw new Error(`two forms are open: ${[...world.open]}`);
  }

  protected override async runModel(feeds: Feeds): Promise<Results> {
    if (!this.world.open.has(this.form)) throw new Error('it is closed');
    await new Promise((resolve) => setImmediate(resolve));
    if (this.world.fails[this.form] === 'run') throw new Error(`${this.form} cannot`);
    this.world.now += this.world.takes[this.form];
    return { y: feeds.x! };
  }

  protected override async free(): Promise<void> {
    this.world.open.delete(this.form);
  }
}

const worlds: World[] = [];
const clock = performance.now.bind(performance);
test.before(() => {
  performance.now = () => worlds.at(-1)?.now ?? clock();
});
test.after.always(() => {
  performance.now = clock;
});

function makeWorld(): World {
  const world = new World();
  worlds.push(world);
  return world;
}

const input = (tokens: number) => ({ x: new Tensor('float32', new Float32Array(tokens), [tokens]) });
const formOf = (session: AutoSession): SessionForm => session.choice.form;
const run = (session: AutoSession, tokens = 8) => session.run(input(tokens), { y: null }, {});

test.serial(
  'costs are measured after a second of runs, and another form is opened when what was lost pays for it',
  async (t) => {
    const world = makeWorld();
    const session = world.session();
    let runs = 0;
    for (; world.measured === 0; runs++) await run(session);
    // The first two runs compile, and do not count; the one after the second has passed measures.
    t.is(runs, 1000 / world.takes.kernels + 2 + 1);
    t.is(formOf(session), 'kernels');
    const { lastRun } = session.choice;
    t.deepEqual(lastRun, { kernels: 10, fused: 4, decomposed: 20 });
    runs = 1;
    for (; formOf(session) === 'kernels'; runs++) await run(session);
    t.is(runs, Math.ceil(world.opening / (10 - 4)));
    t.deepEqual(world.log, ['kernels', 'measured', 'fused']);
    t.deepEqual([session.choice.form, session.choice.switches, session.segments], ['fused', 1, 1]);
    for (let i = 0; i < 1000; i++) await run(session);
    t.is(world.measured, 1);
    t.is(session.choice.switches, 1);
    await session.dispose();
    t.is(world.open.size, 0);
  },
);

test.serial(
  'a run that is long for a score matrix goes to the kernels at once, among runs that are under way',
  async (t) => {
    const world = makeWorld();
    const session = world.session({ costs: FUSED_IS_FASTER });
    while (formOf(session) === 'kernels') await run(session);
    // 4 bytes · 10,000² exceed 256 MiB.
    await Promise.all([run(session), run(session), run(session, 10_000), run(session)]);
    t.deepEqual(world.log, ['kernels', 'fused', 'kernels']);
    t.is(formOf(session), 'kernels');
    await session.dispose();
  },
);

test.serial(
  'what runs took counts more than estimates: a form that proves slower is left, once, for good',
  async (t) => {
    const world = makeWorld();
    world.takes.fused = 30;
    const session = world.session({ costs: FUSED_IS_FASTER });
    for (let i = 0; i < 2000; i++) await run(session);
    t.deepEqual(world.log, ['kernels', 'fused', 'kernels']);
    t.deepEqual(session.choice.lastRun, { kernels: 10, fused: 30, decomposed: 20 });
    await session.dispose();
  },
);

for (const stage of ['load', 'open'] as const)
  test.serial(`a form that fails to ${stage} is not tried again, and the one before goes on`, async (t) => {
    const world = makeWorld();
    world.fails.fused = stage;
    const session = world.session({ costs: FUSED_IS_FASTER });
    for (let i = 0; i < 500; i++) await run(session);
    t.is(formOf(session), 'kernels');
    t.deepEqual(session.choice.failures, [`fused could not be opened: no fused to ${stage}`]);
    t.deepEqual(world.log, stage === 'load' ? ['kernels'] : ['kernels', 'kernels']);
    await session.dispose();
    t.is(world.open.size, 0);
  });

for (const stage of ['load', 'open'] as const)
  test.serial(
    `where the kernels are needed and fail to ${stage}, the run is rejected, and the next one tries again`,
    async (t) => {
      const world = makeWorld();
      const session = world.session({ costs: FUSED_IS_FASTER });
      while (formOf(session) === 'kernels') await run(session);
      world.fails.kernels = stage;
      await t.throwsAsync(run(session, 10_000), { message: `no kernels to ${stage}` });
      t.is(formOf(session), 'fused');
      await run(session);
      world.fails = {};
      await run(session, 10_000);
      t.is(formOf(session), 'kernels');
      await session.dispose();
      t.is(world.open.size, 0);
    },
  );

test.serial(
  'a run that fails in another form is carried out by the kernels, and that form not tried again',
  async (t) => {
    const world = makeWorld();
    const session = world.session({ costs: FUSED_IS_FASTER });
    while (formOf(session) === 'kernels') await run(session);
    world.fails.fused = 'run';
    await Promise.all([run(session), run(session), run(session)]);
    t.is(formOf(session), 'kernels');
    for (let i = 0; i < 300; i++) await run(session);
    t.deepEqual(world.log, ['kernels', 'fused', 'kernels']);
    t.regex(session.choice.failures.join(), /^fused failed in a run that the kernels carried out: .*fused cannot$/);
    await session.dispose();
    t.is(world.open.size, 0);
  },
);

test.serial('a run that fails in every form is told, and takes no form away', async (t) => {
  const world = makeWorld();
  const session = world.session({ costs: FUSED_IS_FASTER });
  while (formOf(session) === 'kernels') await run(session);
  world.fails = { fused: 'run', kernels: 'run' };
  await t.throwsAsync(run(session), { message: /kernels cannot/ });
  world.fails = {};
  for (let i = 0; i < 30; i++) await run(session);
  t.deepEqual(session.choice.failures, []);
  t.is(formOf(session), 'fused');
  await session.dispose();
});

test.serial('where nothing can be opened any more, runs tell it, and go on once something can', async (t) => {
  const world = makeWorld();
  const session = world.session({ costs: FUSED_IS_FASTER });
  while (formOf(session) === 'kernels') await run(session);
  world.fails = { kernels: 'open', fused: 'open' };
  await t.throwsAsync(run(session, 10_000), { message: /to open/ });
  await t.throwsAsync(run(session), { message: /to open/ });
  world.fails = {};
  await run(session);
  t.is(world.open.size, 1);
  await session.dispose();
  t.is(world.open.size, 0);
});

test.serial('where costs cannot be measured the kernels stay', async (t) => {
  const world = makeWorld();
  world.costs = undefined;
  const session = world.session();
  for (let i = 0; i < 300; i++) await run(session);
  t.is(world.measured, 1);
  t.deepEqual([session.choice.form, session.choice.costs], ['kernels', undefined]);
  await session.dispose();
});

test.serial('a lost device ends a run, whatever the form', async (t) => {
  const world = makeWorld();
  const session = world.session({ costs: FUSED_IS_FASTER });
  const pending = run(session);
  world.lose(new OrtFlashError('device', 'the GPU device was lost'));
  await t.throwsAsync(pending, { code: 'device' });
});

test.serial('a release waits for a form that is being opened', async (t) => {
  const world = makeWorld();
  const session = world.session({ costs: FUSED_IS_FASTER });
  while (formOf(session) === 'kernels') await run(session);
  const pending = run(session, 10_000);
  await Promise.all([session.dispose(), session.dispose()]);
  await pending;
  t.is(world.open.size, 0);
  await t.throwsAsync(run(session), { message: /released/ });
});
