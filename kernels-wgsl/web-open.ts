import { env, type InferenceSession as OrtTypes } from '#onnxruntime-web';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import type { ModelProto } from '../graph-rewrite/onnx/proto.js';
import { DataType } from '../graph-rewrite/onnx/proto.js';
import { FLASH_ATTENTION_DOMAIN } from '../graph-rewrite/op/definition.js';
import type { SiteReport } from '../graph-rewrite/report.js';
import type { FormChoice } from './session/auto-session.js';
import { mayHaveBfloat16 } from './session/bfloat16.js';
import type { AttentionFacts } from './session/cut.js';
import { Engine, inTurn } from './session/engine.js';
import { isPath, loadExternalFiles, loadFile } from './session/external-files.js';
import { type AttentionCosts, type FormCosts, SESSION_FORMS, type SessionForm } from './session/forms.js';
import { fixDimensions } from './session/free-dimensions.js';
import { WholeSessionHandler } from './session/handler.js';
import { readMetadata } from './session/metadata.js';
import { ortError } from './session/ort-error.js';
import { openOrtSession } from './session/ort-session.js';
import type { Purpose, Rewritten } from './session/rewritten-model.js';
import type { OpenedSession } from './session/shell.js';

/**
 * Whether attention runs in this package's kernels: where that is possible and faster than ONNX Runtime's own attention
 * (`auto`), always, with an error where it is not possible (`on`), or never, the model going to ONNX Runtime as it is
 * (`off`).
 */
export type FlashMode = 'auto' | 'on' | 'off';

/** onnxruntime-web's session options, and this package's own. */
export interface WebSessionOptions extends OrtTypes.SessionOptions {
  /** Default `auto`. */
  readonly flash?: FlashMode;
  /**
   * What attention costs on this machine, as `explain().costs` of an earlier session gave it: `auto` then need not
   * measure it again.
   */
  readonly costs?: AttentionCosts;
}

/** What a session runs on and how attention is carried out. */
export interface WebSessionExplanation {
  /** Execution provider: `webgpu`, `wasm`, or another of ONNX Runtime's. */
  readonly device: string;
  /** Attentions that run in this package's kernels; 0 where ONNX Runtime has the model whole. */
  readonly attentions: number;
  /** ONNX Runtime sessions that the model is cut into; 1 where it is whole. */
  readonly segments: number;
  /** The model's attention sites as the rewriter saw them; empty where it was not asked, or had been before. */
  readonly sites: readonly SiteReport[];
  /** Why attention does not run in this package's kernels, or why not on an execution provider asked for before. */
  readonly reasons: readonly string[];
  /** With `flash: 'auto'` on WebGPU, how the form in use was chosen. */
  readonly choice?: FormChoice;
  /** What was measured or given of attention's costs on this machine, to be stored for the option `costs`. */
  readonly costs: AttentionCosts;
  /** All of it in one sentence. */
  readonly text: string;
}

export type OpenedWebSession = OpenedSession<WebSessionExplanation>;

type Source = string | Uint8Array;
type Provider = OrtTypes.ExecutionProviderConfig;
type ProviderOptions = Readonly<Record<string, unknown>>;

/** Where sessions run unless told otherwise. */
const DEFAULT_PROVIDERS: readonly Provider[] = ['webgpu', 'wasm'];

const nameOf = (provider: Provider) => (typeof provider === 'string' ? provider : provider.name);

/**
 * Opens a session on the first of the execution providers that there is.
 * @throws OrtFlashError `device` where there is none, `malformed-model` or `runtime` where the model is at fault,
 *   `unsupported` where `flash: 'on'` cannot be had
 */
export async function openWebSession(source: Source, given: WebSessionOptions): Promise<OpenedWebSession> {
  const { flash = 'auto', costs = {}, ...options } = given;
  checkCosts(costs);
  if (!['auto', 'on', 'off'].includes(flash))
    throw new OrtFlashError('invalid-argument', `the option flash is 'auto', 'on' or 'off', not '${flash}'`);
  const providers = options.executionProviders?.length ? options.executionProviders : DEFAULT_PROVIDERS;
  const reasons: string[] = [];
  for (const [i, provider] of providers.entries()) {
    try {
      return await openOn(provider, source, options, { flash, costs, reasons });
    } catch (error) {
      // Another provider helps where there is no device, and nowhere else.
      const isAbsent = error instanceof OrtFlashError && error.code === 'device';
      if (!isAbsent || i === providers.length - 1) throw error;
      reasons.push(`not on ${nameOf(provider)}: ${error.message}`);
    }
  }
  throw new OrtFlashError('invalid-argument', 'no execution provider is given');
}

/** What is given beside ONNX Runtime's own options, and why no provider before took the model. */
interface Given {
  readonly flash: FlashMode;
  readonly costs: AttentionCosts;
  readonly reasons: readonly string[];
}

/** @throws OrtFlashError `invalid-argument` where a cost is no positive number; stored text may be damaged */
function checkCosts(costs: unknown): asserts costs is AttentionCosts {
  const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;
  const isCount = (value: unknown) => typeof value === 'number' && value > 0;
  const isCost = (value: unknown) =>
    isRecord(value) &&
    isCount(value.leastMilliseconds) &&
    isCount(value.operationsPerMillisecond) &&
    (value.cacheBytesPerMillisecond === undefined || isCount(value.cacheBytesPerMillisecond));
  const isTable = isRecord(costs) && Object.values(costs).every((forms) => isRecord(forms));
  const wrong = isTable
    ? Object.entries(costs).find(([, forms]) => !Object.values(forms as FormCosts).every(isCost))?.[0]
    : 'all';
  if (wrong !== undefined)
    throw new OrtFlashError(
      'invalid-argument',
      `the option costs is not what explain().costs gave (${wrong})`,
      {},
      'leave it out, and it is measured',
    );
}

function openOn(
  provider: Provider,
  source: Source,
  options: OrtTypes.SessionOptions,
  given: Given,
): Promise<OpenedWebSession> {
  const { flash, reasons } = given;
  const name = nameOf(provider);
  if (name === 'webgpu') return openWebGpu(provider, source, options, given);
  if (flash === 'on')
    throw new OrtFlashError('unsupported', `flash: 'on' needs the execution provider webgpu, not ${name}`);
  if (flash === 'off' || (name !== 'wasm' && name !== 'cpu'))
    return openWhole(provider, source, options, [], [...reasons, 'the model is left as it is']);
  return openLowered(provider, source, options, reasons);
}

async function openWebGpu(
  provider: Provider,
  source: Source,
  options: OrtTypes.SessionOptions,
  { flash, costs, reasons: before }: Given,
): Promise<OpenedWebSession> {
  const start = performance.now();
  const providerOptions: ProviderOptions = typeof provider === 'string' ? {} : { ...provider };
  const engine = await engineOf(providerOptions);
  const whole = { ...providerOptions, name: 'webgpu', device: engine.device } as Provider;
  if (flash === 'off') return openWhole(whole, source, options, [], [...before, "flash is 'off'"]);
  const load = () => loadModel(source, options, engine.flash.facts);
  const { bytes, files, model, sites, expanded, reasons: widened } = await load();
  const scores = expanded > 0 ? [`attentions in plain operators, as their scores are outputs: ${expanded}`] : [];
  const reasons = [...before, ...widened, ...scores];
  try {
    const [{ cutModel }, { SplicedSession }] = await Promise.all([
      import('./session/cut.js'),
      import('./session/spliced-session.js'),
    ]);
    const cut = (whole: ModelProto) => cutModel(whole, (facts) => isTaken(facts, engine));
    const plan = cut(model);
    if (!plan.steps.some((step) => step.kind === 'attention'))
      throw new OrtFlashError('unsupported', whyNothing(sites));
    const splice = { engine, options, provider: providerOptions };
    if (flash === 'auto') {
      const { openAuto } = await import('./session/open-auto.js');
      const loadMilliseconds = performance.now() - start;
      const auto = { ...splice, cut, load, costs, loadMilliseconds };
      const { session, costKey } = await openAuto({ bytes, model, files }, plan, auto);
      return {
        handler: session,
        get explanation() {
          const { choice, attentions, segments } = session;
          const known = costKey && choice.costs ? { [costKey]: choice.costs } : {};
          const facts = { attentions, segments, choice, costs: { ...costs, ...known } };
          return explained({ device: 'webgpu', ...facts, sites, reasons: [...reasons, ...describeChoice(choice)] });
        },
      };
    }
    const reload = async () => {
      const again = await load();
      return { plan: cut(again.model), files: again.files };
    };
    const session = await SplicedSession.create({ plan, files }, readMetadata(model), { ...splice, reload });
    return {
      handler: session,
      explanation: explained({
        device: 'webgpu',
        attentions: session.attentionCount,
        segments: session.segmentCount,
        costs,
        sites,
        reasons,
      }),
    };
  } catch (error) {
    if (flash === 'on' || !(error instanceof OrtFlashError) || error.code !== 'unsupported') throw error;
    const rest = files.length > 0 ? { ...options, externalData: files } : options;
    return openWhole(whole, bytes, rest, sites, [...reasons, error.message]);
  }
}

/** The device that the provider's options, or `env.webgpu.device`, name; else the one that all sessions share. */
async function engineOf(options: ProviderOptions): Promise<Engine> {
  const isDevice = (value: unknown): value is GPUDevice =>
    typeof GPUDevice !== 'undefined' && value instanceof GPUDevice;
  const set: unknown = env.webgpu.device;
  if (isDevice(options.device)) return Engine.of(options.device);
  if (isDevice(set)) {
    const engine = Engine.of(set);
    // A lost device is known as such only after a turn of the event loop.
    await Promise.resolve();
    if (!engine.isLost) return engine;
  }
  const engine = await Engine.default();
  // As ONNX Runtime does: users read it to make buffers on the same device.
  env.webgpu.device = engine.device;
  return engine;
}

/** What the kernels take: the rest keeps its function body. */
function isTaken({ elementType, headDimension, valueDimension }: AttentionFacts, engine: Engine): boolean {
  const { halfFloats } = engine.flash.facts;
  const hasType = elementType === DataType.FLOAT || (elementType === DataType.FLOAT16 && halfFloats);
  return hasType && (headDimension ?? 0) <= 256 && (valueDimension ?? 0) <= 256;
}

function whyNothing(sites: readonly SiteReport[]): string {
  if (sites.length === 0) return 'the model has no attention';
  const refused = sites.find((site) => site.refusal);
  const why = refused ? `: ${refused.refusal!.reason}` : ': its type, head dimension or place suits no kernel';
  return `none of the model's ${sites.length} attention sites runs in the kernels${why}`;
}

async function openLowered(
  provider: Provider,
  source: Source,
  options: OrtTypes.SessionOptions,
  reasons: readonly string[],
): Promise<OpenedWebSession> {
  const { bytes, files, model, sites, lowered, reasons: widened } = await loadModel(source, options, 'fused');
  const fused = lowered.filter(({ operator }) => operator !== 'FlashAttention').length;
  const inBlocks = lowered.filter((site) => site.inBlocks).length;
  // A model that was rewritten before has no sites any more, but attentions to lower.
  const total = lowered.length + sites.filter((site) => !site.fused).length;
  const { freeDimensionOverrides: _, ...lowering } = options;
  const data = files.length > 0 ? { externalData: files } : {};
  const note = `${fused} of ${total} attention sites run as ONNX Runtime's own fused operators, ${inBlocks} a block of queries at a time`;
  const isLowered = fused + inBlocks > 0;
  return openWhole(
    provider,
    isLowered ? encodeModel(model) : bytes,
    { ...(isLowered ? lowering : options), ...data },
    sites,
    [...reasons, ...widened, note],
  );
}

/**
 * Loads, reads and rewrites a model; its bytes are as given but for bfloat16 that became float32, and attentions that
 * became plain operators.
 */
async function loadModel(source: Source, options: OrtTypes.SessionOptions, purpose: Purpose) {
  const given = { bytes: await loadFile(source), files: await loadExternalFiles(options.externalData), reasons: [] };
  const read = (bytes: Uint8Array) => decodeModel(bytes, typeof source === 'string' ? source : undefined);
  const fix = (model: ModelProto) => {
    fixDimensions(model, options.freeDimensionOverrides);
    return model;
  };
  const model = read(given.bytes);
  const loaded = mayHaveBfloat16(model) ? (await import('./session/widened-model.js')).widenModel(model, given) : given;
  const rewritten = await rewriteOnce(fix(model), purpose, () => fix(read(loaded.bytes)));
  return { model, ...loaded, ...rewritten };
}

/**
 * Rewrites a model unless it was before. The rewriter is larger than all else of `ort-flash/web` together, and so is
 * loaded when the first model needs it: bundlers make a file of its own of it.
 */
async function rewriteOnce(model: ModelProto, purpose: Purpose, again: () => ModelProto): Promise<Rewritten> {
  const isRewritten = model.opset_import.some(({ domain }) => domain === FLASH_ATTENTION_DOMAIN);
  const givesScores = model.graph!.node.some((node) => node.op_type === 'Attention' && node.output[3]);
  if (isRewritten && purpose !== 'fused' && !givesScores) return { sites: [], lowered: [], expanded: 0 };
  return (await import('./session/rewritten-model.js')).rewriteFor(purpose, model, again);
}

async function openWhole(
  provider: Provider,
  source: Source,
  options: OrtTypes.SessionOptions,
  sites: readonly SiteReport[],
  reasons: readonly string[],
): Promise<OpenedWebSession> {
  const open = async () => {
    const externalData = await loadExternalFiles(options.externalData);
    const given = { ...options, executionProviders: [provider], ...(externalData.length > 0 ? { externalData } : {}) };
    // In Node a path, which the runtime would take for an address.
    const model = typeof source === 'string' && isPath(source) ? await loadFile(source) : source;
    return openOrtSession(model, given);
  };
  try {
    // Only with outputs on the GPU does the runtime keep what a failed run had bound.
    const keepsBindings = options.preferredOutputLocation !== undefined;
    const session = new WholeSessionHandler(await inTurn(open), { inTurn, ...(keepsBindings ? { reopen: open } : {}) });
    const explanation = explained({ device: nameOf(provider), attentions: 0, segments: 1, costs: {}, sites, reasons });
    return { handler: session, explanation };
  } catch (error) {
    throw ortError(error);
  }
}

const FORM_NAMES: Readonly<Record<SessionForm, string>> = {
  kernels: 'in the kernels',
  fused: 'by ONNX Runtime’s fused operators',
  decomposed: 'decomposed',
};

/** Why the form in use is, in numbers. */
function describeChoice({ form, costs, lastRun, switches, failures }: FormChoice): string[] {
  if (costs === undefined) return ['not weighed against ONNX Runtime’s own attention yet', ...failures];
  const list = (of: (form: SessionForm) => number | undefined) =>
    SESSION_FORMS.flatMap((f) => (of(f) === undefined ? [] : [`${of(f)!.toPrecision(3)} ms ${FORM_NAMES[f]}`])).join(
      ', ',
    );
  const run = lastRun ? [`a run like the last one takes ${list((f) => lastRun[f])}`] : [];
  const changed = switches > 0 ? [`opened anew ${switches} time${switches > 1 ? 's' : ''} for the runs that came`] : [];
  const least = `a short attention costs ${list((f) => costs[f]?.leastMilliseconds)} here`;
  return [`attention ${FORM_NAMES[form]}`, ...changed, least, ...run, ...failures];
}

function explained(facts: Omit<WebSessionExplanation, 'text'>): WebSessionExplanation {
  const { device, attentions, segments, reasons } = facts;
  const how =
    attentions > 0
      ? `${attentions} attentions in FlashAttention kernels between ${segments} parts in ONNX Runtime`
      : 'whole in ONNX Runtime';
  return { ...facts, text: [`runs on ${device}, ${how}`, ...reasons].join('; ') };
}
