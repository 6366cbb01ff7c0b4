/** What a page downloads: sizes of `ort-flash/web` as a bundler makes it, without onnxruntime-web. */
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import test from 'ava';
import { build, type Metafile } from 'esbuild';

const root = join(import.meta.dirname, '..');
const KILOBYTE = 1000;

interface Bundle {
  /** Compressed bytes of what is loaded at once. */
  readonly entry: number;
  /** Compressed bytes of all. */
  readonly whole: number;
  /** Source files in what is loaded at once. */
  readonly sources: readonly string[];
}

async function bundle(code: string, external = ['#onnxruntime-web']): Promise<Bundle> {
  const { outputFiles, metafile } = await build({
    stdin: { contents: code, resolveDir: root, loader: 'ts' },
    alias: { 'ort-flash/web': './kernels-wgsl/web.ts', 'ort-flash/webgpu': './kernels-wgsl/index.ts' },
    absWorkingDir: root,
    bundle: true,
    splitting: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    external,
    outdir: join(root, 'bundle'),
    write: false,
    metafile: true,
    logLevel: 'error',
  });
  const sizes = new Map(outputFiles.map(({ path, contents }) => [path, gzipSync(contents).length]));
  const sizeOf = (output: string) => sizes.get(join(root, output))!;
  const start = Object.keys(metafile.outputs).find((name) => metafile.outputs[name]!.entryPoint === '<stdin>')!;
  const atOnce = loadedWith(start, metafile);
  return {
    entry: atOnce.reduce((sum, output) => sum + sizeOf(output), 0),
    whole: [...sizes.values()].reduce((sum, size) => sum + size, 0),
    sources: atOnce.flatMap((output) =>
      Object.entries(metafile.outputs[output]!.inputs).flatMap(([file, { bytesInOutput }]) =>
        bytesInOutput > 0 ? [file] : [],
      ),
    ),
  };
}

/** An output and all that it imports, and that these import, other than by `import()`. */
function loadedWith(start: string, { outputs }: Metafile): string[] {
  const found = new Set([start]);
  for (const output of found)
    for (const { path, kind, external } of outputs[output]!.imports)
      if (kind === 'import-statement' && !external) found.add(path);
  return [...found];
}

test('the web entry takes less than 60 KB, and leaves what only some models need to be loaded when they come', async (t) => {
  const { entry, whole, sources } = await bundle(
    "export * from 'ort-flash/web'; export { default } from 'ort-flash/web';",
  );
  t.log(`${(entry / KILOBYTE).toFixed(1)} KB at once, ${(whole / KILOBYTE).toFixed(1)} KB in all`);
  t.true(entry < 60 * KILOBYTE, `${entry} bytes`);
  t.true(sources.some((file) => file.includes('kernels-wgsl/shaders')));
  t.false(sources.some((file) => /graph-rewrite\/(recognise|widen)/.test(file)));
});

test('what is not used is left out', async (t) => {
  // With onnxruntime-web at hand: what another module exports as a whole can only be left out where it is known.
  const error = await bundle("import { OrtFlashError } from 'ort-flash/web'; console.log(OrtFlashError);", []);
  t.deepEqual(
    error.sources.filter((file) => !file.includes('node_modules')),
    ['<stdin>', 'graph-rewrite/errors.ts'],
  );
  const kernels = await bundle("import { FlashAttention } from 'ort-flash/webgpu'; console.log(FlashAttention);");
  t.false(kernels.sources.some((file) => /node_modules|session\/|graph-rewrite\/(onnx|recognise|shape)/.test(file)));
});
