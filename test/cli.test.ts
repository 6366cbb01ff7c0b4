/** The command line as a user meets it: exit codes, messages, what is on stdout and stderr, and what is on the disk. */
import { spawn, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { decodeModel, decodeTensor, encodeModel } from '../graph-rewrite/onnx/codec.js';
import { DataLocation, type ModelProto, StringStringEntryProto } from '../graph-rewrite/onnx/proto.js';
import { tensorFloats } from '../graph-rewrite/onnx/tensor.js';
import { rewriteModel } from '../graph-rewrite/rewrite.js';
import { bundledModel, bundledModels } from '../models/corpus.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const source = join(root, 'cli', 'main.ts');
const compiled = join(root, 'dist', 'cli', 'main.js');

/** How to start the program: as it was compiled, which is fast; where sources are newer, from them. */
const program = isCompiledCurrent() ? [compiled] : ['--import=tsx', source];

function isCompiledCurrent(): boolean {
  const time = statSync(compiled, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  return ['cli', 'graph-rewrite', 'kernels-cuda', 'models'].every((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts') && !file.endsWith('.test.ts'))
      .every((file) => statSync(join(root, folder, file)).mtimeMs < time),
  );
}

interface Run {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function ortFlash(...args: string[]): Run {
  const { status, stdout, stderr } = spawnSync(process.execPath, [...program, ...args], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  return { code: status, stdout, stderr };
}

/** A folder that is removed after the test. */
function scratch(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-cli-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const bert = bundledModel('bert-ts11').modelFile;
const llama = bundledModel('llama_past-dyn18').modelFile;

/** Exit code 2, one line that says what is wrong, nothing else anywhere. */
function refused(t: ExecutionContext, args: string[], message: RegExp): void {
  const { code, stdout, stderr } = ortFlash(...args);
  const what = `ort-flash ${args.join(' ')}`;
  t.is(code, 2, what);
  t.is(stdout, '', what);
  t.regex(stderr, /^error: [^\n]+\n$/, what);
  t.regex(stderr, message, what);
}

test('help and version go to stdout and succeed', (t) => {
  const help = ortFlash('--help');
  t.is(help.code, 0);
  for (const command of ['rewrite', 'inspect', 'verify', 'run', 'export', 'bench', 'demo'])
    t.true(help.stdout.includes(command));
  t.is(ortFlash('rewrite', '--help').code, 0);
  t.regex(ortFlash('--version').stdout, /^\d+\.\d+\.\d+\n$/);
});

test('wrong arguments: exit code 2 and one line that says what to do', (t) => {
  refused(t, [], /no command was given; see "ort-flash --help"/);
  refused(t, ['rewrit', bert], /unknown command "rewrit"; did you mean rewrite\?/);
  refused(t, ['rewrite'], /missing required argument "in"; see "ort-flash rewrite --help"/);
  refused(t, ['rewrite', bert], /add -o OUT, or --dry-run/);
  refused(t, ['rewrite', bert, '-o'], /argument missing/);
  refused(t, ['rewrite', bert, '-o', ''], /the name of the output is empty/);
  refused(t, ['help', 'rewrit'], /^error: unknown command "rewrit"; see "ort-flash --help"/);
  refused(t, ['page', '--port', '65536'], /argument "65536" is invalid: "65536" is no port: the last is 65535; see/);
  refused(t, ['rewrite', bert, '--dryrun'], /unknown option "--dryrun"; did you mean --dry-run\?/);
  refused(t, ['rewrite', bert, '--dry-run', '--target', 'tensorrt'], /allowed choices are flash, ort, onnx/);
  refused(t, ['inspect', bert, '--lengths', '512,many'], /"many" is no positive whole number/);
  refused(t, ['inspect', bert, '--lengths', ''], /is no positive whole number/);
  refused(t, ['verify', bert], /missing required argument "b"/);
  refused(t, ['verify', bert, bert, bert], /too many arguments/);
  refused(t, ['verify', bert, bert, '--tolerance', '-1'], /is no positive number/);
  refused(t, ['run', bert, '--inputs', '.'], /--outputs/);
  refused(t, ['run', bert, '--inputs', '.', '--outputs', '.', '--device', 'tpu'], /allowed choices are/);
  refused(t, ['export', 'tensorflow', bert, '--out', '.'], /there is triton/);
  refused(t, ['bench', 'nothing'], /there is no benchmark "nothing"/);
});

test('files that are no models: exit code 2, the file is named, nothing is written', (t) => {
  const folder = scratch(t);
  const file = (name: string, bytes: Uint8Array | string) => {
    writeFileSync(join(folder, name), bytes);
    return join(folder, name);
  };
  const whole = readFileSync(bert);
  const faulty = [
    file('empty.onnx', ''),
    file('text.onnx', '<html>Not found</html>'),
    file('truncated.onnx', whole.subarray(0, whole.length / 2)),
    join(folder, 'missing.onnx'),
    folder,
  ];
  const before = readdirSync(folder).sort();
  const out = join(folder, 'out.onnx');
  for (const path of faulty) {
    const named = new RegExp(path.replaceAll(/[/.]/g, '\\$&'));
    refused(t, ['rewrite', path, '-o', out], named);
    refused(t, ['inspect', path], named);
    t.deepEqual(readdirSync(folder).sort(), before);
  }
  refused(t, ['verify', join(folder, 'truncated.onnx'), bert], /truncated\.onnx/);
  refused(t, ['verify', bert, join(folder, 'missing.onnx')], /missing\.onnx/);
  refused(t, ['rewrite', bert, '-o', join(folder, 'text.onnx', 'out.onnx')], /text\.onnx/);
  refused(t, ['verify', bert, bert, '--inputs', join(folder, 'nowhere')], /nowhere/);
  t.deepEqual(readdirSync(folder).sort(), before);
});

test('with --json an error is one JSON document, and still one line on stderr', (t) => {
  for (const args of [
    ['rewrite', '--json'],
    ['verify', bert, 'missing.onnx', '--json'],
    ['inspect', '--json', 'missing.onnx'],
  ]) {
    const { code, stdout, stderr } = ortFlash(...args);
    t.is(code, 2);
    const { error } = JSON.parse(stdout) as { error: { code: string; message: string } };
    t.is(`error: ${error.message}\n`, stderr);
    t.true(['invalid-argument', 'file-access'].includes(error.code));
  }
});

test('the stack of an error is shown with --debug only', (t) => {
  t.notRegex(ortFlash('inspect', 'missing.onnx').stderr, /\n\s+at /);
  t.regex(ortFlash('inspect', 'missing.onnx', '--debug').stderr, /\n\s+at /);
});

/** Moves the largest weight to external data at `location`. */
function withExternalData(model: ModelProto, location: string): void {
  const weights = model.graph!.initializer.filter((tensor) => tensor.raw_data);
  const [largest] = weights.sort((a, b) => b.raw_data!.length - a.raw_data!.length);
  const length = String(largest!.raw_data!.length);
  largest!.raw_data = null;
  largest!.data_location = DataLocation.EXTERNAL;
  largest!.external_data = Object.entries({ location, offset: '0', length }).map(([key, value]) =>
    StringStringEntryProto.create({ key, value }),
  );
}

test('external data outside of the model’s folder is refused', (t) => {
  const folder = scratch(t);
  for (const location of ['/etc/passwd', '../weights.bin', 'a/../../weights.bin', 'C:\\weights.bin']) {
    const model = decodeModel(readFileSync(bert));
    withExternalData(model, location);
    const path = join(folder, 'model.onnx');
    writeFileSync(path, encodeModel(model));
    refused(t, ['rewrite', path, '-o', join(folder, 'out.onnx')], /location/);
    t.deepEqual(readdirSync(folder), ['model.onnx']);
  }
  refused(t, ['verify', join(folder, 'model.onnx'), bert], /location/);
});

test('external data: linked beside an output in another folder, verified there, no trace left', (t) => {
  const from = scratch(t);
  const target = scratch(t);
  const model = decodeModel(readFileSync(bert));
  const weights = model.graph!.initializer.map((tensor) => tensor.raw_data).filter((data) => data != null);
  const largest = weights.sort((a, b) => b.length - a.length)[0]!;
  writeFileSync(join(from, 'weights.bin'), largest);
  withExternalData(model, 'weights.bin');
  writeFileSync(join(from, 'model.onnx'), encodeModel(model));
  const { code, stdout, stderr } = ortFlash(
    ...['rewrite', join(from, 'model.onnx'), '-o', join(target, 'out.onnx'), '--verify', '--json'],
  );
  t.is(code, 0, stderr);
  t.true((JSON.parse(stdout) as { verification: { holds: boolean } }).verification.holds);
  t.deepEqual(readdirSync(target).sort(), ['out.onnx', 'weights.bin']);
  t.true(readFileSync(join(target, 'weights.bin')).equals(largest));
});

test('rewrite writes a model that agrees, says so in JSON and in text, and touches nothing else', (t) => {
  const folder = scratch(t);
  const out = join(folder, 'out.onnx');
  const run = ortFlash('rewrite', llama, '-o', out, '--verify', '--json');
  t.is(run.code, 0, run.stderr);
  t.is(run.stderr, '');
  const report = JSON.parse(run.stdout) as Record<string, unknown>;
  t.is(report.fused, bundledModel('llama_past-dyn18').sites);
  t.is(report.output, out);
  t.like(report.verification, { holds: true });
  t.deepEqual(readdirSync(folder), ['out.onnx']);
  const text = ortFlash('rewrite', llama, '-o', out);
  t.is(text.code, 0);
  t.regex(text.stdout, /2 of 2 attentions fused[\s\S]*wrote .*out\.onnx/);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that there are none is what is tested
  t.notRegex(text.stdout, /\x1b/);
  const compared = ortFlash('verify', llama, out);
  t.is(compared.code, 0);
  t.regex(compared.stdout, /same outputs: \d+ runs compared/);
});

test('--dry-run writes nothing; rewriting in place works', (t) => {
  const folder = scratch(t);
  const path = join(folder, 'model.onnx');
  writeFileSync(path, readFileSync(bert));
  const dry = ortFlash('rewrite', path, '-o', path, '--dry-run', '--json');
  t.is(dry.code, 0);
  t.is((JSON.parse(dry.stdout) as { output: null }).output, null);
  t.true(readFileSync(path).equals(readFileSync(bert)));
  t.is(ortFlash('rewrite', path, '-o', path).code, 0);
  t.false(readFileSync(path).equals(readFileSync(bert)));
  t.is(ortFlash('verify', bert, path).code, 0);
  t.deepEqual(readdirSync(folder), ['model.onnx']);
});

test('every target gives a model that agrees', (t) => {
  const folder = scratch(t);
  const vit = bundledModel('vit-sdpa-ts17').modelFile;
  for (const [target, operator] of [
    ['flash', 'ortflash.FlashAttention'],
    ['ort', 'com.microsoft.MultiHeadAttention'],
  ]) {
    const out = join(folder, `${target}.onnx`);
    const { code, stdout, stderr } = ortFlash('rewrite', vit, '-o', out, '--target', target!, '--verify', '--json');
    t.is(code, 0, stderr);
    t.like(JSON.parse(stdout), { target, verification: { holds: true } });
    const { graph } = decodeModel(readFileSync(out));
    const operators = graph!.node.map(({ domain, op_type }) => `${domain}.${op_type}`);
    t.is(operators.filter((one) => one === operator).length, bundledModel('vit-sdpa-ts17').sites);
  }
  t.is(ortFlash('rewrite', vit, '--dry-run', '--target', 'onnx', '--verify').code, 0);
});

test('models that differ: exit code 1, and where', (t) => {
  const folder = scratch(t);
  const other = join(folder, 'other.onnx');
  const model = decodeModel(readFileSync(bert));
  model.graph!.node.find((node) => node.op_type === 'Softmax')!.op_type = 'LogSoftmax';
  writeFileSync(other, encodeModel(model));
  const { code, stdout, stderr } = ortFlash('verify', bert, other);
  t.is(code, 1);
  t.is(stderr, '');
  t.regex(stdout, /the outputs differ: \d+ runs compared[\s\S]*output \S+ differs by/);
  const json = JSON.parse(ortFlash('verify', bert, other, '--json').stdout) as { holds: boolean; failures: string[] };
  t.false(json.holds);
  t.true(json.failures.length > 0);
});

test('a file that was rewritten is told from one without attention', (t) => {
  const out = join(scratch(t), 'out.onnx');
  t.is(ortFlash('rewrite', bert, '-o', out).code, 0);
  t.regex(ortFlash('inspect', out).stdout, /^2 attentions are FlashAttention already\nno other attention found\n$/);
  t.regex(ortFlash('rewrite', out, '--dry-run').stdout, /^2 attentions are FlashAttention already\n/);
  const report = JSON.parse(ortFlash('inspect', out, '--json').stdout) as { fusedBefore: number; sites: unknown[] };
  t.deepEqual([report.fusedBefore, report.sites], [2, []]);
});

test('inspect tells form, heads and memory', (t) => {
  const { code, stdout, stderr } = ortFlash('inspect', llama, '--lengths', '100,1000', '--json');
  t.is(code, 0, stderr);
  t.is(stderr, '');
  interface Site {
    form: string;
    queryHeads: number;
    headDimension: number;
    scoreBytesPerPair: number;
    scores: { length: number; before: number; after: number }[];
  }
  const { sites } = JSON.parse(stdout) as { sites: Site[] };
  t.is(sites.length, 2);
  for (const site of sites) {
    t.is(site.scoreBytesPerPair, site.queryHeads * 4);
    t.deepEqual(
      site.scores.map(({ length, before }) => [length, before]),
      [100, 1000].map((length) => [length, site.queryHeads * 4 * length ** 2]),
    );
  }
  t.regex(ortFlash('inspect', llama).stdout, /512 tokens/);
});

test('run gives what PyTorch gave, and goes on where it left off', (t) => {
  const folder = scratch(t);
  const { dataFolder } = bundledModel('bert-ts11');
  const args = ['run', bert, '--inputs', dataFolder, '--outputs', folder, '--json'];
  const first = ortFlash(...args);
  t.is(first.code, 0, first.stderr);
  // Where the Node addon is not built, a warning says so.
  t.regex(first.stderr, /^(warning: [^\n]+\n)?$/);
  t.like(JSON.parse(first.stdout), { total: 1, finished: 1, skipped: 0, failed: [] });
  const written = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.pb'));
  t.is(written.length, 1);
  const actual = tensorFloats(decodeTensor(readFileSync(join(folder, written[0]!))));
  const expected = tensorFloats(decodeTensor(readFileSync(join(dataFolder, 'output_0.pb'))));
  t.is(actual.length, expected.length);
  t.true(actual.every((value, index) => Math.abs(value - expected[index]!) < 1e-4));
  t.like(JSON.parse(ortFlash(...args).stdout), { finished: 0, skipped: 1 });
});

// Serial: the other tests wait for their processes without turning the event loop, and the signal would come too late.
test.serial('an interrupted run keeps whole samples only, and goes on from there', async (t) => {
  const folder = scratch(t);
  const { dataFolder } = bundledModel('bert-ts11');
  const inputs = join(folder, 'in');
  // Enough that the signal arrives while samples are left.
  const samples = 3000;
  for (let sample = 0; sample < samples; sample++) {
    cpSync(dataFolder, join(inputs, `test_data_set_${sample}`), { recursive: true });
  }
  const outputs = join(folder, 'out');
  const args = ['run', bert, '--inputs', inputs, '--outputs', outputs];
  const child = spawn(process.execPath, [...program, ...args], { stdio: 'ignore' });
  // Where SIGINT is ignored around the tests (a background job of a script), the process ends with the shells' code.
  const ended = new Promise<NodeJS.Signals | number | null>((done) =>
    child.once('exit', (code, signal) => done(signal ?? code)),
  );
  while (!existsSync(join(outputs, 'test_data_set_0'))) await new Promise((done) => setTimeout(done, 5));
  child.kill('SIGINT');
  const end = await ended;
  t.true(end === 'SIGINT' || end === 130, `ended with ${end}`);
  const written = readdirSync(outputs).filter((name) => name.startsWith('test_data_set_'));
  t.true(written.length < samples, `all ${samples} samples were written before the signal`);
  for (const sample of written) t.deepEqual(readdirSync(join(outputs, sample)), ['output_0.pb']);
  t.like(JSON.parse(ortFlash(...args, '--json').stdout), {
    skipped: written.length,
    finished: samples - written.length,
  });
});

test('export triton writes a model repository', (t) => {
  const folder = scratch(t);
  const { code, stdout, stderr } = ortFlash('export', 'triton', bert, '--out', folder, '--name', 'bert', '--json');
  t.is(code, 0, stderr);
  t.like(JSON.parse(stdout), { format: 'triton', folder: join(folder, 'bert') });
  t.true(existsSync(join(folder, 'bert', 'config.pbtxt')));
  t.true(readFileSync(join(folder, 'bert', '1', 'model.onnx')).equals(readFileSync(bert)));
  refused(t, ['export', 'triton', bert, '--out', folder, '--name', 'bert'], /has this model already/);
});

test('inspect does not draw over the model, by whatever name', (t) => {
  const folder = scratch(t);
  const [model, link] = [join(folder, 'model.onnx'), join(folder, 'link.svg')];
  cpSync(bert, model);
  symlinkSync(model, link);
  for (const picture of [model, link])
    refused(t, ['inspect', model, '--svg', picture], /the picture would overwrite the model .*; choose another name/);
  t.deepEqual(readFileSync(model), readFileSync(bert));
  t.deepEqual(readdirSync(folder).sort(), ['link.svg', 'model.onnx']);
});

test('inspect draws each kind of site before and after', (t) => {
  const folder = scratch(t);
  const path = join(folder, 'sites.svg');
  t.is(ortFlash('inspect', llama, '--svg', path).code, 0);
  const picture = readFileSync(path, 'utf8');
  t.regex(picture, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"[\s\S]*<\/svg>\n$/);
  t.is(picture.match(/>Softmax</g)?.length, 1);
  t.is(picture.match(/>FlashAttention</g)?.length, 1);
  t.notRegex(picture, /NaN|undefined/);
});

test('the demo: examples agree, and attention takes less memory than before', (t) => {
  const { code, stdout, stderr } = ortFlash('demo', '--lengths', '2048', '--json');
  t.is(code, 0, stderr);
  interface Memory {
    peakBytes: number;
  }
  const { examples, encoder } = JSON.parse(stdout) as {
    examples: { title: string; fused: number; sites: number; holds: boolean }[];
    encoder: { holds: boolean; lengths: { before: Memory; after: Memory }[] };
  };
  t.true(examples.length >= 4);
  for (const { title, fused, sites, holds } of examples) t.true(holds && fused === sites && sites > 0, title);
  t.true(encoder.holds);
  const [{ before, after }] = encoder.lengths as [{ before: Memory; after: Memory }];
  // The scores of 12 heads at 2,048 tokens are 201 MB, of which unfused attention holds two copies at least. Resident
  // memory shows some 30 MB less where the system takes pages of files back meanwhile.
  t.true(before.peakBytes > 350e6, `${before.peakBytes} bytes before`);
  t.true(after.peakBytes < 0.5 * before.peakBytes, `${after.peakBytes} bytes after`);
});

test('a reader that goes away is no error', async (t) => {
  const child = spawn(process.execPath, [...program, 'inspect', llama, '--json']);
  child.stdout.destroy();
  let stderr = '';
  child.stderr.on('data', (chunk) => {
    stderr += chunk;
  });
  const code = await new Promise((done) => child.once('close', done));
  t.is(stderr, '');
  t.is(code, 0);
});

test('rewriting is deterministic and idempotent to the byte, for every bundled model', (t) => {
  for (const { name, modelFile } of bundledModels()) {
    const rewrite = (bytes: Uint8Array) => {
      const model = decodeModel(bytes);
      rewriteModel(model, {});
      return Buffer.from(encodeModel(model));
    };
    const once = rewrite(readFileSync(modelFile));
    t.true(rewrite(readFileSync(modelFile)).equals(once), `${name} is not deterministic`);
    t.true(rewrite(once).equals(once), `${name} is not idempotent`);
  }
});
