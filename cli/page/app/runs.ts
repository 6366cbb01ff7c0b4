/** Runs both forms of a model, one after the other, and shows what came of it. */
import { formatBytes, formatDifference, formatMilliseconds } from '../../text.js';
import { Asked, Cancelled } from './ask.js';
import { element, table } from './dom.js';
import type { Gpu } from './gpu.js';
import type {
  OpenedModel,
  OpenSize,
  OutputDifference,
  RewriteCalls,
  RunCalls,
  RunResult,
  RunTask,
} from './messages.js';
import { section } from './results.js';

const SIZE_LABEL: Readonly<Record<OpenSize, string>> = {
  tokens: 'Sequence length, tokens',
  pixels: 'Image side, pixels',
  samples: 'Audio length, samples',
  none: '',
};
const FIRST_SIZE: Readonly<Record<OpenSize, number>> = { tokens: 128, pixels: 64, samples: 16000, none: 1 };
const LARGEST_SIZE = 1 << 20;

/** A form's result, or why there is none. */
type Outcome = RunResult | string;

export interface RunOptions {
  readonly model: OpenedModel;
  readonly original: Blob;
  readonly gpu: Gpu;
  readonly rewriter: Asked<RewriteCalls>;
  /** A size to start from. */
  readonly size: number | undefined;
  readonly onSize: (size: number) => void;
}

/** The part of the results with which both forms are run. */
export class RunPanel {
  readonly section: HTMLElement;
  readonly #options: RunOptions;
  readonly #runner = new Asked<RunCalls>('run-worker.js');
  readonly #size = element('input', { id: 'size', type: 'number', min: 1, max: LARGEST_SIZE, step: 1, required: true });
  readonly #start = element('button', { type: 'submit', class: 'button' }, 'Run both');
  readonly #cancel = element('button', { type: 'button', class: 'button quiet' }, 'Cancel');
  readonly #progress = element('progress', { 'aria-label': 'Progress of the runs', max: 2, value: 0 });
  readonly #doing = element('p', { class: 'doing' });
  #clock: ReturnType<typeof setInterval> | undefined;
  readonly #outcome = element('div', { class: 'outcome' });
  /** What a screen reader says once it is over: the table would be too much. */
  readonly #spoken = element('p', { class: 'hidden', role: 'status' });

  constructor(options: RunOptions) {
    this.#options = options;
    const { model, gpu, size } = options;
    const first = (model.size === 'tokens' ? size : undefined) ?? FIRST_SIZE[model.size];
    // A GPU in software takes minutes for what a real one does at once.
    this.#size.value = String(gpu.isSoftware && model.size === 'tokens' ? Math.min(first, 32) : first);
    this.#cancel.hidden = true;
    this.#progress.hidden = true;
    this.#cancel.addEventListener('click', () => this.stop());
    this.#size.addEventListener('input', () => options.onSize(this.#size.valueAsNumber));
    const where = gpu.largestBuffer === undefined ? 'on this CPU' : 'on this GPU';
    const why = this.#whyNot();
    const body = why === undefined ? this.#form() : [element('p', {}, why)];
    this.section = section('run', `Run both forms ${where}`, ...body);
  }

  /** Gives up the runs under way. */
  stop(): void {
    this.#runner.stop();
  }

  #whyNot(): string | undefined {
    const { model } = this.#options;
    if (model.notRunnable !== undefined) return `This page makes no inputs for this model: ${model.notRunnable}.`;
    const missing = model.dataFiles.filter(({ data }) => data === undefined).map(({ location }) => location);
    if (missing.length === 0) return undefined;
    return `To run it, its data is needed: drop ${missing.join(', ')} together with ${model.name}. The rewritten file is complete without.`;
  }

  #form(): Node[] {
    const { model, gpu } = this.#options;
    const form = element('form', { class: 'run' });
    if (model.size !== 'none') {
      form.append(
        element('p', { class: 'field' }, element('label', { for: 'size' }, SIZE_LABEL[model.size]), this.#size),
      );
    }
    form.append(this.#start, this.#cancel);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.#run();
    });
    const how =
      'Random inputs, batch 1. Each form runs in a worker of its own: once to warm up, then up to nine times in 3 s. Memory counts the weights.';
    const device =
      gpu.largestBuffer === undefined
        ? ` ${gpu.name}, so both run on the CPU in WebAssembly, on one thread; FlashAttention becomes ONNX Runtime’s own fused operators there.`
        : gpu.isSoftware
          ? ' This GPU is emulated on the CPU: its times say little about a real one.'
          : '';
    const busy = element('div', { class: 'busy' }, this.#doing, this.#progress);
    return [element('p', { class: 'note' }, how + device), form, busy, this.#spoken, this.#outcome];
  }

  async #run(): Promise<void> {
    const { model, original, gpu, rewriter } = this.#options;
    const device = gpu.largestBuffer === undefined ? 'wasm' : 'webgpu';
    this.#setBusy(true);
    this.#outcome.replaceChildren();
    this.#spoken.textContent = '';
    try {
      this.#tell('Making inputs', 0);
      const inputs = await rewriter.ask('inputs', { size: model.size === 'none' ? 1 : this.#size.valueAsNumber });
      const task = { device, dataFiles: model.dataFiles, inputs: inputs.tensors } as const;
      const before = await this.#runForm({ ...task, form: 'exported', model: original }, 0);
      this.#outcome.append(firstHalf(before));
      const after = await this.#runForm({ ...task, form: 'rewritten', model: model.rewritten }, 1);
      const differences =
        typeof before === 'string' || typeof after === 'string'
          ? undefined
          : await rewriter.ask('compare', { before: before.outputs, after: after.outputs });
      this.#outcome.replaceChildren(...outcomeView(before, after, differences, inputs.sizes, device));
      this.#spoken.textContent = sayOutcome(before, after, differences);
    } catch (error) {
      const text = error instanceof Cancelled ? 'Cancelled.' : (error as Error).message;
      this.#outcome.append(element('p', { class: error instanceof Cancelled ? 'note' : 'problem' }, text));
      this.#spoken.textContent = text;
    } finally {
      this.#setBusy(false);
    }
  }

  /** Runs one form in a worker of its own, so that its memory is nobody else's. */
  async #runForm(task: RunTask, index: number): Promise<Outcome> {
    try {
      return await this.#runner.ask('run', task, (text, done, total) => this.#tell(text, index + done / total));
    } catch (error) {
      if (error instanceof Cancelled) throw error;
      return (error as Error).message;
    } finally {
      this.#runner.stop();
    }
  }

  #tell(text: string, done: number): void {
    const since = performance.now();
    const show = () => {
      const seconds = Math.floor((performance.now() - since) / 1000);
      this.#doing.textContent = seconds > 1 ? `${text}… ${seconds} s` : `${text}…`;
    };
    clearInterval(this.#clock);
    this.#clock = setInterval(show, 1000);
    show();
    this.#progress.value = done;
  }

  #setBusy(busy: boolean): void {
    const hadFocus = document.activeElement === this.#cancel || document.activeElement === this.#start;
    this.#start.hidden = busy;
    this.#cancel.hidden = !busy;
    this.#progress.hidden = !busy;
    this.#size.disabled = busy;
    if (!busy) {
      clearInterval(this.#clock);
      this.#doing.textContent = '';
    }
    // The button that had the focus is gone: the other one stands in its place.
    if (hadFocus) (busy ? this.#cancel : this.#start).focus();
  }
}

function median(times: readonly number[]): number {
  return [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)]!;
}

/** What is known while the rewritten form runs. */
function firstHalf(before: Outcome): HTMLElement {
  if (typeof before === 'string') return element('p', { class: 'problem' }, `As exported, it failed. ${before}`);
  const time = formatMilliseconds(median(before.runs));
  return element('p', { class: 'note' }, `As exported: ${time} a run, ${formatBytes(before.peakBytes)} at most.`);
}

/** `2.3 × less`, or nothing where the two are about the same. */
function ratio(before: number, after: number, less: string, more: string): string {
  const factor = before / after;
  if (!Number.isFinite(factor) || factor <= 0 || (factor < 1.05 && factor > 0.95)) return 'about equal';
  return factor > 1 ? `${factor.toPrecision(2)} × ${less}` : `${(1 / factor).toPrecision(2)} × ${more}`;
}

type Row = [name: string, before: string, after: string, change: string];

function outcomeView(
  before: Outcome,
  after: Outcome,
  differences: readonly OutputDifference[] | undefined,
  sizes: string,
  device: RunTask['device'],
): Node[] {
  if (typeof before === 'string' && typeof after === 'string') {
    const both =
      before === after
        ? [['Neither form runs.', before]]
        : [
            ['As exported:', before],
            ['Rewritten:', after],
          ];
    return both.map(([name, why]) => element('p', { class: 'problem' }, `${name} ${why}`));
  }
  const cell = (outcome: Outcome, pick: (result: RunResult) => string) =>
    typeof outcome === 'string' ? 'failed' : pick(outcome);
  const row = (
    name: string,
    pick: (r: RunResult) => number,
    format: (n: number) => string,
    words: [string, string],
  ) => {
    const change =
      typeof before === 'string' || typeof after === 'string' ? '' : ratio(pick(before), pick(after), ...words);
    return [name, cell(before, (r) => format(pick(r))), cell(after, (r) => format(pick(r))), change] as Row;
  };
  const memory = device === 'webgpu' ? 'Peak GPU memory' : 'Peak memory';
  const rows: Row[] = [
    row('One run, median', (r) => median(r.runs), formatMilliseconds, ['faster', 'slower']),
    row(memory, (r) => r.peakBytes, formatBytes, ['less', 'more']),
    row('Fastest run', (r) => Math.min(...r.runs), formatMilliseconds, ['faster', 'slower']),
    row('First run', (r) => r.first, formatMilliseconds, ['faster', 'slower']),
    row('Opening the model', (r) => r.opened, formatMilliseconds, ['faster', 'slower']),
  ];
  const head = ['', 'Exported', 'Rewritten', 'Change'];
  const parts: Node[] = [
    element('p', { class: 'note' }, `Sizes, by the model’s own names: ${sizes}.`),
    table('Both forms side by side', head, rows, { right: [1, 2, 3], rowHeads: true }),
  ];
  for (const [name, outcome] of [
    ['As exported', before],
    ['Rewritten', after],
  ] as const) {
    if (typeof outcome === 'string') parts.push(element('p', { class: 'problem' }, `${name}, it failed. ${outcome}`));
  }
  if (differences) parts.push(differenceView(differences));
  const how = [before, after].map((outcome) => (typeof outcome === 'string' ? undefined : outcome.explanation));
  const list = ['As exported', 'Rewritten'].flatMap((name, i) =>
    how[i] === undefined ? [] : [element('li', {}, `${name}: ${how[i]}.`)],
  );
  parts.push(
    element(
      'details',
      {},
      element('summary', {}, element('span', {}, 'How each form ran')),
      element('ul', {}, ...list),
    ),
  );
  return parts;
}

function worst(differences: readonly OutputDifference[]): OutputDifference | undefined {
  return [...differences].sort((a, b) => Number(a.holds) - Number(b.holds) || b.relative - a.relative)[0];
}

function sayDifference(differences: readonly OutputDifference[]): string {
  const one = worst(differences);
  if (!one) return 'The model has no outputs.';
  if (one.mismatch !== undefined) return `Not the same results: output “${one.name}” ${one.mismatch}.`;
  if (one.relative === 0) return 'Same results: not a bit differs.';
  const share = `${formatDifference(one.relative)} of the largest value, in output “${one.name}”`;
  const verdict = one.holds ? 'Same results' : 'Not the same results';
  return `${verdict}: largest difference ${share}; ${one.tolerance} is allowed for ${one.type}.`;
}

function differenceView(differences: readonly OutputDifference[]): HTMLElement {
  const holds = differences.every((one) => one.holds);
  return element(
    'p',
    { class: holds ? 'verdict small good' : 'problem', id: 'difference' },
    sayDifference(differences),
  );
}

function sayOutcome(before: Outcome, after: Outcome, differences: readonly OutputDifference[] | undefined): string {
  if (typeof before === 'string' && typeof after === 'string') return `Both forms failed. ${before}`;
  if (typeof before === 'string') return 'The exported form failed, the rewritten one ran.';
  if (typeof after === 'string') return `The rewritten form failed. ${after}`;
  const times = `As exported ${formatMilliseconds(median(before.runs))} a run, rewritten ${formatMilliseconds(median(after.runs))}.`;
  return `${times} ${differences ? sayDifference(differences) : ''}`.trim();
}
