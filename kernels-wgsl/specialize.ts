import { OrtFlashError } from '../graph-rewrite/errors.js';
import { constantsOf, foldBranches } from './fold.js';
import { type KernelName, SHADERS } from './shaders/linked.js';
import { unrollLoops } from './unroll.js';

/** The WGSL extension of subgroup matrices. */
export const SUBGROUP_MATRIX = 'chromium_experimental_subgroup_matrix';

/** Values for a shader's constants (numbers, booleans) and type aliases (strings), by name. */
export type ShaderParameters = Readonly<Record<string, number | boolean | string>>;

/**
 * A kernel's WGSL with its parameters filled in. Constants and not `override`s, because arrays in registers take their
 * sizes from them.
 * @param enables WGSL extensions to enable.
 * @throws OrtFlashError `invalid-argument` where the kernel has no such parameter.
 */
export function specialize(kernel: KernelName, parameters: ShaderParameters, enables: readonly string[] = []): string {
  let source = SHADERS[kernel];
  for (const [name, value] of Object.entries(parameters)) {
    const declaration =
      typeof value === 'string'
        ? new RegExp(`^alias ${name} = .*;$`, 'm')
        : new RegExp(`^const ${name}: (u32|bool) = .*;$`, 'm');
    if (!declaration.test(source))
      throw new OrtFlashError('invalid-argument', `the ${kernel} shader has no parameter ${name}`);
    source = source.replace(declaration, (_, type: string) => declare(name, value, type));
  }
  const directives = enables.map((extension) => `enable ${extension};`);
  // Which subgroup a thread belongs to is the same for all of it, which the uniformity analysis cannot know.
  if (enables.includes(SUBGROUP_MATRIX)) directives.push('diagnostic(off, chromium.subgroup_matrix_uniformity);');
  if (enables.includes('subgroups')) directives.push('diagnostic(off, subgroup_uniformity);');
  const constants = constantsOf(source);
  return [...directives, foldBranches(unrollLoops(foldBranches(source, constants), constants), constants)].join('\n');
}

/** Parameters of this list that the kernel has; what it does not have, it does not depend on. */
export function knownParameters(kernel: KernelName, parameters: ShaderParameters): ShaderParameters {
  return Object.fromEntries(
    Object.entries(parameters).filter(([name]) => new RegExp(`^(?:alias|const) ${name}\\b`, 'm').test(SHADERS[kernel])),
  );
}

function declare(name: string, value: number | boolean | string, type: string): string {
  if (typeof value === 'string') return `alias ${name} = ${value};`;
  return `const ${name}: ${type} = ${typeof value === 'boolean' ? value : `${value}u`};`;
}
