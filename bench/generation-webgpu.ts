/**
 * Generation with a key and value cache on WebGPU: tokens a second of a whole decoder behind a past of some length,
 * batch 1, one token a step, through `ort-flash/web` with caches used in place, through the same with the past copied at
 * each step (into buffers that the caller gives), and through ONNX Runtime on the untouched model. Same device, same run:
 *
 *     npx tsx bench/generation-webgpu.ts --device gpu [--past 1024,4096] [--type float16] [--layers 12] [--json]
 *
 * Caches stay on the GPU; each step's hidden states are read back, as an app reads logits. Wall-clock time, the median of
 * several passes of some steps, in turns, after one that does not count. `--device swiftshader` (the default) runs a small
 * model on the CPU, and takes this process's CPU time, on which other work on the machine has little influence.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { arch, cpus, type as system } from 'node:os';
import { parseArgs } from 'node:util';
import { encodeModel } from '../graph-rewrite/onnx/codec.js';
import { encodeHalf } from '../graph-rewrite/op/half.js';
import { buildTransformer } from '../models/builder.js';
import { loadWebOverDawn } from './webgpu/over-dawn.js';

const { values: flags } = parseArgs({
  options: {
    device: { type: 'string', default: 'swiftshader' },
    past: { type: 'string' },
    type: { type: 'string' },
    layers: { type: 'string' },
    steps: { type: 'string' },
    /** Leaves out ONNX Runtime. */
    'no-peer': { type: 'boolean' },
    json: { type: 'boolean' },
  },
});

const isHardware = flags.device === 'gpu';
const { env, InferenceSession, Tensor } = await loadWebOverDawn(isHardware);

type Session = Awaited<ReturnType<typeof InferenceSession.create>>;
type AnyTensor = InstanceType<typeof Tensor>;
type Tensors = Record<string, AnyTensor>;
type Type = 'float16' | 'float32';

const layers = Number(flags.layers ?? (isHardware ? 12 : 2));
const shape = { layers, ...(isHardware ? { width: 768, heads: 12 } : { width: 256, heads: 4 }) };
const dimension = shape.width / shape.heads;
const type = (flags.type ?? (isHardware ? 'float16' : 'float32')) as Type;
const pasts = (flags.past ?? (isHardware ? '1024,4096,16384' : '2048,4096')).split(',').map(Number);
const steps = Number(flags.steps ?? (isHardware ? 100 : 3));
const PASSES = 5;

const caches = Array.from({ length: layers }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat();
const model = encodeModel(buildTransformer({ style: 'dynamo', ...shape, type, causal: true, cache: true }));

const FORMS = { 'in place': 'on', copied: 'on', 'ONNX Runtime': 'off' } as const;
type Form = keyof typeof FORMS;
const forms = (Object.keys(FORMS) as Form[]).filter((form) => !(flags['no-peer'] && form === 'ONNX Runtime'));

let state = 1;
function random(): number {
  state = (Math.imul(state, 1664525) + 1013904223) | 0;
  return (state >>> 8) / 2 ** 24 - 0.5;
}

function tensorOf(dims: readonly number[]): AnyTensor {
  const floats = Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, random);
  const data = type === 'float16' ? encodeHalf(floats, 'float16') : floats;
  return new Tensor(type, data as Float32Array, dims);
}

/** Tensors for the present keys and values, in one of two sets of buffers: the other has the past. */
class GivenOutputs {
  readonly #buffers: readonly (readonly GPUBuffer[])[];

  constructor(device: GPUDevice, positions: number) {
    const size = shape.heads * positions * dimension * (type === 'float16' ? 2 : 4);
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    this.#buffers = [0, 1].map(() => caches.map(() => device.createBuffer({ size, usage })));
  }

  for(step: number, positions: number): Record<string, AnyTensor | null> {
    const buffers = this.#buffers[step % 2]!;
    const dims = [1, shape.heads, positions, dimension];
    const given = caches.map((name, i) => [
      `present.${name}`,
      Tensor.fromGpuBuffer(buffers[i]!, { dataType: type, dims }),
    ]);
    return { last_hidden_state: null, ...Object.fromEntries(given) };
  }

  destroy(): void {
    for (const buffer of this.#buffers.flat()) buffer.destroy();
  }
}

/** Milliseconds: of wall-clock time, or of this process's CPU time, which does the GPU's work where there is none. */
function clock(): number {
  if (isHardware) return performance.now();
  const { user, system: kernel } = process.cpuUsage();
  return (user + kernel) / 1000;
}

/** A generation under way: a past is given, then a token a step is added to it. */
class Generation {
  #held: Tensors;
  #length: number;

  private constructor(
    readonly session: Session,
    readonly given: GivenOutputs | undefined,
    past: number,
  ) {
    this.#length = past;
    state = 1;
    this.#held = Object.fromEntries(
      caches.map((name) => [`past.${name}`, tensorOf([1, shape.heads, past, dimension])]),
    );
  }

  static async start(form: Form, past: number): Promise<Generation> {
    const session = await InferenceSession.create(model, {
      flash: FORMS[form],
      executionProviders: ['webgpu'],
      preferredOutputLocation: Object.fromEntries(caches.map((name) => [`present.${name}`, 'gpu-buffer' as const])),
      logSeverityLevel: 4,
    });
    const device = (await env.webgpu.device) as GPUDevice;
    const given = form === 'copied' ? new GivenOutputs(device, past + (PASSES + 1) * steps) : undefined;
    return new Generation(session, given, past);
  }

  /** Milliseconds a step. */
  async pass(): Promise<number> {
    const start = clock();
    for (let i = 0; i < steps; i++) await this.#step();
    return (clock() - start) / steps;
  }

  async #step(): Promise<void> {
    const feeds = { hidden_states: tensorOf([1, 1, shape.width]), ...this.#held };
    const fetches = this.given?.for(this.#length, this.#length + 1);
    const results = (await (fetches ? this.session.run(feeds, fetches) : this.session.run(feeds))) as Tensors;
    for (const tensor of Object.values(this.#held)) tensor.dispose();
    this.#held = Object.fromEntries(caches.map((name) => [`past.${name}`, results[`present.${name}`]!]));
    this.#length++;
  }

  async end(): Promise<void> {
    for (const tensor of Object.values(this.#held)) tensor.dispose();
    this.given?.destroy();
    await this.session.release();
  }
}

/** Milliseconds a step of each form, which take turns: what else the machine does meets all alike. */
async function measure(past: number): Promise<Record<string, number>> {
  const generations: Generation[] = [];
  for (const form of forms) generations.push(await Generation.start(form, past));
  for (const generation of generations) await generation.pass();
  const times = forms.map((): number[] => []);
  for (let i = 0; i < PASSES; i++)
    for (const [f, generation] of generations.entries()) times[f]!.push(await generation.pass());
  for (const generation of generations) await generation.end();
  const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(PASSES / 2)]!;
  return Object.fromEntries(forms.map((form, f) => [form, median(times[f]!)]));
}

// Node ends where nothing but promises of the GPU is pending.
const alive = setInterval(() => {}, 1000);
const rows: { past: number; milliseconds: Record<string, number> }[] = [];
for (const past of pasts) {
  if (process.stderr.isTTY) process.stderr.write(`${past} past tokens\n`);
  rows.push({ past, milliseconds: await measure(past) });
}
clearInterval(alive);
const { info } = (await navigator.gpu.requestAdapter())!;
const report = {
  date: new Date().toISOString(),
  command: `npx tsx bench/generation-webgpu.ts ${process.argv.slice(2).join(' ')}`.trim(),
  machine: { system: system(), arch: arch(), cpu: cpus()[0]?.model, adapter: info.description, vendor: info.vendor },
  versions: { node: process.version, 'onnxruntime-web': env.versions.web, 'onnxruntime-common': env.versions.common },
  model: { ...shape, type, batch: 1 },
  steps,
  rows,
};
mkdirSync('bench/results', { recursive: true });
const file = `bench/results/generation-webgpu-${isHardware ? 'gpu' : 'swiftshader'}.json`;
writeFileSync(file, `${JSON.stringify(report, null, 1)}\n`);
if (flags.json) process.stdout.write(`${JSON.stringify(report)}\n`);
else {
  const line = (cells: readonly string[]) => process.stdout.write(`${cells.map((c) => c.padStart(16)).join('')}\n`);
  process.stdout.write(`${layers} layers, ${shape.width} wide, ${shape.heads} heads, ${type}, ${info.description}\n`);
  line([isHardware ? 'tokens/s at past' : 'per CPU second', ...forms]);
  for (const { past, milliseconds } of rows)
    line([`${past}`, ...Object.values(milliseconds).map((ms) => (1000 / ms).toFixed(1))]);
}
process.exit(0);
