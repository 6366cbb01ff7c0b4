import type { AttentionStep, SegmentStep, SplicePlan } from './cut.js';

/** One step of a run, with what it has to give and what may be let go after it. */
export interface ScheduledStep {
  /** Position in the plan. */
  readonly index: number;
  readonly step: SegmentStep | AttentionStep;
  /** Outputs of the step that something needs. */
  readonly outputs: readonly string[];
  /** Values of which this is the last use, outputs of the run left out. */
  readonly release: readonly string[];
}

/** The steps that some outputs of a plan need, in order. */
export function scheduleSteps(plan: SplicePlan, wanted: readonly string[]): ScheduledStep[] {
  const kept = new Set(wanted);
  const needed = new Set(wanted);
  const lastUse = new Set<string>();
  const scheduled: ScheduledStep[] = [];
  for (const [index, step] of [...plan.steps.entries()].reverse()) {
    const whole = step.kind === 'attention' ? reduceCalls(step, needed) : step;
    const outputs = outputsOf(whole).filter((name) => needed.has(name));
    if (outputs.length === 0) continue;
    const release = [...inputsOf(whole), ...outputsOf(whole)].filter((name) => !lastUse.has(name) && !kept.has(name));
    for (const name of release) lastUse.add(name);
    for (const name of inputsOf(whole)) needed.add(name);
    scheduled.unshift({ index, step: whole, outputs, release: [...new Set(release)] });
  }
  return scheduled;
}

/** The calls of which some output is needed. */
function reduceCalls(step: AttentionStep, needed: ReadonlySet<string>): AttentionStep {
  const calls = step.calls.filter((call) => Object.values(call.outputs).some((name) => needed.has(name)));
  return { kind: 'attention', calls };
}

function inputsOf(step: SegmentStep | AttentionStep): readonly string[] {
  return step.kind === 'segment' ? step.inputs : step.calls.flatMap((call) => Object.values(call.inputs));
}

function outputsOf(step: SegmentStep | AttentionStep): readonly string[] {
  return step.kind === 'segment' ? step.outputs : step.calls.flatMap((call) => Object.values(call.outputs));
}
