import type { Node } from '../graph/graph.js';
import { dataTypeInfo, dataTypeName } from '../onnx/data-type.js';
import type { FlashAttentionAttributes } from '../op/definition.js';
import { type Axis, parseLayout } from '../op/layout.js';
import type { MaskReport, SiteReport, Size } from '../report.js';
import type { Expression } from '../shape/expression.js';
import type { Inference } from '../shape/inference.js';
import type { EmittedMask } from './emit.js';
import type { OperatorSite } from './operator.js';
import type { Site } from './site.js';

/** The part of a site's report that its place does not give. */
export type SiteDescription = Omit<SiteReport, 'index' | 'node' | 'output' | 'fused' | 'refusal'>;

/** A size for people. */
export function toSize(expression: Expression): Size {
  return expression.value ?? expression.key;
}

/** What a report says of a fused site beyond its place. */
export function describeSite(
  site: Site,
  attributes: FlashAttentionAttributes,
  mask: EmittedMask | undefined,
): SiteDescription {
  const { sizes } = site;
  const heads = sizes.H.value;
  return {
    form: site.form,
    batch: toSize(sizes.B),
    queryHeads: toSize(sizes.H),
    keyHeads: toSize(site.keyHeads),
    queries: toSize(sizes.Q),
    keys: toSize(sizes.K),
    headDimension: toSize(site.headDimension),
    valueDimension: toSize(site.valueDimension),
    elementType: dataTypeName(site.type),
    attributes,
    mask: describeMask(mask, attributes),
    ...(heads === undefined ? {} : { scoreBytesPerPair: heads * bytesOf(site.type) }),
  };
}

/** An operator's name with its domain, where that is not the standard's. */
export function operatorName(node: Node): string {
  return node.domain === '' ? node.opType : `${node.domain}.${node.opType}`;
}

/** What a report says of an attention operator that was replaced. */
export function describeOperator(
  site: OperatorSite,
  attributes: FlashAttentionAttributes,
  mask: EmittedMask | undefined,
  inference: Inference,
): SiteDescription {
  const query = site.node.graph.value(site.query.name);
  const shape = query && inference.of(query).shape;
  const layout = parseLayout(site.query.layout);
  const alone = (axis: Axis) =>
    layout.findIndex(({ factors, slice }) => !slice && factors.length === 1 && factors[0] === axis);
  const size = (expression: Expression | undefined) => (expression ? toSize(expression) : undefined);
  const heads = site.queryHeads?.value;
  const known = {
    batch: size(shape?.[alone('B')]),
    queries: size(shape?.[alone('S')]),
    queryHeads: size(site.queryHeads),
    keyHeads: size(site.keyHeads),
    headDimension: size(site.headDimension),
    valueDimension: size(site.valueDimension),
    ...(heads === undefined ? {} : { scoreBytesPerPair: heads * bytesOf(site.type) }),
  };
  return {
    form: operatorName(site.node),
    elementType: dataTypeName(site.type),
    attributes,
    mask: describeMask(mask, attributes),
    ...Object.fromEntries(Object.entries(known).filter(([, value]) => value !== undefined)),
  };
}

function describeMask(mask: EmittedMask | undefined, attributes: FlashAttentionAttributes): MaskReport {
  return {
    kind: mask?.kind ?? 'none',
    ...(mask ? { shape: mask.shape.map(toSize) } : {}),
    causal: attributes.isCausal,
    leftWindow: attributes.leftWindow,
    rightWindow: attributes.rightWindow,
  };
}

function bytesOf(type: number): number {
  return (dataTypeInfo(type)?.bits ?? 0) / 8;
}
