import type { InferenceSession as OrtTypes, Tensor } from '#onnxruntime-web';
import type { OrtFlashError } from '../../graph-rewrite/errors.js';
import {
  groupSizes,
  resolveSizes,
  type SizeGroup,
  type SymbolicShapes,
  type SymbolicSizes,
} from './attention-sizes.js';
import type { BufferPool } from './buffer-pool.js';
import type { Engine } from './engine.js';
import { checkFeeds } from './feeds.js';
import {
  type AttentionSizes,
  estimateRun,
  type FormCosts,
  FormLedger,
  type FormMilliseconds,
  RunTimes,
  type SessionForm,
} from './forms.js';
import { cacheOf } from './growing-cache.js';
import { type Feeds, type Fetches, FlashSessionHandler, type ModelMetadata, type Results } from './handler.js';
import { ortError } from './ort-error.js';
import { SplicedSession } from './spliced-session.js';

/** A model loaded for a form; called, it opens the session, once the one before it is released. */
export type PreparedForm = () => Promise<FlashSessionHandler>;

/** What a session that chooses among forms starts with. */
export interface AutoSessionParts {
  readonly engine: Engine;
  readonly metadata: ModelMetadata;
  /** The attentions that the kernels take. */
  readonly attentions: readonly SymbolicSizes[];
  readonly inputShapes: SymbolicShapes;
  /** The form that is open, and what opening it took. */
  readonly form: SessionForm;
  readonly handler: FlashSessionHandler;
  readonly openMilliseconds: number;
  /** Known before: measured for another session, or given by the caller. */
  readonly costs: FormCosts | undefined;
  /** Measures them; undefined where it cannot be measured. */
  readonly measure: (() => Promise<FormCosts>) | undefined;
  /** Loads the model for a form. */
  readonly prepare: (form: SessionForm) => Promise<PreparedForm>;
}

/** How a session came to its form. */
export interface FormChoice {
  readonly form: SessionForm;
  /** What attention costs on this machine in each form; undefined as long as it is not measured. */
  readonly costs: FormCosts | undefined;
  /**
   * Milliseconds of a run like the last one in each form: of its attentions where estimated, of the whole run once runs
   * like it were timed.
   */
  readonly lastRun: FormMilliseconds | undefined;
  /** How often another form was opened. */
  readonly switches: number;
  /** Why a form could not be opened, or failed in a run that the kernels carried out. */
  readonly failures: readonly string[];
}

/** Milliseconds of runs before costs are measured, which takes about as long. A CPU that plays GPU compiles for seconds. */
const MEASURE_AFTER = { gpu: 1000, software: 60_000 } as const;
/** Runs that mostly compile. */
const FIRST_RUNS = 2;
/** Shapes of inputs whose attention sizes are remembered. */
const REMEMBERED_SHAPES = 64;

type Tensors = Readonly<Record<string, Tensor>>;

/** What carries a run out. */
interface FormInUse {
  readonly handler: FlashSessionHandler;
  readonly form: SessionForm;
  /** Its inputs' shapes, where the run counts for what forms take. */
  readonly shape: string | undefined;
}

/**
 * A session that carries its model's attention out in the form that is the fastest for the runs that it gets. One form
 * is open at a time, so that there is one copy of the weights; the model is loaded anew for another.
 */
export class AutoSession extends FlashSessionHandler {
  readonly #parts: AutoSessionParts;
  readonly #groups: readonly SizeGroup[];
  readonly #ledger: FormLedger;
  readonly #times = new RunTimes();
  readonly #sizes = new Map<string, readonly AttentionSizes[] | undefined>();
  readonly #failures = new Map<SessionForm, string>();
  readonly #underWay = new Set<Promise<unknown>>();
  /** Undefined where the last attempt to open one failed. */
  #handler: FlashSessionHandler | undefined;
  #form: SessionForm;
  #costs: FormCosts | undefined;
  #measure: AutoSessionParts['measure'];
  /** Milliseconds that opening a form took the last time. */
  #price: number;
  #runs = 0;
  #spent = 0;
  #switches = 0;
  #lastRun: FormMilliseconds | undefined;
  #lastEnd = 0;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: AutoSessionParts) {
    super(parts.metadata);
    this.#parts = parts;
    this.#groups = groupSizes(parts.attentions);
    this.#handler = parts.handler;
    this.#form = parts.form;
    this.#ledger = new FormLedger(parts.form);
    this.#costs = parts.costs;
    this.#measure = parts.measure;
    this.#price = parts.openMilliseconds;
  }

  /** Attentions that run in the kernels now. */
  get attentions(): number {
    return this.#handler instanceof SplicedSession ? this.#handler.attentionCount : 0;
  }

  /** Sessions of ONNX Runtime's that the model is in now. */
  get segments(): number {
    return this.#handler instanceof SplicedSession ? this.#handler.segmentCount : 1;
  }

  get choice(): FormChoice {
    const failures = [...this.#failures.values()];
    return { form: this.#form, costs: this.#costs, lastRun: this.#lastRun, switches: this.#switches, failures };
  }

  protected override async runModel(feeds: Feeds, fetches: Fetches, options: OrtTypes.RunOptions): Promise<Results> {
    const tensors = feeds as Tensors;
    checkFeeds(this.#parts.metadata, tensors);
    // Runs are weighed, and start, in the order in which they were asked for.
    const chosen = this.#turn.then(() => this.#choose(tensors, fetches));
    this.#turn = chosen.catch(() => undefined);
    const use = await chosen;
    try {
      return await this.#run(use, feeds, fetches, options);
    } catch (error) {
      this.#parts.engine.check();
      if (use.form === 'kernels') throw error;
      return await this.#runCut(ortError(error), use.form, feeds, fetches, options);
    }
  }

  /** Runs in the kernels what failed in another form, which is not tried again where this succeeds. */
  async #runCut(
    error: OrtFlashError,
    form: SessionForm,
    feeds: Feeds,
    fetches: Fetches,
    options: OrtTypes.RunOptions,
  ): Promise<Results> {
    const opened = this.#turn.then(async () => {
      this.#ledger.take('kernels');
      if (this.#form !== 'kernels' || this.#handler === undefined) await this.#open('kernels', true);
      return { handler: this.#handler!, form: this.#form, shape: undefined };
    });
    this.#turn = opened.catch(() => undefined);
    const results = await this.#run(await opened, feeds, fetches, options);
    this.#failures.set(form, `${form} failed in a run that the kernels carried out: ${error.message}`);
    return results;
  }

  async #run(
    { handler, form, shape }: FormInUse,
    feeds: Feeds,
    fetches: Fetches,
    options: OrtTypes.RunOptions,
  ): Promise<Results> {
    const start = performance.now();
    const run = Promise.race([handler.run(feeds, fetches, options), this.#parts.engine.lost]);
    this.#underWay.add(run);
    try {
      const results = await run;
      if (shape !== undefined) this.#watch(start, shape, form, results as Tensors);
      return results;
    } finally {
      this.#underWay.delete(run);
    }
  }

  protected override async free(): Promise<void> {
    await this.#handler?.dispose();
  }

  async #choose(feeds: Tensors, fetches: Fetches): Promise<FormInUse> {
    this.#parts.engine.check();
    const shape = shapeKey(feeds);
    const sizes = this.#sizesOf(shape, feeds);
    if (this.#costs === undefined && this.#isWorthMeasuring()) await this.#measureCosts();
    const mustBeCut = sizes === undefined || sharesBuffers(feeds, fetches as Tensors, this.#parts.engine.pool);
    const milliseconds = mustBeCut ? undefined : this.#weigh(sizes, shape);
    const form = milliseconds ? this.#ledger.choose(milliseconds, this.#price) : this.#ledger.take('kernels');
    const isNeeded = milliseconds?.[this.#form] === undefined;
    if (this.#handler === undefined || form !== this.#form) await this.#open(form, isNeeded);
    return { handler: this.#handler!, form: this.#form, shape: mustBeCut ? undefined : shape };
  }

  /** Milliseconds of a run in each form that there is; undefined where nothing is known of them. */
  #weigh(sizes: readonly AttentionSizes[], shape: string): FormMilliseconds | undefined {
    if (this.#costs === undefined) return undefined;
    const estimates = estimateRun(sizes, this.#costs, this.#parts.engine.flash.facts.bindingSize);
    const possible = Object.entries(estimates).filter(([form]) => !this.#failures.has(form as SessionForm));
    this.#lastRun = this.#times.correct(shape, Object.fromEntries(possible), this.#form);
    return this.#lastRun;
  }

  #sizesOf(shape: string, feeds: Tensors): readonly AttentionSizes[] | undefined {
    if (!this.#sizes.has(shape)) {
      this.#sizes.set(shape, resolveSizes(this.#groups, this.#parts.inputShapes, feeds));
      if (this.#sizes.size > REMEMBERED_SHAPES) this.#sizes.delete(this.#sizes.keys().next().value!);
    }
    return this.#sizes.get(shape);
  }

  #isWorthMeasuring(): boolean {
    const { isSoftware } = this.#parts.engine.flash.facts;
    return this.#measure !== undefined && this.#spent >= MEASURE_AFTER[isSoftware ? 'software' : 'gpu'];
  }

  async #measureCosts(): Promise<void> {
    // Runs under way would be measured with it.
    await Promise.allSettled(this.#underWay);
    const measure = this.#measure!;
    this.#measure = undefined;
    const costs = await measure().catch(() => ({}) as FormCosts);
    if (costs.kernels !== undefined) this.#costs = costs;
  }

  /**
   * Opens another form in place of the one in use, or that one again where the other cannot be had.
   * @param isNeeded the run at hand can be carried out in no form but this
   */
  async #open(form: SessionForm, isNeeded: boolean): Promise<void> {
    const start = performance.now();
    const before = this.#form;
    try {
      const open = await this.#parts.prepare(form);
      await this.#close();
      this.#handler = await open();
    } catch (error) {
      this.#ledger.take(before);
      if (form !== 'kernels') this.#failures.set(form, `${form} could not be opened: ${ortError(error).message}`);
      this.#handler ??= await (await this.#parts.prepare(before))();
      if (isNeeded) throw error;
      return;
    }
    if (form !== before) this.#switches++;
    this.#form = form;
    this.#price = performance.now() - start;
  }

  async #close(): Promise<void> {
    const handler = this.#handler;
    this.#handler = undefined;
    await handler?.dispose();
  }

  /** Takes a run's time: from its start, or the end of the one before, until the GPU is done with it. */
  #watch(start: number, shape: string, form: SessionForm, results: Tensors): void {
    const isTimed = this.#times.wants(shape, form, start);
    const end = () => {
      const now = performance.now();
      const milliseconds = now - Math.max(start, this.#lastEnd);
      this.#lastEnd = now;
      if (isTimed) this.#times.record(shape, form, milliseconds, now);
      if (++this.#runs > FIRST_RUNS) this.#spent += isTimed ? milliseconds : (this.#times.of(shape, form) ?? 0);
    };
    const isOnGpu = Object.values(results).every(({ location }) => location === 'gpu-buffer');
    // Only while times are wanted: nothing is to be asked of the GPU for each run.
    if (isOnGpu && isTimed) this.#parts.engine.device.queue.onSubmittedWorkDone().then(end, () => undefined);
    else end();
  }
}

function shapeKey(feeds: Tensors): string {
  return Object.entries(feeds)
    .map(([name, { dims }]) => `${name} ${dims.join('×')}`)
    .join(', ');
}

/** Whether a run writes outputs to buffers that it reads: ONNX Runtime's operators may read what is written already. */
function sharesBuffers(feeds: Tensors, fetches: Readonly<Record<string, Tensor | null>>, pool: BufferPool): boolean {
  const targets = Object.values(fetches).filter((target) => target?.location === 'gpu-buffer') as Tensor[];
  if (targets.length === 0) return false;
  const written = new Set<unknown>(targets.map(({ gpuBuffer }) => gpuBuffer));
  // Asked for its buffer, the view of a cache is copied; nobody else has the buffer that it is in.
  const read = Object.values(feeds).filter((tensor) => tensor.location === 'gpu-buffer' && !cacheOf(tensor, pool));
  return read.some(({ gpuBuffer }) => written.has(gpuBuffer));
}
