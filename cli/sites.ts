import type { MaskReport, RewriteReport, SiteReport, Size } from '../graph-rewrite/report.js';
import type { Output } from './output.js';
import { count, formatRanges, formatTable } from './text.js';

/** Prints what became of each site: fused ones as a table, grouped where they are alike, then the others with reasons. */
export function printSites(output: Output, { sites, fusedBefore }: RewriteReport): void {
  if (fusedBefore > 0) output.line(`${describeFusedBefore(fusedBefore)} already`);
  if (sites.length === 0) {
    output.line(fusedBefore > 0 ? 'no other attention found' : 'no attention found');
    return;
  }
  const fused = sites.filter((site) => site.fused);
  output.line(
    `${output.mark(fused.length === sites.length)} ${output.bold(`${fused.length} of ${count(sites.length, 'attention')} fused`)}`,
  );
  if (fused.length > 0) {
    for (const line of formatTable(SITE_HEAD, groupAlike(fused, siteRow))) output.line(line);
  }
  for (const site of sites) {
    if (site.fused) continue;
    const where = site.refusal?.value === undefined ? '' : ` (at ${site.refusal.value})`;
    output.line(`  site ${site.index} not fused: ${site.refusal?.reason ?? 'no reason is known'}${where}`);
    output.line(output.dim(`    ${site.node}, ${site.form}`));
  }
}

/** `2 attentions are FlashAttention`. */
export function describeFusedBefore(fused: number): string {
  return `${count(fused, 'attention')} ${fused === 1 ? 'is' : 'are'} FlashAttention`;
}

export const SITE_HEAD = ['sites', 'form', 'heads', 'head dimension', 'mask', 'first node'];

export function siteRow(site: SiteReport): string[] {
  return [site.form, headsOf(site), dimensionOf(site), describeMask(site.mask)];
}

/** One row for all sites whose description is the same: their positions, the description, the first one's node. */
export function groupAlike(sites: readonly SiteReport[], describe: (site: SiteReport) => string[]): string[][] {
  const groups = new Map<string, { row: string[]; sites: SiteReport[] }>();
  for (const site of sites) {
    const row = describe(site);
    const key = row.join('\0');
    const group = groups.get(key) ?? { row, sites: [] };
    group.sites.push(site);
    groups.set(key, group);
  }
  return [...groups.values()].map(({ row, sites: alike }) => [
    formatRanges(alike.map((site) => site.index)),
    ...row,
    alike[0]!.node,
  ]);
}

/** `12`, or `8 on 2` where fewer key heads than query heads. */
export function headsOf({ queryHeads, keyHeads }: SiteReport): string {
  if (queryHeads === undefined) return '?';
  return keyHeads === undefined || keyHeads === queryHeads ? `${queryHeads}` : `${queryHeads} on ${keyHeads}`;
}

/** `64`, or `192 / 128` where values have another dimension than keys. */
export function dimensionOf({ headDimension, valueDimension }: SiteReport): string {
  if (headDimension === undefined) return '?';
  const same = valueDimension === undefined || valueDimension === headDimension;
  return same ? `${headDimension}` : `${headDimension} / ${valueDimension}`;
}

/** `causal, window 128, boolean (batch, 1, 1, keys)`. */
export function describeMask(mask: MaskReport | undefined): string {
  if (mask === undefined) return '?';
  const parts: string[] = [];
  if (mask.causal) parts.push('causal');
  if (mask.leftWindow >= 0 || mask.rightWindow >= 0) {
    const side = (size: number) => (size < 0 ? '∞' : `${size}`);
    parts.push(`window −${side(mask.leftWindow)}…+${side(mask.rightWindow)}`);
  }
  if (mask.kind !== 'none') parts.push(mask.shape ? `${mask.kind} (${mask.shape.join(', ')})` : mask.kind);
  return parts.join(', ') || 'none';
}

/** A size where it is a number. */
export function fixed(size: Size | undefined): number | undefined {
  return typeof size === 'number' ? size : undefined;
}
