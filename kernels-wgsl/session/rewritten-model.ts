/** What the rewriter makes of a model; loaded only when a model needs it, as it is larger than all else. */
import { expandScores } from '../../graph-rewrite/expand-scores.js';
import { encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { DataType, type ModelProto } from '../../graph-rewrite/onnx/proto.js';
import type { ScoresSite } from '../../graph-rewrite/op/standard-attention.js';
import type { LoweredSite, SiteReport } from '../../graph-rewrite/report.js';
import { rewriteModel } from '../../graph-rewrite/rewrite.js';

/** What a model is read for: ONNX Runtime's fused operators on the CPU, or the kernels, on a device with 16-bit floats or not. */
export type Purpose = 'fused' | { readonly halfFloats: boolean };

export interface Rewritten {
  readonly sites: readonly SiteReport[];
  /** Every attention, where it is for fused operators. */
  readonly lowered: readonly LoweredSite[];
  /** How many attentions became plain operators, as their scores are outputs; see {@link expandScores}. */
  readonly expanded: number;
  /** The model with no other change than that, where there were any. */
  readonly bytes?: Uint8Array;
}

/**
 * Rewrites a model in place.
 * @param again gives the model as it was
 */
export function rewriteFor(purpose: Purpose, model: ModelProto, again: () => ModelProto): Rewritten {
  const { sites, lowered = [] } = rewriteModel(model, purpose === 'fused' ? { target: 'ort' } : {});
  if (purpose === 'fused') return { sites, lowered, expanded: 0 };
  const hasType = (type: number) => type === DataType.FLOAT || (type === DataType.FLOAT16 && purpose.halfFloats);
  // WebGPU has no other float types: the softmax is then in float32, as it always is in the kernels.
  const inDeviceTypes = (site: ScoresSite): ScoresSite | undefined => {
    if (!hasType(site.elementType)) return undefined;
    return { ...site, softmaxType: hasType(site.softmaxType) ? site.softmaxType : DataType.FLOAT };
  };
  const expand = (proto: ModelProto) => expandScores(proto, inDeviceTypes);
  const expanded = expand(model);
  if (expanded === 0) return { sites, lowered, expanded };
  const plain = again();
  expand(plain);
  return { sites, lowered, expanded, bytes: encodeModel(plain) };
}
