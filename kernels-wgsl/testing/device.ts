import { existsSync } from 'node:fs';

/** SwiftShader, Vulkan on the CPU, as Debian's Chromium brings it. */
const SWIFTSHADER = '/usr/lib/chromium/vk_swiftshader_icd.json';

/** Dawn's toggles without which an NVIDIA GPU shows neither f16, nor subgroup matrices, nor fine timestamps. */
const TOGGLES = [
  // More of Dawn's toggles, for experiments: ORT_FLASH_DAWN=disable_robustness,…
  `enable-dawn-features=${['vulkan_enable_f16_on_nvidia', 'allow_unsafe_apis', process.env.ORT_FLASH_DAWN].filter(Boolean).join()}`,
  'disable-dawn-features=timestamp_quantization',
];

export interface TestDevice {
  readonly gpu: GPU;
  readonly adapter: GPUAdapter;
  readonly device: GPUDevice;
  /** Whether this is a GPU, and not SwiftShader. */
  readonly isHardware: boolean;
}

/** Dawn crashes where its instance is collected before its devices: every one is kept. */
const instances: GPU[] = [];

/**
 * Opens WebGPU in Node through Dawn with every feature and limit of the adapter: a GPU where ORT_FLASH_GPU=1 is set,
 * SwiftShader otherwise.
 */
export async function openDevice(limits: 'default' | 'adapter' = 'adapter'): Promise<TestDevice> {
  const wantsHardware = process.env.ORT_FLASH_GPU === '1';
  if (!wantsHardware && existsSync(SWIFTSHADER)) process.env.VK_ICD_FILENAMES = SWIFTSHADER;
  const { create, globals } = await import('webgpu');
  Object.assign(globalThis, globals);
  const gpu = create(TOGGLES);
  instances.push(gpu);
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (adapter === null) throw new Error('no WebGPU adapter: install Chromium for its SwiftShader, or a Vulkan driver');
  const wanted = ['shader-f16', 'subgroups', 'timestamp-query', 'chromium-experimental-subgroup-matrix'];
  const requiredLimits: Record<string, number> = {};
  if (limits === 'adapter') {
    for (const name of [
      'maxComputeWorkgroupStorageSize',
      'maxComputeInvocationsPerWorkgroup',
      'maxComputeWorkgroupSizeX',
      'maxStorageBufferBindingSize',
      'maxBufferSize',
    ] as const)
      requiredLimits[name] = adapter.limits[name];
  }
  const device = await adapter.requestDevice({
    requiredFeatures: wanted.filter((name) => adapter.features.has(name)) as GPUFeatureName[],
    requiredLimits,
  });
  return { gpu, adapter, device, isHardware: adapter.info.architecture !== 'swiftshader' };
}
