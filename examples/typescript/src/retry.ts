import { setTimeout as sleep } from "node:timers/promises";
import { isMessage, type Message } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { CreateEventRequestSchema } from "../gen/wfe/persistence/v1/event_pb.js";
import { AcquireLockRequestSchema } from "../gen/wfe/persistence/v1/lock_pb.js";
import { CreateEventSubscriptionRequestSchema } from "../gen/wfe/persistence/v1/subscription_pb.js";
import {
  CommitWorkflowRequestSchema,
  CreateNewWorkflowRequestSchema,
  PersistWorkflowRequestSchema,
  PersistWorkflowWithSubscriptionsRequestSchema,
} from "../gen/wfe/persistence/v1/workflow_pb.js";

const ATTEMPTS = 5;
const FIRST_DELAY_MS = 50;

/** The server adds ErrorInfo to all of its statuses, so without it these mean a broken connection. */
const LOST = new Set([
  Code.Unavailable, // no connection could be made
  Code.Aborted, // the connection was reset
  Code.Canceled, // the connection was closed, or the stream cancelled
  Code.Internal, // the stream was refused, or reset in another way
]);

/** Writes that come to the same however often they are made. */
const IDEMPOTENT = new Set([
  "MarkEventProcessed",
  "MarkEventUnprocessed",
  "SetSubscriptionToken",
  "RenewSubscriptionToken",
  "ScheduleCommand",
  "RenewCommands",
  "RenewLocks",
  "ReleaseLock",
  "Enqueue",
  "RenewItems",
  "ConfigureQueue",
  "Publish", // watchers must expect an event twice in any case
]);

/**
 * Repeats calls that fail for a reason that passes: those with RetryInfo, after the delay that it
 * names, and those whose connection broke. Only calls that may be repeated: reads, and writes that the
 * server recognizes. Of any other the caller must find out whether it was applied. Its deadline
 * includes all attempts.
 */
export const withRetries: Interceptor = (next) => async (request) => {
  if (request.stream || !isRepeatable(request.method.name, request.message)) return next(request);
  for (let attempt = 1; ; attempt++) {
    try {
      return await next(request);
    } catch (error) {
      const least = leastDelayMs(ConnectError.from(error));
      if (least === undefined || attempt === ATTEMPTS || request.signal.aborted) throw error;
      // Hosts whose server went away must not all come back at the same time.
      const backoff = FIRST_DELAY_MS * 2 ** attempt * (0.5 + Math.random() / 2);
      await sleep(Math.max(least, backoff), undefined, { signal: request.signal }).catch(() => {
        throw error; // the deadline has passed, or the caller gave up
      });
    }
  }
};

/** How long to wait before the next attempt, at least; undefined: there is no use in another one. */
function leastDelayMs(error: ConnectError): number | undefined {
  if (error.findDetails(ErrorInfoSchema).length === 0) return LOST.has(error.code) ? 0 : undefined;
  const [retry] = error.findDetails(RetryInfoSchema);
  if (!retry) return undefined;
  return retry.retryDelay ? durationMs(retry.retryDelay) : 0;
}

function isRepeatable(name: string, message: Message): boolean {
  if (/^(Get|List|Count)/.test(name) || IDEMPOTENT.has(name)) return true;
  // A repeated create returns the same, if the id is the caller's.
  if (isMessage(message, CreateNewWorkflowRequestSchema)) return Boolean(message.instance?.id);
  if (isMessage(message, CreateEventRequestSchema)) return Boolean(message.event?.id);
  if (isMessage(message, CreateEventSubscriptionRequestSchema)) return Boolean(message.subscription?.id);
  if (
    isMessage(message, PersistWorkflowRequestSchema) ||
    isMessage(message, PersistWorkflowWithSubscriptionsRequestSchema) ||
    isMessage(message, CommitWorkflowRequestSchema) ||
    isMessage(message, AcquireLockRequestSchema)
  ) {
    return Boolean(message.requestId);
  }
  return false;
}
