import { existsSync } from 'node:fs';
import type { InferenceSessionHandler } from 'onnxruntime-node';
import { InferenceSession as OrtSession, type InferenceSession as OrtTypes } from 'onnxruntime-node';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { readModelFile } from '../graph-rewrite/files.js';
import { decodeModel } from '../graph-rewrite/onnx/codec.js';
import { validateModel } from '../graph-rewrite/onnx/validate.js';
import { WholeSessionHandler } from '../kernels-wgsl/session/handler.js';
import type { OpenedSession } from '../kernels-wgsl/session/shell.js';
import { loadAddon, toOrtFlashError } from './node-addon.js';
import { AddonSessionHandler } from './node-handler.js';
import { cudaOptions, nativeSessionOptions } from './node-options.js';
import { buildCommand, cudaProviderPath, customOpLibraryPath } from './node-paths.js';
import { type FlashMode, openOnCpu, type PreparedModel, prepareModel } from './node-prepare.js';
import { openWasmSession, openWebGpuSession } from './node-web-runtime.js';
import { WidenedHandler } from './node-widened.js';

type Provider = OrtTypes.ExecutionProviderConfig;
type Model = string | Uint8Array;

/** onnxruntime-node's options, and this package's own. */
export interface SessionOptions extends OrtTypes.SessionOptions {
  /** Default `auto`. */
  readonly flash?: FlashMode;
}

/** What a session runs on. */
export interface SessionPlace {
  /** `cpu`, `cuda:0`, `webgpu`, `wasm`, or another execution provider's name. */
  readonly device: string;
  /** The addon of this package, onnxruntime-node, or onnxruntime-web. */
  readonly engine: 'addon' | 'onnxruntime-node' | 'onnxruntime-web';
  /** How attention is carried out, and what is missing, for people. */
  readonly notes: readonly string[];
}

/** An execution provider that was asked for and not taken. */
export interface RefusedProvider {
  readonly provider: string;
  readonly error: OrtFlashError;
}

/** What a session runs on, and why not on what was asked for before it. */
export interface SessionExplanation extends SessionPlace {
  readonly refused: readonly RefusedProvider[];
  /** All of it in one sentence. */
  readonly text: string;
}

type Opened = SessionPlace & { readonly handler: InferenceSessionHandler };

const nameOf = (provider: Provider) => (typeof provider === 'string' ? provider : provider.name);

/**
 * Opens a session on the first of the execution providers that takes the model.
 * @throws OrtFlashError `file-access`, `malformed-model` or `external-data` where the model is at fault; else the last
 *   provider's error, with the others' in its message, where none takes it
 */
export async function openSession(model: Model, options: SessionOptions): Promise<OpenedSession<SessionExplanation>> {
  const providers = options.executionProviders?.length ? options.executionProviders : ['cpu'];
  const refused: RefusedProvider[] = [];
  for (const provider of providers) {
    try {
      const opened = await openOn(provider, model, options);
      return {
        handler: opened.handler,
        get explanation() {
          const { handler: _, ...place } = opened;
          return { ...place, refused, text: explain(place, refused) };
        },
      };
    } catch (error) {
      refused.push({ provider: nameOf(provider), error: toOrtFlashError(error, fileOf(model)) });
    }
  }
  throw faultOf(model, options, refused.at(-1)!.error) ?? noneTook(refused);
}

/**
 * What is wrong with a model that ONNX Runtime refuses, where this package's reader knows: it says where, and what to do.
 */
function faultOf(model: Model, { externalData = [] }: SessionOptions, error: OrtFlashError): OrtFlashError | undefined {
  if (error.code !== 'runtime') return undefined;
  try {
    const checkExternalData = externalData.length === 0;
    validateModel(typeof model === 'string' ? readModelFile(model, { checkExternalData }) : decodeModel(model));
    return undefined;
  } catch (fault) {
    return fault instanceof OrtFlashError ? fault : undefined;
  }
}

function explain(place: SessionPlace, refused: readonly RefusedProvider[]): string {
  const reasons = refused.map(({ provider, error }) => `not ${provider}: ${error.message}`);
  return [`runs on ${place.device} through ${engineName(place)}`, ...place.notes, ...reasons].join('; ');
}

const engineName = ({ engine }: SessionPlace) => (engine === 'addon' ? 'the addon of ort-flash' : engine);

function noneTook(refused: readonly RefusedProvider[]): OrtFlashError {
  const last = refused.at(-1)!.error;
  if (refused.length === 1) return last;
  const reasons = refused.map(({ provider, error }) => `${provider}: ${error.message}`);
  const what = `no execution provider takes the model (${reasons.join('; ')})`;
  return new OrtFlashError(last.code, what, {}, undefined, { cause: last });
}

const fileOf = (model: Model) => (typeof model === 'string' ? model : undefined);

async function openOn(provider: Provider, model: Model, options: SessionOptions): Promise<Opened> {
  switch (nameOf(provider)) {
    case 'cuda':
      return openCuda(provider, model, options);
    case 'webgpu': {
      const opened = await openWebGpuSession(model, options);
      // Not spread: what it says of itself may change.
      return Object.defineProperties(
        { device: 'webgpu', engine: 'onnxruntime-web' } as Opened,
        Object.getOwnPropertyDescriptors(opened),
      );
    }
    case 'wasm':
      return { ...(await openWasmSession(model, options)), device: 'wasm', engine: 'onnxruntime-web' };
    case 'cpu':
      return openCpu(provider, model, options);
    default:
      // What other providers do with fused operators is not known.
      return openOrt(provider, await prepareModel(model, 'cpu', 'off'), options);
  }
}

async function openCpu(provider: Provider, model: Model, options: SessionOptions): Promise<Opened> {
  const { flash = 'auto' } = options;
  const state = loadAddon();
  if (state.addon === undefined) {
    warnOnce(state.why);
    const notes = ['runs block the event loop'];
    return openOnCpu(model, flash, (prepared) => openOrt(provider, prepared, options, notes), { dataFolders: false });
  }
  return openOnCpu(model, flash, (prepared) => openAddon(prepared, model, options, {}));
}

async function openCuda(provider: Provider, model: Model, options: SessionOptions): Promise<Opened> {
  const { flash = 'auto' } = options;
  const settings = cudaOptions(provider, options);
  const library = cudaProviderPath();
  if (!existsSync(library)) {
    throw new OrtFlashError(
      'device',
      "ONNX Runtime's CUDA provider is not installed",
      { file: library },
      'install onnxruntime-node with --onnxruntime-node-install=cuda13, or put the provider there',
    );
  }
  const state = loadAddon();
  if (state.addon === undefined) {
    if (settings.enable_cuda_graph === '1')
      throw new OrtFlashError('unsupported', `enableGraphCapture needs the addon: ${state.why}`);
    warnOnce(state.why);
    return openOrt(provider, await prepareModel(model, 'cuda', flash, { dataFolders: false }), options, [state.why]);
  }
  const kernels = customOpLibraryPath();
  const hasKernels = existsSync(kernels);
  const prepared = await prepareModel(model, hasKernels ? 'kernels' : 'cuda', flash);
  const device = `cuda:${settings.device_id}`;
  const customOpLibraries = hasKernels ? [kernels] : [];
  const opened = await openAddon(prepared, model, options, { cuda: settings, customOpLibraries });
  const missing = `our CUDA kernels are not built (${buildCommand('build:cuda')} builds them)`;
  return { ...opened, device, notes: hasKernels ? opened.notes : [...opened.notes, missing] };
}

async function openAddon(
  prepared: PreparedModel,
  model: Model,
  options: SessionOptions,
  extra: { cuda?: Record<string, string>; customOpLibraries?: string[] },
): Promise<Opened> {
  const { addon } = loadAddon();
  const native = await nativeSessionOptions(model, options);
  const session = await addon!.createSession(prepared.model, {
    ...native,
    configEntries: { ...native.configEntries, ...prepared.configEntries },
    ...extra,
  });
  const handler = new AddonSessionHandler(session, options.preferredOutputLocation, fileOf(model));
  return {
    handler: prepared.widened ? new WidenedHandler(handler, prepared.widened) : handler,
    device: 'cpu',
    engine: 'addon',
    notes: prepared.note === undefined ? [] : [prepared.note],
  };
}

async function openOrt(
  provider: Provider,
  prepared: PreparedModel,
  options: SessionOptions,
  notes: readonly string[] = [],
): Promise<Opened> {
  const { flash: _, ...ort } = options;
  const given = { ...ort, executionProviders: [provider] };
  const session =
    typeof prepared.model === 'string'
      ? await OrtSession.create(prepared.model, given)
      : await OrtSession.create(prepared.model, given);
  const all = prepared.note === undefined ? notes : [prepared.note, ...notes];
  const handler = new WholeSessionHandler(session);
  return {
    handler: prepared.widened ? new WidenedHandler(handler, prepared.widened) : handler,
    device: nameOf(provider),
    engine: 'onnxruntime-node',
    notes: all,
  };
}

let warned = false;

/** Says once a process what is missing. */
function warnOnce(why: string): void {
  if (warned) return;
  warned = true;
  process.emitWarning(`${why}; sessions go through onnxruntime-node`, {
    type: 'OrtFlashWarning',
    code: 'ORT_FLASH_NO_ADDON',
  });
}
