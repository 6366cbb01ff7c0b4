import type { PlacedBox, PlacedDiagram } from './layout.js';

/** One row of the picture: a site before and after, with a heading. */
export interface Panel {
  readonly heading: string;
  readonly detail: string;
  readonly before: PlacedDiagram;
  readonly after: PlacedDiagram | undefined;
  /** Written in place of the second diagram. */
  readonly refusal?: string;
}

const MARGIN = 24;
const COLUMN_GAP = 64;
const HEADING = 64;
const PANEL_GAP = 40;

const STYLE = `
  svg { background: #ffffff; font: 13px ui-sans-serif, system-ui, sans-serif; }
  .heading { font-weight: 600; font-size: 15px; fill: #1b1f24; }
  .note { fill: #57606a; font-size: 12px; }
  .box rect { fill: #f6f8fa; stroke: #afb8c1; }
  .input rect, .output rect { fill: none; stroke: #afb8c1; stroke-dasharray: 4 3; }
  .attention rect { fill: #ddf4e4; stroke: #2da44e; stroke-width: 1.5; }
  .box text { fill: #1b1f24; text-anchor: middle; }
  .box .small { fill: #57606a; font-size: 11px; }
  .edge { fill: none; stroke: #8c959f; }
  .arrow { fill: #8c959f; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; }
    .heading, .box text { fill: #e6edf3; }
    .note, .box .small { fill: #9198a1; }
    .box rect { fill: #161b22; stroke: #3d444d; }
    .input rect, .output rect { fill: none; }
    .attention rect { fill: #12261e; stroke: #3fb950; }
  }`;

/** A self-contained SVG of all panels, one under the other. */
export function renderPanels(title: string, panels: readonly Panel[]): string {
  const columnWidth = (pick: (panel: Panel) => PlacedDiagram | undefined) =>
    Math.max(160, ...panels.map((panel) => pick(panel)?.width ?? 0));
  const left = columnWidth((panel) => panel.before);
  const right = columnWidth((panel) => panel.after);
  const width = 2 * MARGIN + left + COLUMN_GAP + right;
  const parts: string[] = [];
  let y = MARGIN;
  for (const panel of panels) {
    parts.push(
      text(MARGIN, y + 14, 'heading', panel.heading),
      text(MARGIN, y + 32, 'note', panel.detail),
      text(MARGIN, y + 52, 'note', 'before'),
      text(MARGIN + left + COLUMN_GAP, y + 52, 'note', panel.refusal ? `not fused: ${panel.refusal}` : 'after'),
      group(MARGIN + (left - panel.before.width) / 2, y + HEADING, panel.before),
    );
    const after = panel.after;
    if (after) parts.push(group(MARGIN + left + COLUMN_GAP + (right - after.width) / 2, y + HEADING, after));
    y += HEADING + Math.max(panel.before.height, after?.height ?? 0) + PANEL_GAP;
  }
  const height = y;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${round(width)} ${round(height)}" width="${round(width)}" ` +
      `height="${round(height)}" role="img">`,
    `<title>${escapeXml(title)}</title>`,
    `<style>${STYLE}</style>`,
    arrowHead('tip'),
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}

/**
 * One diagram as an SVG without colours, for a page that styles its classes: `box`, `input`, `operator`, `attention`,
 * `output`, `small`, `edge` and `arrow`.
 * @param id unique in the page
 * @param label what a screen reader says
 */
export function renderDiagram(diagram: PlacedDiagram, id: string, label: string): string {
  const [width, height] = [round(diagram.width + 2), round(diagram.height + 2)];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
      `role="img" aria-label="${escapeXml(label)}">`,
    arrowHead(id),
    group(1, 1, diagram, id),
    '</svg>',
  ].join('\n');
}

function arrowHead(id: string): string {
  return (
    `<defs><marker id="${id}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">` +
    '<path class="arrow" d="M0 0L8 4L0 8z"/></marker></defs>'
  );
}

function group(x: number, y: number, diagram: PlacedDiagram, tip = 'tip'): string {
  const boxes = new Map(diagram.boxes.map((box) => [box.id, box]));
  const edges = diagram.edges.map(({ from, to }) => edgePath(boxes.get(from)!, boxes.get(to)!, tip));
  return [
    `<g transform="translate(${round(x)} ${round(y)})">`,
    ...edges,
    ...diagram.boxes.filter(({ kind }) => kind !== 'bend').map(boxElement),
    '</g>',
  ].join('\n');
}

function edgePath(from: PlacedBox, to: PlacedBox, tip: string): string {
  const [x1, y1] = [from.x + from.width / 2, from.y + from.height];
  const [x2, y2] = [to.x + to.width / 2, to.y - 1];
  const bend = Math.max(10, (y2 - y1) / 2);
  const curve = `M${round(x1)} ${round(y1)}C${round(x1)} ${round(y1 + bend)} ${round(x2)} ${round(y2 - bend)} `;
  if (to.kind !== 'bend') return `<path class="edge" marker-end="url(#${tip})" d="${curve}${round(x2)} ${round(y2)}"/>`;
  return `<path class="edge" d="${curve}${round(x2)} ${round(y2)}V${round(to.y + to.height)}"/>`;
}

function boxElement(box: PlacedBox): string {
  const centre = box.x + box.width / 2;
  const lines = box.detail
    ? [text(centre, box.y + 15, '', box.title), text(centre, box.y + 29, 'small', box.detail)]
    : [text(centre, box.y + 22, '', box.title)];
  const [x, y, width, height] = [box.x, box.y, box.width, box.height].map(round);
  return (
    `<g class="box ${box.kind}"><rect x="${x}" y="${y}" width="${width}" height="${height}" rx="6"/>` +
    `${lines.join('')}</g>`
  );
}

function text(x: number, y: number, style: string, content: string): string {
  const kind = style === '' ? '' : ` class="${style}"`;
  return `<text x="${round(x)}" y="${round(y)}"${kind}>${escapeXml(content)}</text>`;
}

const round = (value: number) => Math.round(value * 10) / 10;

/** Text as XML takes it: markup escaped, control characters left out. */
function escapeXml(content: string): string {
  return content
    .replaceAll(/\p{Cc}/gu, ' ')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
