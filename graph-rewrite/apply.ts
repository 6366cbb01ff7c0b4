import type { FunctionTable } from './functions.js';
import { NodeList } from './graph/builder.js';
import type { Graph, Node, Value } from './graph/graph.js';
import { type DataTypeName, dataTypeName } from './onnx/data-type.js';
import { DataType, type NodeProto } from './onnx/proto.js';
import type { FunctionVariant } from './op/body.js';
import { DEFAULT_ATTRIBUTES, type FlashAttentionAttributes } from './op/definition.js';
import { formatLayout, isMerged, parseLayout } from './op/layout.js';
import { type FlashAttentionNode, flashAttentionNode, readAttributes } from './op/node.js';
import type { FusedSite } from './op/site.js';
import type { BatchExpansion } from './recognise/broadcast.js';
import { readCache } from './recognise/cache.js';
import { type EmissionPlace, type EmittedMask, emitMask, emitReshape, reshapeTo } from './recognise/emit.js';
import type { PlacedFactor } from './recognise/factors.js';
import { hasBand } from './recognise/mask/bands.js';
import { understandOperatorMask } from './recognise/mask/operator.js';
import type { UnderstoodMasks } from './recognise/mask/understand.js';
import type { SinkPlacement } from './recognise/masks.js';
import type { OperatorSite } from './recognise/operator.js';
import type { Connection } from './recognise/plan.js';
import { refuse } from './recognise/refusal.js';
import type { Site } from './recognise/site.js';
import { Expression } from './shape/expression.js';
import type { Inference } from './shape/inference.js';

/** A site after it was replaced. */
export interface AppliedSite {
  readonly node: Node;
  readonly attributes: FlashAttentionAttributes;
  readonly mask: EmittedMask | undefined;
}

/**
 * Puts one `FlashAttention` node in a site's place, with the function body that the node falls back on.
 * Throws a refusal, and changes nothing that runs, where the operator cannot say what the site computes.
 */
export function applySite(site: Site, functions: FunctionTable, inference: Inference): AppliedSite {
  const anchor = site.output.value.producer!;
  const { graph } = anchor;
  const type = dataTypeName(site.type) as DataTypeName;
  const list = new NodeList(graph, site.output.value.name);
  const mask = emitMask(site.masks, type, { list, anchor, inference });
  const place = { list, anchor, inference };
  const read = (connection: Connection) => emitOperand(connection, place);
  const widened = (name: string, from: number) =>
    from === site.type ? name : list.add('Cast', [name], { to: site.type });
  const multiplied = (name: string, factors: readonly PlacedFactor[]) =>
    factors.reduce((product, { value, divide, reshape }) => {
      const factor = reshape ? emitReshape(value, reshape, place) : value.name;
      return list.add(divide ? 'Div' : 'Mul', [product, factor]);
    }, name);
  const query = widened(site.expansion ? expandQuery(site, site.expansion, list) : read(site.query), site.inputType);
  // Attributes are float32.
  const isRounded = type === 'float64' && Math.fround(site.scale) !== site.scale;
  const scaled = isRounded ? list.add('Mul', [query, list.scalar(site.scale, type)]) : query;
  const Q = multiplied(scaled, site.factors.query);
  const K = multiplied(widened(read(site.key), site.inputType), site.factors.key);
  const sink = site.sink && emitSink(site.sink, type, list);
  const isWidened = site.valueType !== site.type;
  const values = widened(multiplied(read(site.value), site.factors.value), site.valueType);
  const V = site.valueFactor === 1 ? values : list.add('Mul', [values, list.scalar(site.valueFactor, type)]);
  const after = new NodeList(graph, site.output.value.name);
  const isFinal = !isWidened && !site.output.merged;
  const Y = isFinal ? site.output.value.name : graph.model.freshName(`${site.output.value.name}/attention`);
  const narrowed = isWidened ? after.add('Cast', [Y], { to: site.valueType }) : Y;
  if (site.output.merged) splitOutput(narrowed, site, { list: after, anchor, inference });
  const attributes = { ...siteAttributes(site, mask), ...(isRounded ? { scale: 1 } : {}) };
  const variant: FunctionVariant = {
    attributes,
    elementType: site.type,
    opset: graph.model.opset(),
    ...(mask ? { mask: maskVariant(mask) } : {}),
    ...(sink === undefined ? {} : { hasSink: true }),
    known: knownSizes({ ...site, queryHeads: site.sizes.H }),
  };
  const call: FlashAttentionNode = {
    attributes,
    inputs: {
      Q,
      K,
      V,
      ...(mask ? { attn_mask: mask.name } : {}),
      ...(sink === undefined ? {} : { sink }),
    },
    outputs: { Y },
    name: Y,
    overload: functions.overload(variant),
  };
  for (const tensor of [...list.initializers, ...after.initializers]) graph.addInitializer(tensor);
  const last = after.nodes.at(-1);
  if (last) last.output = [site.output.value.name];
  const nodes = replaceBy(graph, anchor, [...list.nodes, flashAttentionNode(call), ...after.nodes], site.nodes);
  const node = absorbCache({ node: nodes[list.nodes.length]!, call, variant }, site.sizes, functions, inference);
  return { node, attributes: readAttributes(node.proto), mask };
}

/** A tensor as the layout says that it lies in memory. */
function emitOperand({ value, merged, repeats }: Connection, place: EmissionPlace): string {
  if (merged) return emitReshape(value, merged, place);
  if (repeats === undefined) return value.name;
  const { list, anchor, inference } = place;
  const rank = inference.of(value).shape!.length;
  return list.add('Expand', [list.unsqueeze(value, [0], anchor), list.ints([repeats, ...Array<number>(rank).fill(1)])]);
}

/** Brings the operator's result into the dimensions that the site's had. */
function splitOutput(result: string, { query, key, value, output }: Site, place: EmissionPlace): void {
  const shapeOf = (v: Value) => place.inference.of(v).shape;
  const shape = shapeOf(output.value) ?? refuse('the rank of the output is not known', output.value);
  const others = [query, key, value].map((c) => ({ name: c.value.name, shape: shapeOf(c.value) ?? [] }));
  reshapeTo(result, output.merged!, shape, place, others);
}

/** Queries without a batch, as many times as the keys have samples. */
function expandQuery({ query, key }: Site, { axis, rank, keyAxis }: BatchExpansion, list: NodeList): string {
  const batch = list.add('Gather', [list.add('Shape', [key.value.name]), list.ints([keyAxis])], { axis: 0 });
  const ones = (count: number) => (count > 0 ? [list.ints(Array<number>(count).fill(1))] : []);
  const shape = list.add('Concat', [...ones(axis), batch, ...ones(rank - 1 - axis)], { axis: 0 });
  return list.add('Expand', [query.value.name, shape]);
}

function emitSink({ value, isVector, uniform }: SinkPlacement, type: DataTypeName, list: NodeList): string {
  if (uniform) return list.add('Expand', [list.scalar(uniform.value, type), list.ints([uniform.heads])]);
  return isVector ? value.name : list.add('Reshape', [value.name, list.ints([-1])]);
}

/** The mask spans the keys or is broadcast over them; a finite value in place of scores leaves no row without a key. */
function maskVariant(mask: EmittedMask): NonNullable<FunctionVariant['mask']> {
  const mayEmptyRows = mask.kind === 'additive' || mask.maskedValue === Number.NEGATIVE_INFINITY;
  return { kind: mask.kind, rank: mask.rank, mayBeShorter: false, mayEmptyRows };
}

/** Puts one `FlashAttention` node in the place of another attention operator. */
export function applyOperator(site: OperatorSite, functions: FunctionTable, inference: Inference): AppliedSite {
  const { node, read } = site;
  const { graph } = node;
  const list = new NodeList(graph, site.output.name);
  const sizes = sizesOf(site, inference);
  const understood = understandSite(site, sizes, inference);
  const type = dataTypeName(site.type) as DataTypeName;
  const mask = understood
    ? emitMask(understood, type, { list, anchor: node, inference })
    : operatorMask(site, inference);
  const attributes: FlashAttentionAttributes = understood
    ? {
        ...site.attributes,
        isCausal: understood.causal,
        leftWindow: understood.leftWindow,
        rightWindow: understood.rightWindow,
        alignEnd: understood.alignEnd,
        maskedValue: mask?.maskedValue ?? understood.maskedValue,
      }
    : site.attributes;
  const { attn_mask: _, ...unmasked } = read.inputs;
  const variant: FunctionVariant = {
    attributes,
    elementType: site.type,
    opset: graph.model.opset(),
    ...(mask
      ? { mask: { ...maskVariant(mask), mayBeShorter: read.maskMayBeShorter && !spansKeys(site, mask, inference) } }
      : {}),
    hasPast: read.inputs.past_key !== undefined,
    hasLengths: read.inputs.nonpad_kv_seqlen !== undefined,
    hasSink: read.inputs.sink !== undefined,
    known: knownSizes({
      queryHeads: site.queryHeads,
      keyHeads: site.keyHeads,
      headDimension: site.headDimension,
      valueDimension: site.valueDimension,
    }),
  };
  const call: FlashAttentionNode = {
    attributes,
    inputs: {
      ...unmasked,
      Q: site.query.name,
      K: site.key.name,
      V: site.value.name,
      ...(mask ? { attn_mask: mask.name } : {}),
    },
    outputs: { ...presentOutputs(read), Y: site.output.name },
    name: site.output.name,
    overload: functions.overload(variant),
  };
  // The operator writes straight into what its output became; the moves between go, with what computed their shapes.
  const moves = [...site.output.absorbed].reverse();
  const dead = [site.query, site.key, site.value].flatMap((c) => c.absorbed);
  for (const move of moves) {
    dead.push(...move.inputs.flatMap((v) => v?.producer ?? []));
    graph.remove(move);
  }
  const operator = flashAttentionNode(call);
  for (const tensor of list.initializers) graph.addInitializer(tensor);
  const nodes = replaceBy(graph, node, [...read.nodes, ...list.nodes, operator, ...read.nodesAfter], dead);
  const placed = { node: nodes.find((n) => n.proto === operator)!, call, variant };
  const isWhole = read.inputs.past_key === undefined && read.inputs.nonpad_kv_seqlen === undefined;
  const last = isWhole && sizes ? absorbCache(placed, sizes, functions, inference) : placed.node;
  return { node: last, attributes: readAttributes(last.proto), mask };
}

/** Batch, heads, and how many queries and keys there are, where that is known. */
function sizesOf({ node, read, queryHeads: H }: OperatorSite, inference: Inference): MaskedSizes | undefined {
  const shapeOf = (input: string | undefined) => {
    const known = input === undefined ? undefined : node.graph.value(input);
    return known && inference.of(known).shape;
  };
  const { queryLayout, keyLayout } = read.attributes;
  const query = shapeOf(read.inputs.Q);
  const Q = query?.[queryLayout === 'BHSD' ? 2 : 1];
  const newKeys = shapeOf(read.inputs.K)?.[keyLayout === 'BHSD' ? 2 : 1];
  const pastKeys = read.inputs.past_key === undefined ? Expression.constant(0) : shapeOf(read.inputs.past_key)?.[2];
  const B = query?.[0];
  return B && Q && newKeys && pastKeys && H && { B, H, Q, K: pastKeys.plus(newKeys), newKeys };
}

interface MaskedSizes extends Record<'B' | 'H' | 'Q' | 'K', Expression> {
  /** Keys after the past. */
  readonly newKeys: Expression;
}

/**
 * What the mask of an operator means that takes no key out otherwise. Where past keys come before the new ones, the
 * operator counts from the past's end on.
 */
function understandSite(
  site: OperatorSite,
  sizes: MaskedSizes | undefined,
  inference: Inference,
): UnderstoodMasks | undefined {
  const { node, read, type } = site;
  const { attn_mask: name, past_key: past, nonpad_kv_seqlen: lengths } = read.inputs;
  const { isCausal, leftWindow, rightWindow } = read.attributes;
  const value = name === undefined ? undefined : node.graph.value(name);
  if (!value || !read.mask || isCausal || leftWindow >= 0 || rightWindow >= 0 || lengths !== undefined)
    return undefined;
  if (!sizes) return undefined;
  const mask = { value, kind: read.mask.kind, sizes, mayBeShorter: read.maskMayBeShorter };
  const found = understandOperatorMask(mask, type, inference);
  if (!found || past === undefined || !hasBand(found)) return found;
  if (!found.alignEnd) return undefined;
  return { ...found, alignEnd: !sizes.newKeys.equals(sizes.Q) };
}

function operatorMask({ node, read, attributes }: OperatorSite, inference: Inference): EmittedMask | undefined {
  const name = read.inputs.attn_mask;
  if (name === undefined || !read.mask) return undefined;
  const value = node.graph.value(name);
  const shape = (value && inference.of(value).shape) ?? [];
  return { name, ...read.mask, maskedValue: attributes.maskedValue, period: 0, shape };
}

/** Whether the mask is broadcast over the keys, or as long as they are. */
function spansKeys({ node, read }: OperatorSite, mask: EmittedMask, inference: Inference): boolean {
  const shape = (name: string) => {
    const value = node.graph.value(name);
    return value && inference.of(value).shape;
  };
  const keys = shape(read.inputs.K)?.at(read.attributes.keyLayout === 'BHSD' ? 2 : 1);
  const past = read.inputs.past_key === undefined ? Expression.constant(0) : shape(read.inputs.past_key)?.[2];
  const covered = mask.shape.at(-1);
  if (!covered) return mask.rank === 0;
  return covered.equals(1) || (keys !== undefined && past !== undefined && covered.equals(keys.plus(past)));
}

function presentOutputs({ outputs }: FusedSite): Partial<Record<'present_key' | 'present_value', string>> {
  const { present_key, present_value } = outputs;
  return {
    ...(present_key === undefined ? {} : { present_key }),
    ...(present_value === undefined ? {} : { present_value }),
  };
}

function replaceBy(graph: Graph, anchor: Node, protos: readonly NodeProto[], dead: Iterable<Node>): Node[] {
  // What the old node needed dies with it unless something else reads it.
  const needed = anchor.inputs.flatMap((v) => v?.producer ?? []);
  const nodes = graph.replace(anchor, protos);
  graph.removeDead([...dead, ...needed].filter((n) => n !== anchor));
  return nodes;
}

interface PlacedCall {
  readonly node: Node;
  readonly call: FlashAttentionNode;
  readonly variant: FunctionVariant;
}

/**
 * Turns keys and values that are Concat(past, new) into the operator's past inputs and present outputs, so that the
 * runtime can append to the cache instead of copying it.
 * @returns the node that computes the site now.
 */
function absorbCache(
  { node, call, variant }: PlacedCall,
  sizes: Pick<Site['sizes'], 'Q' | 'K'>,
  functions: FunctionTable,
  inference: Inference,
): Node {
  const { graph } = node;
  const { keyLayout, valueLayout, isCausal, leftWindow, rightWindow, alignEnd } = call.attributes;
  // With past inputs the operator counts positions from the past's end on, which query 0 would not be at.
  if (!alignEnd && (isCausal || leftWindow >= 0 || rightWindow >= 0)) return node;
  const [, keyValue, valueValue] = node.inputs;
  if (keyLayout !== 'BHSD' || valueLayout !== 'BHSD' || !keyValue || !valueValue || keyValue === valueValue)
    return node;
  const key = readCache(keyValue, node, graph, inference);
  const value = readCache(valueValue, node, graph, inference);
  if (!key || !value) return node;
  const merged = [key, value].some((c) => isMerged(c.freshLayout, 'H'));
  const keyHeads = inference.of(keyValue).shape?.[1]?.value;
  if (merged && keyHeads === undefined) return node;
  const past = inference.of(key.past).shape?.[2];
  const attributes: FlashAttentionAttributes = {
    ...call.attributes,
    // As many queries as new keys stand at the end of the keys already.
    alignEnd: alignEnd && past?.plus(sizes.Q).equals(sizes.K) !== true,
    keyHeads: merged ? keyHeads! : call.attributes.keyHeads,
    keyLayout: formatLayout(key.freshLayout),
    valueLayout: formatLayout(value.freshLayout),
  };
  const full: FlashAttentionNode = {
    ...call,
    attributes,
    inputs: {
      ...call.inputs,
      K: key.fresh.name,
      V: value.fresh.name,
      past_key: key.past.name,
      past_value: value.past.name,
    },
    outputs: { ...call.outputs, present_key: key.present.name, present_value: value.present.name },
    overload: functions.overload({ ...variant, attributes, hasPast: true }),
  };
  functions.release(call.overload!);
  const needed = [key, value].flatMap((c) => [...c.absorbed, ...c.node.inputs.flatMap((v) => v?.producer ?? [])]);
  graph.remove(key.node);
  graph.remove(value.node);
  const [replaced] = graph.replace(node, [flashAttentionNode(full)]);
  graph.removeDead(needed);
  return replaced!;
}

function siteAttributes(site: Site, mask: EmittedMask | undefined): FlashAttentionAttributes {
  const layouts = {
    queryLayout: site.query.layout,
    keyLayout: site.key.layout,
    valueLayout: site.value.layout,
    outputLayout: site.output.layout,
  };
  const needs = (...texts: string[]) => texts.some((text) => isMerged(parseLayout(text), 'H'));
  const heads = site.sizes.H.value;
  const keyHeads = site.keyHeads.value;
  const queryMerged = needs(site.query.layout, site.output.layout);
  const keyMerged = needs(site.key.layout, site.value.layout);
  if ((queryMerged && heads === undefined) || (keyMerged && keyHeads === undefined))
    refuse('the number of heads is not a constant', site.output.value);
  return {
    ...DEFAULT_ATTRIBUTES,
    ...layouts,
    scale: site.scale,
    softcap: site.formula.softcap,
    queryHeads: queryMerged ? heads! : 0,
    keyHeads: keyMerged ? keyHeads! : 0,
    isCausal: site.masks.causal,
    leftWindow: site.masks.leftWindow,
    rightWindow: site.masks.rightWindow,
    alignEnd: site.masks.alignEnd,
    maskedValue: mask?.maskedValue ?? site.masks.maskedValue,
    maskPeriod: mask?.period ?? 0,
    softmaxPrecision: softmaxPrecision(site),
  };
}

/**
 * The type in which the softmax is computed at least. Scores of 16 bits keep every digit that they ever had; wider ones
 * that are back in their own type are masked in that type, in which a fill takes in every score.
 */
function softmaxPrecision({ formula: { casts }, type }: Site): number {
  const isHalf = type === DataType.FLOAT16 || type === DataType.BFLOAT16;
  const wide = casts.filter((cast, i) => cast !== type && (isHalf || i === casts.length - 1));
  return wide.reduce((a, b) => Math.max(a, b), 0);
}

type KnownSizes = NonNullable<FunctionVariant['known']>;

/** Those of the sizes that are the same in every run. */
function knownSizes(sizes: Readonly<Record<keyof KnownSizes, Expression | undefined>>): KnownSizes {
  const known = Object.entries(sizes).flatMap(([name, size]) =>
    size?.value === undefined ? [] : [[name, size.value]],
  );
  return Object.fromEntries(known);
}
