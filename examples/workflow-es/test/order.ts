/** The workflow of the fleets, whose steps note when they begin and end, and the host that runs it. */
import { appendFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { ExecutionResult } from "workflow-es";
import { body, type Definition, define, Scene } from "./scene.js";

export const STEPS = ["reserve", "charge", "pack", "label", "ship"];

/** @param events the name of the event that orders wait for; `notes`: the file for the notes */
export function order(id: string, events: string, notes: string): Definition {
  const note = (...what: unknown[]) => appendFileSync(notes, `${what.join(" ")}\n`);
  const [reserve, charge, pack, label, ship] = STEPS.map((name) =>
    body(async ({ workflow }) => {
      note("begin", workflow.id, name, process.pid);
      await sleep(20);
      workflow.data.done.push(name);
      note("end", workflow.id, name, process.pid);
      return ExecutionResult.next();
    }),
  );
  return define(
    (builder) =>
      builder
        .startWith(reserve!)
        .then(charge!)
        .waitFor(events, (data) => data.number, () => new Date(0))
        .output((wait, data) => (data.paid = wait.eventData))
        .parallel()
        .do((then) => then.startWith(pack!))
        .do((then) => then.startWith(label!))
        .join()
        .delay(() => 100)
        .then(ship!),
    id,
  );
}

/** The arguments of a host process: definition, event name, file for the notes, application. */
export async function main([id, events, notes, app]: string[]): Promise<void> {
  const scene = new Scene([order(id!, events!, notes!)], app);
  await scene.host({ leaseMs: 1_000, concurrency: 4 });
  process.send?.("ready");
  process.on("message", () => {
    void scene.close().then(() => process.exit());
  });
  // The test is gone.
  process.on("disconnect", () => process.exit(1));
}

if (process.send) await main(process.argv.slice(2));
