import { randomUUID } from "node:crypto";
import { timestampFromDate, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import * as engine from "workflow-es";
import { EventService } from "../../typescript/gen/wfe/persistence/v1/event_pb.js";
import { SubscriptionService } from "../../typescript/gen/wfe/persistence/v1/subscription_pb.js";
import { WorkflowService, WorkflowStatus } from "../../typescript/gen/wfe/persistence/v1/workflow_pb.js";
import { failure } from "../../typescript/src/errors.js";
import {
  eventFromMessage,
  eventToMessage,
  keyText,
  later,
  subscriptionFromMessage,
  subscriptionToMessage,
  workflowFromMessage,
  workflowToMessage,
} from "./convert.js";
import { eventsSince } from "./events.js";
import type { Settings } from "./index.js";
import type { Locks } from "./locks.js";
import type { Queues } from "./queues.js";

/** What is known of a workflow in the engine's hands. */
interface Loaded {
  revision: bigint;
  /** The lock under which it was loaded. */
  lock: string | undefined;
  /** The application whose hosts run it; undefined: this one. */
  app?: string;
  /** What its execution has yielded; undefined: it was not executed. */
  result?: engine.WorkflowExecutorResult | "failed";
}

/** The attribute with a workflow's application: an event may be delivered by the hosts of another one. */
const APP = "workflow-es.app";

/**
 * The engine's store. What the engine does one after the other around a write, and would be lost if
 * the host died in between, is one transaction here: the state, the subscriptions, the errors, the
 * end of the item that was handled, and the item for the next time.
 */
export class Persistence implements engine.IPersistenceProvider {
  readonly #workflows: Client<typeof WorkflowService>;
  readonly #subscriptions: Client<typeof SubscriptionService>;
  readonly #events: Client<typeof EventService>;
  readonly #loaded = new WeakMap<engine.WorkflowInstance, Loaded>();
  /** Subscriptions that were stored with the workflow's state. */
  readonly #stored = new WeakSet<engine.EventSubscription>();

  constructor(
    private readonly settings: Settings,
    private readonly queues: Queues,
    private readonly locks: Locks,
  ) {
    this.#workflows = createClient(WorkflowService, settings.transport);
    this.#subscriptions = createClient(SubscriptionService, settings.transport);
    this.#events = createClient(EventService, settings.transport);
  }

  // Workflows.

  async createNewWorkflow(instance: engine.WorkflowInstance): Promise<string> {
    instance.id = randomUUID(); // chosen here, so that the call can be repeated
    const message = workflowToMessage(instance);
    message.extensionAttributesJson[APP] = JSON.stringify(this.settings.app);
    const request = { instance: message, enqueue: this.#next(instance) };
    const { revision } = await this.#workflows.createNewWorkflow(request);
    this.queues.enqueued(instance.id);
    this.#loaded.set(instance, { revision, lock: undefined });
    return instance.id;
  }

  /** When the workflow is to be run next, as an item; none: it is not. */
  #next({ id, status, nextExecution }: engine.WorkflowInstance, app?: string) {
    if (status !== engine.WorkflowStatus.Runnable) return [];
    if (nextExecution === null || nextExecution === undefined) return [];
    return [this.queues.workflowItem(id, later(nextExecution), app)];
  }

  async getWorkflowInstance(workflowId: string): Promise<engine.WorkflowInstance> {
    const lock = this.locks.token(workflowId);
    const found = await orUndefined("WORKFLOW_NOT_FOUND", this.#workflows.getWorkflowInstance({ id: workflowId }));
    // The engine expects undefined, though its types say otherwise.
    if (!found?.instance) return undefined as unknown as engine.WorkflowInstance;
    const workflow = workflowFromMessage(found.instance);
    const { revision, extensionAttributesJson } = found.instance;
    const app = extensionAttributesJson[APP];
    this.#loaded.set(workflow, { revision, lock, app: app === undefined ? undefined : JSON.parse(app) });
    return workflow;
  }

  /** What the execution of a workflow has yielded, which is to be stored with its state. */
  executed(instance: engine.WorkflowInstance, result: engine.WorkflowExecutorResult | "failed"): void {
    const loaded = this.#loaded.get(instance);
    if (loaded) loaded.result = result;
  }

  async persistWorkflow(instance: engine.WorkflowInstance): Promise<void> {
    const loaded = this.#loaded.get(instance);
    if (!loaded) throw new Error(`the workflow ${instance.id} was not loaded here`);
    try {
      await this.#commit(instance, loaded);
    } catch (error) {
      if (isRefusal(error)) await this.#suspend(instance.id, loaded, error);
      throw error;
    }
  }

  async #commit(instance: engine.WorkflowInstance, loaded: Loaded): Promise<void> {
    const { result } = loaded;
    delete loaded.result;
    const { subscriptions, errors } = typeof result === "object" ? result : new engine.WorkflowExecutorResult();
    for (const subscription of subscriptions) subscription.id = randomUUID();
    // What the engine could not execute, for example because it does not know the definition, comes
    // back when the engine lets go of the lock: later each time.
    const enqueue = result === "failed" ? [] : this.#next(instance, loaded.app);
    const receipt = typeof result === "object" ? this.queues.receipt(instance.id) : undefined;
    const lookBack = timestampFromMs(Date.now() + this.settings.leaseMs);
    const { revision } = await this.#workflows.commitWorkflow({
      state: { case: "instance", value: workflowToMessage(instance) },
      expectedRevision: loaded.revision,
      heldLockTokens: loaded.lock === undefined ? [] : [loaded.lock],
      createSubscriptions: subscriptions.map(subscriptionToMessage),
      errors: errors.map(({ errorTime, message }) => ({
        errorTime: timestampFromDate(errorTime),
        workflowId: instance.id,
        message: String(message),
      })),
      acknowledge: receipt === undefined ? [] : [{ receipt }],
      enqueue: [...enqueue, ...subscriptions.map(({ id }) => this.queues.subscriptionItem(id, lookBack))],
      requestId: randomUUID(), // so that the write can be repeated after a lost response
    });
    loaded.revision = revision;
    for (const subscription of subscriptions) this.#stored.add(subscription);
    if (receipt !== undefined) this.queues.acknowledged(instance.id);
    // The engine enqueues a workflow that is due, which is done.
    if (enqueue.some(({ visibleTime }) => !visibleTime)) this.queues.enqueued(instance.id);
  }

  /**
   * Suspends a workflow whose state can't be stored, as it is stored: otherwise its step would be run
   * again and again, and refused each time. A person resumes it when the cause is gone.
   */
  async #suspend(id: string, { revision, lock }: Loaded, error: unknown): Promise<void> {
    const receipt = this.queues.receipt(id);
    try {
      await this.#workflows.commitWorkflow({
        state: {
          case: "patch",
          value: { id, header: { status: WorkflowStatus.SUSPENDED }, headerMask: { paths: ["status"] } },
        },
        expectedRevision: revision,
        heldLockTokens: lock === undefined ? [] : [lock],
        errors: [{ errorTime: timestampFromDate(new Date()), workflowId: id, message: `suspended: ${String(error)}` }],
        acknowledge: receipt === undefined ? [] : [{ receipt }],
        requestId: randomUUID(),
      });
      if (receipt !== undefined) this.queues.acknowledged(id);
    } catch (another) {
      this.settings.log.error(`the workflow ${id} was not suspended`, another);
    }
  }

  /** Those that this application can run: others may share the store. */
  async getRunnableInstances(): Promise<string[]> {
    const { definitions: workflowDefinitionIds } = this.settings;
    return (await this.#workflows.getRunnableInstances({ workflowDefinitionIds, pageSize: 1000 })).instanceIds;
  }

  // Subscriptions.

  async createEventSubscription(subscription: engine.EventSubscription): Promise<void> {
    if (this.#stored.has(subscription)) return; // and perhaps delivered since
    subscription.id = randomUUID();
    await this.#subscriptions.createEventSubscription({ subscription: subscriptionToMessage(subscription) });
  }

  async getSubscriptions(eventName: string, eventKey: unknown, asOf: Date): Promise<engine.EventSubscription[]> {
    const found: engine.EventSubscription[] = [];
    const request = { eventName, eventKey: keyText(eventKey), asOf: timestampFromDate(asOf) };
    let pageToken = "";
    do {
      const page = await this.#subscriptions.getSubscriptions({ ...request, pageToken });
      found.push(...page.subscriptions.map(subscriptionFromMessage));
      pageToken = page.nextPageToken;
    } while (pageToken);
    return found;
  }

  async terminateSubscription(id: string): Promise<void> {
    await orUndefined("SUBSCRIPTION_NOT_FOUND", this.#subscriptions.terminateSubscription({ id }));
  }

  // Events.

  async createEvent(event: engine.Event): Promise<string> {
    event.id = randomUUID();
    const enqueue = [this.queues.eventItem(event.id, later(event.eventTime?.getTime()))];
    await this.#events.createEvent({ event: eventToMessage(event), enqueue });
    this.queues.enqueued(event.id);
    return event.id;
  }

  async getEvent(id: string): Promise<engine.Event> {
    const found = await orUndefined("EVENT_NOT_FOUND", this.#events.getEvent({ id }));
    return (found?.event && eventFromMessage(found.event)) as engine.Event;
  }

  async getRunnableEvents(): Promise<string[]> {
    return (await this.#events.getRunnableEvents({ pageSize: 1000 })).eventIds;
  }

  async markEventProcessed(id: string): Promise<void> {
    await this.#events.markEventProcessed({ id });
  }

  async markEventUnprocessed(id: string): Promise<void> {
    await this.#events.markEventUnprocessed({ id });
  }

  /** Events *since* a time: it bounds GetEvents from below, although the engine calls it "as of". */
  async getEvents(eventName: string, eventKey: unknown, asOf: Date): Promise<string[]> {
    const subscribeAsOf = asOf ? timestampFromDate(asOf) : undefined;
    const ids: string[] = [];
    for await (const id of eventsSince(this.#events, { eventName, eventKey: keyText(eventKey), subscribeAsOf })) {
      ids.push(id);
    }
    return ids;
  }
}

async function orUndefined<T>(reason: string, call: Promise<T>): Promise<T | undefined> {
  try {
    return await call;
  } catch (error) {
    if (failure(error).reason === reason) return undefined;
    throw error;
  }
}

/** Whether a state can't be stored as it is, however often it is tried. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof ConnectError)) return true; // it has no form as a message
  return error.code === Code.InvalidArgument || failure(error).reason === "ANSWER_TOO_LARGE";
}
