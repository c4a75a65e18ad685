import { setTimeout as sleep } from "node:timers/promises";
import { durationFromMs, type Timestamp } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { type IQueueProvider, QueueType } from "workflow-es";
import { EventService } from "../../typescript/gen/wfe/persistence/v1/event_pb.js";
import { type DequeuedItem, QueueKind, QueueService } from "../../typescript/gen/wfe/persistence/v1/queue_pb.js";
import { SubscriptionService } from "../../typescript/gen/wfe/persistence/v1/subscription_pb.js";
import { WorkflowStatus, WorkflowView } from "../../typescript/gen/wfe/persistence/v1/workflow_pb.js";
import { failure } from "../../typescript/src/errors.js";
import { eventsSince } from "./events.js";
import type { Settings } from "./index.js";
import { Leases } from "./leases.js";
import { resource } from "./locks.js";

const DAY_MS = 24 * 60 * 60 * 1000;
/** The most items that one call enqueues. */
const BATCH = 1000;

/** An item as QueueService wants it. */
export interface Item {
  queue: string;
  id: string;
  visibleTime?: Timestamp;
  blockedBy?: string[];
}

/** One of the engine's two queues. */
interface Line {
  /** The ids that were taken, and not settled. */
  taken: Set<string>;
  /** Those of them that the engine has not asked for. */
  ready: string[];
  /** Whether a call waits for more. */
  asking: boolean;
  /** Is called when one is settled. */
  freed: () => void;
}

/**
 * The engine's queues. An item is a hint: whether there is anything to do, the state says. The engine
 * has no acknowledgement, and handles many items at a time; but it is done with one when it lets go
 * of its lock, or did not get it.
 */
export class Queues implements IQueueProvider {
  readonly #queues: Client<typeof QueueService>;
  readonly #subscriptions: Client<typeof SubscriptionService>;
  readonly #events: Client<typeof EventService>;
  readonly #leases: Leases;
  readonly #lines = new Map<unknown, Line>();
  /** The receipts of items that were taken and not settled, by id. */
  readonly #receipts = new Map<string, string>();
  /** Ids of items that were enqueued with a write, so that the engine need not. */
  readonly #enqueued = new Set<string>();
  #outbox: Item[] = [];
  #stopped = false;

  constructor(private readonly settings: Settings) {
    this.#queues = createClient(QueueService, settings.transport);
    this.#subscriptions = createClient(SubscriptionService, settings.transport);
    this.#events = createClient(EventService, settings.transport);
    for (const type of [QueueType.Workflow, QueueType.Event]) {
      this.#lines.set(type, { taken: new Set(), ready: [], asking: false, freed: () => {} });
    }
    const leaseDuration = durationFromMs(settings.leaseMs);
    this.#leases = new Leases(
      settings.leaseMs,
      (receipts) => this.#queues.renewItems({ receipts, leaseDuration }),
      (error) => settings.log.error("items were not renewed", error),
    );
  }

  // What goes into the queues.

  workflowItem(id: string, visibleTime?: Timestamp, app = this.settings.app): Item {
    // Withheld while the lock is held: the engine gives up a workflow whose lock it does not get.
    return { queue: `${app}.workflows`, id, visibleTime, blockedBy: [resource(id)] };
  }

  eventItem(id: string, visibleTime?: Timestamp): Item {
    return { queue: this.#name("events"), id, visibleTime };
  }

  /** Looks for events that came before a subscription, should the host not live to do so. */
  subscriptionItem(id: string, visibleTime: Timestamp): Item {
    return { queue: this.#name("subscriptions"), id, visibleTime };
  }

  #name(queue: string): string {
    return `${this.settings.app}.${queue}`;
  }

  /** An item was enqueued with a write. */
  enqueued(id: string): void {
    this.#enqueued.add(id);
  }

  /** Never fails: the engine does not wait for it, and its poller finds what was not enqueued. */
  async queueForProcessing(id: string, queue: unknown): Promise<void> {
    if (this.#enqueued.delete(id)) return;
    this.#outbox.push(queue === QueueType.Event ? this.eventItem(id) : this.workflowItem(id));
    // The poller does this for each of up to 1000.
    if (this.#outbox.length === 1) setImmediate(() => void this.#send());
  }

  async #send(): Promise<void> {
    const outbox = new Map(this.#outbox.map((item) => [`${item.queue} ${item.id}`, item]));
    this.#outbox = [];
    const items = [...outbox.values()];
    try {
      for (let start = 0; start < items.length; start += BATCH) {
        await this.#queues.enqueue({ items: items.slice(start, start + BATCH) });
      }
    } catch (error) {
      this.settings.log.error(`${items.length} items were not enqueued`, error);
    }
  }

  // What comes out of them.

  /** Waits for an item: the engine asks again and again, and a call that waits costs nothing. */
  async dequeueForProcessing(queue: unknown): Promise<string> {
    const line = this.#lines.get(queue);
    let id = line?.ready.shift();
    if (line && id === undefined && !line.asking && !this.#stopped) {
      line.asking = true;
      try {
        line.ready.push(...(await this.#take(line, queue)));
      } finally {
        line.asking = false;
      }
      if (this.#stopped) await this.#putBack();
      id = line.ready.shift();
    }
    return id as string; // undefined: none, as the engine expects it
  }

  async #take(line: Line, queue: unknown): Promise<string[]> {
    const { concurrency, leaseMs, owner, dequeueWaitMs } = this.settings;
    while (line.taken.size >= concurrency) await new Promise<void>((freed) => (line.freed = freed));
    if (this.#stopped) return [];
    const queues = queue === QueueType.Event ? ["events", "subscriptions"] : ["workflows"];
    let items: DequeuedItem[];
    try {
      ({ items } = await this.#queues.dequeue(
        {
          queues: queues.map((name) => this.#name(name)),
          maxItems: concurrency - line.taken.size,
          leaseDuration: durationFromMs(leaseMs),
          workerId: owner,
          includeWorkflow: queue === QueueType.Workflow,
          view: WorkflowView.HEADER,
          wait: durationFromMs(dequeueWaitMs),
        },
        { timeoutMs: dequeueWaitMs + 10_000 },
      ));
    } catch (error) {
      // The engine would ask again in 100 ms.
      await sleep(500 + 500 * Math.random());
      throw error;
    }
    const ids: string[] = [];
    for (const each of items) {
      const { queue: name = "", id = "" } = each.item ?? {};
      this.#receipts.set(id, each.receipt);
      line.taken.add(id);
      this.#leases.add(each.receipt);
      if (name === this.#name("subscriptions")) void this.#lookBack(id);
      else if (queue === QueueType.Event || isDue(each)) ids.push(id);
      else void this.#notDue(id, each);
    }
    return ids;
  }

  /** The engine would run the workflow: it does not look at the time, so it would wake it too early. */
  async #notDue(id: string, { workflow }: DequeuedItem): Promise<void> {
    const next = workflow?.nextExecution;
    if (workflow?.status !== WorkflowStatus.RUNNABLE || next === undefined) return this.settle(id);
    const delay = Math.min(Math.max(Number(next) - Date.now(), 1), DAY_MS);
    await this.#settle(id, (receipt) =>
      this.#queues.returnItems({ returnItems: [{ receipt, delay: durationFromMs(delay) }] }),
    );
  }

  /** Delivers events again that came before the workflow began to wait for them. */
  async #lookBack(id: string): Promise<void> {
    try {
      const { subscription } = await this.#subscriptions.getSubscription({ id });
      for await (const event of eventsSince(this.#events, subscription!)) {
        await this.#events.markEventUnprocessed({ id: event });
        await this.#queues.enqueue({ items: [this.eventItem(event)] });
      }
    } catch (error) {
      if (failure(error).reason !== "SUBSCRIPTION_NOT_FOUND") {
        this.settings.log.error(`the subscription ${id} is looked at again later`, error);
        return this.#abandon(id);
      }
    }
    await this.settle(id); // looked at, or delivered
  }

  // What becomes of them.

  /** The receipt of an item that is being handled. */
  receipt(id: string): string | undefined {
    return this.#receipts.get(id);
  }

  /** The item was acknowledged with a write. */
  acknowledged(id: string): void {
    this.#abandon(id);
  }

  /** The engine is done with an item: it goes if the store says so too, otherwise it comes back. */
  async settle(id: string): Promise<void> {
    await this.#settle(id, (receipt) => this.#queues.acknowledge({ acknowledge: [{ receipt, confirmed: true }] }));
  }

  async #settle(id: string, settle: (receipt: string) => Promise<unknown>): Promise<void> {
    const receipt = this.#receipts.get(id);
    if (receipt === undefined) return;
    this.#abandon(id);
    try {
      await settle(receipt);
    } catch (error) {
      if (failure(error).reason === "LEASE_LOST") return; // it is somebody else's
      this.settings.log.error(`the item ${id} comes back when its lease expires`, error);
    }
  }

  /** Without renewal, its lease expires. */
  #abandon(id: string): void {
    const receipt = this.#receipts.get(id);
    if (receipt === undefined) return;
    this.#receipts.delete(id);
    this.#leases.delete(receipt);
    for (const line of this.#lines.values()) if (line.taken.delete(id)) line.freed();
  }

  // The beginning and the end.

  /** By their kinds the store knows whether the work of an item is done. */
  async configure(): Promise<void> {
    const kinds = new Map([
      [this.#name("workflows"), QueueKind.WORKFLOW],
      [this.#name("events"), QueueKind.EVENT],
    ]);
    const { queues } = await this.#queues.getQueueStats({ queues: [...kinds.keys()] });
    for (const { queue, kind } of queues) {
      const wanted = kinds.get(queue);
      if (wanted === undefined || kind === wanted) continue;
      try {
        await this.#queues.configureQueue({ queue, kind: wanted });
      } catch (error) {
        if (ConnectError.from(error).code !== Code.PermissionDenied) throw error;
        throw new Error(`an operator has to configure the queue ${queue} as ${QueueKind[wanted]}`, { cause: error });
      }
    }
  }

  /** Takes no more items, gives back those that the engine has not asked for, and waits for the rest. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#putBack();
    while (this.#receipts.size > 0 || [...this.#lines.values()].some(({ asking }) => asking)) {
      await sleep(20);
    }
  }

  async #putBack(): Promise<void> {
    const ids = [...this.#lines.values()].flatMap(({ ready }) => ready.splice(0));
    await Promise.all(
      ids.map((id) => this.#settle(id, (receipt) => this.#queues.returnItems({ returnItems: [{ receipt }] }))),
    );
  }
}

/** Whether the workflow of an item is to be run now. */
function isDue({ workflow, workflowOmitted }: DequeuedItem): boolean {
  if (workflowOmitted) return true;
  return workflow?.status === WorkflowStatus.RUNNABLE
    && workflow.nextExecution !== undefined
    && workflow.nextExecution <= BigInt(Date.now());
}
