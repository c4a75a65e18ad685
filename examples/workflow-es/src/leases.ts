import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../typescript/gen/google/rpc/error_details_pb.js";

/** The most leases that one call renews. */
const BATCH = 1000;

/** Renews what this process holds under leases, by the proofs of its holds, until it lets go of it. */
export class Leases {
  readonly #held = new Set<string>();
  #timer: NodeJS.Timeout | undefined;

  /**
   * @param milliseconds how long the leases last; they are renewed three times as often
   * @param renew renews leases, all or nothing
   * @param lost is told why leases could not be renewed
   */
  constructor(
    private readonly milliseconds: number,
    private readonly renew: (proofs: string[]) => Promise<unknown>,
    private readonly lost: (error: unknown) => void,
  ) {}

  add(proof: string): void {
    this.#held.add(proof);
    this.#timer ??= setInterval(() => void this.#renewAll(), this.milliseconds / 3).unref();
  }

  delete(proof: string): void {
    this.#held.delete(proof);
    if (this.#held.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async #renewAll(): Promise<void> {
    const proofs = [...this.#held];
    for (let start = 0; start < proofs.length; start += BATCH) {
      await this.#renew(proofs.slice(start, start + BATCH));
    }
  }

  async #renew(proofs: string[]): Promise<void> {
    const held = proofs.filter((proof) => this.#held.has(proof));
    if (held.length === 0) return;
    try {
      await this.renew(held);
    } catch (error) {
      const gone = lostLeases(error).filter((proof) => held.includes(proof));
      // What was let go of in the meantime is not lost.
      if (gone.some((proof) => this.#held.has(proof)) || gone.length === 0) this.lost(error);
      gone.forEach((proof) => this.delete(proof));
      // One that is lost has kept the others from being renewed. Any other error may pass: next time.
      if (gone.length > 0) await this.#renew(held);
    }
  }
}

/** The leases that an error says are lost; it does not name more than about 20. */
export function lostLeases(error: unknown): string[] {
  return ConnectError.from(error)
    .findDetails(ErrorInfoSchema)
    .filter(({ reason }) => reason === "LEASE_LOST")
    .flatMap(({ metadata }) => metadata["lease_tokens"]?.split(",") ?? []);
}
