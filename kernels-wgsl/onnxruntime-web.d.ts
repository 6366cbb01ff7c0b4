/**
 * Types of `#onnxruntime-web`, the name by which this package imports `onnxruntime-web/webgpu` (package.json, "imports").
 * A bundler's alias of `onnxruntime-web/webgpu` to `ort-flash/web` then changes what other packages import, and leaves
 * the runtime below `ort-flash/web` as it is.
 */
export * from 'onnxruntime-web/webgpu';
export { default } from 'onnxruntime-web/webgpu';
