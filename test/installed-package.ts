/** The package as npm would publish it, in a project that has nothing else. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

/** What of package.json matters to those who install the package. */
export interface PackageDescription {
  readonly exports: Readonly<Record<string, string | { readonly types: string; readonly default: string }>>;
  readonly imports: Readonly<Record<string, { readonly types: string }>>;
  readonly bin: Readonly<Record<string, string>>;
  readonly scripts: Readonly<Record<string, string>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly optionalDependencies: Readonly<Record<string, string>>;
}

export const description = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as PackageDescription;

/** Paths of all files of the package, in it and in this repository alike. */
export function packedFiles(): ReadonlySet<string> {
  const text = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
    maxBuffer: 1 << 26,
  });
  const [packed] = JSON.parse(text) as [{ files: { path: string }[] }];
  return new Set(packed.files.map(({ path }) => path));
}

/**
 * Makes a folder a project with this package, what it depends on, and nothing else but the packages named.
 * @returns the package's folder in it
 */
export function installPackage(app: string, files: Iterable<string>, others: readonly string[] = []): string {
  const installed = join(app, 'node_modules', 'ort-flash');
  for (const file of files) {
    mkdirSync(dirname(join(installed, file)), { recursive: true });
    cpSync(join(root, file), join(installed, file));
  }
  for (const name of [
    ...Object.keys({ ...description.dependencies, ...description.optionalDependencies }),
    ...others,
  ]) {
    const [source, target] = [root, app].map((folder) => join(folder, 'node_modules', name));
    mkdirSync(dirname(target!), { recursive: true });
    if (existsSync(source!)) symlinkSync(source!, target!);
  }
  writeFileSync(join(app, 'package.json'), '{"type": "module"}');
  return installed;
}
