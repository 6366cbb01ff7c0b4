import { closing, constantsOf, evaluate } from './fold.js';

/**
 * Unrolls loops of a WGSL text, because no WGSL compiler promises to, and an array that is indexed by a loop's variable
 * may then live in memory and not in registers.
 *
 * By convention of our shaders, `for (var i = 0u; i < LIMIT; i++)` with a constant limit is unrolled, as is
 * `i += STEP` with a constant step; `i += 1u` keeps the loop. The body must not break, continue, or assign to the
 * variable.
 */
export function unrollLoops(source: string, constants: ReadonlyMap<string, number> = constantsOf(source)): string {
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
    const bodyEnd = closing(source, bodyStart);
    const body = source.slice(bodyStart, bodyEnd);
    result += source.slice(from, match.index);
    const use = new RegExp(`(?<!\\.)\\b${variable}\\b`, 'g');
    for (let i = 0; i < end; i += step) result += `{${unroll(body.replace(use, `${i}u`), constants)}}\n`;
    from = bodyEnd + 1;
    loops.lastIndex = from;
  }
  return result + source.slice(from);
}
