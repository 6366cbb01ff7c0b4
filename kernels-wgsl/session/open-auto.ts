import type { InferenceSession as OrtTypes } from '#onnxruntime-web';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { decodeModel, encodeModel } from '../../graph-rewrite/onnx/codec.js';
import { dataTypeInfo } from '../../graph-rewrite/onnx/data-type.js';
import type { ModelProto } from '../../graph-rewrite/onnx/proto.js';
import { type AttentionKind, costKey } from './attention-kind.js';
import { groupSizes, resolveSizes } from './attention-sizes.js';
import { AutoSession, type PreparedForm } from './auto-session.js';
import { type AttentionCall, cutModel, type SplicePlan } from './cut.js';
import { type Engine, inTurn } from './engine.js';
import type { LoadedFile } from './external-files.js';
import { type AttentionCosts, cheapest, estimateRun, type FormCosts, type SessionForm } from './forms.js';
import { type FlashSessionHandler, WholeSessionHandler } from './handler.js';
import { readMetadata } from './metadata.js';
import { openOrtSession } from './ort-session.js';
import { SplicedSession } from './spliced-session.js';

type SessionOptions = OrtTypes.SessionOptions;

/** A model that is loaded and rewritten. */
export interface RewrittenModel {
  /** As it was given. */
  readonly bytes: Uint8Array;
  readonly model: ModelProto;
  readonly files: readonly LoadedFile[];
}

export interface AutoOptions extends FormOptions {
  /** Costs measured before. */
  readonly costs: AttentionCosts;
  /** Milliseconds that loading and cutting the model took. */
  readonly loadMilliseconds: number;
}

/** What opening a model takes. */
interface FormOptions {
  readonly engine: Engine;
  readonly options: SessionOptions;
  /** The WebGPU provider's own options. */
  readonly provider: Readonly<Record<string, unknown>>;
  /** Cuts a rewritten model. */
  readonly cut: (model: ModelProto) => SplicePlan;
  /** Loads the model again. */
  readonly load: () => Promise<RewrittenModel>;
}

/** A session with what it can be told by, for the caller to keep its costs. */
export interface OpenedAuto {
  readonly session: AutoSession;
  /** What its costs are kept under; undefined where the model does not tell the kind of its attention. */
  readonly costKey: string | undefined;
}

/** Measured since this module was loaded, or about to be. */
const measured = new Map<string, Promise<FormCosts>>();

/**
 * Opens a model in the form that is the fastest where the model says how long its sequences are, and otherwise cut at
 * its attentions, which is right for every length, until its runs show which form is.
 * @throws OrtFlashError `runtime` where ONNX Runtime refuses the model, `device` where the device is lost
 */
export async function openAuto(loaded: RewrittenModel, plan: SplicePlan, auto: AutoOptions): Promise<OpenedAuto> {
  const start = performance.now();
  const { engine } = auto;
  const metadata = readMetadata(loaded.model);
  const calls = plan.steps.flatMap((step) => (step.kind === 'attention' ? step.calls : []));
  const attentions = calls.map(({ sizes }) => sizes);
  const kind = kindOf(calls, plan);
  const key = kind && costKey(engine.flash.facts, kind);
  const measure = kind && (() => measureOnce(key!, engine, kind, auto));
  let costs = key === undefined ? undefined : (auto.costs[key] ?? (await measured.get(key)?.catch(() => undefined)));
  const sizes = resolveSizes(groupSizes(attentions), plan.inputShapes);
  if (sizes && measure && !costs && !engine.flash.facts.isSoftware) costs = await measure().catch(() => undefined);
  if (costs?.kernels === undefined) costs = undefined;
  const best = sizes && costs && cheapest(estimateRun(sizes, costs, engine.flash.facts.bindingSize));
  const forms = new Forms(auto);
  const { form, handler } = await forms.openFirst(best ?? 'kernels', loaded, plan);
  const session = new AutoSession({
    engine,
    metadata,
    attentions,
    inputShapes: plan.inputShapes,
    form,
    handler,
    openMilliseconds: performance.now() - start + auto.loadMilliseconds,
    costs,
    measure,
    prepare: async (wanted) => forms.prepare(wanted, await auto.load()),
  });
  return { session, costKey: key };
}

function measureOnce(key: string, engine: Engine, kind: AttentionKind, auto: AutoOptions): Promise<FormCosts> {
  let pending = measured.get(key);
  if (pending === undefined) {
    pending = measureCosts(engine, kind, auto.provider);
    measured.set(key, pending);
    pending.catch(() => measured.delete(key));
  }
  return pending;
}

/** Measures what attention costs in each form that there is for it. */
export async function measureCosts(
  engine: Engine,
  kind: AttentionKind,
  provider: Readonly<Record<string, unknown>>,
): Promise<FormCosts> {
  const { measureForms } = await import('./measure-forms.js');
  const options = { preferredOutputLocation: 'gpu-buffer', logSeverityLevel: 4 } as const;
  return measureForms(engine, kind, async (model, form) => {
    const loaded = { bytes: encodeModel(model), model, files: [] };
    const forms = new Forms({ engine, provider, options, cut: (whole) => cutModel(whole), load: async () => loaded });
    return (await forms.prepare(form, loaded))();
  });
}

/** Opens sessions in each form. */
class Forms {
  constructor(readonly auto: FormOptions) {}

  /** Opens the model in a form, or cut where that cannot be had. */
  async openFirst(
    form: SessionForm,
    loaded: RewrittenModel,
    plan: SplicePlan,
  ): Promise<{ form: SessionForm; handler: FlashSessionHandler }> {
    if (form !== 'kernels') {
      try {
        return { form, handler: await (await this.prepare(form, loaded))() };
      } catch {
        // The cut model is right for every length.
        const again = await this.auto.load();
        return { form: 'kernels', handler: await this.#openCut(again, this.auto.cut(again.model)) };
      }
    }
    return { form, handler: await this.#openCut(loaded, plan) };
  }

  async prepare(form: SessionForm, loaded: RewrittenModel): Promise<PreparedForm> {
    if (form === 'kernels') {
      const plan = this.auto.cut(loaded.model);
      return () => this.#openCut(loaded, plan);
    }
    const { bytes, options } = form === 'fused' ? await this.#fused(loaded) : this.#untouched(loaded);
    return () => this.#openWhole(form, bytes, options, loaded.files);
  }

  #openCut(loaded: RewrittenModel, plan: SplicePlan): Promise<SplicedSession> {
    const { engine, options, provider, cut, load } = this.auto;
    const reload = async () => {
      const again = await load();
      return { plan: cut(again.model), files: again.files };
    };
    const splice = { engine, options, provider, reload };
    return SplicedSession.create({ plan, files: loaded.files }, readMetadata(loaded.model), splice);
  }

  /** The model with ONNX Runtime's own fused operators. */
  async #fused({ model }: RewrittenModel) {
    const { lowerModel } = await import('../../graph-rewrite/lower.js');
    const own = decodeModel(encodeModel(model));
    const isFused = lowerModel(own, 'ort', { provider: 'webgpu' }).some(
      ({ operator }) => operator !== 'FlashAttention',
    );
    if (!isFused)
      throw new OrtFlashError('unsupported', 'ONNX Runtime’s fused operators compute none of its attentions');
    // The model's dimensions are fixed already.
    const { freeDimensionOverrides: _, ...options } = this.auto.options;
    return { bytes: encodeModel(own), options };
  }

  #untouched({ bytes }: RewrittenModel) {
    return { bytes, options: this.auto.options };
  }

  async #openWhole(
    form: SessionForm,
    bytes: Uint8Array,
    options: SessionOptions,
    files: readonly LoadedFile[],
  ): Promise<FlashSessionHandler> {
    const { engine, provider, load } = this.auto;
    // Graphs are captured for one shape, and this session may get any.
    const { enableGraphCapture: _, externalData: __, ...rest } = options;
    const webGpu = { ...provider, name: 'webgpu', device: engine.device } as OrtTypes.ExecutionProviderConfig;
    const create = (model: Uint8Array, data: readonly LoadedFile[]) => {
      const given = { logSeverityLevel: 3 as const, ...rest, executionProviders: [webGpu] };
      return openOrtSession(model, data.length > 0 ? { ...given, externalData: data } : given);
    };
    const session = await inTurn(() => Promise.race([create(bytes, files), engine.lost]));
    // Only with outputs on the GPU does the runtime keep what a failed run had bound.
    if (options.preferredOutputLocation === undefined) return new WholeSessionHandler(session, { inTurn });
    const reopen = async () => {
      const again = await load();
      const { bytes: anew } = form === 'fused' ? await this.#fused(again) : again;
      return create(anew, again.files);
    };
    return new WholeSessionHandler(session, { inTurn, reopen });
  }
}

/** The kind of attention that most of a model's are; undefined where the model does not tell. */
function kindOf(calls: readonly AttentionCall[], { types }: SplicePlan): AttentionKind | undefined {
  const counts = new Map<string, { kind: AttentionKind; count: number }>();
  for (const { sizes, attributes, inputs } of calls) {
    const [queryHeads, keyHeads, headDimension] = [sizes.queryHeads, sizes.keyHeads, sizes.headDimension].map(
      (size) => size?.value,
    );
    const type = dataTypeInfo(types.get(inputs.Q!))?.name;
    if (!queryHeads || !keyHeads || !headDimension || (type !== 'float32' && type !== 'float16')) continue;
    const kind = { type, queryHeads, keyHeads, headDimension, isCausal: attributes.isCausal } as const;
    const key = JSON.stringify(kind);
    counts.set(key, { kind, count: (counts.get(key)?.count ?? 0) + 1 });
  }
  return [...counts.values()].sort((a, b) => b.count - a.count)[0]?.kind;
}
