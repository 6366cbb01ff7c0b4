/** Makes an element with attributes and children. */
export function element<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Readonly<Record<string, string | number | boolean>> = {},
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false) continue;
    made.setAttribute(name, value === true ? '' : String(value));
  }
  made.append(...children);
  return made;
}

/** The element of the page with this id. */
export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  return document.getElementById(id) as E;
}

export interface TableOptions {
  /** Columns of numbers, aligned right. */
  readonly right?: readonly number[];
  /** Whether the first column heads its row. */
  readonly rowHeads?: boolean;
  /** Whether cells stay on one line; the table scrolls where it is too wide. */
  readonly oneLine?: boolean;
}

/** A table that scrolls by itself where it is wider than the screen. */
export function table(
  caption: string,
  head: readonly string[],
  rows: readonly (readonly (Node | string)[])[],
  options: TableOptions = {},
): HTMLElement {
  const align = (column: number): Record<string, string> => {
    if (options.right?.includes(column)) return { class: 'number' };
    return options.oneLine ? { class: 'whole' } : {};
  };
  const body = rows.map((row) =>
    element(
      'tr',
      {},
      ...row.map((cell, column) =>
        options.rowHeads && column === 0 ? element('th', { scope: 'row' }, cell) : element('td', align(column), cell),
      ),
    ),
  );
  const made = element(
    'table',
    {},
    element('caption', { class: 'hidden' }, caption),
    element(
      'thead',
      {},
      element('tr', {}, ...head.map((text, column) => element('th', { scope: 'col', ...align(column) }, text))),
    ),
    element('tbody', {}, ...body),
  );
  return scrolling(caption, made);
}

/** What is wider than the screen scrolls by itself, also with the keyboard. */
export function scrolling(label: string, content: Node): HTMLElement {
  return element('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': label }, content);
}

/** SVG text as an element; scripts in it would not run, and the page's policy allows none. */
export function svgElement(text: string): SVGElement {
  return document.importNode(new DOMParser().parseFromString(text, 'image/svg+xml').documentElement, true) as never;
}
