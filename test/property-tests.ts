import fc from 'fast-check';

/**
 * Loaded before every test file. Property tests draw the same cases in every run, so that the tests say the same of the
 * same commit; `ORT_FLASH_SEED` gives other cases (a number, which a failure names, or `random`).
 */
const seed = process.env.ORT_FLASH_SEED ?? '1';
if (seed !== 'random') fc.configureGlobal({ ...fc.readConfigureGlobal(), seed: Number(seed) });
