import { formatBytes } from '../../text.js';

/** The GPU that runs will use. */
export interface Gpu {
  /** For people; where there is none, why not. */
  readonly name: string;
  /** Bytes of the largest buffer that an operator may read or write; absent without a GPU. */
  readonly largestBuffer?: number;
  /** Whether it is a GPU in software, whose times say little. */
  readonly isSoftware: boolean;
}

/** Asks the browser for its GPU, as the session will. */
export async function findGpu(): Promise<Gpu> {
  const none = (why: string): Gpu => ({ name: why, isSoftware: false });
  if (!navigator.gpu) return none('This browser has no WebGPU');
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
  if (!adapter) return none('WebGPU finds no GPU here');
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info;
  const isSoftware = isFallbackAdapter || /swiftshader|llvmpipe|basic render/i.test(`${architecture} ${description}`);
  const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  return {
    name: description || [vendor, architecture].filter(Boolean).join(' ') || 'A GPU without a name',
    largestBuffer: Math.min(maxStorageBufferBindingSize, maxBufferSize),
    isSoftware,
  };
}

/** One line about it. */
export function describeGpu({ name, largestBuffer, isSoftware }: Gpu): string {
  if (largestBuffer === undefined) return `${name}: models run on the CPU, in WebAssembly`;
  return `${isSoftware ? 'Software GPU' : 'GPU'}: ${name}, buffers up to ${formatBytes(largestBuffer)}`;
}
