/** Inputs of a form, alike everywhere. */
import { Tensor } from 'onnxruntime-node';
import { type Form, inputsOf, type Sizes } from './forms.js';

/** Numbers from −1 to 1. */
function fill(length: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Of a boolean mask, three keys of four are seen: every query sees one. */
const everyFourthOut = (length: number) => Uint8Array.from({ length }, (_, i) => (i % 4 === 3 ? 0 : 1));

export function feedsOf(form: Form, sizes: Sizes): Record<string, Tensor> {
  const tensors = Object.entries(inputsOf(form, sizes)).map(([name, { type, shape }], i) => {
    const length = shape.reduce((product, size) => product * size, 1);
    const tensor =
      type === 'float32'
        ? new Tensor('float32', fill(length, i + 1), shape)
        : new Tensor('bool', everyFourthOut(length), shape);
    return [name, tensor] as const;
  });
  return Object.fromEntries(tensors);
}
