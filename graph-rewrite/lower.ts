import { defined } from './defined.js';
import { OrtFlashError } from './errors.js';
import { dropUnusedFunctions, FunctionTable } from './functions.js';
import { Model, type Node } from './graph/graph.js';
import { opsetImports } from './onnx/make.js';
import { DataType, type ModelProto } from './onnx/proto.js';
import { BLOCKWISE_OPSET } from './op/body.js';
import type { BlockSizes } from './op/body-blocks.js';
import { parseLayout } from './op/layout.js';
import { type Lowered, type LoweringFacts, lowerToOnnx, lowerToOrt, type OrtProvider } from './op/lower.js';
import { isFlashAttention, readAttributes, readInputs } from './op/node.js';
import { isRefusal } from './op/site.js';
import type { LoweredSite, Refusal } from './report.js';
import { Expression } from './shape/expression.js';
import { Inference } from './shape/inference.js';
import { readSizes } from './shape/operators/flash-attention.js';

/** What `FlashAttention` nodes become: ONNX Runtime's own fused operators, or the standard's `Attention`. */
export type LoweringTarget = 'ort' | 'onnx';

const OPSET_OF_DOMAIN: Readonly<Record<string, number>> = { 'com.microsoft': 1 };

/** What lowering to ONNX Runtime's operators depends on beside the model. */
export interface LoweringOptions {
  /**
   * The execution provider that is to run the model, `cpu` (the default, WebAssembly included), `cuda` or `webgpu`. What
   * their operators can do differs, and only the CPU is given attention a block of queries at a time.
   */
  readonly provider?: OrtProvider;
  /**
   * Of what size these blocks are. By default up to 16 MiB of float32 scores are held whole, which is fastest, and blocks
   * have 64 queries at least: fewer would double the time of ONNX Runtime's matrix products.
   */
  readonly blocks?: BlockSizes;
}

const BLOCKS: BlockSizes = { scores: 2 ** 22, leastQueries: 64 };

/**
 * Replaces the `FlashAttention` nodes of a rewritten model by operators that a runtime without our kernels has, where
 * these compute the same. A node that they cannot express stays, with its function body; for ONNX Runtime's CPU provider
 * that body then takes the queries a block at a time, if the model's opset can say so. The model is edited in place.
 */
export function lowerModel(proto: ModelProto, target: LoweringTarget, options: LoweringOptions = {}): LoweredSite[] {
  const { provider = 'cpu', blocks = BLOCKS } = options;
  const model = new Model(proto);
  const inference = new Inference(model);
  const kept = new Set<string>();
  const sites: LoweredSite[] = [];
  const domains = new Set<string>();
  const functions = new FunctionTable();
  for (const graph of model.graphs()) {
    for (const node of [...graph.nodes].filter((n) => isFlashAttention(n.proto))) {
      const place = { node: node.label, output: node.proto.output[0]! };
      const { lowered, facts } = lower(node, target, provider, inference);
      const canTakeBlocks = target === 'ort' && facts !== undefined && mayTakeBlocks(facts);
      const inBlocks = canTakeBlocks && (isRefusal(lowered) || isWorthBlocks(lowered, facts));
      if (inBlocks) takeInBlocks(node, facts, blocks, functions);
      if (inBlocks || isRefusal(lowered)) {
        const refusal = isRefusal(lowered) ? lowered : { reason: lowered.holdsScores! };
        kept.add(node.proto.overload ?? '');
        sites.push({ ...place, operator: 'FlashAttention', refusal, ...(inBlocks ? { inBlocks } : {}) });
        continue;
      }
      for (const domain of lowered.domains) domains.add(domain);
      graph.replace(node, lowered.nodes);
      sites.push({ ...place, operator: lowered.nodes.find((n) => /Attention$/.test(n.op_type ?? ''))?.op_type ?? '' });
    }
  }
  if (sites.length === 0) return sites;
  model.graph.commit();
  for (const domain of domains) importDomain(proto, domain);
  dropUnusedFunctions(proto, kept);
  functions.install(proto);
  return sites;
}

function mayTakeBlocks({ opset, provider }: LoweringFacts): boolean {
  // A Loop on a GPU waits for the CPU in each turn.
  return opset >= BLOCKWISE_OPSET && provider === 'cpu';
}

/** Whether all scores are many: not those of a decoder's one query, after a past that the operator does not copy. */
function isWorthBlocks({ holdsScores }: Lowered, { hasPast, queries }: LoweringFacts): boolean {
  return holdsScores !== undefined && hasPast !== true && queries !== 1;
}

/** Gives the node a body that holds few scores at a time. */
function takeInBlocks(node: Node, facts: LoweringFacts, blocks: BlockSizes, functions: FunctionTable): void {
  const { elementType, opset, mask, hasPast, hasLengths, hasSink, known } = facts;
  const attributes = readAttributes(node.proto);
  const given = defined({ mask, hasPast, hasLengths, hasSink, known });
  node.proto.overload = functions.overload({ attributes, elementType, opset, ...given, blocks });
}

function lower(
  node: Node,
  target: LoweringTarget,
  provider: OrtProvider,
  inference: Inference,
): { readonly lowered: Lowered | Refusal; readonly facts?: LoweringFacts } {
  try {
    const facts = factsOf(node, provider, inference);
    return { facts, lowered: target === 'ort' ? lowerToOrt(node.proto, facts) : lowerToOnnx(node.proto, facts) };
  } catch (error) {
    if (error instanceof OrtFlashError) return { lowered: { reason: error.message } };
    throw error;
  }
}

/** What is known of a node before any data. */
function factsOf(node: Node, provider: OrtProvider, inference: Inference): LoweringFacts {
  const attributes = readAttributes(node.proto);
  const inputs = readInputs(node.proto);
  const of = (name: string | undefined) => (name === undefined ? undefined : inference.of(node.graph.value(name)!));
  const sizes = (name: string | undefined, layout: string, heads: number) =>
    readSizes(parseLayout(layout), of(name)?.shape, heads > 0 ? { H: Expression.constant(heads) } : {});
  const query = sizes(inputs.Q, attributes.queryLayout, attributes.queryHeads);
  const key = sizes(inputs.K, attributes.keyLayout, attributes.keyHeads);
  const value = sizes(inputs.V, attributes.valueLayout, attributes.keyHeads);
  const mask = of(inputs.attn_mask);
  const keys = inputs.past_key === undefined ? key.S : key.S && of(inputs.past_key)?.shape?.[2]?.plus(key.S);
  const covered = mask?.shape?.at(-1);
  const spansKeys = !covered || covered.equals(1) || (keys !== undefined && covered.equals(keys));
  const elementType = of(inputs.Q)?.type;
  if (elementType === undefined || (inputs.attn_mask !== undefined && !mask?.shape))
    throw new OrtFlashError('unsupported', 'the type of the queries or the rank of the mask is not known');
  return {
    elementType,
    opset: node.graph.model.opset(),
    provider,
    ...(mask?.shape
      ? {
          mask: {
            kind: mask.type === DataType.BOOL ? 'boolean' : 'additive',
            rank: mask.shape.length,
            mayBeShorter: !spansKeys,
            mayEmptyRows: true,
          },
        }
      : {}),
    hasPast: inputs.past_key !== undefined,
    hasLengths: inputs.nonpad_kv_seqlen !== undefined,
    hasSink: inputs.sink !== undefined,
    isSelfAttention: query.S !== undefined && key.S !== undefined && query.S.equals(key.S),
    ...constants({ batch: query.B, queries: query.S }),
    known: constants({
      queryHeads: query.H,
      keyHeads: key.H ?? value.H,
      headDimension: query.D ?? key.D,
      valueDimension: value.D,
    }),
  };
}

function constants<K extends string>(sizes: Record<K, Expression | undefined>): Partial<Record<K, number>> {
  const known = Object.entries<Expression | undefined>(sizes).filter(([, size]) => size?.value !== undefined);
  return Object.fromEntries(known.map(([name, size]) => [name, size!.value])) as Partial<Record<K, number>>;
}

function importDomain(model: ModelProto, domain: string): void {
  if (domain === '' || model.opset_import.some((o) => o.domain === domain)) return;
  model.opset_import.push(...opsetImports({ [domain]: OPSET_OF_DOMAIN[domain] ?? 1 }));
}
