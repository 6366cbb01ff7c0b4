/** Types and shapes that the model file states: graph inputs and outputs, and value_info. */
import type { Model } from '../graph/graph.js';
import type { ValueInfoProto } from '../onnx/proto.js';
import { Expression } from './expression.js';

/** What a ValueInfoProto says of a tensor. */
export interface Stated {
  readonly type: number | undefined;
  /** Sizes left open are undefined. */
  readonly shape: readonly (Expression | undefined)[] | undefined;
}

const NOTHING: Stated = { type: undefined, shape: undefined };

/** Reads stated dimensions, with `dim_param` names as symbols that the whole model shares. */
export class StatedReader {
  /** Names that dimensions of the model's inputs have by themselves. */
  readonly #inputSymbols = new Set<string>();

  constructor(model: Model) {
    for (const input of model.graph.inputs)
      for (const dim of input.info?.type?.tensor_type?.shape?.dim ?? [])
        if (dim.dim_param) this.#inputSymbols.add(dim.dim_param);
  }

  read(info: ValueInfoProto | undefined): Stated {
    const tensor = info?.type?.tensor_type ?? info?.type?.sparse_tensor_type;
    if (!tensor) return NOTHING;
    const shape = tensor.shape?.dim.map((dim) => {
      if (dim.dim_param) return this.dimension(dim.dim_param);
      const size = dim.dim_value?.toNumber();
      return size !== undefined && size >= 0 && Number.isSafeInteger(size) ? Expression.constant(size) : undefined;
    });
    return { type: tensor.elem_type || undefined, shape };
  }

  /**
   * A named dimension. Exporters write sums and products of the inputs' dimensions as such ("past + seq", "2*s0");
   * a name that is no expression in those is a symbol of its own.
   */
  dimension(name: string): Expression {
    if (!this.#inputSymbols.has(name) && /[+\-*/]/.test(name)) {
      const parsed = parseSum(name, this.#inputSymbols);
      if (parsed) return parsed;
    }
    // Quoted where it could be read as an unknown's name or an operation's.
    return Expression.symbol(/^[?']|\(/.test(name) ? `'${name}` : name);
  }
}

/**
 * Reads a sum of products over known symbols, as sympy prints it: ` + ` and ` - ` between terms, `*` between factors,
 * `//` for floor division, parentheses. Anything else is no expression.
 */
function parseSum(text: string, symbols: ReadonlySet<string>): Expression | undefined {
  const tokens = text.match(/ [+-] |\/\/|[*()]|[^\s*/()+-]+|./g) ?? [];
  let at = 0;
  const primary = (depth: number): Expression | undefined => {
    const token = tokens[at++];
    if (token === undefined || depth > 32) return undefined;
    if (token === '(') {
      const inner = sum(depth + 1);
      return tokens[at++] === ')' ? inner : undefined;
    }
    if (token === '-') return primary(depth + 1)?.times(-1);
    if (symbols.has(token)) return Expression.symbol(token);
    return /^\d{1,15}$/.test(token) ? Expression.constant(Number(token)) : undefined;
  };
  const term = (depth: number): Expression | undefined => {
    let result = primary(depth);
    while (result && (tokens[at] === '*' || tokens[at] === '//')) {
      const divides = tokens[at++] === '//';
      const other = primary(depth);
      result = other && (divides ? result.floorDividedBy(other) : result.times(other));
    }
    return result;
  };
  function sum(depth: number): Expression | undefined {
    let result = term(depth);
    while (result && (tokens[at] === ' + ' || tokens[at] === ' - ')) {
      const negative = tokens[at++] === ' - ';
      const other = term(depth);
      result = other && (negative ? result.minus(other) : result.plus(other));
    }
    return result;
  }
  const result = tokens.length > 200 ? undefined : sum(0);
  return at === tokens.length ? result : undefined;
}
