/** Elements computed from those of one tensor, with constants alone: 1 − mask, say, or whether that is not 0. */
import { DataType } from '../../onnx/proto.js';
import type { Element, Source } from './element.js';

/** An operator on one element, and perhaps a constant of the same type. */
export interface ElementStep {
  readonly opType: string;
  readonly constant?: { readonly value: number; readonly isFirst: boolean };
  /** TensorProto data type before and after. */
  readonly from: number;
  readonly to: number;
}

const MOST_STEPS = 6;
/** Sums are kept apart as masks and biases. */
const STEPS: ReadonlySet<string> = new Set('Sub Mul Div Neg Equal Less LessOrEqual Greater GreaterOrEqual'.split(' '));

/** An element after one more step, if it is known by tensors alone. */
export function stepped(element: Element, step: ElementStep): Element | undefined {
  if (element.kind !== 'opaque') return undefined;
  const sources = element.sources.flatMap((source): Source[] => {
    const steps = [...(source.steps ?? []), step];
    return steps.length > MOST_STEPS ? [] : [{ ...source, steps }];
  });
  if (sources.length === 0) return undefined;
  return step.to === DataType.BOOL
    ? { kind: 'condition', condition: { kind: 'opaque', sources } }
    : { kind: 'opaque', sources };
}

/** An element-wise operator on an element that is known by tensors alone and a constant. */
export function derivedElement(
  opType: string,
  operands: readonly Element[],
  from: number | undefined,
  to: number | undefined,
): Element | undefined {
  if (!STEPS.has(opType) || from === undefined || to === undefined) return undefined;
  const [a, b] = operands;
  if (operands.length === 1) return stepped(a!, { opType, from, to });
  if (!a || !b || operands.length !== 2) return undefined;
  const [element, other] = a.kind === 'opaque' ? [a, b] : [b, a];
  if (other.kind !== 'constant' || !Number.isFinite(other.value)) return undefined;
  if (opType === 'Mul' && other.value === 0) return staysFinite(element) ? { kind: 'constant', value: 0 } : undefined;
  if (opType === 'Div' && (element !== a || other.value === 0)) return undefined;
  return stepped(element, { opType, constant: { value: other.value, isFirst: element !== a }, from, to });
}

const FLOATS: readonly number[] = [DataType.FLOAT, DataType.FLOAT16, DataType.DOUBLE, DataType.BFLOAT16];
const KEEPS_FINITE: ReadonlySet<string> = new Set(['Cast', 'Sub', 'Neg']);

/** Whether an element was an integer or a boolean once, and was not multiplied since. */
function staysFinite(element: Element): boolean {
  if (element.kind !== 'opaque') return false;
  return element.sources.some(
    ({ steps }) => steps?.[0] && !FLOATS.includes(steps[0].from) && steps.every((s) => KEEPS_FINITE.has(s.opType)),
  );
}

/** Whether two elements come from the same tensors by the same steps. */
export function sameSource(a: Source | undefined, b: Source | undefined): boolean {
  if (!a || !b || a.value !== b.value || JSON.stringify(a.steps ?? []) !== JSON.stringify(b.steps ?? [])) return false;
  return a.indices.every((index, i) => index.minus(b.indices[i]!).value === 0);
}

/** x where a condition says that x is not 0, else `other`: there x is 0. */
export function zeroWhereFalse(condition: readonly Source[], element: Element): boolean {
  if (element.kind !== 'opaque') return false;
  return condition.some((source) => {
    const test = source.steps?.at(-1);
    if (test?.opType !== 'Cast' || test.to !== DataType.BOOL || !source.keepWhere) return false;
    const tested: Source = { ...source, steps: source.steps!.slice(0, -1) };
    return element.sources.some((own) => sameSource(own, tested));
  });
}
