import Long from 'long';
import { OrtFlashError } from './errors.js';
import { FIRST_IR_WITH_DEFAULTS } from './graph/graph.js';
import { type FunctionProto, type ModelProto, OperatorSetIdProto } from './onnx/proto.js';
import { type FunctionVariant, functionFor, overloadName, requiredIrVersion } from './op/body.js';
import { FLASH_ATTENTION_DOMAIN, FLASH_ATTENTION_OP, FLASH_ATTENTION_VERSION } from './op/definition.js';
import { refuse } from './recognise/refusal.js';

/** The function bodies that a model's `FlashAttention` nodes fall back on: one for each variant in use. */
export class FunctionTable {
  readonly #uses = new Map<string, { body: FunctionProto; count: number }>();

  /**
   * Names the variant's function and counts one more node that calls it. Throws a refusal where the model's opset
   * cannot say what the variant computes.
   */
  overload(variant: FunctionVariant): string {
    const name = overloadName(variant);
    const entry = this.#uses.get(name) ?? { body: bodyOf(variant), count: 0 };
    entry.count++;
    this.#uses.set(name, entry);
    return name;
  }

  /** Counts one node less. */
  release(overload: string): void {
    const entry = this.#uses.get(overload);
    if (entry) entry.count--;
  }

  /** Writes the functions in use into the model, imports the operator's domain, and raises the IR version. */
  install(model: ModelProto): void {
    const used = [...this.#uses].filter(([, entry]) => entry.count > 0);
    if (used.length === 0) return;
    const present = new Set(model.functions.filter(isOurs).map((f) => f.overload ?? ''));
    for (const [overload, { body }] of used) if (!present.has(overload)) model.functions.push(body);
    if (!model.opset_import.some((o) => o.domain === FLASH_ATTENTION_DOMAIN))
      model.opset_import.push(
        new OperatorSetIdProto({ domain: FLASH_ATTENTION_DOMAIN, version: Long.fromNumber(FLASH_ATTENTION_VERSION) }),
      );
    const version = model.ir_version?.toNumber() ?? 0;
    if (version < FIRST_IR_WITH_DEFAULTS) unlistInitializers(model);
    if (version < requiredIrVersion()) model.ir_version = Long.fromNumber(requiredIrVersion());
  }
}

/** Takes initializers, which are constants in old IR versions, out of the inputs, whose defaults they would be in new ones. */
function unlistInitializers({ graph }: ModelProto): void {
  if (!graph) return;
  const constants = new Set(graph.initializer.map(({ name }) => name));
  graph.input = graph.input.filter(({ name }) => !constants.has(name));
}

/** Takes out of a model what no node of it calls any more: function bodies of ours, and the import of our domain. */
export function dropUnusedFunctions(model: ModelProto, overloadsInUse: ReadonlySet<string>): void {
  model.functions = model.functions.filter((f) => !isOurs(f) || overloadsInUse.has(f.overload ?? ''));
  if (overloadsInUse.size === 0)
    model.opset_import = model.opset_import.filter((o) => o.domain !== FLASH_ATTENTION_DOMAIN);
}

function isOurs(f: FunctionProto): boolean {
  return f.domain === FLASH_ATTENTION_DOMAIN && f.name === FLASH_ATTENTION_OP;
}

function bodyOf(variant: FunctionVariant): FunctionProto {
  try {
    return functionFor(variant);
  } catch (error) {
    if (error instanceof OrtFlashError && error.code === 'unsupported') refuse(error.message);
    throw error;
  }
}
