/** Reading and writing `FlashAttention` nodes. */
import Long from 'long';
import { OrtFlashError } from '../errors.js';
import { type AttributeProto, AttributeType, NodeProto } from '../onnx/proto.js';
import {
  DEFAULT_ATTRIBUTES,
  FLASH_ATTENTION_ATTRIBUTES,
  FLASH_ATTENTION_DOMAIN,
  FLASH_ATTENTION_INPUTS,
  FLASH_ATTENTION_OP,
  FLASH_ATTENTION_OUTPUTS,
  type FlashAttentionAttributes,
  type FlashAttentionInput,
  type FlashAttentionOutput,
} from './definition.js';
import { makeAttribute } from './emit.js';
import { parseLayout } from './layout.js';

type Field = keyof FlashAttentionAttributes;
type Kind = (typeof FLASH_ATTENTION_ATTRIBUTES)[Field]['kind'];

const FIELDS = Object.keys(FLASH_ATTENTION_ATTRIBUTES) as Field[];

const PROTO_TYPE = {
  float: AttributeType.FLOAT,
  int: AttributeType.INT,
  flag: AttributeType.INT,
  string: AttributeType.STRING,
} as const satisfies Record<Kind, AttributeType>;

/** Whether the node is an `ortflash::FlashAttention`. */
export function isFlashAttention(node: NodeProto): boolean {
  return node.op_type === FLASH_ATTENTION_OP && node.domain === FLASH_ATTENTION_DOMAIN;
}

/**
 * The node's attributes, defaults filled in.
 * @throws OrtFlashError `malformed-model` where an attribute is unknown, has another type than the operator's, or a
 *   layout cannot be read
 */
export function readAttributes(node: NodeProto): FlashAttentionAttributes {
  const read: Partial<Record<Field, number | string | boolean>> = {};
  const place = { node: node.name || `${node.op_type} → ${node.output[0]}` };
  for (const attribute of node.attribute) {
    const field = FIELDS.find((f) => FLASH_ATTENTION_ATTRIBUTES[f].name === attribute.name);
    if (field === undefined) {
      throw new OrtFlashError('malformed-model', `FlashAttention has no attribute "${attribute.name}"`, place);
    }
    const { kind } = FLASH_ATTENTION_ATTRIBUTES[field];
    if (attribute.type !== PROTO_TYPE[kind]) {
      const what = `attribute "${attribute.name}" of FlashAttention must be ${kind === 'flag' ? 'an int' : `of kind ${kind}`}`;
      throw new OrtFlashError('malformed-model', what, place);
    }
    read[field] = attributeValue(attribute, kind);
  }
  const attributes = { ...DEFAULT_ATTRIBUTES, ...read } as FlashAttentionAttributes;
  for (const field of ['queryLayout', 'keyLayout', 'valueLayout', 'outputLayout'] as const) {
    try {
      parseLayout(attributes[field]);
    } catch (error) {
      throw new OrtFlashError('malformed-model', (error as Error).message, place, undefined, { cause: error });
    }
  }
  return attributes;
}

function attributeValue(attribute: AttributeProto, kind: Kind): number | string | boolean {
  switch (kind) {
    case 'float':
      return attribute.f ?? 0;
    case 'string':
      return new TextDecoder().decode(attribute.s ?? new Uint8Array());
    default: {
      const value = Long.fromValue(attribute.i ?? 0).toNumber();
      return kind === 'flag' ? value !== 0 : value;
    }
  }
}

/** The attributes that differ from their defaults, in the order of the operator's definition, floats as float32. */
export function writeAttributes(attributes: FlashAttentionAttributes): AttributeProto[] {
  return FIELDS.flatMap((field) => {
    const value = attributes[field];
    if (sameAttribute(value, DEFAULT_ATTRIBUTES[field])) return [];
    const { name, kind } = FLASH_ATTENTION_ATTRIBUTES[field];
    if (kind === 'float') return [makeAttribute(name, { float: Math.fround(value as number) })];
    return [makeAttribute(name, typeof value === 'boolean' ? Number(value) : value)];
  });
}

/** Whether two values of an attribute are written alike. */
export function sameAttribute(a: number | string | boolean, b: number | string | boolean): boolean {
  return typeof a === 'number' && typeof b === 'number' ? Math.fround(a) === Math.fround(b) : a === b;
}

/** A `FlashAttention` node to be made. */
export interface FlashAttentionNode {
  readonly attributes: FlashAttentionAttributes;
  /** Names of the values given; absent ones stay empty. */
  readonly inputs: Readonly<Record<'Q' | 'K' | 'V', string> & Partial<Record<FlashAttentionInput, string>>>;
  readonly outputs: Readonly<Record<'Y', string> & Partial<Record<FlashAttentionOutput, string>>>;
  readonly name?: string;
  /** Which of the model's functions is the node's body; see body.ts. */
  readonly overload?: string;
}

/** Builds a node; trailing inputs and outputs that are absent are left out, those between are empty names. */
export function flashAttentionNode({ attributes, inputs, outputs, name, overload }: FlashAttentionNode): NodeProto {
  return NodeProto.create({
    op_type: FLASH_ATTENTION_OP,
    domain: FLASH_ATTENTION_DOMAIN,
    ...(name === undefined ? {} : { name }),
    ...(overload === undefined ? {} : { overload }),
    input: withoutTrailingEmpty(FLASH_ATTENTION_INPUTS.map((input) => inputs[input] ?? '')),
    output: withoutTrailingEmpty(FLASH_ATTENTION_OUTPUTS.map((output) => outputs[output] ?? '')),
    attribute: writeAttributes(attributes),
  });
}

/** Names of a node's inputs by the operator's input; those left out are absent. */
export function readInputs(node: NodeProto): Partial<Record<FlashAttentionInput, string>> {
  const named = FLASH_ATTENTION_INPUTS.map((input, i) => [input, node.input[i] ?? ''] as const);
  return Object.fromEntries(named.filter(([, name]) => name !== ''));
}

function withoutTrailingEmpty(names: readonly string[]): string[] {
  return names.slice(0, names.findLastIndex((name) => name !== '') + 1);
}
