import { SUBGROUP_MATRIX } from '../specialize.js';

/** Rows, columns and the places of an element (row, column) of each kind of matrix. */
const SHAPES: Readonly<Record<string, readonly [rows: string, columns: string]>> = {
  Left: ['M', 'K'],
  Right: ['K', 'N'],
  Result: ['M', 'N'],
};

/**
 * Rewrites the subgroup-matrix kernel for a device without matrices and without f16: every thread holds whole matrices,
 * as arrays, and f16 is f32. What remains the kernel's own is everything but the products: tiles, strides, barriers,
 * which subgroup has what, masks and softmax. For small matrices, as each thread does the work of its subgroup. Other
 * kernels stay as they are.
 */
export function emulateMatrices(source: string): string {
  if (!source.includes(SUBGROUP_MATRIX)) return source;
  const accesses = new Map<string, string>();
  const access = (
    operation: 'load' | 'store',
    matrix: string,
    order: string,
    tile: string,
    slice: string | undefined,
  ) => {
    const name = `${operation}_${matrix}_${order}_${tile}`;
    const [rows, columns] = SHAPES[matrix]!;
    const [line, place] = order === 'row_major' ? ['row', 'column'] : ['column', 'row'];
    const element = `${tile}${slice === undefined ? '' : '[slice]'}[offset + ${line} * stride + ${place} / 4u][${place} % 4u]`;
    const parameters = `${slice === undefined ? '' : 'slice: u32, '}offset: u32, `;
    const body = (statement: string) =>
      `for (var row = 0u; row < ${rows}; row += 1u) { for (var column = 0u; column < ${columns}; column += 1u) {
        ${statement} } }`;
    const own = `matrix[row * ${columns} + column]`;
    accesses.set(
      name,
      operation === 'load'
        ? `fn ${name}(${parameters}stride: u32) -> ${matrix} {
            var matrix = ${matrix}(); ${body(`${own} = ${element};`)} return matrix; }`
        : `fn ${name}(${parameters}given: ${matrix}, stride: u32) {
            var matrix = given; ${body(`${element} = ${own};`)} }`,
    );
    return `${name}(${slice === undefined ? '' : `${slice}, `}`;
  };
  const kernel = source
    .replace(`enable ${SUBGROUP_MATRIX};`, '')
    .replace('enable f16;', '')
    .replace(/^diagnostic\(off, chromium\.subgroup_matrix_uniformity\);$/m, '')
    .replace(/\bf16\b/g, 'f32')
    // Chosen by their bits, of which there are twice as many.
    .replaceAll('select(vec2u(), bitcast<vec2u>', 'select(vec4u(), bitcast<vec4u>')
    .replace(/^alias (\w+) = subgroup_matrix_(?:left|right|result)<.*>;$/gm, (_, name: string) => {
      const [rows, columns] = SHAPES[name]!;
      return `alias ${name} = array<f32, ${rows} * ${columns}>;`;
    })
    .replace(
      /subgroupMatrixLoad<(\w+), (\w+)>\(\s*&(\w+)(?:\[([\w.]+)\])?,/g,
      (_, matrix: string, order: string, tile: string, slice?: string) => access('load', matrix, order, tile, slice),
    )
    .replace(
      /subgroupMatrixStore<(\w+)>\(\s*&(\w+)(?:\[([\w.]+)\])?,/g,
      (_, order: string, tile: string, slice?: string) => access('store', 'Result', order, tile, slice),
    )
    .replace(/subgroupMatrixMultiplyAccumulate\(/g, 'multiply_accumulate(');
  return `${kernel}
    fn multiply_accumulate(left: Left, right: Right, sum: Result) -> Result {
      var a = left; var b = right; var c = sum;
      for (var row = 0u; row < M; row += 1u) { for (var column = 0u; column < N; column += 1u) {
        for (var k = 0u; k < K; k += 1u) { c[row * N + column] += a[row * K + k] * b[k * N + column]; } } }
      return c; }
    ${[...accesses.values()].join('\n')}`;
}
