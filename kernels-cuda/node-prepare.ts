import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { expandScores } from '../graph-rewrite/expand-scores.js';
import { decodeModel, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { isExternal } from '../graph-rewrite/onnx/external.js';
import type { ModelProto } from '../graph-rewrite/onnx/proto.js';
import { forEachTensor } from '../graph-rewrite/onnx/walk.js';
import { FLASH_ATTENTION_OP } from '../graph-rewrite/op/definition.js';
import type { OrtProvider } from '../graph-rewrite/op/lower.js';
import type { ScoresSite } from '../graph-rewrite/op/standard-attention.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { tryWidening, type WidenedModel } from '../graph-rewrite/widen.js';

/** What carries out attention in a session: our kernels, or what an execution provider of ONNX Runtime has itself. */
export type AttentionCarrier = 'kernels' | OrtProvider;

/**
 * Whether attention is fused: where that is possible (`auto`), always, with an error where it is not possible (`on`),
 * or never, the model going to ONNX Runtime as it is (`off`).
 */
export type FlashMode = 'auto' | 'on' | 'off';

/** A model as it goes to a session. */
export interface PreparedModel {
  readonly model: string | Uint8Array;
  /** Session config entries that the model needs. */
  readonly configEntries: Readonly<Record<string, string>>;
  /** How attention is carried out, for people; nothing where the model was left as it is. */
  readonly note: string | undefined;
  /** Where the model given has bfloat16, which this one has not. */
  readonly widened?: WidenedModel;
}

/** ONNX Runtime's name for the folder of external data of a model that comes from memory. */
const DATA_FOLDER = 'session.model_external_initializers_file_folder_path';

export interface PrepareOptions {
  /** Whether the session takes config entries, which a rewritten model with external data needs. Default true. */
  readonly dataFolders?: boolean;
  /** Whether bfloat16 becomes float32. Default false. */
  readonly widens?: boolean;
}

/**
 * Rewrites a model so that its attentions are carried out as suits where it will run. A model in which there is nothing
 * to change, or that this package cannot read, goes to ONNX Runtime as it is.
 * @throws OrtFlashError with `flash: 'on'`, where no attention can be fused
 */
export async function prepareModel(
  model: string | Uint8Array,
  carrier: AttentionCarrier,
  flash: FlashMode,
  options: PrepareOptions = {},
): Promise<PreparedModel> {
  if (!['auto', 'on', 'off'].includes(flash))
    throw new OrtFlashError('invalid-argument', `the option flash is 'auto', 'on' or 'off', not '${flash}'`);
  const asItIs = (note: string | undefined) => ({ model, configEntries: {}, note });
  if (flash === 'off') return asItIs(undefined);
  try {
    const prepared = await rewrite(model, carrier, options);
    if (prepared !== undefined && (prepared.isFused || flash === 'auto')) return prepared;
    if (flash === 'auto') return asItIs(undefined);
  } catch (error) {
    if (flash === 'on' || !(error instanceof OrtFlashError)) throw error;
    return asItIs(`the model is left as it is: ${error.message}`);
  }
  throw new OrtFlashError('unsupported', "flash is 'on', and no attention of the model can be fused");
}

/**
 * Opens a session on the CPU. A model that ONNX Runtime refuses as it is is tried in float32 where it has bfloat16, for
 * which the CPU has few kernels; a Cast to bfloat16 and back, which it has, goes on rounding.
 * @throws OrtFlashError as prepareModel; and whatever `open` throws of the last that was tried
 */
export async function openOnCpu<Session>(
  model: string | Uint8Array,
  flash: FlashMode,
  open: (prepared: PreparedModel) => Promise<Session>,
  options: PrepareOptions = {},
): Promise<Session> {
  const prepared = await prepareModel(model, 'cpu', flash, options);
  try {
    return await open(prepared);
  } catch (error) {
    const wide = await prepareModel(model, 'cpu', flash, { ...options, widens: true });
    if (wide.widened === undefined) throw error;
    return open(wide);
  }
}

async function rewrite(
  model: string | Uint8Array,
  carrier: AttentionCarrier,
  { dataFolders = true, widens = false }: PrepareOptions,
): Promise<(PreparedModel & { readonly isFused: boolean }) | undefined> {
  const file = typeof model === 'string' ? model : undefined;
  const bytes = typeof model === 'string' ? await readModel(model) : model;
  // ONNX Runtime says itself what it cannot read.
  if (bytes === undefined) return undefined;
  const proto = decodeModel(bytes, file);
  const { widened, note: widening } = widens ? tryWidening(proto) : {};
  const before = countAttentions(proto);
  const { lowered = [] } = rewriteModel(proto, carrier === 'kernels' ? {} : { target: 'ort', provider: carrier });
  const after = countAttentions(proto);
  const inBlocks = lowered.filter((site) => site.inBlocks).length;
  const fused = [...after].filter(([operator, count]) => {
    if (operator === FLASH_ATTENTION_OP) return carrier === 'kernels' || inBlocks > 0;
    return count > (before.get(operator) ?? 0);
  });
  const isFused = fused.length > 0;
  const expanded = carrier === 'cpu' ? 0 : expandScores(proto, (site) => (isBeyondCuda(site) ? site : undefined));
  if (!isFused && expanded === 0 && !widened)
    return widening ? { model, configEntries: {}, note: widening, isFused } : undefined;
  const external = hasExternalData(proto);
  if (external && !dataFolders)
    throw new OrtFlashError('unsupported', 'rewriting a model with external data needs the addon');
  const configEntries: Record<string, string> = {};
  if (external && file !== undefined) configEntries[DATA_FOLDER] = dirname(resolve(file));
  const attentions = describeAttentions(countAttentions(proto), carrier, inBlocks, expanded);
  const note = [widening, attentions].filter(Boolean).join('; ');
  return { model: encodeModel(proto), configEntries, note, isFused, ...(widened && { widened }) };
}

/** Whether ONNX Runtime 1.29's `Attention` on CUDA refuses a site: it gives the products of mode 0 only, and no window. */
function isBeyondCuda({ mode, leftWindow, rightWindow }: ScoresSite): boolean {
  return mode !== 0 || leftWindow >= 0 || rightWindow >= 0;
}

function hasExternalData(proto: ModelProto): boolean {
  let external = false;
  forEachTensor(proto, (tensor) => {
    external ||= isExternal(tensor);
  });
  return external;
}

const ATTENTION_OPERATORS = new Set([FLASH_ATTENTION_OP, 'MultiHeadAttention', 'GroupQueryAttention', 'Attention']);

/** How many nodes the model's own graph has of each fused operator. */
function countAttentions(proto: ModelProto): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { op_type: operator } of proto.graph?.node ?? [])
    if (operator && ATTENTION_OPERATORS.has(operator)) counts.set(operator, (counts.get(operator) ?? 0) + 1);
  return counts;
}

/** The file's bytes; nothing where it cannot be read, which ONNX Runtime says itself. */
async function readModel(file: string): Promise<Uint8Array | undefined> {
  return readFile(file).catch(() => undefined);
}

/** `12 attentions by MultiHeadAttention, 1 a block of queries at a time`. */
function describeAttentions(
  counts: ReadonlyMap<string, number>,
  carrier: AttentionCarrier,
  inBlocks: number,
  expanded: number,
): string {
  const ways = Array.from(counts, ([operator, count]): [number, string][] => {
    if (operator !== FLASH_ATTENTION_OP) return [[count, `by ${operator}`]];
    if (carrier === 'kernels') return [[count, 'by our kernels']];
    const whole = count - inBlocks;
    return [
      [inBlocks, 'a block of queries at a time'],
      [whole, `by ${whole === 1 ? 'its' : 'their'} function body`],
    ];
  });
  return [...ways.flat(), [expanded, 'by plain operators'] as const]
    .filter(([count]) => count > 0)
    .map(([count, way]) => `${count} attention${count === 1 ? '' : 's'} ${way}`)
    .join(', ');
}
