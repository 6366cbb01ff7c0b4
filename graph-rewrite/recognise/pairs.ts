/** Keys and values that fit each other. */
import { Expression } from '../shape/expression.js';
import type { Connection } from './plan.js';

/** A tensor that an operand may be read from, the heads that it has, and the scalar factor that is left out. */
export type Placed = Connection & { readonly heads: Expression; readonly factor: number };

type Laid = Pick<Connection, 'layout'>;

/** Whether the dimension that holds the head dimension holds more, so that its size says nothing of it. */
export function isSliced({ layout }: Laid): boolean {
  return /D[^)]*@/.test(layout);
}

/** Whether the keys say how wide a head of the queries is, or values as wide as these. */
export function isWidthSaid(key: Laid, value: Laid, isAsWide: boolean): boolean {
  return !isSliced(key) || (isAsWide && !isSliced(value));
}

/** The first keys and values with as many heads; what all heads share is repeated where only one of them is shared. */
export function pairOf(keys: readonly Placed[], values: readonly Placed[]): readonly [Placed, Placed] | undefined {
  return pairs(keys, values)[0] ?? pairs(keys, perHead(values, keys))[0] ?? pairs(perHead(keys, values), values)[0];
}

/** Every two of them with as many heads, the first keys first. */
export function pairs<T extends Pick<Placed, 'heads'>>(keys: readonly T[], values: readonly T[]): (readonly [T, T])[] {
  return keys.flatMap((k) => values.filter((v) => v.heads.equals(k.heads)).map((v) => [k, v] as const));
}

/** Tensors that all heads share, once for each head that the others have. */
function perHead(shared: readonly Placed[], others: readonly Placed[]): Placed[] {
  const count = others[0]?.heads.value;
  const isPlain = (p: Placed) => p.heads.equals(1) && !p.merged && !/[H[@]/.test(p.layout);
  if (count === undefined) return [];
  const repeat = (p: Placed) => ({ ...p, layout: `H${p.layout}`, heads: Expression.constant(count), repeats: count });
  return shared.filter(isPlain).map(repeat);
}
