/** What the page shows of an opened model. */
import { describeFusedBefore, SITE_HEAD } from '../../sites.js';
import { count, formatBytes } from '../../text.js';
import { element, scrolling, svgElement, table } from './dom.js';
import type { MemoryCurve, OpenedModel, RefusedSite, SitePicture } from './messages.js';
import { drawPlot, lengthAt } from './plot.js';

/** Name, verdict, what changed, and the rewritten file. */
export function summary(model: OpenedModel): Node[] {
  const { fused, sites, fusedBefore } = model;
  const verdict =
    sites === 0
      ? fusedBefore > 0
        ? 'Rewritten already'
        : 'No attention found'
      : fused === 0
        ? sites === 1
          ? 'The one attention is not fused'
          : `None of ${count(sites, 'attention')} fused`
        : `${fused} of ${count(sites, 'attention')} fused`;
  const facts: [string, string, string][] = [
    ['Operators', model.nodesBefore.toLocaleString('en'), model.nodesAfter.toLocaleString('en')],
    ['Copied without computing, a token', formatBytes(model.movedBefore), formatBytes(model.movedAfter)],
    ['File', formatBytes(model.bytesBefore), formatBytes(model.rewritten.size)],
  ];
  return [
    element('h2', { id: 'results-title', tabindex: -1 }, model.name),
    element('p', { class: fused > 0 && fused === sites ? 'verdict good' : 'verdict' }, verdict),
    ...(fused > 0 ? [factList(facts), download(model)] : [element('p', {}, unchanged(model))]),
  ];
}

function unchanged({ sites, fusedBefore }: OpenedModel): string {
  if (sites === 0 && fusedBefore > 0) return `${describeFusedBefore(fusedBefore)} already: keep your file.`;
  if (sites === 0) return 'Nothing in this model computes attention, so there is nothing to rewrite: keep your file.';
  return 'The reason stands below. The model is left as it is: keep your file.';
}

function factList(facts: readonly (readonly [string, string, string])[]): HTMLElement {
  const rows = facts.map(([name, before, after]) =>
    element(
      'div',
      {},
      element('dt', {}, name),
      element(
        'dd',
        {},
        element('span', { class: 'was' }, before),
        element('span', { class: 'arrow-text', 'aria-label': 'became' }, ' → '),
        element('strong', {}, after),
      ),
    ),
  );
  return element('dl', { class: 'facts' }, ...rows);
}

function download({ name, rewritten, dataFiles }: OpenedModel): HTMLElement {
  const file = `${name.replace(/\.onnx$/i, '')}.flash.onnx`;
  const address = URL.createObjectURL(rewritten);
  const link = element(
    'a',
    { class: 'button', href: address, download: file, id: 'download' },
    `Download the rewritten model (${formatBytes(rewritten.size)})`,
  );
  const names = dataFiles.map(({ location }) => location).join(', ');
  const beside = names === '' ? '' : ` Put it beside its data: ${names} did not change.`;
  const note = 'Every ONNX Runtime loads it; in ort-flash/web and ort-flash/node the kernels run it.';
  return element('div', { class: 'download' }, link, element('p', { class: 'note' }, note + beside));
}

/** The sites that were fused, as a table, and those that were not, each with its reason. */
export function siteSection({ fusedRows, refused }: OpenedModel): HTMLElement | undefined {
  if (fusedRows.length === 0 && refused.length === 0) return undefined;
  const parts: Node[] = [];
  if (fusedRows.length > 0) {
    const code = (cell: string, column: number) => (column === 5 ? element('code', {}, cell) : cell);
    const rows = fusedRows.map((row) => row.map(code));
    parts.push(table('Fused attentions', SITE_HEAD.map(capitalised), rows, { right: [2, 3], oneLine: true }));
  }
  if (refused.length > 0 && fusedRows.length > 0) parts.push(element('h4', {}, 'Left as they are'));
  if (refused.length > 0) parts.push(refusedList(refused));
  return section('sites', 'Attention found', ...parts);
}

function refusedList(refused: readonly RefusedSite[]): HTMLElement {
  const items = refused.map(({ index, node, form, reason }) =>
    element(
      'li',
      {},
      element('p', { class: 'reason' }, `Site ${index}: ${reason}`),
      element('p', { class: 'note' }, element('code', {}, node), `, ${form}`),
    ),
  );
  return element('ul', { class: 'refused' }, ...items);
}

/** Each kind of site before and after; the first one open. */
export function pictureSection({ fused, pictures, picturesLeftOut }: OpenedModel): HTMLElement | undefined {
  if (pictures.length === 0) return undefined;
  const parts: Node[] = pictures.map((picture, i) => {
    const summaryLine = element('summary', {}, element('span', {}, picture.heading));
    const details = element('details', i === 0 ? { open: true } : {}, summaryLine);
    // Drawn when it is opened: a large model has many.
    const fill = () => {
      if (details.childElementCount > 1) return;
      details.append(pictureOf(picture));
      // A picture wider than the screen has its trunk in the middle.
      requestAnimationFrame(() => {
        for (const part of details.querySelectorAll('.scroll'))
          part.scrollLeft = (part.scrollWidth - part.clientWidth) / 2;
      });
    };
    if (i === 0) fill();
    details.addEventListener('toggle', fill);
    return details;
  });
  if (picturesLeftOut > 0) parts.push(element('p', { class: 'note' }, `${picturesLeftOut} more kinds are not drawn.`));
  return section('pictures', fused > 0 ? 'The graph, before and after' : 'The graph around it', ...parts);
}

function pictureOf({ detail, before, after, refusal }: SitePicture): HTMLElement {
  const figure = (name: string, { svg, operators }: { svg: string; operators: number }) =>
    element(
      'figure',
      {},
      element('figcaption', {}, element('strong', {}, name), ` ${count(operators, 'operator')}`),
      scrolling(`${name}, ${count(operators, 'operator')}`, scaled(svgElement(svg))),
    );
  const second = after
    ? figure('After', after)
    : element('figure', {}, element('figcaption', {}, element('strong', {}, 'Not fused'), ` ${refusal ?? ''}`));
  return element(
    'div',
    {},
    element('p', { class: 'note' }, detail),
    element('div', { class: 'pair' }, figure(after ? 'Before' : 'As it is', before), second),
  );
}

/** Large pictures are made smaller, but never so that they cannot be read; the rest scrolls. */
function scaled(svg: SVGElement): SVGElement {
  const [width, height] = ['width', 'height'].map((name) => Number(svg.getAttribute(name))) as [number, number];
  const scale = Math.max(SMALLEST_SCALE, Math.min(1, 680 / height));
  svg.setAttribute('width', String(Math.round(width * scale)));
  svg.setAttribute('height', String(Math.round(height * scale)));
  svg.style.minWidth = `${Math.round(width * SMALLEST_SCALE)}px`;
  return svg;
}

const SMALLEST_SCALE = 0.75;

export interface MemoryView {
  readonly section: HTMLElement;
  /** Marks a length in the plot. */
  mark(length: number): void;
}

/** The plot of the scores' memory, the same as a table, and what it says about this GPU. */
export function memorySection(curve: MemoryCurve, limit: number | undefined): MemoryView {
  const { points, site } = curve;
  const rows = points.map(({ length, scores, tensors }) => [
    length.toLocaleString('en'),
    formatBytes(scores),
    curve.fused ? '0 B' : formatBytes(scores),
    tensors === undefined ? 'not known' : formatBytes(tensors),
  ]);
  const head = ['Tokens', 'Scores, as exported', 'Scores, rewritten', 'Queries, keys, values, results'];
  const numbers = table('Memory of one attention, batch 1', head, rows, { right: [1, 2, 3], rowHeads: true });
  const title = 'Memory of the scores';
  if (points.length === 1) {
    const { length, scores } = points[0]!;
    const text = `The model fixes its length. At ${count(length, 'token')} the scores of attention ${site} take ${formatBytes(scores)} as exported and none once rewritten.`;
    return { section: section('memory', title, element('p', {}, text), numbers), mark: () => undefined };
  }
  const holder = element('div', { class: 'plot-holder' });
  let marked: number | undefined;
  const draw = () => {
    const width = Math.max(280, holder.clientWidth);
    const options = { width, ...(limit === undefined ? {} : { limit }), ...(marked === undefined ? {} : { marked }) };
    holder.replaceChildren(drawPlot(points, options));
  };
  new ResizeObserver(draw).observe(holder);
  const legend = element(
    'ul',
    { class: 'legend' },
    element('li', { class: 'scores' }, 'Scores, as exported'),
    element('li', { class: 'tensors' }, 'Queries, keys, values, results: all that FlashAttention touches'),
  );
  const made = section(
    'memory',
    title,
    element('p', {}, sayMemory(curve, limit)),
    holder,
    legend,
    element('details', {}, element('summary', {}, element('span', {}, 'The numbers as a table')), numbers),
  );
  const mark = (length: number) => {
    marked = length;
    if (holder.isConnected) draw();
  };
  return { section: made, mark };
}

function sayMemory({ points, site, fused }: MemoryCurve, limit: number | undefined): string {
  const at = points.find(({ length }) => length === 8192) ?? points.at(-1)!;
  const first = `At ${at.length.toLocaleString('en')} tokens, batch 1, one copy of the scores of attention ${site} takes ${formatBytes(at.scores)}, and is written and read several times.`;
  const second = fused ? ' Rewritten, there is none.' : ' It is not fused, so this stays.';
  const crossing = limit === undefined ? undefined : lengthAt(points, limit);
  if (crossing === undefined) return first + second;
  const tokens = Math.floor(crossing).toLocaleString('en');
  return `${first}${second} Above ${tokens} tokens one copy is larger than the largest buffer of this GPU.`;
}

/** A part of the results with its heading. */
export function section(id: string, title: string, ...children: readonly Node[]): HTMLElement {
  return element(
    'section',
    { class: 'part', 'aria-labelledby': `${id}-title` },
    element('h3', { id: `${id}-title` }, title),
    ...children,
  );
}

const capitalised = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
