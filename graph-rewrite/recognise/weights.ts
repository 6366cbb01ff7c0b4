/** What is learned, and so the same for every input: no sequence of queries, keys or values. */
import type { Value } from '../graph/graph.js';
import type { Inference } from '../shape/inference.js';
import type { Contraction } from './contraction.js';

/** Values that are looked at before one is taken to depend on an input. */
const MOST_VALUES = 2000;

/** In any domain: MatMulNBits, FusedMatMul, QLinearConv. */
const PRODUCT = /MatMul|Gemm|Einsum|Conv/;

/**
 * A weight of the model, looked at through views, or computed from weights alone: dequantised, widened, normalised. What a
 * layer's product makes of learned tokens is a sequence, as in the first layer of a Q-Former.
 */
export function isWeight(value: Value, inference: Inference): boolean {
  const seen = new Set<Value>([value]);
  for (const current of seen) {
    if (current.initializer || current.sparseInitializer || inference.of(current).constant) continue;
    const node = current.producer;
    if (!node || node.subgraphs.length > 0 || seen.size > MOST_VALUES) return false;
    if (PRODUCT.test(node.opType)) return false;
    // How often something is repeated makes it no sequence.
    const data = node.is('Reshape', 'Expand', 'Tile') ? node.inputs.slice(0, 1) : node.inputs;
    const sources = data.filter((v) => v !== undefined);
    if (sources.length === 0) return false;
    for (const source of sources) seen.add(source);
  }
  return true;
}

/**
 * A tensor times a matrix of weights: routers, and the keys of linear attention, which a softmax over the positions
 * normalises. Queries that are weights themselves (learned latents) come first in their product, or have heads.
 */
export function isLinearLayer(
  { node, operands, outputLabels }: Contraction,
  query: Value,
  inference: Inference,
): boolean {
  const [first, second] = operands;
  const hasBatch = second.labels.some((label) => first.labels.includes(label) && outputLabels.includes(label));
  const isSum = node.is('ReduceSum');
  const isLayer = isSum || node.is('Einsum') ? !hasBatch : second.labels.length === 2;
  return isLayer && (isSum || second.value === query) && isWeight(query, inference);
}
