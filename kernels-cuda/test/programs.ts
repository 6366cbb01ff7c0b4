import { spawnSync } from 'node:child_process';

/** Whether a program is there and runs with these arguments. */
export function runs(command: string, ...args: string[]): boolean {
  return spawnSync(command, args, { stdio: 'ignore' }).status === 0;
}
