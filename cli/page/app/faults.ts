import { OrtFlashError } from '../../../graph-rewrite/errors.js';

/** The longest part of somebody else's message that is shown. */
const LONGEST = 240;

const MEMORY =
  /out of memory|allocation failed|bad_alloc|failed to allocate|array buffer allocation|memory access out/i;
/** Dawn's words for a buffer that the device does not allow. */
const BUFFER = /buffer[^()]*\((\d+)\)[^()]*(?:exceeds|larger)[^()]*\((\d+)\)/i;
const SHAPE = /bounds|Gather|broadcast|Expand|reshape|shape|dimension/i;

/** Any error as one sentence that says what to do. */
export function describeFault(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  const [, asked, allowed] = BUFFER.exec(text) ?? [];
  if (asked !== undefined) {
    const [needs, most] = [asked, allowed].map((bytes) => Number(bytes).toLocaleString('en'));
    return `It needs a buffer of ${needs} bytes, and this GPU allows ${most}: choose a smaller size.`;
  }
  if (MEMORY.test(text)) return `There was not enough memory: choose a smaller size and run again (${oneLine(text)}).`;
  if (!(error instanceof OrtFlashError)) {
    return `The page itself failed: ${oneLine(text)}. Reload it, and report this if it happens again.`;
  }
  if (error.code === 'runtime') {
    const hint = SHAPE.test(text) ? 'the model may not take this size, try a smaller one' : 'try another size';
    return `${oneLine(runtimeMessage(text)).replace(/\.$/, '')}: ${hint}.`;
  }
  const hint = error.code === 'malformed-model' && error.hint === undefined ? CHECK_FILE : '';
  return `${capitalised(oneLine(text))}${hint}.`;
}

const CHECK_FILE = '; check that it is an .onnx file, and that all of it was downloaded';

/** ONNX Runtime's message without its codes: where it stopped, and why. */
function runtimeMessage(text: string): string {
  const node = /running (\S+) node\. Name:'([^']*)' Status Message: ([\s\S]*)/.exec(text);
  if (node)
    return `ONNX Runtime stopped at ${node[1]} “${node[2]}” (${node[3]!.replace(/[^\n]*\.cc:\d+\s*/g, '').trim()})`;
  return text.replace(/failed to call \w+\(\)\. ERROR_CODE: \d+, ERROR_MESSAGE: /, '');
}

function oneLine(text: string): string {
  const line = text.replace(/\s+/g, ' ').trim();
  return line.length > LONGEST ? `${line.slice(0, LONGEST)}…` : line;
}

const capitalised = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
