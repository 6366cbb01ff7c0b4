/** `ort-flash`: finds attention in ONNX models and replaces it by `FlashAttention`. Runs in browsers and in Node. */
export * from './errors.js';
export { type LoweringOptions, type LoweringTarget, lowerModel } from './lower.js';
export * from './onnx/codec.js';
export { type FunctionVariant, functionFor, type MaskVariant, overloadName, requiredIrVersion } from './op/body.js';
export type { BlockSizes } from './op/body-blocks.js';
export * from './op/contrib.js';
export * from './op/definition.js';
export * from './op/half.js';
export * from './op/layout.js';
export * from './op/lower.js';
export * from './op/node.js';
export * from './op/problem.js';
export * from './op/reference.js';
export * from './op/site.js';
export { isStandardAttention, readStandardAttention } from './op/standard.js';
export * from './report.js';
export { type RewriteOptions, rewriteModel } from './rewrite.js';
