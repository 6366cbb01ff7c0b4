import type { Expression, Range } from './expression.js';

/** How the numbers of an operation's operands bound and give its own. */
interface Operation {
  readonly bounds: (operands: readonly Expression[]) => Range;
  readonly evaluate: (...values: number[]) => number;
}

const UNBOUNDED: Range = { lower: Number.NEGATIVE_INFINITY, upper: Number.POSITIVE_INFINITY };
const FLAG: Range = { lower: 0, upper: 1 };

/** The operations that {@link Expression.operation} knows; of others neither bounds nor value are known. */
const OPERATIONS: Readonly<Record<string, Operation>> = {
  /** ⌊a / b⌋. */
  'floor-div': { bounds: quotientBounds, evaluate: (a, b) => Math.floor(a / b) },
  /** a / b rounded towards zero, as ONNX `Div` of integers. */
  'truncated-div': { bounds: quotientBounds, evaluate: (a, b) => Math.trunc(a / b) },
  max: { bounds: (all) => combine(all, Math.max), evaluate: Math.max },
  min: { bounds: (all) => combine(all, Math.min), evaluate: Math.min },
  /** The size that two sizes broadcast to: equal, or one of them 1. */
  broadcast: { bounds: hull, evaluate: (a, b) => (a === 1 ? b : a) },
  /** b where a is not 0, else c. */
  where: { bounds: ([, b, c]) => hull([b!, c!]), evaluate: (a, b, c) => (a !== 0 ? b! : c!) },
  equal: { bounds: () => FLAG, evaluate: (a, b) => Number(a === b) },
  less: { bounds: () => FLAG, evaluate: (a, b) => Number(a! < b!) },
  abs: { bounds: () => ({ lower: 0, upper: Number.POSITIVE_INFINITY }), evaluate: Math.abs },
  sign: { bounds: () => ({ lower: -1, upper: 1 }), evaluate: Math.sign },
  power: { bounds: powerBounds, evaluate: (a, b) => a ** b },
};

export function boundsOf(name: string, operands: readonly Expression[]): Range {
  return OPERATIONS[name]?.bounds(operands) ?? UNBOUNDED;
}

export function evaluateOperation(name: string, values: readonly number[]): number | undefined {
  return OPERATIONS[name]?.evaluate(...values);
}

function combine(operands: readonly Expression[], choose: (...values: number[]) => number): Range {
  const ranges = operands.map((o) => o.range);
  return { lower: choose(...ranges.map((r) => r.lower)), upper: choose(...ranges.map((r) => r.upper)) };
}

function hull(operands: readonly Expression[]): Range {
  const ranges = operands.map((o) => o.range);
  return { lower: Math.min(...ranges.map((r) => r.lower)), upper: Math.max(...ranges.map((r) => r.upper)) };
}

function quotientBounds(operands: readonly Expression[]): Range {
  const [a, b] = operands as [Expression, Expression];
  const divisor = b.value;
  if (divisor !== undefined && divisor > 0)
    return { lower: Math.floor(a.range.lower / divisor), upper: Math.floor(a.range.upper / divisor) + 1 };
  // A divisor that is a size is at least 1 wherever the division is defined.
  return a.range.lower >= 0 && b.range.lower >= 0 ? { lower: 0, upper: a.range.upper } : UNBOUNDED;
}

function powerBounds(operands: readonly Expression[]): Range {
  return operands[0]!.range.lower >= 0 ? { lower: 0, upper: Number.POSITIVE_INFINITY } : UNBOUNDED;
}
