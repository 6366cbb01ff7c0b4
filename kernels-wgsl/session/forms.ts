/**
 * The forms in which a session can carry out a model's attention, and what each costs: plain numbers, so that every
 * choice can be made and tested without a GPU.
 */

/**
 * - `kernels`: the model is cut at its attentions, which run in this package's kernels.
 * - `fused`: the model is whole in ONNX Runtime, with its own MultiHeadAttention or GroupQueryAttention.
 * - `decomposed`: the model is whole in ONNX Runtime, as it was given.
 */
export type SessionForm = 'kernels' | 'fused' | 'decomposed';

export const SESSION_FORMS: readonly SessionForm[] = ['kernels', 'fused', 'decomposed'];

/** What an attention costs in one form on one machine. */
export interface AttentionCost {
  /**
   * Milliseconds of one attention of a few tokens, with the cut of the model around it in the form `kernels`, and three
   * small operators in every form: what it takes to have it done at all.
   */
  readonly leastMilliseconds: number;
  /** Floating-point operations a millisecond where the GPU is what a run waits for. */
  readonly operationsPerMillisecond: number;
  /** Bytes of a cache that are copied in a millisecond, where the form copies past keys and values at each step. */
  readonly cacheBytesPerMillisecond?: number;
}

/** Costs by form; a form that cannot be had is absent. */
export type FormCosts = Readonly<Partial<Record<SessionForm, AttentionCost>>>;

/** What was measured, by machine and kind of attention; plain JSON, to be stored and given as the option `costs`. */
export type AttentionCosts = Readonly<Record<string, FormCosts>>;

/** Milliseconds of a run in each form that can carry it out. */
export type FormMilliseconds = Readonly<Partial<Record<SessionForm, number>>>;

/** Attentions of a run that are alike. */
export interface AttentionSizes {
  /** How many there are. */
  readonly count: number;
  readonly batch: number;
  readonly queryHeads: number;
  readonly keyHeads: number;
  readonly queries: number;
  /** Past ones among them. */
  readonly keys: number;
  /** Past keys that the kernels leave where they are, and that the other forms copy. */
  readonly cachedKeys: number;
  readonly headDimension: number;
  readonly valueDimension: number;
  readonly elementBytes: number;
}

/** Bytes of one score matrix, all heads, that ONNX Runtime may have to hold. */
export function scoreBytes({ batch, queryHeads, queries, keys, elementBytes }: AttentionSizes): number {
  return batch * queryHeads * queries * keys * elementBytes;
}

/** Multiplications and additions of one attention's matrix products; a mask or causality takes none away. */
export function operations(sizes: AttentionSizes): number {
  const { batch, queryHeads, queries, keys, headDimension, valueDimension } = sizes;
  return 2 * batch * queryHeads * queries * keys * (headDimension + valueDimension);
}

/** Bytes of past keys and values that only the kernels do not copy. */
export function cacheBytes(sizes: AttentionSizes): number {
  const { batch, keyHeads, cachedKeys, headDimension, valueDimension, elementBytes } = sizes;
  return batch * keyHeads * cachedKeys * (headDimension + valueDimension) * elementBytes;
}

/**
 * Largest score matrix with which a model is left whole: it takes two or three of them at a time, and long before that
 * the kernels are faster.
 */
const LARGEST_SCORES = 2 ** 28;

/**
 * Milliseconds that a run's attentions take in each form. CPU and GPU work side by side, so each attention takes the
 * longer of the two.
 * @param bindingBytes bytes that one binding of the device can show
 */
export function estimateRun(
  attentions: readonly AttentionSizes[],
  costs: FormCosts,
  bindingBytes: number,
): FormMilliseconds {
  const fits = attentions.every((sizes) => scoreBytes(sizes) <= Math.min(bindingBytes, LARGEST_SCORES));
  const onGpu = (sizes: AttentionSizes, cost: AttentionCost) =>
    operations(sizes) / cost.operationsPerMillisecond +
    (cost.cacheBytesPerMillisecond === undefined ? 0 : cacheBytes(sizes) / cost.cacheBytesPerMillisecond);
  const total = (cost: AttentionCost) =>
    attentions.reduce((sum, sizes) => sum + sizes.count * Math.max(cost.leastMilliseconds, onGpu(sizes, cost)), 0);
  const possible = SESSION_FORMS.filter((form) => costs[form] !== undefined && (fits || form === 'kernels'));
  return Object.fromEntries(possible.map((form) => [form, total(costs[form]!)]));
}

/** The form with the least time. */
export function cheapest(milliseconds: FormMilliseconds): SessionForm {
  const known = SESSION_FORMS.filter((form) => milliseconds[form] !== undefined);
  return known.reduce((best, form) => (milliseconds[form]! < milliseconds[best]! ? form : best), known[0] ?? 'kernels');
}

/** Runs of one shape and form that are timed at a time. The first compiles, and does not count. */
const TIMED_RUNS = 8;
/** Timed runs from which on their median counts. */
const LEAST_TIMED = 3;
/** Milliseconds after which runs are timed anew: JavaScript and WebAssembly are faster once a VM has optimised them. */
const TIMES_LAST = 10_000;
/** Shapes whose times are remembered. */
const REMEMBERED_SHAPES = 64;

/** Times of runs of one shape in one form, the last ones. */
interface Series {
  readonly times: readonly number[];
  /** How many were taken since they last became old, and when the last was. */
  readonly fresh: number;
  readonly end: number;
}

/** Times that runs took, by their inputs' shapes and by form. Moments are milliseconds, as of `performance.now()`. */
export class RunTimes {
  readonly #series = new Map<string, Map<SessionForm, Series>>();

  /** Whether another time is of use. */
  wants(shape: string, form: SessionForm, now: number): boolean {
    const known = this.#series.get(shape)?.get(form);
    return known === undefined || known.fresh < TIMED_RUNS || now - known.end > TIMES_LAST;
  }

  record(shape: string, form: SessionForm, milliseconds: number, now: number): void {
    const forms = this.#series.get(shape) ?? new Map<SessionForm, Series>();
    const { times, fresh, end } = forms.get(form) ?? { times: [], fresh: 0, end: now };
    forms.set(form, {
      times: [...times, milliseconds].slice(-TIMED_RUNS),
      fresh: now - end > TIMES_LAST ? 1 : fresh + 1,
      end: now,
    });
    this.#series.set(shape, forms);
    if (this.#series.size > REMEMBERED_SHAPES) this.#series.delete(this.#series.keys().next().value!);
  }

  /** The median; undefined where too few are known. */
  of(shape: string, form: SessionForm): number | undefined {
    const counted = this.#series.get(shape)?.get(form)?.times.slice(1) ?? [];
    if (counted.length < LEAST_TIMED) return undefined;
    const sorted = [...counted].sort((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)];
  }

  /**
   * Estimates put right by what runs of this shape took: a form's own time where it is known; for the others the time
   * of a known one and the difference that is estimated between them.
   */
  correct(shape: string, estimates: FormMilliseconds, current: SessionForm): FormMilliseconds {
    const forms = SESSION_FORMS.filter((form) => estimates[form] !== undefined);
    const known = forms.filter((form) => this.of(shape, form) !== undefined);
    const anchor = known.includes(current) ? current : known[0];
    if (anchor === undefined) return estimates;
    const rest = this.of(shape, anchor)! - estimates[anchor]!;
    return Object.fromEntries(
      forms.map((form) => [form, this.of(shape, form) ?? Math.max(0, estimates[form]! + rest)]),
    );
  }
}

/**
 * Decides run by run whether to stay in a form or to open another, which costs time: as one who rents skis and buys
 * them once the rent comes to their price. What the form in use has lost against another is summed up, and what it has
 * gained since taken off; when the loss reaches the price of opening the other, that is opened. So nobody loses more
 * than twice what knowing all runs in advance would have cost, as long as the same form stays the better one.
 */
export class FormLedger {
  #form: SessionForm;
  #lost = new Map<SessionForm, number>();

  constructor(form: SessionForm) {
    this.#form = form;
  }

  get form(): SessionForm {
    return this.#form;
  }

  /** Milliseconds lost against a form that is not in use. */
  lost(form: SessionForm): number {
    return this.#lost.get(form) ?? 0;
  }

  /**
   * The form for a run, and for those that follow until it is asked again.
   * @param milliseconds of the run in each form that can carry it out; at least one
   * @param price milliseconds that it takes to open another form
   */
  choose(milliseconds: FormMilliseconds, price: number): SessionForm {
    const current = milliseconds[this.#form];
    if (current === undefined) return this.take(cheapest(milliseconds));
    for (const form of SESSION_FORMS) {
      if (form === this.#form) continue;
      const other = milliseconds[form] ?? Number.POSITIVE_INFINITY;
      this.#lost.set(form, Math.max(0, this.lost(form) + current - other));
    }
    const worst = SESSION_FORMS.reduce((a, b) => (this.lost(b) > this.lost(a) ? b : a));
    return worst !== this.#form && this.lost(worst) > 0 && this.lost(worst) >= price ? this.take(worst) : this.#form;
  }

  /** Takes a form, whatever it costs. */
  take(form: SessionForm): SessionForm {
    if (form !== this.#form) this.#lost.clear();
    this.#form = form;
    return form;
  }
}
