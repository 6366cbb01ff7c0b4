/** What the device reaches in WGSL on the units that attention uses, measured and not looked up. */

export interface Ceilings {
  /** TFLOP/s of fused multiply-adds. */
  readonly float32: number;
  readonly float16: number | undefined;
  /** TFLOP/s of subgroup matrices, f16 in and f32 out. */
  readonly matrix: number | undefined;
  /** GB/s of a copy from buffer to buffer, bytes read and written. */
  readonly copy: number;
}

/** Milliseconds of GPU time of one call of `encode`, many in one pass. */
export type Timer = (encode: (pass: GPUComputePassEncoder, i: number) => void) => Promise<number>;

async function kernel(device: GPUDevice, code: string, buffers: readonly GPUBuffer[]) {
  const pipeline = await device.createComputePipelineAsync({
    layout: 'auto',
    compute: { module: device.createShaderModule({ code }) },
  });
  const group = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
  });
  return (pass: GPUComputePassEncoder, workgroups: number) => {
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(workgroups);
  };
}

const storage = (device: GPUDevice, size: number) =>
  device.createBuffer({ size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });

/** Sixteen independent chains of vec4 multiply-adds a thread. */
async function fma(device: GPUDevice, time: Timer, workgroups: number, type: 'f32' | 'f16'): Promise<number> {
  const steps = 256;
  const chains = Array.from({ length: 8 }, (_, i) => i);
  const code = `${type === 'f16' ? 'enable f16;' : ''}
    @group(0) @binding(0) var<storage, read_write> out: array<vec4<${type}>>;
    @compute @workgroup_size(256) fn main(@builtin(global_invocation_id) id: vec3u) {
      let a = vec4<${type}>(${type}(id.x % 7u)) * 0.1;
      ${chains.map((i) => `var x${i} = out[${i}];`).join(' ')}
      for (var k = 0u; k < ${steps}u; k++) { ${chains.map((i) => `x${i} = fma(x${i}, a, a);`).join(' ')} }
      out[id.x % 1024u] = ${chains.map((i) => `x${i}`).join(' + ')};
    }`;
  const run = await kernel(device, code, [storage(device, 1024 * 16)]);
  const ms = await time((pass) => run(pass, workgroups));
  return (workgroups * 256 * steps * chains.length * 4 * 2) / ms / 1e9;
}

async function matrix(device: GPUDevice, time: Timer, workgroups: number): Promise<number> {
  const steps = 256;
  const sums = [0, 1, 2, 3, 4, 5, 6, 7];
  const code = `enable f16; enable subgroups; enable chromium_experimental_subgroup_matrix;
    @group(0) @binding(0) var<storage, read_write> out: array<f32>;
    var<workgroup> tile: array<f16, 256>;
    var<workgroup> back: array<f32, 256>;
    @compute @workgroup_size(128) fn main(@builtin(local_invocation_index) t: u32) {
      tile[t] = f16(t % 5u) * 0.01h; tile[t + 128u] = f16(t % 3u) * 0.01h;
      workgroupBarrier();
      let a = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&tile, 0u, 16u);
      let b = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, row_major>(&tile, 0u, 16u);
      ${sums.map((i) => `var c${i} = subgroup_matrix_result<f32, 16, 16>();`).join(' ')}
      for (var k = 0u; k < ${steps}u; k++) {
        ${sums.map((i) => `c${i} = subgroupMatrixMultiplyAccumulate(a, b, c${i});`).join(' ')}
      }
      ${sums.map((i) => `subgroupMatrixStore<row_major>(&back, 0u, c${i}, 16u); workgroupBarrier(); out[${i * 128}u + t] = back[t];`).join(' ')}
    }`;
  const run = await kernel(device, code, [storage(device, 4096)]);
  const ms = await time((pass) => run(pass, workgroups));
  return (workgroups * 4 * steps * sums.length * 16 * 16 * 16 * 2) / ms / 1e9;
}

/** A copy by a kernel, 32 KiB a workgroup. */
async function copy(device: GPUDevice, time: Timer, workgroups: number): Promise<number> {
  const bytes = Math.min(workgroups * 2 ** 15, device.limits.maxStorageBufferBindingSize);
  const code = `@group(0) @binding(0) var<storage, read> a: array<vec4u>;
    @group(0) @binding(1) var<storage, read_write> b: array<vec4u>;
    @compute @workgroup_size(256) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
      let i = w.x * 1024u + t;
      b[i] = a[i]; b[i + 256u] = a[i + 256u]; b[i + 512u] = a[i + 512u]; b[i + 768u] = a[i + 768u];
    }`;
  const run = await kernel(device, code, [storage(device, bytes), storage(device, bytes)]);
  const ms = await time((pass) => run(pass, bytes / 16 / 1024));
  return (2 * bytes) / ms / 1e6;
}

/** @param workgroups how many share the work: 8,192 fill a large GPU. */
export async function measureCeilings(device: GPUDevice, time: Timer, workgroups: number): Promise<Ceilings> {
  const hasMatrix = device.features.has('chromium-experimental-subgroup-matrix' as GPUFeatureName);
  return {
    float32: await fma(device, time, workgroups, 'f32'),
    float16: device.features.has('shader-f16') ? await fma(device, time, workgroups, 'f16') : undefined,
    matrix: hasMatrix ? await matrix(device, time, workgroups) : undefined,
    copy: await copy(device, time, workgroups),
  };
}
