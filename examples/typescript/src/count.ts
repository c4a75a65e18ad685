/** A worker on a queue of workflows that count down: see README.md. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { WorkflowStatus } from "../gen/wfe/persistence/v1/workflow_pb.js";
import { transport } from "./connect.js";
import { Worker, type Work } from "./worker.js";

/** The data of such a workflow: how many steps are left, and how long each takes. */
interface Countdown {
  left: number;
  work_ms: number;
}

/** Takes one step, and enqueues the workflow for the next one. */
async function countDown({ item, workflow, commit }: Work): Promise<void> {
  if (workflow?.status !== WorkflowStatus.RUNNABLE) return;
  const data: Countdown = JSON.parse(workflow.dataJson);
  console.log(`begin ${workflow.id} ${data.left}`);
  await sleep(data.work_ms);
  data.left--;
  workflow.dataJson = JSON.stringify(data);
  if (data.left === 0) workflow.status = WorkflowStatus.COMPLETE;
  // An empty id stands for the workflow's.
  const enqueue = data.left > 0 ? [{ queue: item.item!.queue }] : [];
  await commit({ state: { case: "instance", value: workflow }, enqueue });
  console.log(`end ${workflow.id} ${data.left}`);
}

const { values } = parseArgs({
  options: {
    target: { type: "string", default: process.env["WFE_TARGET"] ?? "127.0.0.1:50052" },
    queue: { type: "string", default: "countdown" },
    concurrency: { type: "string", default: "2" },
    "lease-ms": { type: "string", default: "30000" },
  },
});
const id = (work: Work) => work.item.item?.id;
const worker = new Worker(transport(values.target), {
  queue: values.queue,
  handler: countDown,
  concurrency: Number(values.concurrency),
  leaseMs: Number(values["lease-ms"]),
  waitMs: 1_000,
  workerId: `typescript-${process.pid}`,
  onError: (work, error) => console.log(`error ${id(work)} ${error}`),
  onLost: (work) => console.log(`lost ${id(work)}`),
  onOutage: (error) => console.log(`outage ${error.message}`),
});
for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => worker.stop());
await worker.run();
