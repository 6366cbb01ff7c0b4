/** Constants of a WGSL text: their values, and the branches that they decide. */

/** Values of the module's u32 and bool constants, by name, in whatever order they stand; a bool is 0 or 1. */
export function constantsOf(source: string): Map<string, number> {
  const constants = new Map<string, number>();
  let open = [...source.matchAll(/^const (\w+)(?:: \w+)? = ([^;]+);$/gm)];
  for (let known = -1; known < constants.size; ) {
    known = constants.size;
    open = open.filter(([, name, expression]) => {
      const value = evaluate(expression!, constants);
      if (value !== undefined) constants.set(name!, value);
      return value === undefined;
    });
  }
  return constants;
}

/** How the operators of WGSL bind, loosest first. */
const OPERATORS: readonly Readonly<Record<string, (a: number, b: number) => number>>[] = [
  { '||': (a, b) => Number(a !== 0 || b !== 0) },
  { '&&': (a, b) => Number(a !== 0 && b !== 0) },
  {
    '==': (a, b) => Number(a === b),
    '!=': (a, b) => Number(a !== b),
    '<': (a, b) => Number(a < b),
    '<=': (a, b) => Number(a <= b),
    '>': (a, b) => Number(a > b),
    '>=': (a, b) => Number(a >= b),
  },
  // WGSL wants parentheses around a shift beside any other operator.
  { '<<': (a, b) => a * 2 ** b, '>>': (a, b) => Math.floor(a / 2 ** b) },
  { '+': (a, b) => a + b, '-': (a, b) => a - b },
  { '*': (a, b) => a * b, '/': (a, b) => Math.floor(a / b), '%': (a, b) => a % b },
];

/** Value of an expression of constants, whole numbers and bools; undefined for any other. */
export function evaluate(expression: string, constants: ReadonlyMap<string, number>): number | undefined {
  const tokens = expression.match(/\w+|[=!<>]=|<<|>>|&&|\|\||[^\s\w]/g) ?? [];
  let at = 0;
  const factor = (): number => {
    const token = tokens[at++] ?? '';
    if (token === '!') {
      const operand = factor();
      return Number.isNaN(operand) ? operand : Number(operand === 0);
    }
    if (token === '(') {
      const inner = chain(0);
      return tokens[at++] === ')' ? inner : Number.NaN;
    }
    if (/^\d+u?$/.test(token)) return Number.parseInt(token, 10);
    if (token === 'true' || token === 'false') return Number(token === 'true');
    return constants.get(token) ?? Number.NaN;
  };
  const chain = (level: number): number => {
    const operators = OPERATORS[level];
    if (operators === undefined) return factor();
    let value = chain(level + 1);
    for (let apply = operators[tokens[at] ?? '']; apply !== undefined; apply = operators[tokens[at] ?? '']) {
      at++;
      const right = chain(level + 1);
      // A comparison with what is not known is not known, even where JavaScript would say false.
      value = Number.isNaN(value) || Number.isNaN(right) ? Number.NaN : apply(value, right);
    }
    return value;
  };
  const value = chain(0);
  return at === tokens.length && Number.isFinite(value) ? value : undefined;
}

/** Truth of a condition, where constants alone decide it: in `A && b`, a false A does. */
function decide(condition: string, constants: ReadonlyMap<string, number>): boolean | undefined {
  for (const [operator, deciding] of [
    ['||', true],
    ['&&', false],
  ] as const) {
    const parts = splitOutside(condition, operator);
    if (parts.length === 1) continue;
    const values = parts.map((part) => decide(part, constants));
    if (values.includes(deciding)) return deciding;
    return values.includes(undefined) ? undefined : !deciding;
  }
  const value = evaluate(condition, constants);
  return value === undefined ? undefined : value !== 0;
}

/** Splits at an operator that stands outside all parentheses. */
function splitOutside(expression: string, operator: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let from = 0;
  for (let i = 0; i < expression.length; i++) {
    if (expression[i] === '(') depth++;
    if (expression[i] === ')') depth--;
    if (depth === 0 && expression.startsWith(operator, i)) {
      parts.push(expression.slice(from, i));
      from = i + operator.length;
    }
  }
  return [...parts, expression.slice(from)];
}

/** Index of the bracket that closes a block or a condition, from the first character in it. */
export function closing(source: string, from: number, brackets: '{}' | '()' = '{}'): number {
  let depth = 1;
  let index = from;
  for (; depth > 0 && index < source.length; index++) {
    if (source[index] === brackets[0]) depth++;
    if (source[index] === brackets[1]) depth--;
  }
  return index - 1;
}

/**
 * Keeps, of every `if` that constants decide, the side that is taken. A compiler would do the same; one that is no GPU's
 * (SwiftShader) runs both sides, and all of them have less to read.
 */
export function foldBranches(source: string, constants: ReadonlyMap<string, number>): string {
  let result = '';
  let from = 0;
  for (let at = nextIf(source, 0); at >= 0; at = nextIf(source, at)) {
    const conditionStart = source.indexOf('(', at) + 1;
    const conditionEnd = closing(source, conditionStart, '()');
    const value = decide(source.slice(conditionStart, conditionEnd), constants);
    const thenStart = source.indexOf('{', conditionEnd) + 1;
    // A chain of `else if` is left as it is.
    const thenEnd = closing(source, thenStart);
    const otherwise = /^\s*else\s*\{/.exec(source.slice(thenEnd + 1, thenEnd + 40));
    const isChain = otherwise === null && /^\s*else/.test(source.slice(thenEnd + 1, thenEnd + 40));
    if (value === undefined || isChain || /else\s*$/.test(source.slice(0, at))) {
      at = thenStart;
      continue;
    }
    const elseStart = otherwise === null ? thenEnd + 1 : thenEnd + 1 + otherwise[0].length;
    const elseEnd = otherwise === null ? thenEnd : closing(source, elseStart);
    const taken = value ? source.slice(thenStart, thenEnd) : otherwise === null ? '' : source.slice(elseStart, elseEnd);
    result += `${source.slice(from, at)}{${foldBranches(taken, constants)}}`;
    from = elseEnd + 1;
    at = from;
  }
  return result + source.slice(from);
}

function nextIf(source: string, from: number): number {
  const found = /\bif \(/g;
  found.lastIndex = from;
  return found.exec(source)?.index ?? -1;
}
