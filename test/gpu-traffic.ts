/** Counts what is submitted to WebGPU in Node. */

/** What is submitted while it is watched. */
export interface Traffic {
  /** Workgroups of 256 items of 16 bytes that go to one head in dispatches that append to caches. */
  readonly appends: number[];
  /** Bytes that are copied from buffer to buffer. */
  copied: number;
  created: number;
}

export async function watch(work: () => Promise<void>): Promise<Traffic> {
  const traffic: Traffic = { appends: [], copied: 0, created: 0 };
  const { setPipeline, dispatchWorkgroups } = GPUComputePassEncoder.prototype;
  const { copyBufferToBuffer } = GPUCommandEncoder.prototype;
  const { createBuffer } = GPUDevice.prototype;
  let label = '';
  GPUComputePassEncoder.prototype.setPipeline = function (pipeline) {
    label = pipeline.label;
    return setPipeline.call(this, pipeline);
  };
  GPUComputePassEncoder.prototype.dispatchWorkgroups = function (x, ...rest) {
    if (label === 'FlashAttention append') traffic.appends.push(x);
    return dispatchWorkgroups.call(this, x, ...rest);
  };
  GPUCommandEncoder.prototype.copyBufferToBuffer = function (...parameters: unknown[]) {
    traffic.copied += parameters[4] as number;
    return (copyBufferToBuffer as (...all: unknown[]) => undefined).apply(this, parameters);
  };
  GPUDevice.prototype.createBuffer = function (descriptor) {
    traffic.created += descriptor.size;
    return createBuffer.call(this, descriptor);
  };
  try {
    await work();
  } finally {
    Object.assign(GPUComputePassEncoder.prototype, { setPipeline, dispatchWorkgroups });
    Object.assign(GPUCommandEncoder.prototype, { copyBufferToBuffer });
    Object.assign(GPUDevice.prototype, { createBuffer });
  }
  return traffic;
}
