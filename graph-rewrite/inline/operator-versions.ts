/**
 * Which operators of ai.onnx mean the same in two opsets. A function states the opsets that its body is written for, and
 * the standard (docs/IR.md, "Functions") asks that they give its operators the same schemas as the model's; files that
 * break this exist.
 */

/**
 * Versions at which an operator came (after 1) or changed its attributes, their defaults, or its inputs or outputs, from
 * the schemas of the onnx package, 1.23.1. A version that only admits more types is none; nor is one
 * of Constant, which is what its one attribute says.
 */
const CHANGES: readonly (readonly [versions: string, operators: string])[] = [
  [
    '',
    'Constant Conv ConvTranspose Flatten Gather GlobalAveragePool GlobalMaxPool Identity If LRN Loop LpNormalization MatMul MaxRoiPool Not RandomNormal RandomNormalLike RandomUniform RandomUniformLike Size Softplus Softsign Transpose',
  ],
  ['2', 'GlobalLpPool'],
  ['2 11 18', 'Pad'],
  ['2 13 18', 'Split'],
  ['2 18', 'LpPool'],
  ['3 7 14', 'GRU'],
  ['4', 'Concat'],
  ['5 14', 'Reshape'],
  [
    '6',
    'Abs Ceil Elu Exp Floor HardSigmoid InstanceNormalization LeakyRelu Log Max Mean Min Neg PRelu Reciprocal Relu Selu Sigmoid Sqrt Sum Tanh Tile',
  ],
  ['6 7', 'Add Div Mul Sub'],
  ['6 7 9 14', 'BatchNormalization'],
  ['6 7 12', 'Dropout'],
  ['6 11', 'Clip'],
  ['6 19 24', 'Cast'],
  ['7', 'Acos And Asin Atan Cos Equal Greater Less Multinomial Or Pow Sin Tan Xor'],
  ['7 9 10', 'Upsample'],
  ['7 10 19', 'AveragePool'],
  ['7 11', 'Gemm'],
  ['7 14', 'LSTM RNN'],
  ['8', 'Expand'],
  ['8 9', 'Scan'],
  ['8 10', 'MaxPool'],
  [
    '9',
    'Acosh Asinh Atanh Compress ConstantOfShape Cosh Erf EyeLike IsNaN MaxUnpool MeanVarianceNormalization NonZero OneHot Shrink Sign Sinh TfIdfVectorizer Where',
  ],
  ['9 11', 'Scatter'],
  [
    '10',
    'ConvInteger IsInf MatMulInteger Mod NonMaxSuppression QLinearConv QLinearMatMul ReverseSequence Slice StringNormalizer ThresholdedRelu',
  ],
  ['10 11', 'TopK'],
  ['10 11 13 18', 'Resize'],
  ['10 13 19 21 23', 'QuantizeLinear'],
  ['10 13 21 23', 'DequantizeLinear'],
  ['10 16', 'RoiAlign'],
  [
    '11',
    'BitShift ConcatFromSequence CumSum DepthToSpace Det DynamicQuantizeLinear GatherElements Round SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence Unique',
  ],
  ['11 12', 'GatherND'],
  ['11 16', 'ScatterElements ScatterND'],
  ['11 27', 'Range'],
  ['12', 'ArgMax ArgMin Celu Einsum GreaterOrEqual LessOrEqual NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss'],
  ['13', 'Hardmax LogSoftmax ReduceSum Softmax Squeeze Unsqueeze'],
  ['14', 'HardSwish Trilu'],
  ['15', 'Bernoulli Optional OptionalGetElement Shape'],
  ['15 18', 'OptionalHasElement'],
  ['15 19 24', 'CastLike'],
  ['16 20', 'GridSample'],
  ['17', 'BlackmanWindow HammingWindow HannWindow LayerNormalization MelWeightMatrix STFT SequenceMap'],
  ['17 20', 'DFT'],
  [
    '18',
    'BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Mish ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare',
  ],
  ['18 21', 'GroupNormalization'],
  ['19', 'DeformConv'],
  ['20', 'AffineGrid Gelu ImageDecoder RegexFullMatch StringConcat StringSplit'],
  ['23', 'RMSNormalization RotaryEmbedding'],
  ['23 24 25', 'Attention'],
  ['24', 'Swish TensorScatter'],
  ['26', 'BitCast CumProd'],
  ['27', 'CausalConvWithState LinearAttention'],
  ['28', 'SpaceToDepth SwiGLU'],
];

const CHANGES_OF: ReadonlyMap<string, readonly number[]> = new Map(
  CHANGES.flatMap(([versions, operators]) => {
    const numbers = versions.split(' ').filter(Boolean).map(Number);
    return operators.split(' ').map((operator) => [operator, numbers] as const);
  }),
);

/** Whether an operator of ai.onnx is the same in two opsets; false for one that is not known. */
export function meansTheSame(operator: string, a: number, b: number): boolean {
  if (a === b) return true;
  const [lower, upper] = a < b ? [a, b] : [b, a];
  const changes = CHANGES_OF.get(operator);
  return changes !== undefined && !changes.some((version) => version > lower && version <= upper);
}

/** Domains whose operators a runtime may have of its own. */
const RUNTIME_DOMAINS = ['ai.onnx.ml', 'ai.onnx.training', 'ai.onnx.preview.training', 'com.microsoft'];

/**
 * Whether a runtime may have an operator of this name. ONNX Runtime 1.29 then takes its own, also where the model has a
 * function of that name, which by the standard would come first.
 */
export function mayBeOperator(domain: string, name: string): boolean {
  return domain === '' ? CHANGES_OF.has(name) : RUNTIME_DOMAINS.includes(domain);
}
