import type { StridedTensor } from '../graph-rewrite/op/layout.js';
import type { AttentionProblem } from '../graph-rewrite/op/problem.js';
import type { PlannedTensors } from './coverage.js';
import type { ShaderParameters } from './specialize.js';

/** Bytes of one element. */
export function elementBytes(problem: AttentionProblem): number {
  return problem.type === 'float16' ? 2 : 4;
}

/** Parameters of shaders/problem.wesl and scores.wesl that the problem decides. */
export function featureParameters(problem: AttentionProblem, writesLse: boolean): ShaderParameters {
  const { mask } = problem;
  const element = problem.type === 'float16' ? 'f16' : 'f32';
  return {
    Element: element,
    MaskItem: mask?.kind === 'additive' ? element : 'u32',
    MASK: mask === undefined ? 0 : mask.kind === 'boolean' ? 1 : 2,
    HAS_LENGTHS: problem.hasLengths,
    LENGTH_SETS_POSITION: problem.hasLengths && !problem.alignEnd,
    HAS_SINK: problem.hasSink,
    HAS_SOFTCAP: problem.softcap > 0,
    MASKED_IS_FINITE: Number.isFinite(problem.maskedValue),
    WRITES_LSE: writesLse,
  };
}

/** Whether so many consecutive elements of the head dimension can be read at once, everywhere in the tensor. */
export function isVector(tensor: StridedTensor, elements = 4): boolean {
  const { stride, size, offset } = tensor;
  const rest = [size.B > 1 ? stride.B : 0, size.H > 1 ? stride.H : 0, size.S > 1 ? stride.S : 0, size.D, offset];
  return stride.D === 1 && rest.every((n) => n % elements === 0);
}

/** The features, and how the kernels that read queries, keys and values read them. */
export function readingParameters(problem: AttentionProblem, tensors: PlannedTensors): ShaderParameters {
  const features = featureParameters(problem, tensors.writesLse);
  const item = (tensor: StridedTensor) =>
    isVector(tensor) ? `vec4<${String(features.Element)}>` : String(features.Element);
  return {
    ...features,
    QUERY_IS_VECTOR: isVector(problem.query),
    KEY_IS_VECTOR: isVector(tensors.key),
    VALUE_IS_VECTOR: isVector(tensors.value),
    QueryItem: item(problem.query),
    KeyItem: item(tensors.key),
    ValueItem: item(tensors.value),
  };
}

/**
 * How the kernels write outputs, to the problem's tensor or, of splits, partial ones, which are float32 and lie close:
 * vectors of four where memory allows it, by the kernels that can. The others have OutputElement and no OutputItem.
 */
export function outputParameters(problem: AttentionProblem, isPartial: boolean): ShaderParameters {
  const element = problem.type === 'float16' && !isPartial ? 'f16' : 'f32';
  const inQuads = isPartial ? problem.valueDimension % 4 === 0 : isVector(problem.output);
  return { OutputElement: element, OUTPUT_IS_VECTOR: inQuads, OutputItem: inQuads ? `vec4<${element}>` : element };
}
