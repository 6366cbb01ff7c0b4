import { applyOperator, applySite } from './apply.js';
import { FunctionTable } from './functions.js';
import { Model } from './graph/graph.js';
import { type LoweringTarget, lowerModel } from './lower.js';
import { measureMovement } from './movement.js';
import type { ModelProto } from './onnx/proto.js';
import { validateModel } from './onnx/validate.js';
import { FLASH_ATTENTION_DOMAIN } from './op/definition.js';
import { describeOperator, describeSite, operatorName } from './recognise/describe.js';
import { readOperator } from './recognise/operator.js';
import { examine, type Place, places } from './recognise/recognise.js';
import { RefusalSignal } from './recognise/refusal.js';
import type { MovementReport, RewriteReport, SiteReport } from './report.js';
import { Inference } from './shape/inference.js';

export interface RewriteOptions {
  /**
   * What attention becomes: `FlashAttention` with a function body (the default), ONNX Runtime's own fused operators, or
   * the standard's `Attention`. A site that the target cannot express stays `FlashAttention`.
   */
  readonly target?: 'flash' | LoweringTarget;
  /** Told after each site that was looked at. */
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * Replaces every attention of a model by one `FlashAttention` node, with a function body for runtimes that lack the
 * operator. The model is edited in place; where nothing is found it is left exactly as it was. Doing it twice changes
 * nothing more.
 * @throws OrtFlashError `malformed-model` where the graph breaks a rule of the standard.
 */
export function rewriteModel(proto: ModelProto, options: RewriteOptions = {}): RewriteReport {
  validateModel(proto);
  const model = new Model(proto);
  const inference = new Inference(model);
  const before = takeStock(model, inference);
  const functions = new FunctionTable();
  const found = [...model.graphs()].flatMap((graph) => [...places(graph, inference)]);
  const sites: SiteReport[] = [];
  for (const place of found) {
    sites.push(rewriteSite(place, sites.length, functions, inference));
    options.onProgress?.(sites.length, found.length);
  }
  sites.push(...sitesInFunctions(proto, sites.length));
  if (sites.some((site) => site.fused)) {
    model.graph.commit();
    functions.install(proto);
  }
  const { target = 'flash' } = options;
  if (target === 'flash') return summarise(sites, before, takeStock(model, inference));
  const lowered = lowerModel(proto, target);
  const after = new Model(proto);
  return { ...summarise(sites, before, takeStock(after, new Inference(after))), lowered };
}

function rewriteSite(place: Place, index: number, functions: FunctionTable, inference: Inference): SiteReport {
  const anchor = 'softmax' in place ? place.softmax.anchor : place.operator;
  const at = { index, node: anchor.label, output: anchor.outputs[0]?.name ?? '' };
  try {
    if ('operator' in place) {
      const site = readOperator(place.operator, inference);
      const { attributes, mask, node } = applyOperator(site, functions, inference);
      return {
        ...at,
        output: node.proto.output[0]!,
        fused: true,
        ...describeOperator(site, attributes, mask, inference),
      };
    }
    const site = examine(place.softmax, inference);
    const { attributes, mask, node } = applySite(site, functions, inference);
    return { ...at, output: node.proto.output[0]!, fused: true, ...describeSite(site, attributes, mask) };
  } catch (signal) {
    if (!(signal instanceof RefusalSignal)) throw signal;
    return { ...at, fused: false, form: formOf(place), refusal: signal.refusal };
  }
}

/** Attention inside model-local functions of others stays: one body may be called with different shapes. */
function sitesInFunctions(proto: ModelProto, first: number): SiteReport[] {
  const found = proto.functions
    .filter((f) => f.domain !== FLASH_ATTENTION_DOMAIN)
    .flatMap((f) => f.node.filter((n) => n.op_type === 'Softmax' && !n.domain).map((node) => ({ f, node })));
  return found.map(({ f, node }, i) => ({
    index: first + i,
    node: node.name || `Softmax → ${node.output[0] ?? '?'}`,
    output: node.output[0] ?? '',
    fused: false,
    form: 'Softmax',
    refusal: {
      reason: `it stands in the model-local function ${f.domain}.${f.name}: inline the model's functions first`,
      value: node.output[0] ?? '',
    },
  }));
}

function formOf(place: Place): string {
  return 'softmax' in place ? place.softmax.nodes.map((n) => n.opType).join(' ') : operatorName(place.operator);
}

/** What a model consists of, for comparison. */
interface Stock {
  readonly operators: ReadonlyMap<string, number>;
  readonly movement: MovementReport;
}

function takeStock(model: Model, inference: Inference): Stock {
  const operators = new Map<string, number>();
  for (const graph of model.graphs()) {
    for (const node of graph.nodes) operators.set(operatorName(node), (operators.get(operatorName(node)) ?? 0) + 1);
  }
  return { operators, movement: measureMovement(model, inference) };
}

function summarise(sites: readonly SiteReport[], before: Stock, after: Stock): RewriteReport {
  const sum = ({ operators }: Stock) => [...operators.values()].reduce((a, b) => a + b, 0);
  const operators: Record<string, readonly [number, number]> = {};
  for (const name of [...new Set([...before.operators.keys(), ...after.operators.keys()])].sort()) {
    const change = [before.operators.get(name) ?? 0, after.operators.get(name) ?? 0] as const;
    if (change[0] !== change[1]) operators[name] = change;
  }
  const movement = [before.movement, after.movement] as const;
  return { sites, nodesBefore: sum(before), nodesAfter: sum(after), movement, operators };
}
