import test from 'ava';
import { count, formatBytes, formatDifference, formatMilliseconds, formatRanges, formatTable } from './text.js';

test('bytes', (t) => {
  const cases: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1.0 kB'],
    [99_400, '99 kB'],
    [999_600, '1.0 MB'],
    [1.6e9, '1.6 GB'],
    [805_306_368, '805 MB'],
  ];
  for (const [bytes, text] of cases) t.is(formatBytes(bytes), text);
});

test('times, counts, differences and ranges', (t) => {
  t.is(formatMilliseconds(0.34), '0.34 ms');
  t.is(formatMilliseconds(12.3), '12 ms');
  t.is(formatMilliseconds(999.6), '1.0 s');
  t.is(formatMilliseconds(13_000), '13 s');
  t.is(count(1, 'site'), '1 site');
  t.is(count(2048, 'token'), '2,048 tokens');
  t.is(formatDifference(0), '0');
  t.is(formatDifference(0.00012345), '1.2e-4');
  t.is(formatRanges([0, 1, 2, 5, 7, 8]), '0–2, 5, 7–8');
});

test('tables align their columns', (t) => {
  const table = formatTable(
    ['name', 'size'],
    [
      ['a', '1'],
      ['longer', '100'],
    ],
    [1],
  );
  t.deepEqual(table, ['  name    size', '  a          1', '  longer   100']);
});
