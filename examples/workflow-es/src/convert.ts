/**
 * The engine's objects as messages, and back. What is not obvious is explained in
 * docs/workflow-core.md.
 */
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate, type Timestamp } from "@bufbuild/protobuf/wkt";
import * as engine from "workflow-es";
import { type Event, EventSchema } from "../../typescript/gen/wfe/persistence/v1/event_pb.js";
import { type EventSubscription, EventSubscriptionSchema } from "../../typescript/gen/wfe/persistence/v1/subscription_pb.js";
import {
  type ExecutionPointer,
  ExecutionPointerSchema,
  PointerStatus,
  type WorkflowInstance,
  WorkflowInstanceSchema,
  WorkflowStatus,
} from "../../typescript/gen/wfe/persistence/v1/workflow_pb.js";

/** By name: the numbers of the two sides differ. */
const WORKFLOW_STATUSES = new Map<number, WorkflowStatus>([
  [engine.WorkflowStatus.Runnable, WorkflowStatus.RUNNABLE],
  [engine.WorkflowStatus.Suspended, WorkflowStatus.SUSPENDED],
  [engine.WorkflowStatus.Complete, WorkflowStatus.COMPLETE],
  [engine.WorkflowStatus.Terminated, WorkflowStatus.TERMINATED],
]);
const POINTER_STATUSES = new Map<number, PointerStatus>([
  [engine.PointerStatus.Legacy, PointerStatus.LEGACY],
  [engine.PointerStatus.Pending, PointerStatus.PENDING],
  [engine.PointerStatus.Running, PointerStatus.RUNNING],
  [engine.PointerStatus.Complete, PointerStatus.COMPLETE],
  [engine.PointerStatus.Sleeping, PointerStatus.SLEEPING],
  [engine.PointerStatus.WaitingForEvent, PointerStatus.WAITING_FOR_EVENT],
  [engine.PointerStatus.Failed, PointerStatus.FAILED],
  [engine.PointerStatus.Compensated, PointerStatus.COMPENSATED],
]);

function theirs<Ours>(statuses: Map<number, Ours>, status: number): Ours {
  const found = statuses.get(status);
  if (found === undefined) throw new TypeError(`a status that the engine does not have: ${status}`);
  return found;
}

function ours<Ours>(statuses: Map<number, Ours>, status: Ours): number {
  for (const [number, each] of statuses) if (each === status) return number;
  throw new TypeError(`a status that this engine does not know: ${status}`);
}

/** A value as a document; undefined, which JSON does not have: no document. */
const document = (value: unknown): string | undefined =>
  value === undefined ? undefined : JSON.stringify(value);
// `any` is what the engine's own fields are.
const value = (text: string | undefined): any => (text === undefined ? undefined : JSON.parse(text));

const time = (date: Date | null | undefined): Timestamp | undefined =>
  date ? timestampFromDate(date) : undefined;
// The engine's classes declare fields without `| undefined`, and leave them undefined all the same.
const date = (timestamp: Timestamp | undefined): Date =>
  (timestamp && timestampDate(timestamp)) as Date;

/** Milliseconds since 1970 as a time; undefined: none, or not after `now`, which is as soon as possible. */
export const later = (ms: number | null | undefined, now = Date.now()): Timestamp | undefined =>
  ms && ms > now ? timestampFromDate(new Date(ms)) : undefined;

/**
 * An event's key as text, by which it is found. The engine compares keys with `==`, so 1 and "1" are
 * the same, and no key is a key too.
 */
export function keyText(key: unknown): string {
  if (key === null || key === undefined) return "";
  return typeof key === "object" ? JSON.stringify(key) : String(key);
}

export function workflowToMessage(workflow: engine.WorkflowInstance): WorkflowInstance {
  const { nextExecution } = workflow;
  return create(WorkflowInstanceSchema, {
    id: workflow.id,
    workflowDefinitionId: workflow.workflowDefinitionId,
    version: workflow.version,
    description: workflow.description ?? undefined,
    // Rounded up: one that is due earlier than its engine thinks would be put back at once.
    nextExecution: nextExecution === null || nextExecution === undefined ? undefined : BigInt(Math.ceil(nextExecution)),
    status: theirs(WORKFLOW_STATUSES, workflow.status),
    dataJson: document(workflow.data) ?? "null",
    createTime: time(workflow.createTime),
    completeTime: time(workflow.completeTime),
    executionPointers: workflow.executionPointers.map(pointerToMessage),
  });
}

function pointerToMessage(pointer: engine.ExecutionPointer): ExecutionPointer {
  const waits = Boolean(pointer.eventName);
  return create(ExecutionPointerSchema, {
    id: pointer.id,
    stepId: BigInt(pointer.stepId),
    active: pointer.active,
    status: theirs(POINTER_STATUSES, pointer.status),
    sleepUntil: later(pointer.sleepUntil, 0),
    persistenceDataJson: document(pointer.persistenceData),
    startTime: time(pointer.startTime),
    endTime: time(pointer.endTime),
    eventName: waits ? pointer.eventName : undefined,
    eventKey: waits ? keyText(pointer.eventKey) : undefined,
    eventPublished: Boolean(pointer.eventPublished),
    eventDataJson: document(pointer.eventData),
    outcomeJson: document(pointer.outcome),
    stepName: pointer.stepName ?? undefined,
    retryCount: pointer.retryCount,
    children: pointer.children,
    contextItemJson: document(pointer.contextItem),
    predecessorId: pointer.predecessorId ?? undefined,
    scope: pointer.scope,
  } satisfies MessageInitShape<typeof ExecutionPointerSchema>);
}

export function workflowFromMessage(message: WorkflowInstance): engine.WorkflowInstance {
  return Object.assign(new engine.WorkflowInstance(), {
    id: message.id,
    workflowDefinitionId: message.workflowDefinitionId,
    version: message.version,
    description: message.description,
    // null is what the engine itself writes, and what it compares with.
    nextExecution: message.nextExecution === undefined ? null : Number(message.nextExecution),
    status: ours(WORKFLOW_STATUSES, message.status),
    data: value(message.dataJson),
    createTime: date(message.createTime),
    completeTime: date(message.completeTime),
    executionPointers: message.executionPointers.map(pointerFromMessage),
  }) as engine.WorkflowInstance;
}

function pointerFromMessage(message: ExecutionPointer): engine.ExecutionPointer {
  return Object.assign(new engine.ExecutionPointer(), {
    id: message.id,
    stepId: Number(message.stepId),
    active: message.active,
    status: ours(POINTER_STATUSES, message.status),
    sleepUntil: message.sleepUntil && timestampDate(message.sleepUntil).getTime(),
    persistenceData: value(message.persistenceDataJson),
    startTime: date(message.startTime),
    endTime: date(message.endTime),
    eventName: message.eventName,
    eventKey: message.eventKey,
    eventPublished: message.eventPublished,
    eventData: value(message.eventDataJson),
    outcome: value(message.outcomeJson),
    stepName: message.stepName,
    retryCount: message.retryCount,
    children: message.children,
    contextItem: value(message.contextItemJson),
    predecessorId: message.predecessorId,
    scope: message.scope,
  }) as engine.ExecutionPointer;
}

export function subscriptionToMessage(subscription: engine.EventSubscription): EventSubscription {
  return create(EventSubscriptionSchema, {
    id: subscription.id,
    workflowId: subscription.workflowId,
    stepId: BigInt(subscription.stepId),
    eventName: subscription.eventName,
    eventKey: keyText(subscription.eventKey),
    subscribeAsOf: timestampFromDate(subscription.subscribeAsOf ?? new Date()),
  });
}

export function subscriptionFromMessage(message: EventSubscription): engine.EventSubscription {
  return Object.assign(new engine.EventSubscription(), {
    id: message.id,
    workflowId: message.workflowId,
    stepId: Number(message.stepId),
    eventName: message.eventName,
    eventKey: message.eventKey,
    subscribeAsOf: date(message.subscribeAsOf),
  });
}

export function eventToMessage(event: engine.Event): Event {
  return create(EventSchema, {
    id: event.id,
    eventName: event.eventName,
    eventKey: keyText(event.eventKey),
    eventDataJson: document(event.eventData) ?? "null",
    eventTime: timestampFromDate(event.eventTime ?? new Date()),
    isProcessed: Boolean(event.isProcessed),
  });
}

export function eventFromMessage(message: Event): engine.Event {
  return Object.assign(new engine.Event(), {
    id: message.id,
    eventName: message.eventName,
    eventKey: message.eventKey,
    eventData: value(message.eventDataJson),
    eventTime: date(message.eventTime),
    isProcessed: message.isProcessed,
  });
}
