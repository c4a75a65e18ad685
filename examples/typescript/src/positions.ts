/** Reads contain what was written before, also where the server reads from a replica. */
import type { Interceptor } from "@connectrpc/connect";

const POSITION = "wfe-lsn";

/** No replica has it, so the server reads from the primary. */
const UNKNOWN = "unknown";

/**
 * An interceptor that keeps the positions that answers to writes tell, of each namespace, and sends them
 * with what follows. It goes before those that repeat calls, and behind those that set the namespace.
 */
export function withPositions(): Interceptor {
  const known = new Map<string, string>();
  let losses = 0;
  const lose = (namespace: string): void => {
    losses++;
    known.set(namespace, UNKNOWN);
  };
  return (next) => async (request) => {
    const namespace = request.header.get("wfe-namespace") ?? "";
    const position = known.get(namespace);
    // Writes don't mind.
    if (position !== undefined) request.header.set(POSITION, position);
    if (/^(Get|List|Count|Watch|WaitFor|Export)/.test(request.method.name)) return next(request);
    const lossesBefore = losses;
    if (request.stream) {
      // Nobody can say here when it has ended (bulk requests, imports, moves).
      lose(namespace);
      return next(request);
    }
    try {
      const response = await next(request);
      const told = response.trailer.get(POSITION);
      const before = known.get(namespace) ?? "";
      if (told === null) {
        // This server has no replicas. If others have, those may not have replayed the write.
        if (before) lose(namespace);
      } else if (before === UNKNOWN) {
        // It says nothing of what was lost since it was begun.
        if (losses === lossesBefore) known.set(namespace, told);
      } else if (database(told) !== database(before) || told > before) {
        known.set(namespace, told);
      }
      return response;
    } catch (error) {
      lose(namespace); // it may have been written all the same
      throw error;
    }
  };
}

/** What only positions of the same database have in common; others can't be compared. */
const database = (position: string): string => position.split("/", 1)[0] ?? "";
