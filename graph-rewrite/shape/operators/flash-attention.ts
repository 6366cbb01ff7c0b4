/** The shapes of `ortflash::FlashAttention`, through its layouts. */
import { type Axis, type Layout, parseLayout } from '../../op/layout.js';
import { Expression, product } from '../expression.js';
import type { Rule, RuleTable } from './call.js';
import { sum } from './call.js';
import { countAttribute } from './network.js';

type Size = Expression | undefined;
/** Symbolic sizes of the axes; absent where they are not known. */
export type Sizes = { [axis in Axis]?: Size };

const AXES: readonly Axis[] = ['B', 'H', 'S', 'D'];

/** What a tensor's shape says about batch, heads, sequence and head dimension. */
export function readSizes(layout: Layout, shape: readonly Expression[] | undefined, known: Sizes): Sizes {
  const sizes: Sizes = { ...known };
  const named = new Set(layout.flatMap((d) => d.factors));
  for (const axis of AXES) if (!named.has(axis)) sizes[axis] ??= Expression.constant(1);
  if (!shape) return sizes;
  for (const [at, { factors, slice }] of layout.entries()) {
    const open = factors.filter((f): f is Axis => typeof f === 'string' && sizes[f] === undefined);
    const axis = open[0];
    if (slice || open.length !== 1 || axis === undefined) continue;
    const others = factors
      .filter((f) => f !== axis)
      .map((f) => (typeof f === 'string' ? sizes[f]! : Expression.constant(f.parts)));
    sizes[axis] = shape[at]?.dividedExactlyBy(product(others));
  }
  return sizes;
}

const flashAttentionRule: Rule = (call) => {
  const layout = (name: string) => parseLayout(call.node.string(name) ?? 'BHSD');
  const [queryLayout, keyLayout, valueLayout, outputLayout] = [
    layout('q_layout'),
    layout('k_layout'),
    layout('v_layout'),
    layout('y_layout'),
  ];
  const queryHeads = countAttribute(call, 'q_num_heads');
  const keyHeads = countAttribute(call, 'kv_num_heads');
  const query = readSizes(queryLayout, call.shape(0), { H: queryHeads });
  const key = readSizes(keyLayout, call.shape(1), { H: keyHeads });
  const value = readSizes(valueLayout, call.shape(2), { H: keyHeads });
  // A sliced dimension tells nothing of the head dimension; another tensor does.
  const headSize = query.D ?? key.D ?? call.size(4, 3) ?? value.D;
  const valueSize = value.D ?? call.size(5, 3) ?? headSize;
  const heads = keyHeads ?? key.H ?? value.H;
  const keys = key.S ?? value.S;
  const sizes: Sizes = { B: query.B ?? key.B, H: query.H, S: query.S, D: valueSize };
  const output = outputLayout.map(({ factors, slice }) =>
    slice
      ? undefined
      : factors.reduce<Size>(
          (p, f) => multiply(p, typeof f === 'string' ? sizes[f] : Expression.constant(f.parts)),
          Expression.constant(1),
        ),
  );
  const present = (input: number, size: Size) => ({
    type: call.type(input) ?? call.type(input - 3),
    shape: [sizes.B, heads, sum([call.size(input, 2), keys]), size],
  });
  return [{ type: call.type(), shape: output }, present(4, headSize), present(5, valueSize)];
};

function multiply(a: Size, b: Size): Size {
  return b && a?.times(b);
}

export const flashAttentionRules: RuleTable = { FlashAttention: flashAttentionRule };
