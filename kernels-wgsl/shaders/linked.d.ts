/** WGSL of each kernel, as link.mjs makes it from the .wesl files in this folder. */
export declare const SHADERS: Readonly<Record<KernelName, string>>;
export type KernelName =
  | 'prefill'
  | 'decode'
  | 'decode-subgroups'
  | 'decode-lanes'
  | 'combine'
  | 'append'
  | 'prefill-matrix'
  | 'prefill-rows'
  | 'prefill-rows-subgroups';
