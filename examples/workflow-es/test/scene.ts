/** What the tests have in common: an application of their own on the server at WFE_TARGET. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import {
  configureWorkflow,
  ExecutionResult,
  type IWorkflowHost,
  QueueType,
  StepBody,
  type StepExecutionContext,
  WorkflowBase,
  type WorkflowBuilder,
} from "workflow-es";
import { LockService } from "../../typescript/gen/wfe/persistence/v1/lock_pb.js";
import { type ListedQueueItem, QueueItemState, QueueService } from "../../typescript/gen/wfe/persistence/v1/queue_pb.js";
import { StoreService } from "../../typescript/gen/wfe/persistence/v1/store_pb.js";
import { SubscriptionService } from "../../typescript/gen/wfe/persistence/v1/subscription_pb.js";
import { type WorkflowInstance, WorkflowService, WorkflowStatus } from "../../typescript/gen/wfe/persistence/v1/workflow_pb.js";
import { transport } from "../../typescript/src/connect.js";
import { type Options, Providers } from "../src/index.js";

export const target = process.env["WFE_TARGET"] ?? "127.0.0.1:50052";

// Each of the engine's hosts listens for SIGINT.
process.setMaxListeners(0);

/** Far more than any of it takes, also on a busy machine. */
const PATIENCE_MS = 60_000;

export async function until<T>(condition: () => Promise<T | 0 | false>, what: string): Promise<T> {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await condition();
    if (found) return found;
    assert.ok(Date.now() < deadline, `waited in vain for ${what}`);
    await sleep(20);
  }
}

// The engine's types do not help: data is `any`.
export type Definition = new () => WorkflowBase<any>;
type Build = (builder: WorkflowBuilder<any>) => void;

/** A definition of its own for each test. */
export function define(build: Build, id = `test-${randomUUID()}`): Definition {
  return class extends WorkflowBase<any> {
    id = id;
    version = 1;
    build = build;
  };
}

/** A step from a function. (The engine's `thenRun` fails with the newest inversify that it allows.) */
export const body = (run: (context: StepExecutionContext) => Promise<ExecutionResult>) =>
  class extends StepBody {
    run = run;
  };

/** A step that does something and goes on. */
export const step = (act: (context: StepExecutionContext) => void) =>
  body(async (context) => {
    act(context);
    return ExecutionResult.next();
  });

/** An application with its hosts. */
export class Scene {
  readonly transport = transport(target);
  readonly workflows = createClient(WorkflowService, this.transport);
  readonly queues = createClient(QueueService, this.transport);
  readonly subscriptions = createClient(SubscriptionService, this.transport);
  readonly store = createClient(StoreService, this.transport);
  readonly #locks = createClient(LockService, this.transport);
  readonly #running: { host: IWorkflowHost; providers: Providers }[] = [];
  /** What the hosts complained about. */
  readonly complaints: string[] = [];

  constructor(
    private readonly definitions: Definition[],
    readonly app = `test-${randomUUID().slice(0, 8)}`,
  ) {}

  /** A host that runs workflows. */
  async host(options: Partial<Options> = {}): Promise<IWorkflowHost> {
    const host = await this.client(options);
    await host.start();
    return host;
  }

  /** A host that only starts workflows and publishes events. */
  async client(options: Partial<Options> = {}): Promise<IWorkflowHost> {
    const complain = (...what: unknown[]) => void this.complaints.push(what.map(String).join(" "));
    const log = { error: complain, info: () => {}, log: () => {} };
    const providers = await Providers.connect({
      transport: this.transport,
      app: this.app,
      definitions: this.definitions.map((definition) => new definition().id),
      leaseMs: 1_500,
      dequeueWaitMs: 300,
      owner: this.app,
      log,
      ...options,
    });
    const config = configureWorkflow();
    config.useLogger(log);
    providers.use(config);
    const host = config.getHost();
    for (const definition of this.definitions) host.registerWorkflow(definition);
    this.#running.push({ host, providers });
    return host;
  }

  async workflow(id: string): Promise<WorkflowInstance> {
    return (await this.workflows.getWorkflowInstance({ id })).instance!;
  }

  /** When the workflow, which sleeps, is to be woken. */
  async sleeps(id: string): Promise<number> {
    return until(async () => Number((await this.workflow(id)).nextExecution ?? 0), `${id} to sleep`);
  }

  /** The workflow when it has that status. */
  async reaches(id: string, status = WorkflowStatus.COMPLETE): Promise<WorkflowInstance> {
    return until(async () => {
      const workflow = await this.workflow(id);
      return workflow.status === status && workflow;
    }, `${WorkflowStatus[status]} of ${id}: ${this.complaints}`);
  }

  /** Waits until the workflow waits for an event: its subscription is there. */
  async waits(id: string): Promise<void> {
    await until(async () => {
      const { subscriptions } = await this.subscriptions.listSubscriptions({ workflowId: id });
      return subscriptions.length > 0;
    }, `a subscription of ${id}: ${this.complaints}`);
  }

  /** Does what the engine's poller does every 10 s. */
  async polls(): Promise<void> {
    for (const { providers } of this.#running) {
      for (const id of await providers.persistence.getRunnableInstances()) {
        await providers.queues.queueForProcessing(id, QueueType.Workflow);
      }
    }
  }

  /** Everything in the application's queues. */
  async items(): Promise<ListedQueueItem[]> {
    const queues = ["workflows", "events", "subscriptions"].map((name) => `${this.app}.${name}`);
    const pages = await Promise.all(queues.map((queue) => this.queues.listQueueItems({ queue, pageSize: 1000 })));
    return pages.flatMap(({ items }) => items);
  }

  /** Nothing is left in the queues, and no lock is held. */
  async tidy(): Promise<void> {
    let left: ListedQueueItem[] = [];
    const settled = async () => (left = await this.items()).length === 0;
    await until(settled, "the end of all items").catch((error) => {
      const items = left.map(({ item, state, attempt }) => `${item?.queue} ${item?.id} ${QueueItemState[state]} ${attempt}`);
      throw new Error(`${error.message}: ${items.join("; ")}; ${this.complaints}`);
    });
    await until(
      async () => (await this.#locks.listLocks({ owner: this.app })).locks.length === 0,
      "the release of all locks",
    );
  }

  async close(): Promise<void> {
    await Promise.all(
      this.#running.splice(0).map(async ({ host, providers }) => {
        host.stop();
        await providers.stop();
      }),
    );
  }
}

/** Runs a test with an application of one host, after which nothing may be left. */
export async function withScene(
  definitions: Definition[],
  run: (scene: Scene, host: IWorkflowHost) => Promise<void>,
  options: Partial<Options> = {},
): Promise<void> {
  const scene = new Scene(definitions);
  try {
    await run(scene, await scene.host(options));
    await scene.tidy();
  } finally {
    await scene.close();
  }
}
