/** Numbers and tables for people. */

/** A table with aligned columns; columns listed in `right` are aligned right. */
export function formatTable(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  right: readonly number[] = [],
) {
  const all = [head, ...rows];
  const widths = head.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length)));
  const pad = (text: string, column: number) =>
    right.includes(column) ? text.padStart(widths[column]!) : text.padEnd(widths[column]!);
  return all.map((row) => `  ${row.map(pad).join('  ')}`.trimEnd());
}

/** Bytes in decimal units: `1.6 GB`. */
export function formatBytes(bytes: number): string {
  if (!Number.isFinite(bytes)) return '?';
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 || value >= 99.5 ? Math.round(value) : value.toPrecision(2)} ${units[unit]}`;
}

/** `0.34 ms`, `12 ms`, `3.4 s`. */
export function formatMilliseconds(milliseconds: number): string {
  if (milliseconds >= 999.5) return `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 1 : 0)} s`;
  return `${milliseconds < 9.95 ? milliseconds.toPrecision(2) : Math.round(milliseconds)} ms`;
}

/** `1 site`, `3 sites`. */
export function count(number: number, noun: string): string {
  return `${number.toLocaleString('en')} ${noun}${number === 1 ? '' : 's'}`;
}

/** A difference: `0`, or two digits and an exponent. */
export function formatDifference(difference: number): string {
  return difference === 0 ? '0' : difference.toExponential(1);
}

/** Positions as ranges: 0, 1, 2, 5 gives `0–2, 5`. */
export function formatRanges(numbers: readonly number[]): string {
  const ranges: [first: number, last: number][] = [];
  for (const number of numbers) {
    const range = ranges.at(-1);
    if (range && number === range[1] + 1) range[1] = number;
    else ranges.push([number, number]);
  }
  return ranges.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`)).join(', ');
}
