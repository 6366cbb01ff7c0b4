import { OrtFlashError } from '../graph-rewrite/errors.js';

/** Options that every command has. */
export interface CommonOptions {
  readonly json?: boolean;
  readonly debug?: boolean;
}

/** Exit codes of every command. */
export const EXIT = {
  success: 0,
  /** A check did not hold. */
  checkFailed: 1,
  /** The input or the arguments are at fault. */
  fault: 2,
  /** Ended by SIGINT, where the process around this one has it ignored; by the shells' convention 128 + 2. */
  interrupted: 130,
} as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

type Style = 'bold' | 'dim' | 'red' | 'green';

const STYLE_CODES: Readonly<Record<Style, readonly [on: number, off: number]>> = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
};

/** Where a command's results, progress and errors go. */
export class Output {
  readonly json: boolean;
  readonly #debug: boolean;
  #progressShown = false;

  constructor(options: CommonOptions) {
    this.json = options.json === true;
    this.#debug = options.debug === true;
    // A reader that has gone (`| head`) is no fault of ours: what is left of the output is dropped, the work goes on.
    for (const stream of [process.stdout, process.stderr]) stream.on('error', ignoreClosedPipe);
    // Node's own form of a warning takes two lines and names the process.
    process.removeAllListeners('warning');
    process.on('warning', (warning) => this.warning(warning));
  }

  /** Something that the user should know and that does not keep the command from its work; one line on stderr. */
  warning(warning: Error): void {
    this.#endProgress();
    process.stderr.write(`warning: ${oneLine(warning.message)}\n`);
    if (this.#debug) process.stderr.write(`${warning.stack}\n`);
  }

  /** A line of the result for people; nothing with --json. */
  line(text = ''): void {
    if (this.json) return;
    this.#endProgress();
    process.stdout.write(`${text}\n`);
  }

  /** The result for programs, once a command; nothing without --json. */
  document(value: unknown): void {
    if (this.json) process.stdout.write(`${JSON.stringify(value, finiteOrText, 2)}\n`);
  }

  /** What is going on, on one line that the next call replaces; only on a terminal. */
  progress(text: string): void {
    if (!process.stderr.isTTY) return;
    const width = Math.max(10, (process.stderr.columns || 80) - 1);
    process.stderr.write(`\r\x1b[K${text.slice(0, width)}`);
    this.#progressShown = text !== '';
  }

  #endProgress(): void {
    if (this.#progressShown) this.progress('');
  }

  /** Reports what ended the command, in one line, and gives the exit code. */
  failure(error: unknown): ExitCode {
    this.#endProgress();
    const known = error instanceof OrtFlashError;
    const message = known
      ? error.message
      : `ort-flash itself failed: ${error instanceof Error ? error.message : String(error)}; ` +
        'please report this with what --debug prints';
    if (this.json) {
      const { code, place, hint } = known ? error : { code: 'internal', place: {}, hint: undefined };
      this.document({ error: { code, message, place, ...(hint === undefined ? {} : { hint }) } });
    }
    process.stderr.write(`${paint(process.stderr, 'red', 'error:')} ${oneLine(message)}\n`);
    if (this.#debug && error instanceof Error) process.stderr.write(`${error.stack}\n${causes(error)}`);
    return EXIT.fault;
  }

  bold(text: string): string {
    return paint(process.stdout, 'bold', text);
  }

  dim(text: string): string {
    return paint(process.stdout, 'dim', text);
  }

  /** A mark for what holds, and one for what does not. */
  mark(holds: boolean): string {
    return holds ? paint(process.stdout, 'green', '✔') : paint(process.stdout, 'red', '✘');
  }
}

const oneLine = (text: string) => text.replace(/\s*\n\s*/g, ' ');

function ignoreClosedPipe(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EPIPE') throw error;
}

/** JSON has no NaN and no infinities. */
function finiteOrText(_key: string, value: unknown): unknown {
  if (typeof value === 'bigint') return value.toString();
  return typeof value === 'number' && !Number.isFinite(value) ? String(value) : value;
}

function causes(error: Error): string {
  const { cause } = error;
  return cause instanceof Error ? `caused by ${cause.stack}\n${causes(cause)}` : '';
}

/** Colours where the stream is a terminal that shows them, unless NO_COLOR is set (no-color.org). */
function paint(stream: NodeJS.WriteStream, style: Style, text: string): string {
  if (!stream.isTTY || process.env.NO_COLOR || process.env.TERM === 'dumb') return text;
  const [on, off] = STYLE_CODES[style];
  return `\x1b[${on}m${text}\x1b[${off}m`;
}
