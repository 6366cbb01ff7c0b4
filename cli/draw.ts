import { dataTypeInfo } from '../graph-rewrite/onnx/data-type.js';
import { isExternal } from '../graph-rewrite/onnx/external.js';
import type { GraphProto, ModelProto, NodeProto, TensorProto } from '../graph-rewrite/onnx/proto.js';
import { elementCount, tensorNumbers } from '../graph-rewrite/onnx/tensor.js';
import { FLASH_ATTENTION_INPUTS, FLASH_ATTENTION_OP } from '../graph-rewrite/op/definition.js';
import type { SiteReport } from '../graph-rewrite/report.js';
import { type Box, type Diagram, type Edge, layout } from './draw/layout.js';
import { type Panel, renderPanels } from './draw/svg.js';
import { describeMask, dimensionOf, headsOf } from './sites.js';

/** A subgraph with more nodes than this is cut off: nobody reads a larger picture. */
const MOST_NODES = 60;

/** Draws each site before and after as one SVG; of sites that look alike, only the first. */
export function drawSites(title: string, before: ModelProto, after: ModelProto, sites: readonly SiteReport[]): string {
  return renderPanels(title, sitePanels(before, after, sites));
}

/** Each site before and after; of sites that look alike, only the first. */
export function sitePanels(before: ModelProto, after: ModelProto, sites: readonly SiteReport[]): Panel[] {
  const kept = new Set(after.graph!.node.map(nodeKey));
  const had = new Set(before.graph!.node.map(nodeKey));
  const panels = new Map<string, { panel: Panel; indices: number[] }>();
  for (const site of sites) {
    const removed = (node: NodeProto) => !kept.has(nodeKey(node));
    const was = subgraph(before.graph!, site.output, site.fused ? removed : nearSoftmax(before.graph!, site));
    const is = site.fused ? subgraph(after.graph!, site.output, (node) => !had.has(nodeKey(node))) : undefined;
    const look = JSON.stringify([anonymous(was), is && anonymous(is), site.refusal?.reason]);
    const drawn = panels.get(look);
    if (drawn) drawn.indices.push(site.index);
    else panels.set(look, { panel: makePanel(site, was, is), indices: [site.index] });
  }
  return [...panels.values()].map(({ panel, indices }) => ({
    ...panel,
    heading: `${panel.heading}${indices.length > 1 ? ` and ${indices.length - 1} alike` : ''}`,
  }));
}

function makePanel(site: SiteReport, was: Diagram, is: Diagram | undefined): Panel {
  const description = `heads ${headsOf(site)}, head dimension ${dimensionOf(site)}, mask ${describeMask(site.mask)}`;
  return {
    heading: `Site ${site.index}: ${site.node}`,
    detail: site.fused ? description : site.form,
    before: layout(was),
    after: is && layout(is),
    ...(site.refusal ? { refusal: site.refusal.reason } : {}),
  };
}

/** A diagram without its names, to find sites that look alike. */
function anonymous({ boxes, edges }: Diagram): unknown {
  const number = new Map(boxes.map((box, index) => [box.id, index]));
  return [
    boxes.map(({ title, detail, kind }) => (kind === 'operator' || kind === 'attention' ? [title, detail] : kind)),
    edges.map((edge) => [number.get(edge.from), number.get(edge.to)]),
  ];
}

/** A node is the same before and after where operator, inputs and outputs are. */
function nodeKey({ op_type, domain, input, output }: NodeProto): string {
  return JSON.stringify([domain || '', op_type, input, output]);
}

/** Of a site that is not fused: the nodes at most three steps above its output. */
function nearSoftmax(graph: GraphProto, site: SiteReport): (node: NodeProto) => boolean {
  const near = new Set<NodeProto>();
  const producers = producersOf(graph);
  const visit = (value: string, steps: number) => {
    const node = producers.get(value);
    if (!node || steps === 0) return;
    near.add(node);
    for (const input of node.input) visit(input, steps - 1);
  };
  visit(site.output, 3);
  return (node) => near.has(node);
}

function producersOf(graph: GraphProto): Map<string, NodeProto> {
  return new Map(graph.node.flatMap((node) => node.output.map((output) => [output, node] as const)));
}

/** The nodes that compute `output`, upwards as far as `belongs` says, and the values that they read from elsewhere. */
function subgraph(graph: GraphProto, output: string, belongs: (node: NodeProto) => boolean): Diagram {
  const producers = producersOf(graph);
  const constants = constantsOf(graph);
  const boxes = new Map<string, Box>();
  const edges: Edge[] = [];
  const idOf = (node: NodeProto) => `node ${node.output.find((name) => name !== '')}`;
  const visit = (node: NodeProto) => {
    const id = idOf(node);
    if (boxes.has(id)) return;
    boxes.set(id, operatorBox(id, node, constants));
    for (const [index, name] of node.input.entries()) {
      if (name === '' || constants.has(name) || isShapeInput(node, index)) continue;
      const producer = producers.get(name);
      if (producer && belongs(producer) && boxes.size < MOST_NODES) {
        visit(producer);
        edges.push({ from: idOf(producer), to: id });
      } else {
        const source = `value ${name}`;
        if (!boxes.has(source)) boxes.set(source, inputBox(source, name, node, index));
        edges.push({ from: source, to: id });
      }
    }
  };
  const last = producers.get(output);
  if (last) {
    visit(last);
    boxes.set('output', { id: 'output', title: shorten(output), kind: 'output' });
    edges.push({ from: idOf(last), to: 'output' });
  }
  return { boxes: [...boxes.values()], edges };
}

/** Shapes are computed by many small nodes that say nothing about attention: they are left out. */
function isShapeInput({ op_type }: NodeProto, index: number): boolean {
  return index > 0 && (op_type === 'Reshape' || op_type === 'Expand');
}

/** A value from elsewhere; what FlashAttention reads says as what. */
function inputBox(id: string, name: string, reader: NodeProto, index: number): Box {
  const role = reader.op_type === FLASH_ATTENTION_OP ? FLASH_ATTENTION_INPUTS[index] : undefined;
  return { id, title: shorten(name), kind: 'input', ...(role ? { detail: role } : {}) };
}

function constantsOf(graph: GraphProto): Map<string, TensorProto | undefined> {
  const constants = new Map<string, TensorProto | undefined>();
  for (const tensor of graph.initializer) constants.set(tensor.name ?? '', tensor);
  for (const node of graph.node) {
    if (node.op_type !== 'Constant') continue;
    constants.set(node.output[0] ?? '', node.attribute.find(({ name }) => name === 'value')?.t ?? undefined);
  }
  return constants;
}

/** An operator with what it takes as constants: numbers by value, others by shape. */
function operatorBox(id: string, node: NodeProto, constants: ReadonlyMap<string, TensorProto | undefined>): Box {
  const title = node.op_type ?? '';
  const texts = node.input.flatMap((name) => {
    const tensor = constants.get(name);
    return tensor ? [describeConstant(tensor)] : [];
  });
  const permutation = node.attribute.find(({ name }) => name === 'perm')?.ints.join(' ');
  const detail = [...(permutation ? [permutation] : []), ...texts].join(', ');
  const kind = /Attention$/.test(title) ? 'attention' : 'operator';
  return { id, title, kind, ...(detail === '' ? {} : { detail: shorten(detail) }) };
}

function describeConstant(tensor: TensorProto): string {
  const kind = dataTypeInfo(tensor.data_type)?.kind;
  const isNumber = kind === 'float' || kind === 'signed' || kind === 'unsigned' || kind === 'bool';
  if (!isNumber || isExternal(tensor) || elementCount(tensor) > 4) return `[${tensor.dims.join(' × ')}]`;
  return tensorNumbers(tensor)
    .map((value) => (Number.isInteger(value) ? `${value}` : value.toPrecision(4)))
    .join(' ');
}

/** The end of a long name says more than its beginning. */
function shorten(text: string): string {
  return text.length > 28 ? `…${text.slice(-27)}` : text;
}
