/**
 * Transformer encoders and decoders of any size, decomposed as PyTorch's exporters write them, for tests and benchmarks.
 *
 * Input `hidden_states` (batch, sequence, width), output `last_hidden_state` of the same shape. Encoders normalise after
 * each block (BERT), decoders before (GPT-2). Batch and sequence are symbolic.
 */
import { basename, extname } from 'node:path';
import { writeModelFile } from '../graph-rewrite/files.js';
import { dataTypeOf } from '../graph-rewrite/onnx/data-type.js';
import type { ModelProto } from '../graph-rewrite/onnx/proto.js';
import { makeTensor } from '../graph-rewrite/onnx/tensor.js';
import { type ExporterStyle, GraphBuilder } from './builder/graph.js';
import { ExternalWeights, InlineWeights, type WeightSource, type WeightType } from './builder/weights.js';

export interface TransformerOptions {
  /**
   * `torchscript`: opset 17, shapes taken apart with Shape and Gather and put together with Concat, constants as
   * nodes, scores divided by Sqrt of the head dimension. `dynamo`: opset 18, Shape with start and end, constants as
   * shared initializers, scores multiplied by a constant.
   */
  readonly style: ExporterStyle;
  readonly layers: number;
  /** Width of the hidden states. */
  readonly width: number;
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads, a divisor of `heads`; default `heads`. */
  readonly keyHeads?: number;
  /** Default width / heads. */
  readonly headDimension?: number;
  /** Width of the feed-forward block; default 4 × width. */
  readonly feedForward?: number;
  /** Default `float32`. */
  readonly type?: WeightType;
  /** Whether a query sees only keys up to its own position, which makes it a decoder. Default false. */
  readonly causal?: boolean;
  /** Whether there is an input `attention_mask` (batch, keys), int64, 1 for keys to be seen. Default false. */
  readonly paddingMask?: boolean;
  /**
   * Whether there are inputs `past.N.key` and `past.N.value` (batch, key heads, past, head dimension) and outputs
   * `present.N.…`; decoders only. Default false.
   */
  readonly cache?: boolean;
  /** Seed of the weights; default 0. */
  readonly seed?: number;
}

/** facts.md's whole model: a 12-layer encoder, 768 wide, 12 heads. */
export const ENCODER_12_LAYERS = { layers: 12, width: 768, heads: 12 } as const;

/** Builds a model with its weights in it. */
export function buildTransformer(options: TransformerOptions): ModelProto {
  return build(options, new InlineWeights(options.type ?? 'float32', options.seed ?? 0));
}

/**
 * Writes a model whose weights lie in a data file beside it (`NAME.data`), made and written a few megabytes at a time,
 * so that models larger than memory can be made.
 */
export async function writeTransformer(path: string, options: TransformerOptions): Promise<void> {
  const data = `${path.slice(0, path.length - extname(path).length)}.data`;
  const weights = new ExternalWeights(options.type ?? 'float32', options.seed ?? 0, data, basename(data));
  try {
    const model = build(options, weights);
    await writeModelFile(path, model);
  } finally {
    weights.close();
  }
}

function build(options: TransformerOptions, weights: WeightSource): ModelProto {
  return new TransformerBuilder(options, weights).build();
}

/** The most negative number of each type, which exporters write in place of −∞. */
const LOWEST: Readonly<Record<WeightType, number>> = { float32: -3.4028234663852886e38, float16: -65504 };

class TransformerBuilder {
  private readonly graph: GraphBuilder;
  private readonly weights: WeightSource;
  private readonly options: TransformerOptions;
  private readonly type: WeightType;
  private readonly heads: number;
  private readonly keyHeads: number;
  private readonly dim: number;
  private readonly torchscript: boolean;

  constructor(options: TransformerOptions, weights: WeightSource) {
    this.options = options;
    this.weights = weights;
    this.graph = new GraphBuilder(options.style);
    this.type = options.type ?? 'float32';
    this.heads = options.heads;
    this.keyHeads = options.keyHeads ?? options.heads;
    this.dim = options.headDimension ?? options.width / options.heads;
    this.torchscript = options.style === 'torchscript';
    if (!Number.isInteger(this.dim) || this.heads % this.keyHeads !== 0) {
      throw new RangeError('heads must divide width, and key heads must divide heads');
    }
    if (options.cache && !options.causal) throw new RangeError('a cache needs a causal model');
  }

  build(): ModelProto {
    const { layers, width, causal, cache } = this.options;
    const g = this.graph;
    const keys = cache ? 'total' : 'sequence';
    let hidden = g.input('hidden_states', this.type, ['batch', 'sequence', width]);
    if (this.options.paddingMask) g.input('attention_mask', 'int64', ['batch', keys]);
    const cacheShape = (length: string) => ['batch', this.keyHeads, length, this.dim];
    for (let layer = 0; cache && layer < layers; layer++) {
      for (const part of ['key', 'value']) g.input(`past.${layer}.${part}`, this.type, cacheShape('past'));
    }
    const mask = this.mask();
    for (let layer = 0; layer < layers; layer++) hidden = this.layer(`layers.${layer}`, layer, hidden, mask);
    g.scope = '';
    if (causal) this.layerNorm('final_norm', hidden, 'last_hidden_state');
    else g.op('Identity', [hidden], {}, 'last_hidden_state');
    g.output('last_hidden_state', this.type, ['batch', 'sequence', width]);
    for (let layer = 0; cache && layer < layers; layer++) {
      for (const part of ['key', 'value']) g.output(`present.${layer}.${part}`, this.type, cacheShape('total'));
    }
    return this.torchscript ? g.build(17, 8, 'pytorch') : g.build(18, 10, 'pytorch');
  }

  private layer(name: string, index: number, hidden: string, mask: string | undefined): string {
    const g = this.graph;
    g.scope = `/${name}`;
    const { causal } = this.options;
    const before = causal ? this.layerNorm(`${name}.attention_norm`, hidden) : hidden;
    const attended = this.attention(name, index, before, mask);
    const added = g.op('Add', [attended, hidden]);
    const middle = causal ? added : this.layerNorm(`${name}.attention_norm`, added);
    const input = causal ? this.layerNorm(`${name}.output_norm`, added) : middle;
    const output = g.op('Add', [this.feedForward(name, input), middle]);
    return causal ? output : this.layerNorm(`${name}.output_norm`, output);
  }

  /** (batch, sequence, from) to (batch, sequence, to). */
  private linear(name: string, input: string, from: number, to: number): string {
    const g = this.graph;
    // Scaled so that a row of unit variance keeps it.
    const weight = g.weight(this.weights.random(`${name}.weight`, [from, to], Math.sqrt(3 / from)));
    const bias = g.weight(this.weights.random(`${name}.bias`, [to], 0.1));
    const product = g.op('MatMul', [input, weight]);
    return g.op('Add', this.torchscript ? [bias, product] : [product, bias]);
  }

  private layerNorm(name: string, input: string, output?: string): string {
    const g = this.graph;
    const weight = g.weight(this.weights.constant(`${name}.weight`, [this.options.width], 1));
    const bias = g.weight(this.weights.constant(`${name}.bias`, [this.options.width], 0));
    return g.op('LayerNormalization', [input, weight, bias], { axis: -1, epsilon: 1e-5 }, output);
  }

  /** Two products with GELU between them, spelled with Erf. */
  private feedForward(name: string, input: string): string {
    const g = this.graph;
    const { width } = this.options;
    const inner = this.options.feedForward ?? 4 * width;
    const scalar = (value: number) => g.constant(this.type, [], [value]);
    const up = this.linear(`${name}.intermediate`, input, width, inner);
    const erf = g.op('Erf', [g.op('Div', [up, scalar(Math.SQRT2)])]);
    const gelu = g.op('Mul', [g.op('Mul', [up, g.op('Add', [erf, scalar(1)])]), scalar(0.5)]);
    return this.linear(`${name}.output`, gelu, inner, width);
  }

  /** One dimension of a tensor, as a scalar in TorchScript's manner and a vector of one in dynamo's. */
  private extent(value: string, axis: number): string {
    const g = this.graph;
    if (this.torchscript) return g.op('Gather', [g.op('Shape', [value]), g.int(axis)], { axis: 0 });
    return g.op('Shape', [value], { start: axis, end: axis + 1 });
  }

  /** A shape of known and computed extents. */
  private shape(extents: readonly (string | number)[]): string {
    const g = this.graph;
    const parts = extents.map((extent) =>
      typeof extent === 'number' ? g.ints(extent) : this.torchscript ? g.op('Unsqueeze', [extent, g.ints(0)]) : extent,
    );
    return g.op('Concat', parts, { axis: 0 });
  }

  private reshape(value: string, extents: readonly (string | number)[]): string {
    return this.graph.op('Reshape', [value, this.shape(extents)], { allowzero: this.torchscript ? 0 : 1 });
  }

  private attention(layer: string, index: number, input: string, mask: string | undefined): string {
    const g = this.graph;
    const { width, cache } = this.options;
    g.scope = `/${layer}/attention`;
    const name = `${layer}.attention`;
    const [batch, sequence] = [this.extent(input, 0), this.extent(input, 1)];
    const project = (part: string, heads: number) => {
      const flat = this.linear(`${name}.${part}`, input, width, heads * this.dim);
      return this.reshape(flat, [batch, sequence, heads, this.dim]);
    };
    const query = g.op('Transpose', [project('query', this.heads)], { perm: [0, 2, 1, 3] });
    const keyRows = project('key', this.keyHeads);
    let value = g.op('Transpose', [project('value', this.keyHeads)], { perm: [0, 2, 1, 3] });
    let keysTransposed: string;
    if (cache || this.keyHeads !== this.heads) {
      let key = g.op('Transpose', [keyRows], { perm: [0, 2, 1, 3] });
      if (cache) {
        key = g.op('Concat', [`past.${index}.key`, key], { axis: -2 }, `present.${index}.key`);
        value = g.op('Concat', [`past.${index}.value`, value], { axis: -2 }, `present.${index}.value`);
      }
      [key, value] = [this.repeatHeads(key), this.repeatHeads(value)];
      keysTransposed = g.op('Transpose', [key], { perm: [0, 1, 3, 2] });
    } else {
      keysTransposed = g.op('Transpose', [keyRows], { perm: [0, 2, 3, 1] });
    }
    let scores = this.scale(g.op('MatMul', [query, keysTransposed]), query);
    if (mask !== undefined) scores = g.op('Add', [scores, mask]);
    const probabilities = g.op('Softmax', [scores], { axis: -1 });
    const heads = g.op('Transpose', [g.op('MatMul', [probabilities, value])], { perm: [0, 2, 1, 3] });
    const merged = this.reshape(heads, [batch, sequence, this.heads * this.dim]);
    const output = this.linear(`${name}.output`, merged, this.heads * this.dim, width);
    g.scope = `/${layer}`;
    return output;
  }

  private scale(scores: string, query: string): string {
    const g = this.graph;
    if (!this.torchscript) return g.op('Mul', [scores, g.constant(this.type, [], [1 / Math.sqrt(this.dim)])]);
    const dim = g.op('Cast', [this.extent(query, -1)], { to: dataTypeOf(this.type) });
    return g.op('Div', [scores, g.op('Sqrt', [dim])]);
  }

  /** Key heads repeated for the query heads that share them: (B, H, S, D) through (B, H, 1, S, D). */
  private repeatHeads(value: string): string {
    const group = this.heads / this.keyHeads;
    if (group === 1) return value;
    const g = this.graph;
    const [batch, length] = [this.extent(value, 0), this.extent(value, 2)];
    const apart = g.op('Unsqueeze', [value, g.ints(2)]);
    let target = this.shape([batch, this.keyHeads, group, length, this.dim]);
    if (this.torchscript) {
      // The exporter of Expand guards against −1, which here never occurs.
      const value = makeTensor('', 'int64', [1], [1]);
      const unit = g.op('ConstantOfShape', [g.op('Shape', [target])], { value });
      const minus = g.op('Mul', [unit, g.int(-1)]);
      target = g.op('Where', [g.op('Equal', [target, minus]), unit, target]);
    }
    return this.reshape(g.op('Expand', [apart, target]), [batch, this.heads, length, this.dim]);
  }

  /** What is added to the scores: (batch or 1, 1, queries or 1, keys). */
  private mask(): string | undefined {
    const { causal, paddingMask } = this.options;
    const padding = paddingMask ? this.paddingMask() : undefined;
    const causality = causal ? this.causalMask() : undefined;
    if (padding === undefined || causality === undefined) return padding ?? causality;
    return this.graph.op('Add', [causality, padding]);
  }

  /** (1 − mask) · lowest, BERT's. */
  private paddingMask(): string {
    const g = this.graph;
    const expanded = g.op('Unsqueeze', [g.op('Unsqueeze', ['attention_mask', g.ints(1)]), g.ints(2)]);
    const seen = g.op('Cast', [expanded], { to: dataTypeOf(this.type) });
    const hidden = g.op('Sub', [g.constant(this.type, [], [1]), seen]);
    return g.op('Mul', [hidden, g.constant(this.type, [], [LOWEST[this.type]])]);
  }

  /** Where key ≤ query 0, elsewhere lowest. */
  private causalMask(): string {
    const g = this.graph;
    const scalar = (extent: string) => (this.torchscript ? extent : g.op('Squeeze', [extent]));
    const queries = scalar(this.extent('hidden_states', 1));
    const past = this.options.cache ? scalar(this.extent('past.0.key', 2)) : undefined;
    const total = past === undefined ? queries : g.op('Add', [past, queries]);
    const positions = g.op('Range', [past ?? g.int(0), total, g.int(1)]);
    const keys = g.op('Range', [g.int(0), total, g.int(1)]);
    const column = g.op('Unsqueeze', [positions, g.ints(1)]);
    const seen = g.op('LessOrEqual', [g.op('Unsqueeze', [keys, g.ints(0)]), column]);
    const value = (number: number) => g.constant(this.type, [], [number]);
    const mask = g.op('Where', [seen, value(0), value(LOWEST[this.type])]);
    return g.op('Unsqueeze', [mask, g.ints(0, 1)]);
  }
}
