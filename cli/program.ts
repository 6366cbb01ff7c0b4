import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { OrtFlashError } from '../graph-rewrite/errors.js';
import { type CommonOptions, EXIT, type ExitCode, Output } from './output.js';

type Handler<Arguments extends readonly unknown[]> = (output: Output, ...parameters: Arguments) => Promise<ExitCode>;

/** Runs the command line and gives its exit code. Errors end in one line on stderr; nothing is thrown. */
export async function main(args: readonly string[]): Promise<number> {
  const ended: { code: number } = { code: EXIT.success };
  // Before arguments are parsed, errors still have to know how they are wanted.
  const asked = args.slice(0, args.includes('--') ? args.indexOf('--') : undefined);
  const output = new Output({ json: asked.includes('--json'), debug: asked.includes('--debug') });
  const program = buildProgram(output, ended);
  try {
    if (args.length === 0) {
      throw new OrtFlashError('invalid-argument', 'no command was given', {}, 'see "ort-flash --help"');
    }
    await program.parseAsync(args, { from: 'user' });
    return ended.code;
  } catch (error) {
    if (!(error instanceof CommanderError)) return output.failure(error);
    if (error.exitCode === 0) return EXIT.success;
    if (error.code === 'commander.help') return output.failure(unknownCommand(args.at(-1)!));
    return output.failure(argumentError(error, program, args));
  }
}

/** `help NAME`, where there is no such command: commander prints its help and gives no message. */
function unknownCommand(name: string): OrtFlashError {
  return new OrtFlashError('invalid-argument', `unknown command "${name}"`, {}, 'see "ort-flash --help"');
}

/** Commander's message, which may have a suggestion on a second line, in our form. */
function argumentError(error: CommanderError, program: Command, args: readonly string[]): OrtFlashError {
  const [what = '', suggestion] = error.message
    .replace(/^error: /, '')
    .replaceAll(/'(-[^']*|[^' ]*)'/g, '"$1"')
    .replaceAll(/\. ([A-Z"])/g, (_, first: string) => `: ${first.toLowerCase()}`)
    .split('\n');
  const command = program.commands.find((one) => one.name() === args.find((arg) => !arg.startsWith('-')));
  const help = `see "ort-flash ${command ? `${command.name()} ` : ''}--help"`;
  const meant = suggestion ? `${suggestion.replace(/^\(D/, 'd').replace(/\)$/, '')} ` : '';
  return new OrtFlashError('invalid-argument', what.replace(/\.$/, ''), {}, `${meant}${help}`, { cause: error });
}

function buildProgram(output: Output, ended: { code: number }): Command {
  const program = new Command('ort-flash')
    .description('Makes attention in any ONNX model run as FlashAttention.')
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this')
    .showSuggestionAfterError(true)
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({ writeErr: () => undefined, outputError: () => undefined })
    .addHelpText('after', EXIT_CODES);
  /** A command whose handler is loaded when it runs, so that others start fast. */
  const add = <Arguments extends readonly unknown[]>(usage: string, load: () => Promise<Handler<Arguments>>) =>
    program
      .command(usage)
      .option('--json', 'print one JSON document in place of text')
      .option('--debug', 'print the stack of an error')
      .action(async (...parameters) => {
        const handler = await load();
        ended.code = await handler(output, ...(parameters as unknown as Arguments));
      });
  addModelCommands(add);
  addRunCommands(add);
  return program;
}

type Add = <Arguments extends readonly unknown[]>(usage: string, load: () => Promise<Handler<Arguments>>) => Command;

const EXIT_CODES = `
Exit codes: 0 success, 1 a check did not hold, 2 the input or the arguments are at fault.`;

const targetOption = () =>
  new Option(
    '--target <form>',
    'what attention becomes: FlashAttention, ONNX Runtime’s fused operators, or standard ONNX',
  )
    .choices(['flash', 'ort', 'onnx'])
    .default('flash');

function addModelCommands(add: Add): void {
  add('rewrite <in>', async () => (await import('./commands/rewrite.js')).rewrite)
    .description('fuse every attention of a model; report each site, and why where it is not fused')
    .option('-o, --output <out>', 'the file to write')
    .option('--dry-run', 'only report, write nothing')
    .option('--verify', 'compare with the untouched model before anything is written')
    .addOption(targetOption())
    .addOption(
      new Option('--external-data <mode>', 'data files of a model with external data, for an output in another folder')
        .choices(['keep', 'link', 'copy'])
        .default('link'),
    );
  add('inspect <in>', async () => (await import('./commands/inspect.js')).inspect)
    .description('what attention a model has, and what it costs in memory')
    .option('--lengths <list>', 'sequence lengths for the memory of the scores', parseLengths, [512, 2048, 8192])
    .option('--batch <size>', 'batch size for the memory of the scores', parsePositive, 1)
    .option('--svg <out>', 'also draw each site before and after');
  add('verify <a> <b>', async () => (await import('./commands/verify.js')).verify)
    .description('run two models on the same inputs in onnxruntime and compare their outputs')
    .option(
      '--inputs <dir>',
      'inputs as input_N.pb, or folders test_data_set_* of them; default random, in several shapes',
    )
    .option('--tolerance <share>', 'largest difference, as a share of the output’s largest value', parsePositiveNumber)
    .option('--seed <number>', 'seed of the random inputs', parseCount, 1);
}

function addRunCommands(add: Add): void {
  add('demo', async () => (await import('./commands/demo.js')).demo)
    .description('rewrite real exports, compare them with the untouched ones, and show what attention costs')
    .option('--lengths <list>', 'sequence lengths to measure at', parseLengths, [512, 1024, 2048, 4096]);
  add('page', async () => (await import('./commands/page.js')).page)
    .description('serve a page on this machine to try models in the browser; ends with Ctrl+C')
    .option('--port <number>', 'port to serve on, 0 for any that is free', parsePort, 4747);
  add('run <model>', async () => (await import('./commands/run.js')).run)
    .description('run a model over many samples')
    .requiredOption(
      '--inputs <place>',
      'samples: a folder of input_N.pb or NAME.npy, of test_data_set_*, a .npz or .jsonl',
    )
    .requiredOption('--outputs <dir>', 'folder for the results, one folder a sample')
    .addOption(
      new Option('--device <device>', 'where to run').choices(['cpu', 'wasm', 'webgpu', 'cuda']).default('cpu'),
    )
    .option('--device-ids <list>', 'GPUs to use, for cuda: 0,1', parseIndices)
    .option('--batch <size>', 'the most samples that one run takes together', parsePositive, 1)
    .option('--no-resume', 'run samples again whose results are already there')
    .addOption(new Option('--format <format>', 'format of the results').choices(['pb', 'npy']));
  add('export <format> <model>', async () => (await import('./commands/export.js')).exportModel)
    .description('write a model for a server; the format is triton: a model repository')
    .requiredOption('--out <dir>', 'folder of the model repository')
    .option('--name <name>', 'the model’s name there; default its file’s')
    .option('--model-version <number>', 'version to write', parsePositive, 1)
    .option('--library <file>', 'the custom-op library of the CUDA kernels, to take along')
    .option('--server-path <dir>', 'where the server sees the repository; default the same folder')
    .option('--max-batch <size>', 'the most samples that the server runs together, 0 for none', parseCount)
    .option('--instances <number>', 'copies of the model that run at a time', parsePositive, 1)
    .addOption(new Option('--device <device>', 'what the server runs on').choices(['gpu', 'cpu']).default('gpu'));
  add('bench <subject> [args...]', async () => (await import('./commands/bench.js')).bench)
    .description('run a benchmark of bench/; its own options follow the subject')
    .allowUnknownOption()
    .passThroughOptions();
}

/** A whole number, 0 or more. */
function parseCount(text: string): number {
  if (!/^\d+$/.test(text.trim())) throw new InvalidArgumentError(`"${text}" is no whole number`);
  return Number(text);
}

function parsePort(text: string): number {
  const port = parseCount(text);
  if (port > 65535) throw new InvalidArgumentError(`"${text}" is no port: the last is 65535`);
  return port;
}

/** A list of indices, `0,1`. */
function parseIndices(text: string): number[] {
  return text.split(',').map(parseCount);
}

/** A list of positive integers, `512,2048`. */
function parseLengths(text: string): number[] {
  return text.split(',').map(parsePositive);
}

function parsePositive(text: string): number {
  const value = Number(text.trim());
  if (!Number.isInteger(value) || value < 1 || text.trim() === '') {
    throw new InvalidArgumentError(`"${text}" is no positive whole number`);
  }
  return value;
}

function parsePositiveNumber(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError(`"${text}" is no positive number`);
  return value;
}

function packageVersion(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    try {
      const text = readFileSync(join(folder, 'package.json'), 'utf8');
      return (JSON.parse(text) as { version: string }).version;
    } catch (error) {
      if (folder === dirname(folder)) throw error;
      folder = dirname(folder);
    }
  }
}

export type { CommonOptions };
