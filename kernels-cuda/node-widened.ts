import type { InferenceSession, InferenceSessionHandler, Tensor } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { decodeHalf, encodeHalf } from '../graph-rewrite/op/half.js';
import type { WidenedModel } from '../graph-rewrite/widen.js';
import { type Feeds, type Fetches, FlashSessionHandler, type Results } from '../kernels-wgsl/session/handler.js';
import { createTensor, fillTensor } from './node-tensor.js';

type Value = Results[string];
type Metadata = InferenceSession.ValueMetadata;

/** Inputs or outputs as the model has them. */
function unwidened(values: readonly Metadata[], names: ReadonlySet<string>): Metadata[] {
  const stated = (value: Metadata): Metadata =>
    value.isTensor && names.has(value.name) ? { ...value, type: 'bfloat16' as Tensor.Type } : value;
  return values.map(stated);
}

/**
 * A session over a widened model that looks like one over the model as it was: bfloat16 goes in and comes out, rounded to
 * the nearest, ties to even. Outputs that stay on a GPU stay float32, and may be fed again as they are.
 */
export class WidenedHandler extends FlashSessionHandler {
  readonly #handler: InferenceSessionHandler;
  readonly #widened: WidenedModel;

  constructor(handler: InferenceSessionHandler, widened: WidenedModel) {
    super({
      inputs: unwidened(handler.inputMetadata, widened.inputs),
      outputs: unwidened(handler.outputMetadata, widened.outputs),
    });
    this.#handler = handler;
    this.#widened = widened;
  }

  protected override async runModel(feeds: Feeds, fetches: Fetches, options: InferenceSession.RunOptions) {
    const { inputs, outputs } = this.#widened;
    const wide = Object.entries(feeds).map(([name, value]) => [name, inputs.has(name) ? widen(name, value) : value]);
    const wanted = Object.entries(fetches).map(([name, target]) => {
      return [name, outputs.has(name) && !isOnGpu(target) ? null : target];
    });
    const results = await this.#handler.run(Object.fromEntries(wide), Object.fromEntries(wanted), options);
    const narrow = Object.entries(results).map(async ([name, result]) => {
      return [name, outputs.has(name) ? await narrowed(name, result, fetches[name]) : result] as const;
    });
    return Object.fromEntries(await Promise.all(narrow));
  }

  protected override free(): Promise<void> {
    return this.#handler.dispose();
  }

  override startProfiling(): void {
    this.#handler.startProfiling();
  }

  override endProfiling(): void {
    this.#handler.endProfiling();
  }
}

const isOnGpu = (value: Value | null | undefined) => (value as Tensor | null | undefined)?.location === 'gpu-buffer';

/** @throws OrtFlashError `invalid-tensor` where it is no bfloat16 tensor */
function widen(name: string, value: Value): Value {
  const fail = (why: string): never => {
    throw new OrtFlashError('invalid-tensor', `input ${name} ${why}`, { tensor: name });
  };
  if (typeof value !== 'object' || value === null) return fail('is no tensor');
  if (isOnGpu(value)) return value;
  const { type, dims } = value as Tensor;
  if (!Array.isArray(dims)) return fail('is no tensor');
  if ((type as string) !== 'bfloat16') return fail(`has type ${type}, the model expects bfloat16`);
  const { data } = value as Tensor;
  const size = dims.reduce((product, dim) => product * dim, 1);
  if (!(data instanceof Uint16Array) || data.length !== size)
    return fail(`has data that do not fill (${dims.join(', ')})`);
  return createTensor('float32', decodeHalf(data, 'bfloat16'), dims);
}

/** What the caller is given for an output of float32: the tensor for it, filled, where there is one. */
async function narrowed(name: string, result: Value, target: Value | null | undefined): Promise<Value> {
  if (isOnGpu(result)) return result;
  const bits = encodeHalf(result.data as Float32Array, 'bfloat16');
  if (target == null) return createTensor('bfloat16', bits, result.dims);
  return fillTensor(name, target as Tensor, ['bfloat16', [...result.dims], bits.buffer as ArrayBuffer]);
}
