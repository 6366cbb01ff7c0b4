import { OrtFlashError } from '../../../graph-rewrite/errors.js';

/** The longest part of somebody else's message that is shown. */
const LONGEST = 240;

const MEMORY =
  /out of memory|allocation failed|bad_alloc|failed to allocate|array buffer allocation|memory access out/i;
const SHAPE = /out of data bounds|out of bounds|Gather|broadcast|Expand|reshape|shape/i;

/** Any error as one sentence that says what to do. */
export function describeFault(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  if (MEMORY.test(text)) return `There was not enough memory: choose a smaller size and run again (${oneLine(text)}).`;
  if (error instanceof OrtFlashError && error.code !== 'runtime') return capitalised(oneLine(text));
  if (error instanceof OrtFlashError) {
    const hint = SHAPE.test(text) ? ' The model may not take this size: try a smaller one.' : '';
    return `${capitalised(oneLine(text)).replace(/\.$/, '')}.${hint}`;
  }
  return `The page itself failed: ${oneLine(text)}. Reload it, and report this if it happens again.`;
}

function oneLine(text: string): string {
  const line = text.replace(/\s+/g, ' ').trim();
  return line.length > LONGEST ? `${line.slice(0, LONGEST)}…` : line;
}

const capitalised = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
