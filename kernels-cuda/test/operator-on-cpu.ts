/** The custom op built for ONNX Runtime on the CPU, and test/session.cpp, which runs prepared folders through it. */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { onnxRuntimePath, packageFolder } from '../node-paths.js';
import type { Random } from './operator-cases.js';
import { runs } from './programs.js';

const source = join(packageFolder(), 'kernels-cuda');

/** ONNX Runtime's headers, if the addon's build has brought them. */
function headersFolder(): string | undefined {
  const given = process.env.ORT_FLASH_ONNXRUNTIME_HEADERS;
  if (given !== undefined) return given;
  const build = join(source, 'build');
  const found = existsSync(build)
    ? readdirSync(build).find((name) => /^onnxruntime-.*-headers$/.test(name))
    : undefined;
  return found === undefined ? undefined : join(build, found);
}

/** Whether what {@link OperatorOnCpu} needs is here: Linux, g++, ONNX Runtime and its headers. */
export function canBuildOperator(): boolean {
  return (
    process.platform === 'linux' &&
    headersFolder() !== undefined &&
    runs('g++', '--version') &&
    existsSync(onnxRuntimePath())
  );
}

/** `optimize` and `tf32`: see test/session.cpp. */
export type RunMode = 'cpu' | 'tf32' | 'optimize';

export class OperatorOnCpu {
  readonly #library: string;
  readonly #runner: string;

  /**
   * @param folder where the library and the program are put
   * @param kernels sources or objects that define the C interface of the kernels, ortflash_attention.h
   */
  constructor(folder: string, kernels: readonly string[]) {
    this.#library = join(folder, 'libortflash_on_cpu.so');
    this.#runner = join(folder, 'session');
    const flags = ['-std=c++17', '-O2', '-Wall', '-Wextra', '-Werror', '-isystem', headersFolder()!];
    const op = ['op', 'layout', 'problem'].map((name) => join(source, 'custom-op', `${name}.cpp`));
    const shared = ['-fPIC', '-fvisibility=hidden', '-DORTFLASH_ON_CPU', '-shared', '-o', this.#library];
    const compile = (...what: string[]) =>
      execFileSync('g++', [...flags, ...what], { stdio: ['ignore', 'ignore', 'inherit'] });
    compile(...shared, ...op, ...kernels);
    compile('-o', this.#runner, join(source, 'test', 'session.cpp'), '-ldl');
  }

  /** Runs prepared folders in one process; its line for each, `ok …` or `failed …` with what was wrong. */
  run(folders: readonly string[], mode: RunMode = 'cpu'): string[] {
    const command = [onnxRuntimePath(), this.#library, mode, ...folders];
    try {
      const output = execFileSync(this.#runner, command, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
      return output.trim().split('\n');
    } catch (error) {
      const { stdout } = error as { stdout?: string };
      if (!stdout) throw error;
      return stdout.trim().split('\n');
    }
  }
}

/** Random numbers from a seed; fast-check's own favour the ends of a range. */
export function seeded(seed: number): Random {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 32) * below;
  };
}
