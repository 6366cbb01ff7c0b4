/** Random inputs for a model at a size that the user chose. */
import { OrtFlashError } from '../../../graph-rewrite/errors.js';
import { dataTypeName } from '../../../graph-rewrite/onnx/data-type.js';
import type { ModelProto } from '../../../graph-rewrite/onnx/proto.js';
import { tensorData, tensorShape } from '../../../graph-rewrite/onnx/tensor.js';
import { makeInputs, Random } from '../../verify/inputs.js';
import { type ModelSignature, readSignature } from '../../verify/signature.js';
import { type Binding, hypotheses, type SizeCase } from '../../verify/sizes.js';
import type { MadeInputs, OpenSize, PlainTensor } from './messages.js';

/** Which sizes the model leaves open, and why the page cannot run it where it cannot. */
export function openSize(model: ModelProto): { size: OpenSize; notRunnable?: string } {
  try {
    const signature = readSignature(model);
    const sizes = { batch: 1, length: 1009, past: 0, pixels: 1013, samples: 1019, patterns: ['full'] } as const;
    const set = new Set(bind(signature, sizes).values());
    makeInputs(signature, bind(signature, sizesOf(2)), sizesOf(2), new Random(1));
    const size = set.has(1009) ? 'tokens' : set.has(1013) ? 'pixels' : set.has(1019) ? 'samples' : 'none';
    return { size };
  } catch (error) {
    if (!(error instanceof OrtFlashError)) throw error;
    return { size: 'none', notRunnable: withoutHint(error) };
  }
}

/** The hint speaks of the command line. */
function withoutHint({ message, hint }: OrtFlashError): string {
  return hint === undefined ? message : message.slice(0, message.length - hint.length - 2);
}

/** Inputs with batch 1, and one size for all that is open; the same numbers each time. */
export function inputsOfSize(model: ModelProto, size: number): MadeInputs {
  const signature = readSignature(model);
  const binding = bind(signature, sizesOf(size));
  const inputs = makeInputs(signature, binding, sizesOf(size), new Random(1));
  if (inputs === undefined) {
    throw new OrtFlashError('unsupported', 'the sizes of the inputs are not known', {}, 'name them in the export');
  }
  const tensors = [...inputs].map(
    ([name, proto]): PlainTensor => ({
      name,
      type: dataTypeName(proto.data_type),
      dims: tensorShape(proto),
      data: tensorData(proto) as PlainTensor['data'],
    }),
  );
  const sizes = [...binding].map(([name, value]) => `${name} = ${value.toLocaleString('en')}`).join(', ');
  return { tensors, sizes: sizes || 'the sizes that the model fixes' };
}

function sizesOf(size: number): SizeCase {
  return { batch: 1, length: size, past: 0, pixels: size, samples: size, patterns: ['full'] };
}

/** Without recorded inputs to go by, one length for all sequences is the guess that suits most models. */
function bind(signature: ModelSignature, sizes: SizeCase): Binding {
  return hypotheses(signature, undefined).at(-1)!.bind(sizes);
}
