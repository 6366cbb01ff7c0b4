import type { Node, Value } from '../graph/graph.js';
import type { Refusal } from '../report.js';

/** Thrown inside recognition when a site turns out to be no attention, or none that can be proven equal. */
export class RefusalSignal extends Error {
  readonly refusal: Refusal;

  constructor(reason: string, at?: Value | Node) {
    super(reason);
    const value = at === undefined ? undefined : 'uses' in at ? at.name : (at.outputs.find((o) => o)?.name ?? at.label);
    this.refusal = value === undefined ? { reason } : { reason, value };
  }
}

/** Stops recognition of a site, with the reason that its report will carry. */
export function refuse(reason: string, at?: Value | Node): never {
  throw new RefusalSignal(reason, at);
}
