/** `ort-flash run` on a disk that is full: one clear error, nothing half-written, and the same command goes on later. */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { decodeNpy, encodeNpy } from '../kernels-cuda/node-npy.js';
import { identityModel, powerModel } from '../kernels-cuda/test-models.js';

const main = fileURLToPath(new URL('../cli/main.ts', import.meta.url));
const SAMPLES = 30;
/** Elements of a sample; the last ones are large. */
const lengthOf = (sample: number) => (sample < SAMPLES / 2 ? 100 : 20_000);

interface Files {
  readonly outputs: string;
  /** The command, for a shell. */
  readonly command: string;
}

function prepare(t: ExecutionContext): Files {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-full-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const [model, inputs, outputs] = ['model.onnx', 'in', 'out'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  writeFileSync(model, identityModel('float32'));
  for (let sample = 0; sample < SAMPLES; sample++) {
    const data = new Float32Array(lengthOf(sample)).fill(sample);
    const place = join(inputs, `test_data_set_${sample}`);
    mkdirSync(place, { recursive: true });
    writeFileSync(join(place, 'x.npy'), encodeNpy({ type: 'float32', dims: [data.length], data }));
  }
  const words = [process.execPath, '--import=tsx', main, 'run', model, '--inputs', inputs, '--outputs', outputs];
  return { outputs, command: words.map((word) => `'${word}'`).join(' ') };
}

function shell(script: string, wrapper: readonly string[] = []) {
  const [program = 'sh', ...args] = [...wrapper, 'sh', '-c', script];
  // tsx would write its cache under the same limits.
  return spawnSync(program, args, { encoding: 'utf8', env: { ...process.env, TSX_DISABLE_CACHE: '1' } });
}

/** Exit code 2 and one line; whole samples only. Returns how many. */
function endsWith(t: ExecutionContext, { status, stdout, stderr }: ReturnType<typeof shell>, why: RegExp): number {
  t.is(status, 2, stderr);
  t.is(stdout, '');
  const errors = stderr.split('\n').filter((line) => line !== '' && !line.startsWith('warning:'));
  t.is(errors.length, 1, stderr);
  t.regex(errors[0]!, why);
  const kept = /; (\d+) of 30 samples were finished and are kept: the same command goes on from there$/.exec(
    errors[0]!,
  );
  t.truthy(kept, errors[0]!);
  return Number(kept?.[1]);
}

test('files that may not grow end the run, and the next one does the rest', (t) => {
  const { outputs, command } = prepare(t);
  // Blocks of 512 or 1024 bytes: the small results fit, the large ones do not.
  const kept = endsWith(
    t,
    shell(`ulimit -f 40; ${command}`),
    /^error: cannot write the results: EFBIG: .* \[.*out\]; /,
  );
  t.true(kept > 0 && kept <= SAMPLES / 2, String(kept));
  const written = readdirSync(outputs).filter((name) => name !== '.ort-flash-run.json');
  t.is(written.length, kept);
  const next = shell(command);
  t.is(next.status, 0, next.stderr);
  t.regex(next.stdout, new RegExp(`${SAMPLES - kept} samples of 30 run .*, ${kept} were there already`));
  t.is(readdirSync(outputs).length, 1 + SAMPLES);
});

const canMount = spawnSync('unshare', ['-rm', 'mount', '-t', 'tmpfs', 'none', tmpdir()]).status === 0;

(canMount ? test : test.skip)('a full disk ends the run, and the next one does the rest when there is room', (t) => {
  const { outputs, command } = prepare(t);
  const report = (name: string) => join(outputs, '..', name);
  const script = `
    mkdir '${outputs}' && mount -t tmpfs -o size=300k none '${outputs}' || exit 9
    ${command}; code=$?
    ls -A '${outputs}' >'${report('first')}'
    mount -o remount,size=10m '${outputs}' || exit 9
    ${command} >'${report('stdout')}' && cp -r '${outputs}' '${report('all')}' && exit $code`;
  const kept = endsWith(t, shell(script, ['unshare', '-rm']), /^error: cannot write the results: ENOSPC: /);
  const list = (name: string) => shell(`cat '${report(name)}'`).stdout;
  const first = list('first')
    .split('\n')
    .filter((name) => name !== '' && name !== '.ort-flash-run.json');
  t.is(first.length, kept);
  t.true(kept >= SAMPLES / 2 && kept < SAMPLES, String(kept));
  t.regex(list('stdout'), new RegExp(`${SAMPLES - kept} samples of 30 run .*, ${kept} were there already`));
  for (let sample = 0; sample < SAMPLES; sample++) {
    const file = join(report('all'), `test_data_set_${sample}`, 'y.npy');
    const { data } = decodeNpy(spawnSync('cat', [file]).stdout, file);
    t.deepEqual(data, new Float32Array(lengthOf(sample)).fill(sample));
  }
});

test('SIGTERM lets what runs be written, and the next run does the rest', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ort-flash-term-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const [model, inputs, outputs] = [join(folder, 'model.onnx'), join(folder, 'in'), join(folder, 'out')];
  writeFileSync(model, powerModel(40));
  const samples = 60;
  const x = encodeNpy({ type: 'float32', dims: [400, 400], data: new Float32Array(400 * 400).fill(1 / 400) });
  for (let sample = 0; sample < samples; sample++) {
    mkdirSync(join(inputs, `test_data_set_${sample}`), { recursive: true });
    writeFileSync(join(inputs, `test_data_set_${sample}`, 'x.npy'), x);
  }
  const args = ['--import=tsx', main, 'run', model, '--inputs', inputs, '--outputs', outputs];
  const child = spawn(process.execPath, args, { stdio: 'ignore' });
  const ended = new Promise((done) => child.once('exit', (code, signal) => done(signal ?? code)));
  const isOver = () => child.exitCode !== null || child.signalCode !== null;
  while (!isOver() && !existsSync(join(outputs, 'test_data_set_0'))) await new Promise((done) => setTimeout(done, 5));
  child.kill('SIGTERM');
  t.is(await ended, 'SIGTERM');
  const written = readdirSync(outputs).filter((name) => name !== '.ort-flash-run.json');
  t.true(written.length > 0 && written.length < samples, String(written.length));
  for (const sample of written) t.deepEqual(readdirSync(join(outputs, sample)), ['y.npy']);
  const { status, stdout } = spawnSync(process.execPath, [...args, '--json'], { encoding: 'utf8' });
  t.is(status, 0);
  t.like(JSON.parse(stdout), { skipped: written.length, finished: samples - written.length });
});
