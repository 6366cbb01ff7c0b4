import type { Model } from './graph/graph.js';
import { dataTypeInfo } from './onnx/data-type.js';
import type { MovementReport } from './report.js';
import type { Expression } from './shape/expression.js';
import type { Inference } from './shape/inference.js';

/** Operators that only move data and write a copy of it. Reshape and its like change no byte and are not counted. */
const COPIES = new Set([
  'Transpose',
  'Expand',
  'Tile',
  'Split',
  'Slice',
  'Concat',
  'Pad',
  'GatherElements',
  'GatherND',
]);

/** Tokens at which sizes that depend on the sequence are taken; large, so that constants vanish per token. */
const TOKENS = 4096;

/**
 * Counts the nodes of a model that only move data, and the bytes that they read and write for each token, batch 1.
 * Every symbolic dimension but the first of each input is taken as the number of tokens. Masks of queries × keys
 * therefore count as many bytes a token as there are tokens.
 */
export function measureMovement(model: Model, inference: Inference): MovementReport {
  const batches = new Set<string>();
  for (const input of model.graph.inputs)
    for (const symbol of inference.of(input).shape?.[0]?.symbols ?? []) batches.add(symbol);
  const sizeOf = (size: Expression) =>
    size.value ?? size.evaluate(new Map([...size.symbols].map((s) => [s, batches.has(s) ? 1 : TOKENS]))) ?? 0;
  let nodes = 0;
  let bytes = 0;
  for (const graph of model.graphs()) {
    for (const node of graph.nodes) {
      if (node.domain !== '' || !COPIES.has(node.opType)) continue;
      const written = node.outputs.reduce((sum, v) => {
        if (!v) return sum;
        const { type, shape } = inference.of(v);
        const width = (dataTypeInfo(type)?.bits ?? 0) / 8;
        return sum + width * (shape?.map(sizeOf).reduce((a, b) => a * b, 1) ?? 0);
      }, 0);
      // Shape arithmetic moves nothing that counts.
      if (written <= 256) continue;
      nodes++;
      bytes += 2 * written;
    }
  }
  return { nodes, bytesPerToken: Math.round(bytes / TOKENS) };
}
