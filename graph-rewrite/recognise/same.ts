/** Whether two values are the same whatever the inputs are: exporters compute masks again wherever they use them. */
import type { Node, Value } from '../graph/graph.js';
import type { AttributeProto } from '../onnx/proto.js';
import type { Inference } from '../shape/inference.js';

const DEEPEST = 12;

/** What a value is a mere copy of: through Identity, and Cast to the type that it has. */
export function copied(value: Value, inference: Inference): Value {
  let source = value;
  for (;;) {
    const node: Node | undefined = source.producer;
    const input: Value | undefined = node?.inputs[0];
    if (!node || !input) return source;
    if (!node.is('Identity') && !(node.is('Cast') && node.int('to') === inference.of(input).type)) return source;
    source = input;
  }
}

/** Whether two values come from the same values by the same operators. */
export function isSameValue(one: Value, another: Value, inference: Inference, depth = 0): boolean {
  const [a, b] = [copied(one, inference), copied(another, inference)];
  if (a === b) return true;
  const uniform = inference.uniformOf(a);
  const { type, shape } = inference.of(a);
  const other = inference.of(b);
  if (type !== other.type) return false;
  if (uniform !== undefined && uniform === inference.uniformOf(b)) {
    const sizes = other.shape;
    return shape !== undefined && sizes?.length === shape.length && shape.every((s, i) => s.equals(sizes[i]!));
  }
  const [elements, others] = [inference.of(a).elements, other.elements];
  if (elements && elements.length === others?.length && elements.every((e, i) => e.equals(others[i]!)))
    return shape?.length === other.shape?.length;
  const [x, y] = [a.producer, b.producer];
  if (!x || !y || depth > DEEPEST || a.outputIndex !== b.outputIndex || !isSameOperator(x, y)) return false;
  return x.inputs.every((input, i) => {
    const twin = y.inputs[i];
    return (
      input === twin || (input !== undefined && twin !== undefined && isSameValue(input, twin, inference, depth + 1))
    );
  });
}

/** Operators that give the same for the same inputs. */
const PURE =
  'Cast Not And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual Add Sub Mul Where Unsqueeze Squeeze Reshape ' +
  'Transpose Expand Slice Gather Shape Concat Range Identity';
const pure: ReadonlySet<string> = new Set(PURE.split(' '));

function isSameOperator(x: Node, y: Node): boolean {
  if (x.opType !== y.opType || x.domain !== '' || y.domain !== '' || !pure.has(x.opType)) return false;
  if (x.inputs.length !== y.inputs.length) return false;
  const attributes = (node: Node) => JSON.stringify([...node.proto.attribute].sort(byName));
  return attributes(x) === attributes(y);
}

const byName = (a: AttributeProto, b: AttributeProto) => String(a.name).localeCompare(String(b.name));
