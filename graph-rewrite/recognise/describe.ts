import { dataTypeInfo, dataTypeName } from '../onnx/data-type.js';
import type { FlashAttentionAttributes } from '../op/definition.js';
import type { SiteReport, Size } from '../report.js';
import type { Expression } from '../shape/expression.js';
import type { EmittedMask } from './emit.js';
import type { Site } from './site.js';

/** A size for people. */
export function toSize(expression: Expression): Size {
  return expression.value ?? expression.key;
}

/** What a report says of a fused site beyond its place. */
export function describeSite(
  site: Site,
  attributes: FlashAttentionAttributes,
  mask: EmittedMask | undefined,
): Omit<SiteReport, 'index' | 'node' | 'output' | 'fused' | 'refusal'> {
  const { sizes } = site;
  const heads = sizes.H.value;
  const bytes = (dataTypeInfo(site.type)?.bits ?? 0) / 8;
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
    mask: {
      kind: mask?.kind ?? 'none',
      ...(mask ? { shape: mask.shape.map(toSize) } : {}),
      causal: attributes.isCausal,
      leftWindow: attributes.leftWindow,
      rightWindow: attributes.rightWindow,
    },
    ...(heads === undefined ? {} : { scoreBytesPerPair: heads * bytes }),
  };
}
