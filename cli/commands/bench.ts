import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { OrtFlashError } from '../../graph-rewrite/errors.js';
import { EXIT, type ExitCode, type Output } from '../output.js';

/** Beside this module's folder: `bench/` of the sources, or of the compiled package. */
const benchFolder = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'bench');

/** `ort-flash bench SUBJECT`: runs `bench/SUBJECT` in a process of its own, with the arguments that follow. */
export async function bench(
  _output: Output,
  subject: string,
  args: readonly string[],
  options: { json?: boolean },
): Promise<ExitCode> {
  const file = findSubject(subject);
  const passed = options.json && !args.includes('--json') ? [...args, '--json'] : args;
  const child = spawn(process.execPath, [...process.execArgv, file, ...passed], { stdio: 'inherit' });
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((done, fail) => {
    child.once('error', fail);
    child.once('exit', (...ended) => done(ended));
  });
  if (signal) process.kill(process.pid, signal);
  return code === 0 || code === 1 ? code : EXIT.fault;
}

function findSubject(subject: string): string {
  const subjects = existsSync(benchFolder) ? listSubjects() : new Map<string, string>();
  const file = subjects.get(subject);
  if (file !== undefined) return file;
  const known = [...subjects.keys()].sort();
  const hint = known.length > 0 ? `there are ${known.join(', ')}` : 'this installation has none';
  throw new OrtFlashError('invalid-argument', `there is no benchmark "${subject}"`, {}, hint);
}

/** Subjects by name: `bench/NAME.js`, or `bench/NAME/index.js` (`.ts` where the sources run directly). */
function listSubjects(): Map<string, string> {
  const subjects = new Map<string, string>();
  for (const entry of readdirSync(benchFolder, { withFileTypes: true })) {
    const index = ['index.js', 'index.ts'].find((name) => existsSync(join(benchFolder, entry.name, name)));
    const name = /^([\w-]+)\.(js|ts)$/.exec(entry.name)?.[1];
    if (entry.isDirectory() && index) subjects.set(entry.name, join(benchFolder, entry.name, index));
    else if (entry.isFile() && name) subjects.set(name, join(benchFolder, entry.name));
  }
  return subjects;
}
