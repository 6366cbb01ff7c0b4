/** Layered drawing of a directed acyclic graph (Sugiyama, Tagawa and Toda, 1981): layers, order within them, places. */

export interface Box {
  readonly id: string;
  /** First line, and an optional smaller second one. */
  readonly title: string;
  readonly detail?: string;
  /** A `bend` is where an edge passes a layer; it is not drawn. */
  readonly kind: 'input' | 'operator' | 'attention' | 'output' | 'bend';
}

export interface Edge {
  readonly from: string;
  readonly to: string;
}

export interface Diagram {
  readonly boxes: readonly Box[];
  readonly edges: readonly Edge[];
}

export interface PlacedBox extends Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

export interface PlacedDiagram {
  readonly boxes: readonly PlacedBox[];
  readonly edges: readonly Edge[];
  readonly width: number;
  readonly height: number;
}

const CHARACTER_WIDTH = 7;
const BOX_HEIGHT = 36;
const GAP_X = 18;
const GAP_Y = 34;
const SWEEPS = 8;

/** Places boxes so that every edge points down. The edges must form no cycle. */
export function layout(diagram: Diagram): PlacedDiagram {
  const layerOf = assignLayers(diagram.boxes, diagram.edges);
  const { boxes, edges } = bendLongEdges(diagram, layerOf);
  const layers: Box[][] = [];
  for (const box of boxes) {
    const layer = layerOf.get(box.id)!;
    layers[layer] ??= [];
    layers[layer].push(box);
  }
  const filled = layers.filter((layer) => layer !== undefined);
  const ordered = orderLayers(filled, edges);
  const widths = ordered.map((layer) => layer.reduce((sum, box) => sum + widthOf(box) + GAP_X, -GAP_X));
  const width = Math.max(...widths, 0);
  const placed = ordered.flatMap((layer, index) => {
    let x = (width - widths[index]!) / 2;
    return layer.map((box): PlacedBox => {
      const at = { ...box, x, y: index * (BOX_HEIGHT + GAP_Y), width: widthOf(box), height: BOX_HEIGHT };
      x += at.width + GAP_X;
      return at;
    });
  });
  return { boxes: placed, edges, width, height: Math.max(0, ordered.length * (BOX_HEIGHT + GAP_Y) - GAP_Y) };
}

function widthOf({ title, detail, kind }: Box): number {
  if (kind === 'bend') return 8;
  return Math.max(56, 20 + CHARACTER_WIDTH * Math.max(title.length, (detail?.length ?? 0) * 0.85));
}

/** A box is one layer below the lowest box that it reads; inputs move down to just above their first reader. */
function assignLayers(boxes: readonly Box[], edges: readonly Edge[]): Map<string, number> {
  const sources = groupBy(edges, (edge) => edge.to);
  const layers = new Map<string, number>();
  const place = (id: string): number => {
    const known = layers.get(id);
    if (known !== undefined) return known;
    layers.set(id, 0);
    const layer = Math.max(-1, ...(sources.get(id) ?? []).map((edge) => place(edge.from))) + 1;
    layers.set(id, layer);
    return layer;
  };
  for (const box of boxes) place(box.id);
  const readers = groupBy(edges, (edge) => edge.from);
  for (const box of boxes) {
    const below = readers.get(box.id);
    if (box.kind === 'input' && below) layers.set(box.id, Math.min(...below.map((edge) => layers.get(edge.to)!)) - 1);
  }
  const top = Math.min(...layers.values());
  for (const [id, layer] of layers) layers.set(id, layer - top);
  return layers;
}

/** Cuts edges that pass layers into pieces from layer to layer, so that they have a place between the boxes there. */
function bendLongEdges({ boxes, edges }: Diagram, layerOf: Map<string, number>): Diagram {
  const allBoxes = [...boxes];
  const pieces: Edge[] = [];
  for (const [index, { from, to }] of edges.entries()) {
    let last = from;
    for (let layer = layerOf.get(from)! + 1; layer < layerOf.get(to)!; layer++) {
      const id = `bend ${index} ${layer}`;
      layerOf.set(id, layer);
      allBoxes.push({ id, title: '', kind: 'bend' });
      pieces.push({ from: last, to: id });
      last = id;
    }
    pieces.push({ from: last, to });
  }
  return { boxes: allBoxes, edges: pieces };
}

/** Sorts each layer by the mean place of what its boxes read, then of what reads them, a few times over. */
function orderLayers(layers: readonly Box[][], edges: readonly Edge[]): Box[][] {
  const sources = groupBy(edges, (edge) => edge.to);
  const readers = groupBy(edges, (edge) => edge.from);
  const ordered = layers.map((layer) => [...layer]);
  const place = new Map<string, number>();
  const remember = (layer: readonly Box[]) => {
    for (const [index, box] of layer.entries()) place.set(box.id, (index + 0.5) / layer.length);
  };
  ordered.forEach(remember);
  const mean = (ids: readonly string[], own: string) =>
    ids.length === 0 ? place.get(own)! : ids.reduce((sum, id) => sum + place.get(id)!, 0) / ids.length;
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const down = sweep % 2 === 0;
    for (const layer of down ? ordered : [...ordered].reverse()) {
      const neighbours = (box: Box) =>
        down
          ? (sources.get(box.id) ?? []).map((edge) => edge.from)
          : (readers.get(box.id) ?? []).map((edge) => edge.to);
      const keys = new Map(layer.map((box) => [box, mean(neighbours(box), box.id)]));
      layer.sort((a, b) => keys.get(a)! - keys.get(b)!);
      remember(layer);
    }
  }
  return ordered;
}

function groupBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(key(item)) ?? [];
    group.push(item);
    groups.set(key(item), group);
  }
  return groups;
}
