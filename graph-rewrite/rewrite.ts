import { applyOperator, applySite } from './apply.js';
import { FunctionTable } from './functions.js';
import { Model, type Node } from './graph/graph.js';
import { isCandidate } from './inline/calls.js';
import { editWithoutCalls } from './inline/edit.js';
import { Expansion } from './inline/expansion.js';
import { type LoweringOptions, type LoweringTarget, lowerModel } from './lower.js';
import { measureMovement } from './movement.js';
import type { FunctionProto, ModelProto } from './onnx/proto.js';
import { validateModel } from './onnx/validate.js';
import { FLASH_ATTENTION_DOMAIN, FLASH_ATTENTION_OP } from './op/definition.js';
import { describeOperator, describeSite, operatorName } from './recognise/describe.js';
import { readOperator } from './recognise/operator.js';
import { examine, type Place, places } from './recognise/recognise.js';
import { RefusalSignal, refuse } from './recognise/refusal.js';
import { whyUnread } from './recognise/softmax.js';
import type { MovementReport, RewriteReport, SiteReport } from './report.js';
import { Inference } from './shape/inference.js';

/** What attention becomes, and who is told of the progress. */
export interface RewriteOptions extends LoweringOptions {
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
  return editWithoutCalls(proto, (model, expansion) => {
    const { report, changed } = rewriteGraphs(model, expansion ? sitesInFunctions(expansion) : [], options);
    return { result: report, changed };
  });
}

/**
 * The model as {@link rewriteModel} looks at it: bodies of its functions in the place of their calls. The reports of
 * sites name nodes and values of this one; where nothing was expanded it is the model itself.
 */
export function withoutCalls(proto: ModelProto): ModelProto {
  return Expansion.of(proto)?.model ?? proto;
}

/**
 * Rewrites what stands in the graphs themselves.
 * @param others sites that are out of reach
 */
function rewriteGraphs(
  proto: ModelProto,
  others: readonly Omit<SiteReport, 'index'>[],
  options: RewriteOptions,
): { report: RewriteReport; changed: boolean } {
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
  for (const site of others) sites.push({ index: sites.length, ...site });
  const fused = sites.some((site) => site.fused);
  if (fused) {
    model.graph.commit();
    functions.install(proto);
  }
  const { target = 'flash' } = options;
  if (target === 'flash') return { report: summarise(sites, before, takeStock(model, inference)), changed: fused };
  const lowered = lowerModel(proto, target, options);
  const after = new Model(proto);
  const report = { ...summarise(sites, before, takeStock(after, new Inference(after))), lowered };
  return { report, changed: fused || lowered.length > 0 };
}

function rewriteSite(place: Place, index: number, functions: FunctionTable, inference: Inference): SiteReport {
  const anchor = anchorOf(place);
  const at = { index, node: anchor.label, output: anchor.outputs[0]?.name ?? '' };
  try {
    if ('unread' in place) return refuse(whyUnread(place.unread, inference), place.unread);
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

/** Sites in functions whose bodies could not be put in the place of their calls. */
function sitesInFunctions({ refusals, calls }: Expansion): Omit<SiteReport, 'index'>[] {
  const seen = new Set<FunctionProto>();
  return [...refusals].flatMap(([f, reason]) => {
    const inside = seen.has(f) ? [] : [f, ...calls.reachable(f.node, seen.add(f))];
    const where = `it stands in the model-local function ${f.domain}.${f.name}, which cannot be inlined: ${reason}`;
    const nodes = inside.flatMap(({ node }) => node.filter((n) => isCandidate(n) && n.op_type !== 'Exp'));
    return nodes.map((node) => ({
      node: node.name || `${node.op_type} → ${node.output[0] ?? '?'}`,
      output: node.output[0] ?? '',
      fused: false,
      form: node.op_type ?? '',
      refusal: { reason: where, value: node.output[0] ?? '' },
    }));
  });
}

function anchorOf(place: Place): Node {
  if ('softmax' in place) return place.softmax.anchor;
  return 'unread' in place ? place.unread : place.operator;
}

function formOf(place: Place): string {
  return 'softmax' in place ? place.softmax.nodes.map((n) => n.opType).join(' ') : operatorName(anchorOf(place));
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
  const fusedBefore = before.operators.get(`${FLASH_ATTENTION_DOMAIN}.${FLASH_ATTENTION_OP}`) ?? 0;
  return { sites, fusedBefore, nodesBefore: sum(before), nodesAfter: sum(after), movement, operators };
}
