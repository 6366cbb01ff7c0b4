/** Models in bfloat16 for runtimes that have no kernels for it: the same models in float32. */
import Long from 'long';
import { OrtFlashError } from './errors.js';
import { type ExternalDataReader, externalReference, isExternal } from './onnx/external.js';
import {
  AttributeProto,
  AttributeType,
  DataType,
  type FunctionProto,
  type GraphProto,
  type ModelProto,
  NodeProto,
  type SparseTensorProto,
  StringStringEntryProto,
  type TensorProto,
  type TypeProto,
  type ValueInfoProto,
} from './onnx/proto.js';
import { elementCount, makeTensor, tensorData, tensorShape } from './onnx/tensor.js';
import { subgraphs } from './onnx/walk.js';
import { FLASH_ATTENTION_DOMAIN } from './op/definition.js';
import { decodeHalf } from './op/half.js';

/** What of a widened model its users see. */
export interface WidenedModel {
  /** Inputs that were bfloat16 tensors and now are float32. */
  readonly inputs: ReadonlySet<string>;
  /** Outputs likewise. */
  readonly outputs: ReadonlySet<string>;
  /** By location, the data files that the model now has besides: those of {@link WideningOptions.readExternal}. */
  readonly files: ReadonlyMap<string, Uint8Array>;
}

export interface WideningOptions {
  /**
   * Reads data files. The weights in them then are widened too, into files of their own; without it they stay as they
   * are, with a Cast behind, which onnxruntime-web's build for WebGPU lacks.
   */
  readonly readExternal?: ExternalDataReader;
}

/**
 * Makes every bfloat16 of a model float32: inputs, outputs and values, weights and constants, in subgraphs and functions
 * too, and the attributes that name a data type. Every bfloat16 number is a float32 number, so all that the model states
 * stays exact. What it computes is rounded to 24 significant bits where it was rounded to 8, a Cast to bfloat16 and back
 * rounds no more, and results lie closer to the exact ones.
 *
 * The model is edited in place, or left as it was where an error is thrown.
 * @returns undefined where the model has no bfloat16
 * @throws OrtFlashError `unsupported` with the reason where float32 cannot stand for it, `malformed-model` where a tensor's
 *   data is not as its dimensions say, `external-data` where a data file cannot be read
 */
export function widenBfloat16(model: ModelProto, options: WideningOptions = {}): WidenedModel | undefined {
  const widening = new Widening(model, options);
  widening.visit();
  if (widening.edits.length === 0) return undefined;
  const { graph } = model;
  const namesOf = (values: readonly ValueInfoProto[]) =>
    new Set(values.filter(({ type }) => type?.tensor_type?.elem_type === BFLOAT16).map(({ name }) => name ?? ''));
  const [inputs, outputs] = [namesOf(graph?.input ?? []), namesOf(graph?.output ?? [])];
  for (const edit of widening.edits) edit();
  return { inputs, outputs, files: widening.files };
}

/** What is to be told of a widened model, wherever it runs. */
export const WIDENED_NOTE = 'bfloat16 is computed in float32 here';

/** What came of a model that was to be widened, and what is to be told of it. */
export interface WideningAttempt {
  readonly widened?: WidenedModel;
  readonly note?: string;
}

/**
 * {@link widenBfloat16} for a session, which has the model as it is where it cannot be widened.
 * @throws OrtFlashError `external-data` where a data file is to be read and cannot be
 */
export function tryWidening(model: ModelProto, options: WideningOptions = {}): WideningAttempt {
  try {
    const widened = widenBfloat16(model, options);
    return widened === undefined ? {} : { widened, note: WIDENED_NOTE };
  } catch (error) {
    if (!(error instanceof OrtFlashError) || error.code === 'external-data') throw error;
    return { note: error.message };
  }
}

const BFLOAT16 = DataType.BFLOAT16;
const FLOAT = DataType.FLOAT;

/** From this version on, Cast takes bfloat16 (ONNX, Cast-13). */
const CAST_OPSET = 13;

/** Attributes whose value is a TensorProto data type: ONNX up to opset 28, what ONNX Runtime adds to it, and our own. */
const TYPE_ATTRIBUTES: Readonly<Record<string, readonly string[]>> = {
  Attention: ['softmax_precision'],
  Bernoulli: ['dtype'],
  BlackmanWindow: ['output_datatype'],
  Cast: ['to'],
  DequantizeLinear: ['output_dtype'],
  EyeLike: ['dtype'],
  FlashAttention: ['softmax_precision'],
  FlexAttention: ['softmax_precision'],
  GroupNormalization: ['stash_type'],
  HammingWindow: ['output_datatype'],
  HannWindow: ['output_datatype'],
  LayerNormalization: ['stash_type'],
  MelWeightMatrix: ['output_datatype'],
  Multinomial: ['dtype'],
  QuantizeLinear: ['output_dtype', 'precision'],
  RMSNormalization: ['stash_type'],
  RandomNormal: ['dtype'],
  RandomNormalLike: ['dtype'],
  RandomUniform: ['dtype'],
  RandomUniformLike: ['dtype'],
  Range: ['stash_type'],
  SequenceEmpty: ['dtype'],
  SimplifiedLayerNormalization: ['stash_type'],
};

/** Domains whose operators the table is of. */
const DOMAINS: ReadonlySet<string> = new Set(['', 'ai.onnx', 'ai.onnx.preview', FLASH_ATTENTION_DOMAIN]);

/** Types whose bits BitCast may exchange with those of bfloat16. */
const SIXTEEN_BITS: ReadonlySet<number> = new Set([DataType.UINT16, DataType.INT16, DataType.FLOAT16, BFLOAT16]);

/** Looks through a model, and notes what to change: nothing is changed before all of it is known to be possible. */
class Widening {
  readonly edits: (() => void)[] = [];
  readonly files = new Map<string, Uint8Array>();
  readonly #model: ModelProto;
  readonly #readExternal: ExternalDataReader | undefined;
  readonly #functions: ReadonlyMap<string, FunctionProto>;
  readonly #functionTypes = new Map<FunctionProto, ReadonlySet<string>>();
  readonly #bitCasts: NodeProto[] = [];
  #names: Set<string> | undefined;

  constructor(model: ModelProto, { readExternal }: WideningOptions) {
    this.#model = model;
    this.#readExternal = readExternal;
    this.#functions = new Map(model.functions.map((f) => [keyOf(f.domain, f.name, f.overload), f]));
  }

  visit(): void {
    const { graph, training_info: training, functions } = this.#model;
    for (const g of [graph, ...training.flatMap((t) => [t.initialization, t.algorithm])]) if (g) this.#visitGraph(g);
    for (const f of functions) {
      for (const info of f.value_info) this.#visitType(info.type);
      const types = this.#typesOfFunction(f);
      for (const attribute of f.attribute_proto) this.#visitAttribute(attribute, types);
      for (const node of f.node) this.#visitNode(node);
    }
    if (this.edits.length > 0 && this.#bitCasts.length > 0)
      refuse('a BitCast sees the bits of its 16-bit input', this.#bitCasts[0]!);
  }

  #visitGraph(graph: GraphProto): void {
    for (const { type } of [...graph.input, ...graph.output, ...graph.value_info]) this.#visitType(type);
    for (const [i, tensor] of graph.initializer.entries()) {
      if (tensor.data_type !== BFLOAT16) continue;
      if (isExternal(tensor) && !this.#readExternal) this.#castBehind(graph, tensor);
      else
        this.#visitTensor(tensor, (wide) => {
          graph.initializer[i] = wide;
        });
    }
    for (const sparse of graph.sparse_initializer) this.#visitSparse(sparse);
    for (const node of graph.node) this.#visitNode(node);
  }

  #visitNode(node: NodeProto): void {
    const types = this.#typesOf(node);
    if (node.op_type === 'BitCast' && DOMAINS.has(node.domain ?? '')) {
      const to = node.attribute.find(({ name }) => name === 'to');
      if (to?.ref_attr_name || SIXTEEN_BITS.has(to?.i?.toNumber() ?? BFLOAT16)) this.#bitCasts.push(node);
    }
    for (const attribute of node.attribute) this.#visitAttribute(attribute, types);
  }

  /** @param types names of the attributes of its owner whose value is a data type */
  #visitAttribute(attribute: AttributeProto, types: ReadonlySet<string>): void {
    const { t, tensors, g, graphs } = attribute;
    if (types.has(attribute.name ?? '') && attribute.i?.equals(BFLOAT16)) {
      this.edits.push(() => {
        attribute.i = Long.fromNumber(FLOAT);
      });
    }
    if (t)
      this.#visitTensor(t, (wide) => {
        attribute.t = wide;
      });
    for (const [i, tensor] of tensors.entries())
      this.#visitTensor(tensor, (wide) => {
        tensors[i] = wide;
      });
    for (const sparse of [attribute.sparse_tensor, ...attribute.sparse_tensors]) this.#visitSparse(sparse);
    for (const type of [attribute.tp, ...attribute.type_protos]) this.#visitType(type);
    for (const graph of [g, ...graphs]) if (graph) this.#visitGraph(graph);
  }

  #visitSparse(sparse: SparseTensorProto | null | undefined): void {
    if (sparse?.values)
      this.#visitTensor(sparse.values, (wide) => {
        sparse.values = wide;
      });
  }

  #visitTensor(tensor: TensorProto, replace: (wide: TensorProto) => void): void {
    if (tensor.data_type !== BFLOAT16) return;
    if (isExternal(tensor)) {
      this.#moveData(tensor);
      return;
    }
    const numbers = decodeHalf(tensorData(tensor) as Uint16Array, 'bfloat16');
    const wide = makeTensor(tensor.name ?? '', 'float32', tensorShape(tensor), numbers);
    wide.doc_string = tensor.doc_string;
    this.edits.push(() => replace(wide));
  }

  #visitType(type: TypeProto | null | undefined): void {
    for (const tensor of [type?.tensor_type, type?.sparse_tensor_type])
      if (tensor?.elem_type === BFLOAT16)
        this.edits.push(() => {
          tensor.elem_type = FLOAT;
        });
    const inner = type?.sequence_type?.elem_type ?? type?.optional_type?.elem_type ?? type?.map_type?.value_type;
    if (inner) this.#visitType(inner);
  }

  /** Has a tensor read its elements, in float32, from a file that is made of its own. */
  #moveData(tensor: TensorProto): void {
    const readExternal = this.#readExternal ?? refuse('its data is in a file, and it is no weight of a graph', tensor);
    const { location, offset } = externalReference(tensor);
    const size = 4 * elementCount(tensor);
    const path = `${location}.${offset}.${size}.float32`;
    if (!this.files.has(path)) {
      const bits = tensorData(tensor, { readExternal }) as Uint16Array;
      this.files.set(path, new Uint8Array(decodeHalf(bits, 'bfloat16').buffer));
    }
    this.edits.push(() => {
      tensor.data_type = FLOAT;
      tensor.external_data = Object.entries({ location: path, offset: '0', length: String(size) }).map(
        ([key, value]) => new StringStringEntryProto({ key, value }),
      );
    });
  }

  /** Leaves a weight where it is, under another name, and gives its own to what Cast makes of it. */
  #castBehind(graph: GraphProto, tensor: TensorProto): void {
    const name = tensor.name ?? '';
    if (graph.input.some((input) => input.name === name))
      refuse('its data is in a file, and it is an input too', tensor);
    const { version } = this.#model.opset_import.find(({ domain }) => !domain || domain === 'ai.onnx') ?? {};
    if ((version?.toNumber() ?? 0) < CAST_OPSET)
      refuse(`its data is in a file, and opset ${version ?? 0} has no Cast for bfloat16`, tensor);
    this.edits.push(() => {
      tensor.name = this.#freshName(name);
      const to = new AttributeProto({ name: 'to', type: AttributeType.INT, i: Long.fromNumber(FLOAT) });
      graph.node.unshift(
        new NodeProto({ name: tensor.name, op_type: 'Cast', input: [tensor.name], output: [name], attribute: [to] }),
      );
    });
  }

  #freshName(name: string): string {
    this.#names ??= namesIn(this.#model);
    let fresh = `${name}_bfloat16`;
    while (this.#names.has(fresh)) fresh += '_';
    this.#names.add(fresh);
    return fresh;
  }

  /** The attributes of a node whose value is a data type; of a call, those that the function hands on to such. */
  #typesOf({ domain, op_type: operator, overload }: NodeProto): ReadonlySet<string> {
    const f = this.#functions.get(keyOf(domain, operator, overload));
    if (f) return this.#typesOfFunction(f);
    return new Set(DOMAINS.has(domain ?? '') ? TYPE_ATTRIBUTES[operator ?? ''] : []);
  }

  #typesOfFunction(f: FunctionProto): ReadonlySet<string> {
    const known = this.#functionTypes.get(f);
    if (known) return known;
    const found = new Set<string>();
    // Found empty by a function that calls itself, which no runtime takes.
    this.#functionTypes.set(f, found);
    for (const node of nodesIn(f.node)) {
      const types = this.#typesOf(node);
      for (const { name, ref_attr_name: outer } of node.attribute) if (outer && types.has(name ?? '')) found.add(outer);
    }
    return found;
  }
}

function refuse(why: string, where: TensorProto | NodeProto): never {
  const place = 'op_type' in where ? { node: where.name || (where.op_type ?? '') } : { tensor: where.name ?? '' };
  throw new OrtFlashError('unsupported', `bfloat16 cannot be computed in float32: ${why}`, place);
}

const keyOf = (...parts: readonly (string | null | undefined)[]) =>
  JSON.stringify(parts.map((part) => (part === 'ai.onnx' ? '' : (part ?? ''))));

/** Nodes, and those of their subgraphs. */
function* nodesIn(nodes: readonly NodeProto[]): Generator<NodeProto> {
  for (const node of nodes) {
    yield node;
    for (const graph of subgraphs(node)) yield* nodesIn(graph.node);
  }
}

/** Names of all values of a model. */
function namesIn(model: ModelProto): Set<string> {
  const names = new Set<string>();
  const addGraph = (graph: GraphProto) => {
    for (const { name } of [...graph.input, ...graph.initializer]) names.add(name ?? '');
    for (const { values } of graph.sparse_initializer) names.add(values?.name ?? '');
    for (const node of graph.node) {
      for (const name of [...node.input, ...node.output]) names.add(name);
      for (const inner of subgraphs(node)) addGraph(inner);
    }
  };
  if (model.graph) addGraph(model.graph);
  return names;
}
