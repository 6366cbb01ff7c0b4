import { execFile, spawn } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import Long from 'long';
import { OrtFlashError } from './errors.js';
import { externalDataReader, readModelFile, writeModelFile } from './files.js';
import { encodeModel } from './onnx/codec.js';
import { DataLocation, DataType, GraphProto, ModelProto, StringStringEntryProto, TensorProto } from './onnx/proto.js';
import { tensorFloats } from './onnx/tensor.js';
import { makeFolders } from './whole-files.js';

const scratch = mkdtempSync(join(tmpdir(), 'ort-flash-files-'));
test.after.always(() => rmSync(scratch, { recursive: true, force: true }));
let counter = 0;
const newFolder = () => {
  const folder = join(scratch, String(counter++));
  mkdirSync(folder);
  return folder;
};

const failure = async (action: () => unknown): Promise<string> => {
  try {
    await action();
    return 'no error';
  } catch (error) {
    return error instanceof OrtFlashError ? `${error.code}: ${error.message}` : String(error);
  }
};

/** Two floats at byte 4 of a data file. */
function externalTensor(name: string, location: string): TensorProto {
  const entry = (key: string, value: string) => StringStringEntryProto.create({ key, value });
  return TensorProto.create({
    name,
    dims: [Long.fromInt(2)],
    data_type: DataType.FLOAT,
    data_location: DataLocation.EXTERNAL,
    external_data: [entry('location', location), entry('offset', '4'), entry('length', '8')],
  });
}

/** A model with one external tensor (1, 2) at `location`, its data file, and what the reader makes of it. */
function externalModel(folder: string, location = 'data/weights.bin', writeData = true): string {
  const tensor = externalTensor('weights', location);
  const path = join(folder, 'model.onnx');
  const graph = GraphProto.create({ name: 'g', initializer: [tensor] });
  writeFileSync(path, encodeModel(ModelProto.create({ graph })));
  if (writeData) {
    mkdirSync(join(folder, 'data'), { recursive: true });
    writeFileSync(join(folder, location), new Uint8Array(Float32Array.of(0, 1, 2, 3).buffer));
  }
  return path;
}

/** Every file below the folder. */
const listing = (folder: string) =>
  (readdirSync(folder, { recursive: true, withFileTypes: true }) as import('node:fs').Dirent[])
    .filter((entry) => !entry.isDirectory())
    .map((entry) => entry.name)
    .sort();

test('a model is read and written in place, its data left alone', async (t) => {
  const path = externalModel(newFolder());
  chmodSync(path, 0o640);
  const before = readFileSync(path);
  const model = readModelFile(path);
  t.deepEqual(tensorFloats(model.graph!.initializer[0]!, { readExternal: externalDataReader(path) }), [1, 2]);
  const report = await writeModelFile(path, model, { source: path });
  t.deepEqual(readFileSync(path), before);
  t.is(statSync(path).mode & 0o777, 0o640);
  t.deepEqual(report, {
    bytes: before.length,
    dataFiles: [{ location: 'data/weights.bin', action: 'kept', bytes: 16 }],
  });
});

test('in another folder the data is linked, copied, or expected', async (t) => {
  const source = externalModel(newFolder());
  const model = readModelFile(source);
  const data = join(source, '..', 'data', 'weights.bin');
  for (const [externalData, action] of [
    ['link', 'linked'],
    ['copy', 'copied'],
  ] as const) {
    const out = join(newFolder(), 'made', 'out.onnx');
    const report = await writeModelFile(out, model, { source, externalData });
    t.is(report.dataFiles[0]?.action, action);
    const placed = join(out, '..', 'data', 'weights.bin');
    t.is(statSync(placed).ino === statSync(data).ino, externalData === 'link');
    t.deepEqual(readModelFile(out), model);
    t.deepEqual(listing(join(out, '..')), ['out.onnx', 'weights.bin']);
    const again = await writeModelFile(out, model, { source, externalData });
    t.is(again.dataFiles[0]?.action, 'kept');
  }
  const out = join(newFolder(), 'out.onnx');
  t.regex(
    await failure(() => writeModelFile(out, model, { source, externalData: 'keep' })),
    /external-data: .*missing/,
  );
  t.false(existsSync(out));
});

test('missing, short and outlying data files are refused, and nothing is written', async (t) => {
  const missing = externalModel(newFolder(), 'w.bin', false);
  t.regex(
    await failure(() => readModelFile(missing)),
    /external-data: the data file is missing .*w\.bin, tensor weights/,
  );
  t.is(await failure(() => readModelFile(missing, { checkExternalData: false })), 'no error');

  const short = externalModel(newFolder());
  const model = readModelFile(short);
  truncateSync(join(short, '..', 'data', 'weights.bin'), 11);
  t.regex(await failure(() => readModelFile(short)), /external-data: the data file has 11 bytes, .* have 12/);
  const out = join(newFolder(), 'out.onnx');
  t.regex(await failure(() => writeModelFile(out, model, { source: short })), /external-data: /);
  t.deepEqual(listing(join(out, '..')), []);

  const outside = newFolder();
  writeFileSync(join(outside, 'w.bin'), new Uint8Array(16));
  const linked = externalModel(newFolder(), 'w.bin', false);
  symlinkSync(join(outside, 'w.bin'), join(linked, '..', 'w.bin'));
  t.regex(await failure(() => readModelFile(linked)), /external-data: .*link out of the model's folder/);
  const reader = externalDataReader(linked);
  t.regex(await failure(() => reader('w.bin', 0, 8)), /link out of/);
  t.regex(await failure(() => reader('../w.bin', 0, 8)), /leaves the model's folder/);

  const inside = externalModel(newFolder());
  symlinkSync('weights.bin', join(inside, '..', 'data', 'other.bin'));
  t.is(externalDataReader(inside)('data/other.bin', 4, 8).length, 8);
});

test("another model's data file is not overwritten, nor a model's own data by the model", async (t) => {
  const source = externalModel(newFolder());
  const model = readModelFile(source);
  const folder = newFolder();
  mkdirSync(join(folder, 'data'));
  writeFileSync(join(folder, 'data', 'weights.bin'), 'sixteen bytes !!');
  const out = join(folder, 'out.onnx');
  t.regex(
    await failure(() => writeModelFile(out, model, { source })),
    /external-data: another data file has the place/,
  );
  t.deepEqual(listing(folder), ['weights.bin']);
  const own = join(source, '..', 'data', 'weights.bin');
  t.regex(
    await failure(() => writeModelFile(own, model, { source: join(source, '..', 'x') })),
    /external-data|overwrite/,
  );
  t.is(statSync(own).size, 16);
  const beside = externalModel(newFolder(), 'w.bin');
  const hard = join(beside, '..', 'hard.bin');
  linkSync(join(beside, '..', 'w.bin'), hard);
  t.regex(
    await failure(() => writeModelFile(join(beside, '..', 'w.bin'), readModelFile(beside), { source: beside })),
    /invalid-argument: the output would overwrite/,
  );
  t.is(statSync(hard).size, 16);
});

test('of several data files, all are placed or none', async (t) => {
  const source = externalModel(newFolder());
  const model = readModelFile(source);
  const second = externalTensor('second', 'data/more/second.bin');
  model.graph!.initializer.push(second);
  mkdirSync(join(source, '..', 'data', 'more'));
  writeFileSync(join(source, '..', 'data', 'more', 'second.bin'), new Uint8Array(16));
  for (const externalData of ['link', 'copy'] as const) {
    const folder = newFolder();
    const out = join(folder, 'new', 'out.onnx');
    const written = await writeModelFile(out, model, { source, externalData });
    t.is(written.dataFiles.length, 2);
    t.deepEqual(listing(folder), ['out.onnx', 'second.bin', 'weights.bin']);
    const blocked = newFolder();
    mkdirSync(join(blocked, 'data', 'more'), { recursive: true });
    writeFileSync(join(blocked, 'data', 'more', 'second.bin'), "another model's!");
    const message = await failure(() => writeModelFile(join(blocked, 'out.onnx'), model, { source, externalData }));
    t.regex(message, /external-data: another data file has the place .*second\.bin/);
    t.deepEqual(listing(blocked), ['second.bin']);
  }
  rmSync(join(source, '..', 'data', 'more', 'second.bin'));
  const folder = newFolder();
  t.regex(await failure(() => writeModelFile(join(folder, 'new', 'out.onnx'), model, { source })), /missing/);
  t.deepEqual(readdirSync(folder), []);
});

test('unreadable and unwritable paths are named with the reason', async (t) => {
  const folder = newFolder();
  t.regex(await failure(() => readModelFile(join(folder, 'none.onnx'))), /file-access: .*no such file.*none\.onnx/);
  t.regex(await failure(() => readModelFile(folder)), /file-access: .*it is a folder/);
  const model = readModelFile(externalModel(newFolder()), { checkExternalData: false });
  model.graph!.initializer = [];
  t.regex(await failure(() => writeModelFile(folder, model)), /file-access: the output is a folder .*; name the file/);
  t.regex(await failure(() => writeModelFile(join(folder, 'new/'), model)), /file-access: the output is a folder/);
  t.regex(await failure(() => writeModelFile('', model)), /invalid-argument: the name of the output is empty/);
  t.regex(await failure(() => writeModelFile('/dev/null', model)), /file-access: the output is no file/);
  writeFileSync(join(folder, 'file'), '');
  t.regex(await failure(() => writeModelFile(join(folder, 'file', 'x.onnx'), model)), /file-access: .*is no folder/);
  t.regex(await failure(() => writeModelFile(join(folder, 'file', 'a', 'x'), model)), /file-access: .*is no folder/);
  const longest = join(folder, 'n'.repeat(255));
  await writeModelFile(longest, model);
  t.true(existsSync(longest));
  t.regex(await failure(() => writeModelFile(`${longest}n`, model)), /file-access: .*its name is too long/);
  symlinkSync('target.onnx', join(folder, 'link.onnx'));
  writeFileSync(join(folder, 'target.onnx'), '');
  await writeModelFile(join(folder, 'link.onnx'), model);
  t.true(statSync(join(folder, 'target.onnx')).size > 0);
});

test('folders are made where a file system lets them be, and an error where it does not', async (t) => {
  const folder = newFolder();
  await makeFolders(join(folder, 'a', 'b', 'c'));
  t.deepEqual(readdirSync(folder, { recursive: true }), ['a', 'a/b', 'a/b/c']);
  await makeFolders(join(folder, 'a', 'b'));
  writeFileSync(join(folder, 'file'), '');
  await t.throwsAsync(makeFolders(join(folder, 'file')), { code: 'ENOTDIR' });
  if (process.platform !== 'linux') return;
  // Node's own way never ends there.
  await t.throwsAsync(makeFolders('/proc/none/of/these'), { code: 'ENOENT' });
});

test('what cannot be written leaves no folders behind', async (t) => {
  const folder = newFolder();
  const model = readModelFile(externalModel(newFolder()), { checkExternalData: false });
  model.graph!.initializer = [];
  const out = join(folder, 'a', 'b', 'n'.repeat(256));
  t.regex(await failure(() => writeModelFile(out, model)), /its name is too long/);
  t.deepEqual(readdirSync(folder), []);
});

/** A script that overwrites `out` with a model of 64 MiB. */
function writerScript(folder: string, body: string): string {
  const script = join(folder, 'write.mts');
  const url = (name: string) => pathToFileURL(join(import.meta.dirname, name)).href;
  writeFileSync(
    script,
    `import { readdirSync } from 'node:fs';
     import { writeModelFile } from '${url('files.js')}';
     import { GraphProto, ModelProto, TensorProto } from '${url('onnx/proto.js')}';
     const raw_data = new Uint8Array(1 << 26);
     const graph = GraphProto.create({ initializer: [TensorProto.create({ raw_data })] });
     const written = writeModelFile('${join(folder, 'out.onnx')}', ModelProto.create({ graph }));
     ${body}`,
  );
  return script;
}

test('a signal while writing leaves the old file and no temporary one', async (t) => {
  const folder = newFolder();
  writeFileSync(join(folder, 'out.onnx'), 'old');
  const script = writerScript(
    folder,
    `const wait = () => readdirSync('${folder}').some((n) => n.endsWith('.tmp'))
       ? process.kill(process.pid, 'SIGTERM') : setImmediate(wait);
     wait();
     await written;`,
  );
  const child = spawn(process.execPath, ['--import=tsx', script], { stdio: 'ignore' });
  const signal = await new Promise((done) => child.on('exit', (_, name) => done(name)));
  t.is(signal, 'SIGTERM');
  t.is(readFileSync(join(folder, 'out.onnx'), 'utf8'), 'old');
  t.deepEqual(listing(folder), ['out.onnx', 'write.mts']);
});

test('a full disk leaves the old file and no temporary one', async (t) => {
  if (process.platform === 'win32') return t.pass('no file size limit to play a full disk with');
  const folder = newFolder();
  writeFileSync(join(folder, 'out.onnx'), 'old');
  const script = writerScript(folder, 'await written.catch((error) => console.log(error.code, error.message));');
  const command = `trap '' XFSZ; ulimit -f 1024; exec '${process.execPath}' --import=tsx '${script}'`;
  const { stdout } = await promisify(execFile)('bash', ['-c', command]);
  t.regex(stdout, /file-access the file cannot be written: /);
  t.is(readFileSync(join(folder, 'out.onnx'), 'utf8'), 'old');
  t.deepEqual(listing(folder), ['out.onnx', 'write.mts']);
});
