/**
 * A worker: it takes items from a queue, has them handled, and says what became of them.
 *
 * Each of its slots asks for an item, has it handled, and settles it when it asks for the next one.
 * So a step whose handler commits is two calls: Dequeue, which brings the item and its workflow, and
 * CommitWorkflow, which stores the step and acknowledges the item.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { AcknowledgementSchema } from "../gen/wfe/persistence/v1/queue_item_pb.js";
import { type DequeuedItem, QueueService } from "../gen/wfe/persistence/v1/queue_pb.js";
import {
  CommitWorkflowRequestSchema,
  type WorkflowInstance,
  WorkflowService,
} from "../gen/wfe/persistence/v1/workflow_pb.js";
import { failure } from "./errors.js";

type Step = MessageInitShape<typeof CommitWorkflowRequestSchema>;

/** An item in the hands of a handler. */
export interface Work {
  item: DequeuedItem;
  /** The workflow with the item's id, read with it; undefined: there is none. */
  workflow: WorkflowInstance | undefined;
  /** Is aborted when the lease on the item is lost: another worker may handle it now. */
  lost: AbortSignal;
  /**
   * Stores the workflow, or a patch to it, with the effects of the step, and acknowledges the item, all
   * in one transaction; refused if the lease is lost, or the workflow was written since it was read.
   * Without a commit, the item is acknowledged when the handler returns.
   */
  commit(step: Step): Promise<void>;
}

export interface WorkerOptions {
  queue: string;
  /** If it fails, the item comes again: after 1 s, twice as long with each attempt, at most 60 s. */
  handler: (work: Work) => Promise<void>;
  /** How many items to handle at a time; default: 1. */
  concurrency?: number;
  /** How long others wait for the items of a worker that died; default: 30 s. */
  leaseMs?: number;
  /** How long one call waits for an item, and `stop` for that call; default: 5 s. */
  waitMs?: number;
  /** How the worker calls itself, for people who inspect queues. */
  workerId?: string;
  onError?: (work: Work, error: unknown) => void;
  onLost?: (work: Work) => void;
  /** The store failed; the worker asks again after a pause. */
  onOutage?: (error: ConnectError) => void;
}

/** Errors that would be the same the next time: a worker with one ends. */
const LASTING = new Set([Code.InvalidArgument, Code.NotFound, Code.PermissionDenied, Code.Unimplemented]);

/** What became of the item that a slot has handled last, and is to be sent. */
interface Settled {
  work?: Held;
  acknowledge?: boolean;
  /** It may have been applied already: a response was lost. */
  uncertain?: boolean;
}

export class Worker {
  readonly #options;
  readonly #queues: Client<typeof QueueService>;
  readonly #workflows: Client<typeof WorkflowService>;
  readonly #stopping = new AbortController();
  #failure: ConnectError | undefined;

  constructor(transport: Transport, options: WorkerOptions) {
    this.#options = { concurrency: 1, leaseMs: 30_000, waitMs: 5_000, workerId: "", ...options };
    this.#queues = createClient(QueueService, transport);
    this.#workflows = createClient(WorkflowService, transport);
  }

  /** Handles items until `stop` is called; fails with an error that another attempt would not change. */
  async run(): Promise<void> {
    await Promise.all(Array.from({ length: this.#options.concurrency }, () => this.#slot()));
    if (this.#failure) throw this.#failure;
  }

  /**
   * Ends `run` when the items in hand have been handled. A call that waits for an item is not broken
   * off, because it might take one.
   */
  stop(): void {
    this.#stopping.abort();
  }

  async #slot(): Promise<void> {
    let settled: Settled = {};
    for (let outages = 0; !this.#stopping.signal.aborted; ) {
      try {
        const work: Held | undefined = await this.#take(settled);
        [outages, settled] = [0, work ? await this.#handle(work) : {}];
        if (!work) await this.#rest(50); // a server may end a wait early
      } catch (thrown) {
        const error = ConnectError.from(thrown);
        if (failure(error).reason === "LEASE_LOST") {
          // Nothing was handed out. If it was applied before, nothing was lost either.
          if (settled.work && !settled.uncertain) this.#options.onLost?.(settled.work);
          settled = {};
        } else if (LASTING.has(error.code)) {
          this.#failure ??= error;
          this.stop();
        } else {
          settled.uncertain = true;
          this.#options.onOutage?.(error);
          // Not all workers at the same time.
          await this.#rest(Math.min(100 * 2 ** outages++, 5_000) * (0.5 + Math.random() / 2));
        }
      }
    }
    await this.#settle(settled);
  }

  async #rest(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#stopping.signal }).catch(() => {});
  }

  async #take(settled: Settled): Promise<Held | undefined> {
    const { queue, leaseMs, waitMs, workerId } = this.#options;
    const { items } = await this.#queues.dequeue(
      {
        ...lists(settled),
        queues: [queue],
        leaseDuration: durationFromMs(leaseMs),
        workerId,
        includeWorkflow: true,
        wait: durationFromMs(waitMs),
      },
      { timeoutMs: waitMs + 10_000 },
    );
    return items[0] && this.#work(items[0]);
  }

  #work(item: DequeuedItem): Held {
    return new Held(item, (step, workflow) => {
      const request = create(CommitWorkflowRequestSchema, step);
      request.expectedRevision ??= workflow?.revision;
      request.requestId ||= randomUUID(); // so that the write can be repeated after a lost response
      request.acknowledge.push(create(AcknowledgementSchema, { receipt: item.receipt }));
      return this.#workflows.commitWorkflow(request);
    });
  }

  /** Has an item handled; returns what is to be said of it. */
  async #handle(work: Held): Promise<Settled> {
    const { handler, leaseMs, onError, onLost } = this.#options;
    const renewal = setInterval(() => void this.#renew(work), leaseMs / 3);
    let error: unknown;
    try {
      if (work.item.workflowOmitted) {
        // It does not fit in a response together with the item.
        work.workflow = (await this.#workflows.getWorkflowInstance({ id: work.item.item!.id })).instance;
      }
      await handler(work);
    } catch (thrown) {
      error = thrown ?? new Error("the handler failed");
    } finally {
      clearInterval(renewal);
    }
    if (work.lost.aborted) onLost?.(work);
    else if (error) onError?.(work, error);
    if (work.lost.aborted || work.committed) return {};
    // A commit whose outcome is not known may have acknowledged it.
    return { work, acknowledge: !error, uncertain: error instanceof ConnectError };
  }

  async #renew(work: Held): Promise<void> {
    const leaseDuration = durationFromMs(this.#options.leaseMs);
    try {
      await this.#queues.renewItems({ receipts: [work.item.receipt], leaseDuration });
    } catch (error) {
      // Any other error may pass before the lease expires. One that a commit has acknowledged is not lost.
      if (failure(error).reason === "LEASE_LOST" && !work.committing && !work.committed) work.lose();
    }
  }

  /** Says what became of the last item; otherwise it comes back when its lease expires. */
  async #settle(settled: Settled): Promise<void> {
    if (!settled.work) return;
    const { acknowledge = [], returnItems = [] } = lists(settled);
    try {
      if (acknowledge.length > 0) await this.#queues.acknowledge({ acknowledge });
      if (returnItems.length > 0) await this.#queues.returnItems({ returnItems });
    } catch (thrown) {
      const error = ConnectError.from(thrown);
      if (failure(error).reason !== "LEASE_LOST") this.#options.onOutage?.(error);
      else if (!settled.uncertain) this.#options.onLost?.(settled.work);
    }
  }
}

class Held implements Work {
  workflow: WorkflowInstance | undefined;
  committing = false;
  committed = false;
  readonly #lost = new AbortController();
  readonly lost = this.#lost.signal;

  constructor(
    readonly item: DequeuedItem,
    private readonly store: (step: Step, workflow?: WorkflowInstance) => Promise<unknown>,
  ) {
    this.workflow = item.workflow;
  }

  lose(): void {
    this.#lost.abort();
  }

  readonly commit = async (step: Step): Promise<void> => {
    this.committing = true;
    try {
      await this.store(step, this.workflow);
      this.committed = true;
    } catch (error) {
      const { reason, metadata } = failure(error);
      // One of the locks or claims of the step may be lost instead.
      if (reason === "LEASE_LOST" && metadata["field"]?.startsWith("acknowledge")) this.lose();
      throw error;
    } finally {
      this.committing = false;
    }
  };
}

/** What to acknowledge and to return. */
function lists({ work, acknowledge }: Settled) {
  if (!work) return {};
  const { receipt, attempt } = work.item;
  if (acknowledge) return { acknowledge: [{ receipt }] };
  const delay = durationFromMs(Math.min(1_000 * 2 ** Math.min(attempt - 1, 10), 60_000));
  return { returnItems: [{ receipt, delay }] };
}
