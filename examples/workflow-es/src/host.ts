/** A host of workflow-es: it runs an order that waits for its payment. See README.md. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type Client, createClient } from "@connectrpc/connect";
import {
  configureWorkflow,
  ExecutionResult,
  StepBody,
  type StepExecutionContext,
  WorkflowBase,
  type WorkflowBuilder,
} from "workflow-es";
import { WorkflowService, WorkflowStatus } from "../../typescript/gen/wfe/persistence/v1/workflow_pb.js";
import { transport } from "../../typescript/src/connect.js";
import { Providers } from "./index.js";

interface Order {
  number: string;
  since: number;
  items: string[];
  receipt?: string;
}

class Reserve extends StepBody {
  async run({ workflow }: StepExecutionContext): Promise<ExecutionResult> {
    console.log(`reserve ${workflow.data.items.join(", ")}`);
    return ExecutionResult.next();
  }
}

class Ship extends StepBody {
  async run({ item }: StepExecutionContext): Promise<ExecutionResult> {
    console.log(`ship ${item}`);
    return ExecutionResult.next();
  }
}

class OrderWorkflow extends WorkflowBase<Order> {
  id = "workflow-es-order";
  version = 1;

  build(builder: WorkflowBuilder<Order>): void {
    builder
      .startWith(Reserve)
      // Events count that came since the order did. (By default: since the step begins to wait.)
      .waitFor("order.paid", (order) => order.number, (order) => new Date(order.since))
      // Outputs are set after each run of a step, and its first one only begins to wait.
      .output((wait, order) => (order.receipt = wait.eventData?.receipt))
      .delay(() => 500)
      .foreach((order) => order.items)
      .do((then) => then.startWith(Ship));
  }
}

/** Starts a host, has it run an order from its beginning to its end, and stops it. */
async function runAnOrder(providers: Providers, workflows: Client<typeof WorkflowService>): Promise<void> {
  const config = configureWorkflow();
  providers.use(config);
  const host = config.getHost();
  host.registerWorkflow(OrderWorkflow);
  await host.start();

  const number = randomUUID();
  const order: Order = { number, since: Date.now(), items: ["a cup", "a saucer"] };
  const id = await host.startWorkflow(new OrderWorkflow().id, 1, order);
  console.log(`started ${id}`);
  await host.publishEvent("order.paid", number, { receipt: "R-1" }, new Date());
  for (;;) {
    const { instance } = await workflows.getWorkflowInstance({ id });
    if (instance?.status === WorkflowStatus.COMPLETE) {
      console.log(`complete: ${instance.dataJson}`);
      break;
    }
    await sleep(100);
  }
  host.stop();
  await providers.stop();
}

/** Ends the program with one line instead of a stack trace. */
function fail(message: string, exitCode: number): never {
  console.error(message);
  process.exit(exitCode);
}

let target: string;
try {
  const { values } = parseArgs({ options: { target: { type: "string" } } });
  target = values.target ?? process.env["WFE_TARGET"] ?? "127.0.0.1:50052";
} catch (error) {
  fail(`${(error as Error).message}; usage: npm run host -- [--target HOST:PORT]`, 2);
}
let providers: Providers;
try {
  const definitions = [new OrderWorkflow().id];
  providers = await Providers.connect({
    transport: transport(target),
    app: "orders",
    definitions,
    dequeueWaitMs: 1_000, // this host soon stops
  });
} catch (error) {
  fail(`no connection to ${target}: ${(error as Error).message}`, 1);
}
await runAnOrder(providers, createClient(WorkflowService, transport(target)));
