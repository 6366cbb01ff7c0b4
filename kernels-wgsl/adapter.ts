/** One shape of matrices that the adapter multiplies by subgroup: M×K times K×N. */
export interface SubgroupMatrixShape {
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** What a planner must know of an adapter; plain data, so that plans can be made and tested without a GPU. */
export interface AdapterFacts {
  readonly vendor: string;
  readonly architecture: string;
  /** A CPU that plays GPU (SwiftShader, WARP): code size and workgroup memory cost seconds of compilation there. */
  readonly isSoftware: boolean;
  /** Bytes of workgroup memory. */
  readonly workgroupMemory: number;
  /** Threads a workgroup. */
  readonly workgroupThreads: number;
  readonly workgroupsPerDimension: number;
  /** Bytes that one storage binding can show. */
  readonly bindingSize: number;
  /** Bytes to a multiple of which a storage binding's offset must be. */
  readonly bindingAlignment: number;
  readonly halfFloats: boolean;
  /** Least and most threads of a subgroup; 0 where subgroups are not enabled. */
  readonly subgroupMinSize: number;
  readonly subgroupMaxSize: number;
  /** Shapes with f16 factors and f32 result; empty where subgroup matrices are not enabled. */
  readonly subgroupMatrices: readonly SubgroupMatrixShape[];
}

/** What every WebGPU device has: the specification's default limits, no features. */
export const DEFAULT_ADAPTER: AdapterFacts = {
  vendor: '',
  architecture: '',
  isSoftware: false,
  workgroupMemory: 16384,
  workgroupThreads: 256,
  workgroupsPerDimension: 65535,
  bindingSize: 134217728,
  bindingAlignment: 256,
  halfFloats: false,
  subgroupMinSize: 0,
  subgroupMaxSize: 0,
  subgroupMatrices: [],
};

/** A part of Dawn's experimental API that is in no type package yet. */
interface SubgroupMatrixConfig {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** Reads the facts off a device: what its adapter is, and which features and limits the device was created with. */
export function adapterFacts(device: GPUDevice, info: GPUAdapterInfo | undefined = device.adapterInfo): AdapterFacts {
  const { limits, features } = device;
  const subgroups = features.has('subgroups');
  const matrices = features.has('chromium-experimental-subgroup-matrix' as GPUFeatureName);
  const configs = (info as { subgroupMatrixConfigs?: Iterable<SubgroupMatrixConfig> } | undefined)
    ?.subgroupMatrixConfigs;
  return {
    vendor: info?.vendor ?? '',
    architecture: info?.architecture ?? '',
    isSoftware: info?.isFallbackAdapter === true || info?.architecture === 'swiftshader',
    workgroupMemory: limits.maxComputeWorkgroupStorageSize,
    workgroupThreads: Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX),
    workgroupsPerDimension: limits.maxComputeWorkgroupsPerDimension,
    bindingSize: Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize),
    bindingAlignment: limits.minStorageBufferOffsetAlignment,
    halfFloats: features.has('shader-f16'),
    subgroupMinSize: subgroups ? (info?.subgroupMinSize ?? 4) : 0,
    subgroupMaxSize: subgroups ? (info?.subgroupMaxSize ?? 128) : 0,
    subgroupMatrices: (matrices ? [...(configs ?? [])] : [])
      .filter((c) => c.componentType === 'f16' && c.resultComponentType === 'f32')
      .map(({ M, N, K }) => ({ M, N, K })),
  };
}
