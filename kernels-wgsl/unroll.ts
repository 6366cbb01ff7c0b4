/**
 * Unrolls loops of a WGSL text, because no WGSL compiler promises to, and an array that is indexed by a loop's variable
 * may then live in memory and not in registers.
 *
 * By convention of our shaders, `for (var i = 0u; i < LIMIT; i++)` with a constant limit is unrolled, as is
 * `i += STEP` with a constant step; `i += 1u` keeps the loop. The body must not break, continue, or assign to the
 * variable.
 */
export function unrollLoops(source: string): string {
  const constants = constantsOf(source);
  return unroll(source, constants);
}

const LOOP = /for \(var (\w+) = 0u; \1 < ([^;]+); \1(?:\+\+| \+= ([A-Z_]+))\) \{/;

function unroll(source: string, constants: ReadonlyMap<string, number>): string {
  let result = '';
  let from = 0;
  const loops = new RegExp(LOOP, 'g');
  for (let match = loops.exec(source); match !== null; match = loops.exec(source)) {
    const [head, variable, limit, stepName] = match as unknown as [string, string, string, string | undefined];
    const end = evaluate(limit, constants);
    const step = stepName === undefined ? 1 : constants.get(stepName);
    if (end === undefined || step === undefined) continue;
    const bodyStart = match.index + head.length;
    const bodyEnd = closingBrace(source, bodyStart);
    const body = source.slice(bodyStart, bodyEnd);
    result += source.slice(from, match.index);
    const use = new RegExp(`(?<!\\.)\\b${variable}\\b`, 'g');
    for (let i = 0; i < end; i += step) result += `{${unroll(body.replace(use, `${i}u`), constants)}}\n`;
    from = bodyEnd + 1;
    loops.lastIndex = from;
  }
  return result + source.slice(from);
}

/** Index of the brace that closes a block, from the first character in it. */
function closingBrace(source: string, from: number): number {
  let depth = 1;
  let index = from;
  for (; depth > 0; index++) {
    if (source[index] === '{') depth++;
    if (source[index] === '}') depth--;
  }
  return index - 1;
}

/** Values of the module's u32 and bool constants. */
function constantsOf(source: string): Map<string, number> {
  const constants = new Map<string, number>();
  for (const [, name, expression] of source.matchAll(/^const (\w+)(?:: \w+)? = ([^;]+);$/gm)) {
    const value = evaluate(expression!, constants);
    if (value !== undefined) constants.set(name!, value);
  }
  return constants;
}

/** Value of an expression of constants, whole numbers, + − * / % and parentheses; undefined for any other. */
function evaluate(expression: string, constants: ReadonlyMap<string, number>): number | undefined {
  const tokens = expression.match(/\w+|[^\s\w]/g) ?? [];
  let at = 0;
  const factor = (): number => {
    const token = tokens[at++] ?? '';
    if (token === '(') {
      const inner = sum();
      return tokens[at++] === ')' ? inner : Number.NaN;
    }
    if (/^\d+u?$/.test(token)) return Number.parseInt(token, 10);
    return constants.get(token) ?? Number.NaN;
  };
  const product = (): number => {
    let value = factor();
    for (let operator = tokens[at]; operator === '*' || operator === '/' || operator === '%'; operator = tokens[at]) {
      at++;
      const right = factor();
      value = operator === '*' ? value * right : operator === '/' ? Math.floor(value / right) : value % right;
    }
    return value;
  };
  const sum = (): number => {
    let value = product();
    for (let operator = tokens[at]; operator === '+' || operator === '-'; operator = tokens[at]) {
      at++;
      value = operator === '+' ? value + product() : value - product();
    }
    return value;
  };
  const value = sum();
  return at === tokens.length && Number.isFinite(value) ? value : undefined;
}
