/**
 * A whole model on WebGPU: a 12-layer encoder, 768 wide, 12 heads, batch 1, through `ort-flash/web` against ONNX Runtime
 * on the untouched model and on its MultiHeadAttention, same device, same run: `kernels` is `flash: 'on'`; `auto` is
 * `flash: 'auto'`, the model's lengths left open, once it has seen enough runs to settle, or known as it opens. Then the
 * length at which the untouched model fails. Under Node, over Dawn:
 *
 *     npx tsx bench/encoder-webgpu.ts --device gpu [--tokens 128,512,4096] [--type float16] [--only-limit] [--out FILE] [--json]
 *
 * Inputs and outputs stay on the GPU. Times are wall-clock time of many runs without waiting in between, until the GPU is
 * done with the last: the median of three passes, the forms in turns. `--device swiftshader` (the default) runs
 * a small model on the CPU: to try the benchmark, and no measurement of a GPU.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { arch, cpus, type as system } from 'node:os';
import { dirname } from 'node:path';
import { parseArgs } from 'node:util';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { DataType } from '../graph-rewrite/onnx/proto.js';
import { forEachTensor } from '../graph-rewrite/onnx/walk.js';
import { decodeHalf, encodeHalf } from '../graph-rewrite/op/half.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { buildTransformer, ENCODER_12_LAYERS } from '../models/builder.js';
import { loadWebOverDawn } from './webgpu/over-dawn.js';

const { values: flags } = parseArgs({
  options: {
    device: { type: 'string', default: 'swiftshader' },
    tokens: { type: 'string' },
    type: { type: 'string' },
    layers: { type: 'string' },
    json: { type: 'boolean' },
    out: { type: 'string' },
    /** Skips the search for the length at which the untouched model fails. */
    'no-limit': { type: 'boolean' },
    /** Searches for that length alone, and measures none. */
    'only-limit': { type: 'boolean' },
  },
});

const isHardware = flags.device === 'gpu';
const { env, InferenceSession, Tensor } = await loadWebOverDawn(isHardware);

type Session = Awaited<ReturnType<typeof InferenceSession.create>>;
type Type = 'float16' | 'float32';

const SMALL = { layers: 2, width: 128, heads: 2 } as const;
const shape = {
  ...(isHardware ? ENCODER_12_LAYERS : SMALL),
  ...(flags.layers ? { layers: Number(flags.layers) } : {}),
};
const type = (flags.type ?? (isHardware ? 'float16' : 'float32')) as Type;
const defaults = isHardware ? [128, 512, 2048, 4096, 8192] : [64, 128];
const lengths = flags.tokens ? flags.tokens.split(',').map(Number) : defaults;
/** A run that gives no answer must not keep the others from being measured. */
const DEADLINE_MS = isHardware ? 60_000 : 600_000;
/** Time that a pass of runs takes, about. */
const PASS_MS = isHardware ? 700 : 100;
const TURNS = 3;
/** Time until V8 has optimised what runs. */
const WARM_MS = isHardware ? 14_000 : 0;
/** Time after which `auto` has measured what there is to choose from, and lost what opening another form costs (12 s at 128 tokens). */
const SETTLE_MS = isHardware ? 25_000 : 100;

const say = (text: string) => process.stderr.isTTY && process.stderr.write(`${text}\n`);

/** With ONNX Runtime's fused operator in place of what an exporter writes. */
function fuse(exported: Uint8Array): Uint8Array {
  const model = decodeModel(exported);
  const { lowered = [] } = rewriteModel(model, { target: 'ort' });
  const operators = new Set(lowered.map(({ operator }) => operator));
  if (operators.size !== 1 || !operators.has('MultiHeadAttention'))
    throw new Error(`the peer's attention is ${[...operators].join(', ')}`);
  return encodeModel(model);
}

const decomposed = encodeModel(buildTransformer({ style: 'dynamo', ...shape, type }));
const fused = fuse(decomposed);

/** The same model, every float16 tensor and value of it in float32. */
function inFloat32(exported: Uint8Array): Uint8Array {
  const model = decodeModel(exported);
  forEachTensor(model, (tensor) => {
    if (tensor.data_type !== DataType.FLOAT16) return;
    const bits = new Uint16Array(tensor.raw_data!.slice().buffer);
    tensor.raw_data = new Uint8Array(decodeHalf(bits, 'float16').buffer);
    tensor.data_type = DataType.FLOAT;
  });
  const { input, output, value_info } = model.graph!;
  for (const { type } of [...input!, ...output!, ...value_info!])
    if (type?.tensor_type?.elem_type === DataType.FLOAT16) type.tensor_type.elem_type = DataType.FLOAT;
  return encodeModel(model);
}

const FORMS = {
  kernels: { model: decomposed, flash: 'on' },
  auto: { model: decomposed, flash: 'auto' },
  'auto, length known': { model: decomposed, flash: 'auto' },
  MultiHeadAttention: { model: fused, flash: 'off' },
  decomposed: { model: decomposed, flash: 'off' },
} as const;
type Form = keyof typeof FORMS;

/**
 * What outputs are compared with: the same weights in float32. On a GPU by ONNX Runtime's MultiHeadAttention, as the scores
 * of the untouched model are past what a binding holds at 8,192 tokens; on SwiftShader that operator is wrong (docs/web.md).
 */
const REFERENCE = 'float32';

function open(form: Form | typeof REFERENCE, tokens: number): Promise<Session> {
  const { model, flash } =
    form === REFERENCE
      ? {
          model: inFloat32(isHardware ? fused : decomposed),
          flash: 'off' as const,
        }
      : FORMS[form];
  return InferenceSession.create(model, {
    flash,
    ...(form === 'auto, length known' ? { freeDimensionOverrides: { batch: 1, sequence: tokens } } : {}),
    executionProviders: ['webgpu'],
    preferredOutputLocation: 'gpu-buffer',
    logSeverityLevel: 4,
  });
}

function withDeadline<T>(result: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${DEADLINE_MS / 1000} s`)), DEADLINE_MS);
  });
  return Promise.race([result, late]).finally(() => clearTimeout(timer));
}

/** Hidden states on the session's device, the same for every form. */
async function hiddenStates(tokens: number, type: Type) {
  const device = (await env.webgpu.device) as GPUDevice;
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return (state >>> 8) / 2 ** 24 - 0.5;
  };
  const floats = Float32Array.from({ length: tokens * shape.width }, random);
  const data = type === 'float16' ? encodeHalf(floats, 'float16') : floats;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffer = device.createBuffer({ size: Math.ceil(data.byteLength / 16) * 16, usage });
  device.queue.writeBuffer(buffer, 0, data as Float32Array<ArrayBuffer>);
  return { device, buffer, tensor: Tensor.fromGpuBuffer(buffer, { dataType: type, dims: [1, tokens, shape.width] }) };
}

/** One form at one length: an open session with its input on the GPU, and the times of its passes so far. */
class Subject {
  readonly times: number[] = [];
  #runs = 1;

  private constructor(
    readonly session: Session,
    readonly input: Awaited<ReturnType<typeof hiddenStates>>,
    readonly output: ArrayLike<number>,
  ) {}

  static async open(form: Form | typeof REFERENCE, tokens: number): Promise<Subject> {
    const session = await open(form, tokens);
    const input = await hiddenStates(tokens, form === REFERENCE ? 'float32' : type);
    try {
      const { last_hidden_state: first } = await session.run({ hidden_states: input.tensor });
      const data = await first!.getData();
      first!.dispose();
      // Node has no float16 array: these are its bits.
      const output = data instanceof Uint16Array ? decodeHalf(data, 'float16') : (data as Float32Array);
      return new Subject(session, input, output);
    } catch (error) {
      input.buffer.destroy();
      await session.release();
      throw error;
    }
  }

  /** Milliseconds of a run, of so many without waiting in between. */
  async pass(runs: number): Promise<number> {
    const start = performance.now();
    for (let i = 0; i < runs; i++)
      (await this.session.run({ hidden_states: this.input.tensor })).last_hidden_state!.dispose();
    await this.input.device.queue.onSubmittedWorkDone();
    return (performance.now() - start) / runs;
  }

  async settle(milliseconds: number): Promise<void> {
    const start = performance.now();
    while (performance.now() - start < milliseconds) await this.pass(10);
    this.#runs = Math.max(1, Math.min(50, Math.ceil(PASS_MS / (await this.pass(1)))));
  }

  async measure(): Promise<void> {
    // What ran before was another form: the first run finds neither caches nor clocks as it left them.
    await this.pass(1);
    this.times.push(await this.pass(this.#runs));
  }

  get milliseconds(): number {
    return [...this.times].sort((x, y) => x - y)[this.times.length >> 1]!;
  }

  async close(): Promise<void> {
    this.input.buffer.destroy();
    await this.session.release();
  }
}

/** V8 optimises onnxruntime-web's WebAssembly as it runs: without this, whatever is measured first is slower. */
async function warmUp(): Promise<void> {
  const [start, each] = [performance.now(), WARM_MS / 2];
  for (const [i, form] of (['kernels', 'MultiHeadAttention'] as const).entries()) {
    const session = await open(form, 64);
    const { buffer, tensor } = await hiddenStates(64, type);
    while (performance.now() - start < (i + 1) * each)
      (await session.run({ hidden_states: tensor })).last_hidden_state!.dispose();
    buffer.destroy();
    await session.release();
  }
}

interface Row {
  readonly tokens: number;
  /** Milliseconds a run, or why there is none. */
  readonly milliseconds: Readonly<Record<Form, number | string>>;
  /** The better of ONNX Runtime's forms, over `kernels` and over `auto`; undefined where it fails. */
  readonly times: Readonly<Record<'kernels' | 'auto' | 'known', number | undefined>>;
  /** What `auto` chose, and why. */
  readonly chosen: string | undefined;
  /** Largest difference of outputs from float32's, relative to the largest of these. */
  readonly errors: Readonly<Partial<Record<Form, number>>>;
}

/** Outputs of a form, and nothing measured. */
async function outputOf(form: Form | typeof REFERENCE, tokens: number): Promise<ArrayLike<number>> {
  const subject = await Subject.open(form, tokens);
  await subject.close();
  return subject.output;
}

/** All forms at one length, in turns: clocks, and what V8 has optimised, change as time goes by. */
async function compare(tokens: number): Promise<Row> {
  const subjects = new Map<Form, Subject>();
  const failures = new Map<Form, string>();
  const attempt = async (form: Form, work: () => Promise<void>) => {
    say(`${tokens} tokens, ${form}`);
    await withDeadline(work()).catch((error: unknown) => {
      failures.set(form, String(error).split('\n')[0]!);
      subjects.delete(form);
    });
  };
  for (const form of Object.keys(FORMS) as Form[])
    await attempt(form, async () => {
      const subject = await Subject.open(form, tokens);
      subjects.set(form, subject);
      await subject.settle(form === 'auto' ? SETTLE_MS : 0);
    });
  for (let turn = 0; turn < TURNS; turn++)
    for (const [form, subject] of [...subjects]) await attempt(form, () => subject.measure());
  const reference = await withDeadline(outputOf(REFERENCE, tokens)).catch(() => undefined);
  const errors: Partial<Record<Form, number>> = {};
  for (const [form, { output }] of subjects)
    if (reference !== undefined) errors[form] = relativeDifference(output, reference);
  const chosen = subjects.get('auto')?.session.explain().text;
  for (const subject of subjects.values()) await subject.close();
  return { tokens, ...timesOf(subjects, failures), chosen, errors };
}

function timesOf(
  subjects: ReadonlyMap<Form, Subject>,
  failures: ReadonlyMap<Form, string>,
): Pick<Row, 'milliseconds' | 'times'> {
  const timeOf = (form: Form) => subjects.get(form)?.milliseconds ?? failures.get(form)!;
  const milliseconds = Object.fromEntries((Object.keys(FORMS) as Form[]).map((form) => [form, timeOf(form)]));
  const theirs = [milliseconds.MultiHeadAttention, milliseconds.decomposed];
  const best = Math.min(...theirs.filter((time) => typeof time === 'number'));
  const over = (time: number | string | undefined) =>
    typeof time === 'number' && Number.isFinite(best) ? best / time : undefined;
  return {
    milliseconds: milliseconds as Record<Form, number | string>,
    times: {
      kernels: over(milliseconds.kernels),
      auto: over(milliseconds.auto),
      known: over(milliseconds['auto, length known']),
    },
  };
}

function relativeDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let largest = 0;
  let scale = 0;
  for (let i = 0; i < a.length; i++) {
    // Not a number is no small difference.
    const difference = Math.abs(a[i]! - b[i]!);
    if (!(difference <= largest)) largest = difference;
    scale = Math.max(scale, Math.abs(b[i]!));
  }
  return largest / scale;
}

interface Limit {
  /** The first length of those tried, each twice the one before, at which the untouched model fails. */
  readonly tokens: number | undefined;
  readonly error: string | undefined;
  /** Whether ours runs at that length, before the untouched model has failed and after, its output finite; or why not. */
  readonly ours: boolean | string | undefined;
  readonly oursAfter: boolean | string | undefined;
}

/** Whether a form runs and gives finite outputs, or why not. */
async function runs(form: Form, tokens: number): Promise<boolean | string> {
  say(`${tokens} tokens, ${form}`);
  return withDeadline(outputOf(form, tokens)).then(
    (output) => Array.prototype.every.call(output, Number.isFinite),
    (error: unknown) => String(error).split('\n')[0]!,
  );
}

async function findLimit(): Promise<Limit> {
  const [from, to] = isHardware ? [16_384, 131_072] : [256, 512];
  for (let tokens = from; tokens <= to; tokens *= 2) {
    const ours = await runs('kernels', tokens);
    const untouched = await runs('decomposed', tokens);
    if (untouched === true) continue;
    const error = untouched === false ? 'its outputs are not finite' : untouched;
    return { tokens, error, ours, oursAfter: await runs('kernels', tokens) };
  }
  return { tokens: undefined, error: undefined, ours: undefined, oursAfter: undefined };
}

const { info } = (await navigator.gpu.requestAdapter())!;
const rows: Row[] = [];
let limit: Limit | undefined;

const report = () => ({
  date: new Date().toISOString(),
  command: `npx tsx bench/encoder-webgpu.ts ${process.argv.slice(2).join(' ')}`.trim(),
  machine: { system: system(), arch: arch(), cpu: cpus()[0]?.model, adapter: info.description, vendor: info.vendor },
  versions: { node: process.version, 'onnxruntime-web': env.versions.web, 'onnxruntime-common': env.versions.common },
  model: { ...shape, type, batch: 1 },
  rows,
  limit,
});

/** After every length: what ends early leaves what it has. */
function save(): void {
  const file = flags.out ?? (isHardware && !flags['only-limit'] ? 'bench/results/encoder-webgpu.json' : undefined);
  if (file === undefined) return;
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(report(), null, 1)}\n`);
}

const print = (text: string) => !flags.json && process.stdout.write(`${text}\n`);
const line = (cells: readonly string[]) => print(cells.map((cell) => cell.padStart(20)).join(''));

function printRow({ tokens, milliseconds, times, chosen, errors }: Row): void {
  const text = (value: number | string) => (typeof value === 'number' ? `${value.toFixed(2)} ms` : 'fails');
  line([
    `${tokens}`,
    ...Object.values(milliseconds).map(text),
    times.kernels?.toFixed(2) ?? '',
    times.auto?.toFixed(2) ?? '',
    times.known?.toFixed(2) ?? '',
  ]);
  const found = Object.entries(errors).map(([form, error]) => `${form} ${error.toExponential(1)}`);
  print(`  difference from float32: ${found.join(', ')}`);
  if (chosen) print(`  auto: ${chosen}`);
  for (const [form, why] of Object.entries(milliseconds)) if (typeof why === 'string') print(`  ${form}: ${why}`);
}

function printLimit({ tokens, error, ours, oursAfter }: Limit): void {
  const told = (result: typeof ours) => (result === true ? 'runs' : `does not: ${result}`);
  if (tokens === undefined) print('untouched, it fails at none of the lengths tried');
  else
    print(
      `untouched, it fails at ${tokens} tokens (${error}); ours ${told(ours)}; after that failure ours ${told(oursAfter)}`,
    );
}

print(`${shape.layers} layers, ${shape.width} wide, ${shape.heads} heads, ${type}, ${info.description}`);
line(['tokens', ...Object.keys(FORMS), 'times', 'auto, times', 'known, times']);
if (!flags['only-limit']) await warmUp();
for (const tokens of flags['only-limit'] ? [] : lengths) {
  const row = await compare(tokens);
  rows.push(row);
  printRow(row);
  save();
}
if (!flags['no-limit']) {
  limit = await findLimit();
  printLimit(limit);
  save();
}
if (flags.json) process.stdout.write(`${JSON.stringify(report())}\n`);
process.exit(0);
