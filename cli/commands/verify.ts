import { EXIT, type ExitCode, type Output } from '../output.js';
import { count, formatDifference, formatTable } from '../text.js';
import { type VerifyReport, verifyModels } from '../verify.js';

export interface VerifyCommandOptions {
  readonly inputs?: string;
  readonly tolerance?: number;
  readonly seed: number;
}

/** `ort-flash verify A B` */
export async function verify(output: Output, a: string, b: string, options: VerifyCommandOptions): Promise<ExitCode> {
  const report = await verifyModels(a, b, {
    ...options,
    onProgress: (done, total) => output.progress(`comparing ${done}/${total}`),
  });
  output.document({ a, b, ...report });
  printVerification(output, report);
  return report.holds ? EXIT.success : EXIT.checkFailed;
}

/** What a comparison found, for people. */
export function printVerification(output: Output, report: VerifyReport): void {
  const runs = `${count(report.compared, 'run')} compared`;
  const refused =
    report.refused > 0 ? `, ${count(report.refused, 'size')} left out that the untouched model refuses` : '';
  const verdict = report.holds ? 'same outputs' : 'the outputs differ';
  output.line(`${output.mark(report.holds)} ${output.bold(verdict)}: ${runs}${refused}`);
  const rows = report.outputs.map((one) => [
    one.name,
    one.type,
    formatDifference(one.largestRelativeDifference),
    one.tolerance.toString(),
    one.worstCase,
  ]);
  if (rows.length > 0) {
    const head = ['output', 'type', 'largest difference', 'allowed', 'at'];
    for (const line of formatTable(head, rows)) output.line(line);
    output.line(output.dim('  differences are shares of the largest value of the output'));
  }
  for (const failure of report.failures.slice(0, 10)) output.line(`  ${failure}`);
  if (report.failures.length > 10) output.line(`  and ${report.failures.length - 10} more; --json lists them all`);
  for (const note of report.notes) output.line(`  note: ${note}`);
}
