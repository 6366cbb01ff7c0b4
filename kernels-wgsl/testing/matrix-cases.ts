import fc from 'fast-check';
import type { MatrixTiles } from '../plan-matrix.js';
import { type CallSpec, callSpecs } from './problems.js';

/** Every form of the subgroup-matrix kernel, apart from the sizes of its tiles. */
export const matrixForms = fc.record({
  longestFirst: fc.boolean(),
}) satisfies fc.Arbitrary<Partial<MatrixTiles>>;

/** What a call has of its own, in place of what `callSpecs` draws. */
type Sizes = Pick<CallSpec, 'queries' | 'newKeys' | 'headDimension' | 'valueDimension'>;

/**
 * Calls of every kind, half of which take keys out by nothing but the range that a row sees, as most models do: that is a
 * path of its own. With a large scale the maximum rises often, and outputs are rescaled.
 */
export function matrixCalls(sizes: fc.Arbitrary<Partial<Sizes>>): fc.Arbitrary<CallSpec> {
  return fc
    .record({ spec: callSpecs, own: sizes, isPlain: fc.boolean(), isSteep: fc.boolean() })
    .map(({ spec, own, isPlain, isSteep }) => ({
      ...spec,
      ...own,
      ...(isPlain && { mask: { type: 'none' as const, broadcast: 0, keys: 0 } }),
      attributes: {
        ...spec.attributes,
        ...(isPlain && { softcap: 0, maskedValue: Number.NEGATIVE_INFINITY, maskPeriod: 0 }),
        ...(isSteep && { scale: 3 }),
      },
    }));
}
