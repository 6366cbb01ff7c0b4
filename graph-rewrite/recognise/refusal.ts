import type { Node, Value } from '../graph/graph.js';
import type { Refusal } from '../report.js';

/** Thrown inside recognition when a site turns out to be no attention, or none that can be proven equal. */
export class RefusalSignal extends Error {
  readonly refusal: Refusal;
  /** Whether another product that is added to the same scores may be that of queries and keys. */
  readonly isOfProduct: boolean;

  constructor(reason: string, at?: Value | Node, isOfProduct = false) {
    super(reason);
    this.isOfProduct = isOfProduct;
    const value = at === undefined ? undefined : 'uses' in at ? at.name : (at.outputs.find((o) => o)?.name ?? at.label);
    this.refusal = value === undefined ? { reason } : { reason, value };
  }
}

/** Stops recognition of a site, with the reason that its report will carry. */
export function refuse(reason: string, at?: Value | Node): never {
  throw new RefusalSignal(reason, at);
}

/** As {@link refuse}, where it is the product that does not fit, and not what the scores undergo. */
export function refuseProduct(reason: string, at?: Value | Node): never {
  throw new RefusalSignal(reason, at, true);
}

/** Of two masks with finite fills. */
export const DEPENDS_ON_BOTH =
  'the weights of a row that loses all keys depend on both; it can be fused where the model puts −∞ in place of these scores, or has one mask that takes out both';
