/** A small web app: runs a model on the inputs that the test gives, and says how. */
import { InferenceSession, Tensor } from '../../kernels-wgsl/web.js';

export interface AppTensor {
  readonly name: string;
  readonly type: 'float32' | 'int64';
  readonly data: readonly number[];
  readonly dims: readonly number[];
}

async function runModel(address: string, inputs: readonly AppTensor[], options = {}) {
  let maps = 0;
  const { mapAsync } = GPUBuffer.prototype;
  GPUBuffer.prototype.mapAsync = function (...parameters) {
    maps++;
    return mapAsync.apply(this, parameters);
  };
  const session = await InferenceSession.create(address, options);
  const feeds = inputs.map(({ name, type, data, dims }, i) => {
    const elements = type === 'int64' ? BigInt64Array.from(data, BigInt) : Float32Array.from(data);
    return [name || session.inputNames[i]!, new Tensor(type as 'float32', elements as Float32Array, dims)];
  });
  maps = 0;
  const results = await session.run(Object.fromEntries(feeds));
  GPUBuffer.prototype.mapAsync = mapAsync;
  const outputs = session.outputNames.map((name) => Array.from(results[name]!.data as Float32Array));
  const { device, attentions, segments, text } = session.explain();
  await session.release();
  return { device, attentions, segments, text, outputs, maps };
}

export type RunModel = typeof runModel;
Object.assign(globalThis, { runModel });
document.body.append('ready');
