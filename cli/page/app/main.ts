/** The page: takes a model, shows what becomes of it, and runs both forms. */
import { count } from '../../text.js';
import { Asked, Cancelled } from './ask.js';
import { byId, element } from './dom.js';
import type { ListedModel } from './examples.js';
import { describeGpu, findGpu } from './gpu.js';
import type { GivenFile, OpenedModel, RewriteCalls } from './messages.js';
import { memorySection, pictureSection, siteSection, summary } from './results.js';
import { RunPanel } from './runs.js';

const files = byId<HTMLInputElement>('files');
const status = byId('status');
const problem = byId('problem');
const models = byId<HTMLSelectElement>('models');
const results = byId('results');
const gpu = findGpu();
/** The worker that holds the model shown, and the one that reads the next. */
let rewriter: Asked<RewriteCalls> | undefined;
let opening: Asked<RewriteCalls> | undefined;
let runs: RunPanel | undefined;
let address: string | undefined;

/** A length that every bundled model takes: they are small, and some have few positions. */
const LISTED_SIZE = 32;

function say(text: string): void {
  status.textContent = text;
}

/** Says what went wrong, where it can be seen. */
function complain(text: string): void {
  say('');
  problem.textContent = text;
  problem.scrollIntoView({ block: 'nearest' });
}

/** Opens the model among the files, and shows it in place of the one before, which stays where this one is at fault. */
async function open(given: readonly GivenFile[], size?: number): Promise<void> {
  opening?.stop();
  const worker = new Asked<RewriteCalls>('rewrite-worker.js');
  opening = worker;
  problem.textContent = '';
  try {
    const model = await worker.ask('open', { files: given }, (text, done, total) =>
      say(total > 0 ? `${text} (${Math.round((100 * done) / total)} %)` : `${text}…`),
    );
    runs?.stop();
    rewriter?.stop();
    rewriter = worker;
    opening = undefined;
    say(`${model.name}: ${model.fused} of ${count(model.sites, 'attention')} fused.`);
    await show(model, worker, given.find(({ name }) => name === model.name)!.data, size);
  } catch (error) {
    // Another model was opened in the meantime.
    if (error instanceof Cancelled) return;
    worker.stop();
    complain((error as Error).message);
  }
}

async function show(
  model: OpenedModel,
  worker: Asked<RewriteCalls>,
  original: Blob,
  size: number | undefined,
): Promise<void> {
  const known = await gpu;
  const memory = model.memory && memorySection(model.memory, known.largestBuffer);
  const onSize = (value: number) => memory?.mark(value);
  runs = new RunPanel({ model, original, gpu: known, rewriter: worker, size, onSize });
  if (address !== undefined) URL.revokeObjectURL(address);
  results.replaceChildren(
    ...[
      element('div', { class: 'summary' }, ...summary(model)),
      siteSection(model),
      pictureSection(model),
      memory?.section,
      model.fused > 0 ? runs.section : undefined,
    ].filter((part) => part !== undefined),
  );
  address = results.querySelector<HTMLAnchorElement>('#download')?.href;
  results.hidden = false;
  document.title = `${model.name} · ort-flash`;
  byId('results-title').focus({ preventScroll: true });
  // A frame later, so that what is below the fold is laid out before it comes into view.
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  results.scrollIntoView({ behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'instant' : 'smooth' });
}

async function openExample(name: string, size?: number): Promise<void> {
  problem.textContent = '';
  say(`Fetching ${name} from this page’s own server…`);
  try {
    const response = await fetch(`models/${name}.onnx`);
    if (!response.ok) throw new Error(`it answers ${response.status}`);
    await open([{ name: `${name}.onnx`, data: await response.blob() }], size);
  } catch (error) {
    complain(`The page’s server gives no ${name} (${(error as Error).message}): is "npm run demo" still running?`);
  }
}

function listenForExamples(): void {
  for (const card of document.querySelectorAll<HTMLElement>('.card')) {
    const { model = '', size } = card.dataset;
    card.addEventListener('click', () => {
      models.value = '';
      void openExample(model, Number(size));
    });
  }
}

async function listModels(): Promise<void> {
  const listed = (await (await fetch('models.json')).json()) as ListedModel[];
  const option = ({ name, architecture, exporter, opset }: ListedModel) =>
    element('option', { value: name }, `${architecture.replaceAll('_', ' ')}, ${exporter}, opset ${opset}`);
  const group = (label: string, models: readonly ListedModel[]) =>
    element('optgroup', { label }, ...models.map(option));
  models.replaceChildren(
    element('option', { value: '' }, `Choose one of ${listed.length}`),
    group(
      'With attention',
      listed.filter(({ sites }) => sites > 0),
    ),
    group(
      'Only looks like attention: left alone',
      listed.filter(({ sites }) => sites === 0),
    ),
  );
  models.disabled = false;
  models.addEventListener('change', () => {
    if (models.value !== '') void openExample(models.value, LISTED_SIZE);
  });
}

function takeFiles(list: FileList | null | undefined): void {
  const given = [...(list ?? [])].map((file) => ({ name: file.name, data: file }));
  if (given.length === 0) return;
  models.value = '';
  void open(given);
}

/** Files may be dropped anywhere: a near miss would otherwise leave the page. */
function listenForDrops(): void {
  let depth = 0;
  const mark = (change: number) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle('dropping', depth > 0);
  };
  addEventListener('dragenter', () => mark(1));
  addEventListener('dragleave', () => mark(-1));
  addEventListener('dragover', (event) => event.preventDefault());
  addEventListener('drop', (event) => {
    event.preventDefault();
    mark(-depth);
    takeFiles(event.dataTransfer?.files);
  });
}

files.addEventListener('change', () => {
  takeFiles(files.files);
  // Choosing the same file again is a change too.
  files.value = '';
});
listenForDrops();
listenForExamples();
listModels().catch(() => say('The list of bundled models did not come: is "npm run demo" still running?'));
gpu.then((found) => {
  byId('gpu').textContent = describeGpu(found);
});
