/** Where the Node session meets onnxruntime-web, which is loaded when it is first asked for. */
import { dirname, join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import type { InferenceSession, InferenceSessionHandler, Tensor } from 'onnxruntime-node';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { dataFiles } from '../graph-rewrite/onnx/data-files.js';
import type { ModelProto } from '../graph-rewrite/onnx/proto.js';
import { tryWidening } from '../graph-rewrite/widen.js';
import { externalReader, type LoadedFile } from '../kernels-wgsl/session/external-files.js';
import {
  type Feeds,
  type Fetches,
  FlashSessionHandler,
  type Results,
  WholeSessionHandler,
} from '../kernels-wgsl/session/handler.js';
import { giveTensor, mapTensors, takeTensor } from './node-gpu-tensor.js';
import { readExternalData, readWhole } from './node-options.js';
import { type FlashMode, openOnCpu, type PreparedModel } from './node-prepare.js';
import { createTensor, fillTensor } from './node-tensor.js';
import { WidenedHandler } from './node-widened.js';

/** A session of onnxruntime-web, with what is to be told of it. */
export interface OpenedWebRuntime {
  readonly handler: InferenceSessionHandler;
  /** As they are now: on WebGPU they may change from run to run. */
  readonly notes: readonly string[];
}

type Model = string | Uint8Array;
type Options = InferenceSession.SessionOptions;

/**
 * Opens a session of `ort-flash/web` over Dawn.
 * @throws OrtFlashError `device` or `unsupported` with the reason, where there is none
 */
export async function openWebGpuSession(
  model: Model,
  options: Options & { readonly flash?: FlashMode },
): Promise<OpenedWebRuntime> {
  optimiseLate();
  await (await import('../kernels-wgsl/web-node.js')).installNodeWebGpu();
  const { env } = await import('#onnxruntime-web');
  // Its WebAssembly threads are web workers, which Node lacks.
  env.wasm.numThreads = 1;
  const { openWebSession } = await import('../kernels-wgsl/web-open.js');
  const proto = options.flash === 'off' ? undefined : await readModel(model);
  const loaded = await loadDataFiles(model, options, proto);
  // Here, and not by that session: it would not say what was bfloat16.
  const { wide = model, widened, note } = proto ? widenModel(proto, loaded) : {};
  const ownFiles = Array.from(widened?.files ?? [], ([path, data]) => ({ path, data }));
  const given = { ...options, externalData: [...loaded, ...ownFiles], executionProviders: ['webgpu'] };
  const opened = await turning(() => openWebSession(wide, given as Parameters<typeof openWebSession>[1]));
  const handler = new TurningHandler(opened.handler as unknown as InferenceSessionHandler);
  return {
    handler: widened ? new WidenedHandler(handler, widened) : handler,
    get notes() {
      const { attentions, segments, reasons } = opened.explanation;
      const how = `${attentions} attentions in FlashAttention kernels between ${segments} parts in ONNX Runtime`;
      return [...(attentions > 0 ? [how] : []), ...(note ? [note] : []), ...reasons];
    },
  };
}

/** The model without bfloat16, where it has any. */
function widenModel(proto: ModelProto, files: readonly LoadedFile[]) {
  const { widened, note } = tryWidening(proto, { readExternal: externalReader(files) });
  return widened ? { wide: encodeModel(proto), widened, note } : {};
}

/**
 * Lets V8 optimise WebAssembly only where it stays busy. By default it starts on onnxruntime-web's large functions after
 * the first calls, and Node neither ends nor, with nothing but promises pending, goes on before that is done: one small
 * run took 71 seconds in all, of which 64 were V8's. It holds for the process, and must be said before the module loads.
 */
function optimiseLate(): void {
  setFlagsFromString('--wasm-tiering-budget=100000000');
}

let turn: Promise<unknown> = Promise.resolve();

/**
 * Opens, runs and releases sessions one after another. onnxruntime-web keeps the data files of the one that it opens in
 * one place of its module, and clears it after any; and runs that overlap take each other's memory off its stack.
 */
function oneAtATime<T>(work: () => Promise<T>): Promise<T> {
  const result = turn.then(work);
  turn = result.catch(() => undefined);
  return result;
}

/**
 * Opens a session in WebAssembly, with attention in ONNX Runtime's own fused operators.
 *
 * It is onnxruntime-web's build for Node, which has threads there, and whose code V8 optimises quickly.
 * @throws OrtFlashError `unsupported` with `flash: 'on'`, where no attention can be fused
 */
export async function openWasmSession(
  model: Model,
  options: Options & { readonly flash?: FlashMode },
): Promise<OpenedWebRuntime> {
  const { flash = 'auto', ...rest } = options;
  const { InferenceSession: Sessions } = await import('onnxruntime-web');
  const given = { ...rest, externalData: await loadDataFiles(model, options), executionProviders: ['wasm'] };
  const open = async (prepared: PreparedModel) => {
    const bytes = typeof prepared.model === 'string' ? await readWhole(prepared.model, 'file-access') : prepared.model;
    const session = await oneAtATime(() => Sessions.create(bytes, given as Parameters<typeof Sessions.create>[1]));
    // The two runtimes bring their own copies of onnxruntime-common, whose interfaces are alike.
    const handler = new WasmSessionHandler(session as unknown as InferenceSession, { inTurn: oneAtATime });
    return { prepared, handler };
  };
  const { prepared, handler } = await openOnCpu(model, flash, open);
  const notes = prepared.note === undefined ? [] : [prepared.note];
  const { widened } = prepared;
  return {
    handler: widened ? new WidenedHandler(handler, widened) : handler,
    notes: [...notes, 'runs block the event loop'],
  };
}

/** Gives results as tensors of onnxruntime-node, and fills those that are given. */
class WasmSessionHandler extends WholeSessionHandler {
  protected override async runModel(feeds: Feeds, fetches: Fetches, options: InferenceSession.RunOptions) {
    // onnxruntime-web gives back tensors for outputs without filling them.
    const wanted = Object.fromEntries(Object.keys(fetches).map((name) => [name, null]));
    const results = await super.runModel(feeds, wanted, options);
    const own: Results = {};
    for (const [name, result] of Object.entries(results)) {
      const target = fetches[name];
      own[name] = target == null ? ownTensor(result) : await copyInto(name, target, result);
    }
    return own;
  }
}

/** Keeps Node's event loop turning while a session over Dawn works (see {@link turning}), and gives this runtime's tensors. */
class TurningHandler extends FlashSessionHandler {
  readonly #handler: InferenceSessionHandler;

  constructor(handler: InferenceSessionHandler) {
    super({ inputs: handler.inputMetadata, outputs: handler.outputMetadata });
    this.#handler = handler;
  }

  protected override async runModel(feeds: Feeds, fetches: Fetches, options: InferenceSession.RunOptions) {
    const results = await turning(() => this.#handler.run(mapTensors(feeds, takeTensor), fetches, options));
    return mapTensors(results, giveTensor);
  }

  protected override free(): Promise<void> {
    return turning(() => this.#handler.dispose());
  }

  override endProfiling(): void {
    this.#handler.endProfiling();
  }
}

/**
 * Does work of onnxruntime-web's build for WebGPU with the event loop kept alive: where only promises are pending, Node
 * waits for what V8 optimises on other threads before it goes on with them.
 */
async function turning<T>(work: () => Promise<T>): Promise<T> {
  const turn = setInterval(() => {}, 1000);
  try {
    return await work();
  } finally {
    clearInterval(turn);
  }
}

type Result = Results[string];

const ownTensor = ({ type, data, dims }: Result) => createTensor(type, data as Tensor.DataType, dims);

function copyInto(name: string, target: Result, { type, data, dims }: Result): Promise<Result> {
  const elements = Array.isArray(data) ? data : ((data as Uint8Array).slice().buffer as ArrayBuffer);
  return fillTensor(name, target, [type, [...dims], elements]);
}

async function readModel(model: Model): Promise<ModelProto> {
  if (typeof model !== 'string') return decodeModel(model);
  return decodeModel(await readWhole(model, 'file-access'), model);
}

/** The model's data files, which onnxruntime-web does not look for: those that the options name, else all of them. */
async function loadDataFiles(
  model: Model,
  { externalData }: Options,
  proto?: ModelProto,
): Promise<{ path: string; data: Uint8Array }[]> {
  if (externalData !== undefined) return Promise.all(externalData.map((file) => readExternalData(model, file)));
  if (typeof model !== 'string') return [];
  const files = dataFiles(proto ?? (await readModel(model)));
  const read = (path: string) => readWhole(join(dirname(model), path), 'external-data');
  return Promise.all(files.map(async ({ location }) => ({ path: location, data: await read(location) })));
}
