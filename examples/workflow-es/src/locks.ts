import { randomUUID } from "node:crypto";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, createClient } from "@connectrpc/connect";
import type { IDistributedLockProvider } from "workflow-es";
import { LockService } from "../../typescript/gen/wfe/persistence/v1/lock_pb.js";
import type { Settings } from "./index.js";
import { Leases } from "./leases.js";

/** The lock of a workflow or an event, the same for all applications that share a store. */
export const resource = (id: string): string => `workflow-es/${id}`;

/** The engine's locks: each is a lease, renewed for as long as the engine holds it. */
export class Locks implements IDistributedLockProvider {
  readonly #client: Client<typeof LockService>;
  readonly #leases: Leases;
  /** The tokens of the locks held here, by id; more than one if an earlier one was lost. */
  readonly #held = new Map<string, string[]>();

  /** @param over is told when the engine is done with an id: it let go of the lock, or did not get it */
  constructor(
    private readonly settings: Settings,
    private readonly over: (id: string) => Promise<void>,
  ) {
    this.#client = createClient(LockService, settings.transport);
    const ttl = durationFromMs(settings.leaseMs);
    this.#leases = new Leases(
      settings.leaseMs,
      (tokens) => this.#client.renewLocks({ tokens, ttl }),
      (error) => settings.log.error("locks were not renewed", error),
    );
  }

  /** Waits for a lock that is held, because the engine gives up what it did not get. */
  async aquireLock(id: string): Promise<boolean> {
    const { owner, leaseMs, lockWaitMs } = this.settings;
    let token: string;
    try {
      ({ token } = await this.#client.acquireLock(
        {
          resource: resource(id),
          owner,
          ttl: durationFromMs(leaseMs),
          wait: durationFromMs(lockWaitMs),
          requestId: randomUUID(), // so that the call can be repeated after a lost response
        },
        { timeoutMs: lockWaitMs + 10_000 },
      ));
    } catch (error) {
      await this.#refused(id);
      throw error;
    }
    if (!token) {
      await this.#refused(id);
      return false;
    }
    this.#held.set(id, [...(this.#held.get(id) ?? []), token]);
    this.#leases.add(token);
    return true;
  }

  /** If it is held here, then by whoever handles the id, who is not done with it. */
  async #refused(id: string): Promise<void> {
    if (!this.#held.has(id)) await this.over(id);
  }

  /** Never fails: the engine does not always wait for it, and the lock expires in any case. */
  async releaseLock(id: string): Promise<void> {
    const [token, ...rest] = this.#held.get(id) ?? [];
    if (token === undefined) return;
    if (rest.length > 0) this.#held.set(id, rest);
    else this.#held.delete(id);
    this.#leases.delete(token);
    try {
      await this.#client.releaseLock({ token });
    } catch (error) {
      this.settings.log.error(`the lock of ${id} was not released, and will expire`, error);
    }
    await this.over(id);
  }

  /** The proof that the lock of an id is held here; undefined: it is not. */
  token(id: string): string | undefined {
    return this.#held.get(id)?.at(-1);
  }
}
