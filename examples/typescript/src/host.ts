/**
 * A workflow host in TypeScript: it takes an order from its creation to its end through every kind
 * of call that the persistence server offers. See README.md.
 */
import { randomUUID } from "node:crypto";
import { parseArgs } from "node:util";
import { clone, create } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromDate, timestampNow } from "@bufbuild/protobuf/wkt";
import { type Client, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Serving } from "../gen/grpc/health/v1/health_pb.js";
import { CommandName, ScheduledCommandService } from "../gen/wfe/persistence/v1/command_pb.js";
import { type Event, EventService } from "../gen/wfe/persistence/v1/event_pb.js";
import { type EventSubscription, EventSubscriptionSchema, SubscriptionService } from "../gen/wfe/persistence/v1/subscription_pb.js";
import { PointerStatus, type WorkflowInstance, WorkflowInstanceSchema, WorkflowService, WorkflowStatus } from "../gen/wfe/persistence/v1/workflow_pb.js";
import { transport } from "./connect.js";
import { failure, refused } from "./errors.js";

/** Identifies this worker to people who inspect the store. */
const WORKER_ID = "typescript-host";

// Every int64 is a bigint: a number is exact only up to 2^53.
const MAX_INT64 = 2n ** 63n - 1n;
const MIN_INT64 = -(2n ** 63n);

/** An order as the workflow's data has it; its serial number has more digits than a number can represent. */
interface Order {
  serial: bigint;
  total: string;
  paid: boolean;
}

// JSON is sent as text, so nothing is lost; JSON.parse would round the serial number.
const orderToJson = (order: Order): string =>
  `{"serial": ${order.serial}, "total": ${order.total}, "paid": ${order.paid}}`;

function orderFromJson(text: string): Order {
  const member = (name: string): string => {
    const found = new RegExp(`"${name}":\\s*([^,}\\s]+)`).exec(text)?.[1];
    if (found === undefined) throw new Error(`the order has no ${name}: ${text}`);
    return found;
  };
  return { serial: BigInt(member("serial")), total: member("total"), paid: member("paid") === "true" };
}

class Host {
  readonly #health: Client<typeof Health>;
  readonly #workflows: Client<typeof WorkflowService>;
  readonly #events: Client<typeof EventService>;
  readonly #subscriptions: Client<typeof SubscriptionService>;
  readonly #commands: Client<typeof ScheduledCommandService>;
  /** The order number, new in each run. */
  readonly #order = `typescript-${randomUUID()}`;

  constructor(transport: Transport) {
    this.#health = createClient(Health, transport);
    this.#workflows = createClient(WorkflowService, transport);
    this.#events = createClient(EventService, transport);
    this.#subscriptions = createClient(SubscriptionService, transport);
    this.#commands = createClient(ScheduledCommandService, transport);
  }

  /**
   * Watches the server's health until it is ready, also while it starts. Fails at once without a
   * server that listens.
   */
  async waitUntilServing(seconds: number): Promise<void> {
    const watching = new AbortController();
    const signal = AbortSignal.any([AbortSignal.timeout(seconds * 1000), watching.signal]);
    try {
      for await (const { status } of this.#health.watch({}, { signal, timeoutMs: 0 })) {
        console.log(`health: ${Serving[status]}`);
        if (status === Serving.SERVING) return;
      }
    } finally {
      watching.abort(); // leaving the loop would not end the call
    }
    throw new Error("the watch ended before the server was SERVING");
  }

  /** Stores the workflow of an order. Idempotent: a second call changes nothing. */
  async create(): Promise<string> {
    const instance = create(WorkflowInstanceSchema, {
      id: randomUUID(),
      name: this.#order,
      workflowDefinitionId: "order",
      version: 1,
      status: WorkflowStatus.RUNNABLE,
      nextExecution: MAX_INT64,
      dataJson: orderToJson({ serial: 2n ** 53n + 1n, total: "12.50", paid: false }),
      createTime: timestampNow(),
      executionPointers: [
        { id: "2", stepId: 0n, status: PointerStatus.COMPLETE, outcomeJson: "null" },
        { id: "1", stepId: 1n, status: PointerStatus.PENDING, active: true, predecessorId: "2" },
      ],
    });
    await this.#workflows.createNewWorkflow({ instance });
    const { id, revision } = await this.#workflows.createNewWorkflow({ instance });
    console.log(`created ${id} as ${this.#order}: revision ${revision}`);
    const stored = await this.#load(id);
    if (stored.nextExecution !== MAX_INT64) throw new Error(`next_execution: ${stored.nextExecution}`);
    console.log(`loaded: revision ${stored.revision}, next_execution ${stored.nextExecution}`);
    return id;
  }

  async #load(id: string): Promise<WorkflowInstance> {
    const { instance } = await this.#workflows.getWorkflowInstance({ id });
    if (!instance) throw new Error("a response without its workflow");
    return instance;
  }

  /** Loads, changes and persists a workflow; if another host wrote in between, it retries. */
  async #update(
    id: string,
    change: (workflow: WorkflowInstance) => void | Promise<void>,
    subscriptions: EventSubscription[] = [],
  ): Promise<bigint> {
    for (;;) {
      const instance = await this.#load(id);
      await change(instance);
      const expectedRevision = instance.revision;
      try {
        const requestId = randomUUID(); // so that the write can be repeated after a lost response
        const request = { instance, subscriptions, expectedRevision, requestId };
        return (await this.#workflows.persistWorkflowWithSubscriptions(request)).revision;
      } catch (error) {
        const { reason, metadata } = failure(error);
        if (reason !== "REVISION_MISMATCH") throw error;
        console.log(`revision ${expectedRevision} is out of date, ${metadata.revision} is stored: again`);
      }
    }
  }

  /** Updates the order while another host does so too: neither change is lost. */
  async change(id: string): Promise<void> {
    let interfered = false;
    const revision = await this.#update(id, async (workflow) => {
      if (!interfered) {
        interfered = true; // the other host, between our load and our persist
        const other = clone(WorkflowInstanceSchema, workflow);
        other.nextExecution = MIN_INT64;
        await this.#workflows.persistWorkflow({ instance: other });
      }
      workflow.dataJson = orderToJson({ ...orderFromJson(workflow.dataJson), paid: true });
    });
    console.log(`changed: revision ${revision}`);
  }

  /** Shows the details of calls that fail. */
  async refused(id: string): Promise<void> {
    const instance = await this.#load(id);
    const pointer = instance.executionPointers[1];
    if (pointer) pointer.outcomeJson = "NaN";
    const failures = [
      await refused("WORKFLOW_NOT_FOUND", () => this.#load("no-such-workflow")),
      await refused("NAME_TAKEN", () =>
        this.#workflows.createNewWorkflow({ instance: { ...this.#workflow(0n), name: this.#order } }),
      ),
      await refused("INVALID_FIELD", () => this.#workflows.persistWorkflow({ instance })),
    ];
    for (const { reason, metadata, fields } of failures) {
      console.log(`refused: ${reason} ${JSON.stringify({ ...metadata, ...fields })}`);
    }
  }

  /** Makes the second step wait, and stores its subscription with it, all or nothing. */
  async waitForEvent(workflowId: string): Promise<string> {
    const subscription = create(EventSubscriptionSchema, {
      id: randomUUID(), // generated here, so that repeating the call does not create a second one
      workflowId,
      stepId: 1n,
      executionPointerId: "1",
      eventName: "order.paid",
      eventKey: this.#order,
      subscribeAsOf: timestampNow(),
    });
    const wait = (workflow: WorkflowInstance): void => {
      for (const pointer of workflow.executionPointers) {
        if (pointer.id !== "1") continue;
        pointer.status = PointerStatus.WAITING_FOR_EVENT;
        pointer.active = false;
        pointer.eventName = subscription.eventName;
        pointer.eventKey = subscription.eventKey;
      }
    };
    await this.#update(workflowId, wait, [subscription]);
    console.log(`waiting for order.paid: subscription ${subscription.id}`);
    return subscription.id;
  }

  /** Creates an event and delivers it to the workflows that wait for it. */
  async deliverEvents(): Promise<string> {
    const { id } = await this.#events.createEvent({
      event: {
        id: randomUUID(),
        eventName: "order.paid",
        eventKey: this.#order,
        eventDataJson: `{"amount": 12.50}`,
        eventTime: timestampNow(),
      },
    });
    const { event } = await this.#events.getEvent({ id });
    if (!event) throw new Error("a response without its event");
    const { eventName, eventKey, eventTime: asOf } = event;
    for (;;) {
      const request = { eventName, eventKey, ...(asOf && { asOf }) };
      const { subscription } = await this.#subscriptions.getFirstOpenSubscription(request);
      if (!subscription) break; // no more open subscriptions
      await this.#deliver(event, subscription);
    }
    await this.#events.markEventProcessed({ id });
    return id;
  }

  /** Delivers an event to one subscription, unless another worker holds it. */
  async #deliver(event: Event, subscription: EventSubscription): Promise<void> {
    const { acquired } = await this.#subscriptions.setSubscriptionToken({
      id: subscription.id,
      token: randomUUID(),
      workerId: WORKER_ID,
      expiry: timestampFromDate(new Date(Date.now() + 30_000)), // if we crash, others may claim it
    });
    if (!acquired) return;
    const revision = await this.#update(subscription.workflowId, (workflow) => {
      for (const pointer of workflow.executionPointers) {
        if (pointer.id !== subscription.executionPointerId) continue;
        pointer.eventPublished = true;
        pointer.eventDataJson = event.eventDataJson;
        pointer.status = PointerStatus.COMPLETE;
        pointer.endTime = timestampNow();
      }
      workflow.status = WorkflowStatus.COMPLETE;
      workflow.completeTime = timestampNow();
    });
    console.log(`delivered ${event.eventName} to ${subscription.workflowId}: revision ${revision}`);
    await this.#subscriptions.terminateSubscription({ id: subscription.id });
  }

  /** Schedules a command, claims the due ones, handles them and completes them. */
  async runCommands(data: string): Promise<void> {
    const commandName = CommandName.PROCESS_WORKFLOW;
    for (const executeTime of [MAX_INT64, MIN_INT64]) { // the second replaces the first
      await this.#commands.scheduleCommand({ command: { commandName, data, executeTime } });
    }
    const { commands } = await this.#commands.claimCommands({
      limit: 10,
      leaseDuration: durationFromMs(30_000),
      workerId: WORKER_ID,
    });
    const mine = commands.filter(({ command }) => command?.data === data && command.executeTime === MIN_INT64);
    const others = commands.filter((claimed) => !mine.includes(claimed));
    await this.#commands.releaseCommands({ leaseTokens: others.map((claimed) => claimed.leaseToken) });
    if (mine.length !== 1) throw new Error("the command is not due");
    // Handled: the workflow has ended.
    const request = { leaseTokens: mine.map((claimed) => claimed.leaseToken) };
    await this.#commands.completeCommands(request);
    console.log(`completed the command that was due at ${MIN_INT64}`);
    const { reason, metadata } = await refused("LEASE_LOST", () => this.#commands.completeCommands(request));
    console.log(`refused: ${reason} ${JSON.stringify(metadata)}`);
  }

  #workflow(nextExecution: bigint): WorkflowInstance {
    return create(WorkflowInstanceSchema, {
      id: randomUUID(),
      workflowDefinitionId: "batch",
      dataJson: "{}",
      status: WorkflowStatus.RUNNABLE,
      createTime: timestampNow(),
      nextExecution,
    });
  }

  /** Creates workflows at the limits of int64, pages through the due ones, and streams them all. */
  async batch(): Promise<string[]> {
    const times = new Map<string, bigint>();
    for (const next of [MIN_INT64, -(2n ** 53n + 1n), 0n, 2n ** 53n + 1n, MAX_INT64]) {
      const { id } = await this.#workflows.createNewWorkflow({ instance: this.#workflow(next) });
      times.set(id, next);
    }
    const due: string[] = [];
    const asAt = timestampNow();
    let pageToken = "";
    do {
      const page = await this.#workflows.getRunnableInstances({ asAt, pageSize: 2, pageToken });
      due.push(...page.instanceIds);
      pageToken = page.nextPageToken;
    } while (pageToken);
    console.log(`runnable: ${due.length}, in pages of 2`);

    const ids = [...times.keys()];
    for await (const { instance } of this.#workflows.getWorkflowInstances({ ids })) {
      if (instance?.nextExecution !== times.get(instance?.id ?? "")) throw new Error("next_execution changed");
      console.log(`streamed ${instance?.id}: next_execution ${instance?.nextExecution}`);
    }
    return ids;
  }

  /** The workflow's final state. */
  async revision(id: string): Promise<bigint> {
    return (await this.#load(id)).revision;
  }
}

/** Ends the program with one line instead of a stack trace. */
function fail(message: string, exitCode: number): never {
  console.error(message);
  process.exit(exitCode);
}

function parseTarget(): string {
  try {
    const { values } = parseArgs({ options: { target: { type: "string" } } });
    return values.target ?? process.env["WFE_TARGET"] ?? "127.0.0.1:50052";
  } catch (error) {
    fail(`${(error as Error).message}; usage: npm run host -- [--target HOST:PORT]`, 2);
  }
}

const target = parseTarget();
let host: Host;
try {
  host = new Host(transport(target));
} catch (error) {
  fail((error as Error).message, 1);
}
try {
  await host.waitUntilServing(30);
} catch (error) {
  fail(`no connection to ${target}: ${ConnectError.from(error).message}`, 1);
}
const workflowId = await host.create();
await host.change(workflowId);
await host.refused(workflowId);
const subscriptionId = await host.waitForEvent(workflowId);
const eventId = await host.deliverEvents();
await host.runCommands(workflowId);
const batchIds = await host.batch();
const revision = String(await host.revision(workflowId));
console.log(JSON.stringify({
  workflow_id: workflowId,
  event_id: eventId,
  subscription_id: subscriptionId,
  batch_ids: batchIds,
  revision,
}));
