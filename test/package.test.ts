/** The package as npm would publish it: what is in it, and that somebody who installs it can use all of it. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { description, installPackage, packedFiles } from './installed-package.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const files = packedFiles();
const app = mkdtempSync(join(tmpdir(), 'ort-flash-app-'));
const installed = installPackage(app, files, ['@types/node', 'undici-types']);
test.after.always(() => rmSync(app, { recursive: true, force: true }));

const entries = Object.keys(description.exports).map((entry) => entry.replace('.', 'ort-flash'));

test('it holds what its description and README name, and no tests', (t) => {
  const named = [
    ...Object.values(description.exports).flatMap((one) => (typeof one === 'string' ? one : Object.values(one))),
    ...Object.values(description.imports).map(({ types }) => types),
    ...Object.values(description.bin),
  ].map((path) => path.replace(/^\.\//, ''));
  const linked = [...readFileSync(join(root, 'README.md'), 'utf8').matchAll(/\]\(([^):]+)\)/g)].map(
    ([, path]) => path!,
  );
  t.true(linked.length > 4);
  const built = ['build:addon', 'build:cuda'].map((name) => description.scripts[name]!.replace('node ', ''));
  for (const path of [...named, ...linked, ...built]) if (!path.endsWith('/')) t.true(files.has(path), path);
  const unwanted = /\.test\.|\.map$|^dist\/test\/|^kernels-cuda\/build\/|(?<!\.d)\.ts$|\.log$|\.node$/;
  t.deepEqual(
    [...files].filter((file) => unwanted.test(file)),
    [],
  );
});

test('what is not built is said with a command that builds it from here', (t) => {
  const model = join(installed, 'models', 'bert-ts11', 'model.onnx');
  const script = `import { InferenceSession } from 'ort-flash/node';
    process.on('warning', ({ message }) => console.log(message));
    await InferenceSession.create(${JSON.stringify(model)});`;
  const env = { ...process.env, ORT_FLASH_NODE_ADDON: '' };
  const printed = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: app,
    env,
    stdio: 'pipe',
  });
  t.regex(String(printed), /not built \(npm explore ort-flash -- npm run build:addon builds it\)/);
});

test('every entry can be imported in Node', (t) => {
  for (const entry of entries) {
    const script = `console.log(Object.keys(await import(${JSON.stringify(entry)})).join())`;
    const names = execFileSync(process.execPath, ['--input-type=module', '-e', script], { cwd: app, encoding: 'utf8' });
    t.true(names.includes('OrtFlashError'), entry);
  }
});

/** Compiles files of the app, whichever way modules are resolved. */
function compile(t: ExecutionContext, sources: readonly string[]): void {
  for (const [module, moduleResolution] of [
    ['nodenext', 'nodenext'],
    ['esnext', 'bundler'],
  ]) {
    const compilerOptions = {
      ...{ target: 'es2022', lib: ['es2023', 'dom'], module, moduleResolution, types: ['node'] },
      ...{ strict: true, skipLibCheck: false, noEmit: true },
    };
    writeFileSync(join(app, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: sources }));
    const { status, stdout } = spawnSync(join(root, 'node_modules', '.bin', 'tsc'), ['-p', app], { encoding: 'utf8' });
    t.is(status, 0, `${moduleResolution}: ${stdout}`);
  }
}

test.serial('its types stand without skipLibCheck', (t) => {
  const typed = entries.filter((entry) => !entry.endsWith('.js'));
  const lines = typed.map((entry, i) => `import * as entry${i} from '${entry}';\nexport { entry${i} };\n`);
  writeFileSync(join(app, 'use.ts'), lines.join(''));
  compile(t, ['use.ts']);
});

/** What examples leave to the reader. */
const GIVEN = `
  declare const ids: BigInt64Array;
  declare const feeds: Record<string, import('onnxruntime-common').Tensor>;
  declare const next: typeof feeds;
  declare const [emptyKey, emptyValue, input_ids]: import('onnxruntime-common').Tensor[];`;

test.serial('the examples of README and docs are right as they are written', (t) => {
  const sources: string[] = [];
  for (const [file, entry] of [
    ['README.md', 'ort-flash/web'],
    ['docs/node.md', 'ort-flash/node'],
    ['docs/web.md', 'ort-flash/web'],
  ]) {
    for (const [, code] of readFileSync(join(root, file!), 'utf8').matchAll(/```[jt]s\n(.*?)```/gs)) {
      // The others are settings of bundlers, and whole programs for Node.
      if (!/InferenceSession\.create|rewriteModel/.test(code!)) continue;
      // An example that goes on from the one before does not import again.
      const imports = code!.includes('import ') ? '' : `import { InferenceSession } from '${entry}';`;
      sources.push(`example${sources.length}.ts`);
      writeFileSync(join(app, sources.at(-1)!), `${imports}\n${GIVEN}\n${code}\nexport {};\n`);
    }
  }
  t.is(sources.length, 6);
  compile(t, sources);
});

test('its command rewrites and inspects a model', (t) => {
  const ortFlash = (...args: string[]) =>
    execFileSync(process.execPath, [join(installed, description.bin['ort-flash']!), ...args], {
      cwd: app,
      encoding: 'utf8',
    });
  const model = join(installed, 'models', 'bert-ts11', 'model.onnx');
  t.regex(ortFlash('rewrite', model, '-o', 'fast.onnx', '--verify'), /2 of 2 attentions fused(.|\n)*same outputs/);
  t.regex(ortFlash('inspect', 'fast.onnx'), /2 attentions are FlashAttention already/);
});
