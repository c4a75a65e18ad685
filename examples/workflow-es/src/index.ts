/** The providers of workflow-es on the persistence server. See README.md. */
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import type { Transport } from "@connectrpc/connect";
import { type ILogger, type IWorkflowExecutor, TYPES, type WorkflowConfig } from "workflow-es";
import { Locks } from "./locks.js";
import { Persistence } from "./persistence.js";
import { Queues } from "./queues.js";

export interface Options {
  /** The connection to the server, with retries: see ../typescript/src/connect.ts. */
  transport: Transport;
  /**
   * The application, the same for all of its hosts: the first part of the names of its queues,
   * `[a-z][a-z0-9_.-]{0,49}`.
   */
  app: string;
  /** The ids of the workflows that the hosts register. */
  definitions: string[];
  /** How long what a host holds stays withheld from others when it dies; default: 30 s. */
  leaseMs?: number;
  /** How many workflows and events a host handles at a time; default: 20. */
  concurrency?: number;
  /** How long to wait for the lock of a workflow or an event that is held; default: 5 s. */
  lockWaitMs?: number;
  /** How long one call waits for work, and `stop` with it; default: 5 s. */
  dequeueWaitMs?: number;
  /** How the host calls itself, for people who inspect queues and locks. */
  owner?: string;
  /** Where what goes wrong is told; default: the console. */
  log?: Pick<ILogger, "error">;
}

export type Settings = Required<Options>;

/** The engine's store, queues and locks on one server. */
export class Providers {
  readonly queues: Queues;
  readonly locks: Locks;
  readonly persistence: Persistence;

  private constructor(settings: Settings) {
    this.queues = new Queues(settings);
    this.locks = new Locks(settings, (id) => this.queues.settle(id));
    this.persistence = new Persistence(settings, this.queues, this.locks);
  }

  /** Makes the providers, and the application's queues, for which a host needs the role `operator`. */
  static async connect(options: Options): Promise<Providers> {
    const providers = new Providers({
      leaseMs: 30_000,
      concurrency: 20,
      lockWaitMs: 5_000,
      dequeueWaitMs: 5_000,
      owner: `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`,
      log: console,
      ...options,
    });
    await providers.queues.configure();
    return providers;
  }

  /** Has an engine use the providers; before `getHost`. */
  use(config: WorkflowConfig): void {
    config.usePersistence(this.persistence);
    config.useQueueManager(this.queues);
    config.useLockManager(this.locks);
    // A step's subscriptions and errors are not part of the state that the engine has stored: it
    // makes the subscriptions afterwards, if it lives to do so, and keeps the errors to itself.
    const container = config.getContainer();
    const inner = container.get<IWorkflowExecutor>(TYPES.IWorkflowExecutor);
    container.rebind<IWorkflowExecutor>(TYPES.IWorkflowExecutor).toConstantValue({
      execute: async (instance) => {
        this.persistence.executed(instance, "failed");
        const result = await inner.execute(instance);
        this.persistence.executed(instance, result);
        return result;
      },
    });
  }

  /** After the host's own `stop`: takes no more work, and waits until what it has is done. */
  async stop(): Promise<void> {
    await this.queues.stop();
  }
}
