/** Memory of the scores against sequence length, on logarithmic axes. */
import { formatBytes } from '../../text.js';
import type { MemoryPoint } from './messages.js';

const HEIGHT = 320;
const MARGIN = { left: 62, right: 16, top: 18, bottom: 46 };
const SVG = 'http://www.w3.org/2000/svg';

export interface PlotOptions {
  readonly width: number;
  /** Bytes of the GPU's largest buffer, drawn as a line. */
  readonly limit?: number;
  /** Length to mark. */
  readonly marked?: number;
}

type Series = 'scores' | 'tensors';

/** Draws the curve as wide as asked for. The table beside it says the same in words. */
export function drawPlot(points: readonly MemoryPoint[], { width, limit, marked }: PlotOptions): SVGElement {
  const xs = points.map(({ length }) => length);
  const values = points.flatMap(({ scores, tensors }) => [scores, ...(tensors === undefined ? [] : [tensors])]);
  const bottom = 10 ** Math.floor(Math.log10(Math.min(...values)));
  const top = 10 ** Math.ceil(Math.log10(Math.max(...values, (limit ?? 0) * 2)));
  const x = scale(xs[0]!, xs.at(-1)!, MARGIN.left, width - MARGIN.right);
  const y = scale(bottom, top, HEIGHT - MARGIN.bottom, MARGIN.top);
  const svg = shape('svg', { class: 'plot', width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img' });
  svg.setAttribute('aria-label', 'Memory of the scores against sequence length; the table below has the numbers');
  drawAxes(svg, { x, y, xs, bottom, top, width });
  if (limit !== undefined && limit > bottom) drawLimit(svg, limit, y(limit), width);
  if (marked !== undefined && marked >= xs[0]! && marked <= xs.at(-1)!) {
    svg.append(shape('line', { class: 'marked', x1: x(marked), x2: x(marked), y1: MARGIN.top, y2: y(bottom) }));
  }
  const line = (series: Series) =>
    points
      .filter((point) => point[series] !== undefined)
      .map((point, i) => `${i === 0 ? 'M' : 'L'}${x(point.length).toFixed(1)} ${y(point[series]!).toFixed(1)}`)
      .join('');
  svg.append(
    shape('path', { class: 'line tensors', d: line('tensors') }),
    shape('path', { class: 'line scores', d: line('scores') }),
  );
  const crossing = limit === undefined ? undefined : lengthAt(points, limit);
  if (crossing !== undefined) svg.append(shape('circle', { class: 'crossing', cx: x(crossing), cy: y(limit!), r: 5 }));
  return svg;
}

/** The length from which on the scores are larger than `bytes`; nothing where they are not, or from the start. */
export function lengthAt(points: readonly MemoryPoint[], bytes: number): number | undefined {
  for (const [i, b] of points.entries()) {
    const a = points[i - 1];
    if (a === undefined || a.scores > bytes || b.scores <= bytes) continue;
    // The curve is a power of the length, a straight line on these axes.
    const share = Math.log(bytes / a.scores) / Math.log(b.scores / a.scores);
    return a.length * (b.length / a.length) ** share;
  }
  return undefined;
}

function scale(from: number, to: number, start: number, end: number): (value: number) => number {
  const [low, high] = [Math.log(from), Math.log(to)];
  return (value) => start + ((Math.log(value) - low) / (high - low)) * (end - start);
}

interface Axes {
  readonly x: (value: number) => number;
  readonly y: (value: number) => number;
  readonly xs: readonly number[];
  readonly bottom: number;
  readonly top: number;
  readonly width: number;
}

function drawAxes(svg: SVGElement, { x, y, xs, bottom, top, width }: Axes): void {
  for (let value = bottom; value <= top * 1.01; value *= 10) {
    svg.append(shape('line', { class: 'grid', x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }));
    const isLabelled = Math.round(Math.log10(value)) % 3 === 0 || top / bottom < 1e4;
    if (isLabelled) svg.append(label(formatBytes(value).replace('.0 ', ' '), MARGIN.left - 8, y(value) + 4, 'end'));
  }
  const step = width < 520 ? 2 : 1;
  for (const [i, value] of xs.entries()) {
    if (i % step !== 0) continue;
    svg.append(shape('line', { class: 'grid', x1: x(value), x2: x(value), y1: y(bottom), y2: y(bottom) + 5 }));
    svg.append(label(value >= 1024 ? `${value / 1024}k` : `${value}`, x(value), y(bottom) + 20, 'middle'));
  }
  svg.append(label('tokens (k = 1,024)', (MARGIN.left + width - MARGIN.right) / 2, HEIGHT - 6, 'middle'));
}

function drawLimit(svg: SVGElement, limit: number, y: number, width: number): void {
  svg.append(shape('line', { class: 'limit', x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
  const text = label(`largest buffer of this GPU, ${formatBytes(limit)}`, MARGIN.left + 8, y - 6, 'start');
  text.classList.add('limit-text');
  svg.append(text);
}

function label(text: string, x: number, y: number, anchor: 'start' | 'middle' | 'end'): SVGElement {
  const made = shape('text', { x, y, 'text-anchor': anchor });
  made.textContent = text;
  return made;
}

function shape(name: string, attributes: Readonly<Record<string, string | number>>): SVGElement {
  const made = document.createElementNS(SVG, name) as SVGElement;
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, typeof value === 'number' ? String(Math.round(value * 10) / 10) : value);
  }
  return made;
}
