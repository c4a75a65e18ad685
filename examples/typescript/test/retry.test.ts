/** The retries, against a real HTTP/2 server whose connections and streams break. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import * as http2 from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import { afterEach, beforeEach, test } from "node:test";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { ScheduledCommandService } from "../gen/wfe/persistence/v1/command_pb.js";
import { LockService } from "../gen/wfe/persistence/v1/lock_pb.js";
import { QueueService } from "../gen/wfe/persistence/v1/queue_pb.js";
import { WorkflowService } from "../gen/wfe/persistence/v1/workflow_pb.js";
import { transport } from "../src/connect.js";

/** What happens to a call instead of an answer. */
type Accident = (stream: http2.Http2Stream, socket: Socket) => void;

const { NGHTTP2_REFUSED_STREAM, NGHTTP2_CANCEL, NGHTTP2_INTERNAL_ERROR } = http2.constants;
/** Each with the code that Connect gives it. */
const ACCIDENTS: Record<string, [Accident, Code]> = {
  "connection reset": [(_, socket) => socket.resetAndDestroy(), Code.Aborted],
  "connection closed": [(_, socket) => socket.destroy(), Code.Canceled],
  "stream refused": [(stream) => stream.close(NGHTTP2_REFUSED_STREAM), Code.Internal],
  "stream cancelled": [(stream) => stream.close(NGHTTP2_CANCEL), Code.Canceled],
  "stream reset": [(stream) => stream.close(NGHTTP2_INTERNAL_ERROR), Code.Internal],
};

let server: http2.Http2Server;
let target: string;
let accidents: Accident[];
let refusals: ConnectError[];
/** The request ids, or the names, of the calls that arrived. */
let arrived: string[];

beforeEach(async () => {
  [accidents, refusals, arrived] = [[], [], []];
  const answer = connectNodeAdapter({
    routes: (router) => {
      const refuse = (): void => {
        const refusal = refusals.shift();
        if (refusal) throw refusal;
      };
      router.service(WorkflowService, {
        getWorkflowInstance: () => (refuse(), {}),
        persistWorkflow: ({ requestId }) => (arrived.push(requestId), refuse(), { revision: 2n }),
      });
      router.service(ScheduledCommandService, { claimCommands: () => ({}) });
      router.service(LockService, { acquireLock: ({ requestId }) => (arrived.push(requestId), { acquired: true }) });
      router.service(QueueService, { dequeue: () => ({}), enqueue: () => ({}) });
    },
  });
  server = http2.createServer((request, response) => {
    arrived.push(request.url.split("/").at(-1) ?? "");
    const accident = accidents.shift();
    if (!accident) return answer(request, response);
    // The request has arrived as a whole: the caller can't know whether it was handled.
    request.resume().on("end", () => accident(request.stream, sockets.at(-1)!));
    request.on("error", () => {});
  });
  const sockets: Socket[] = [];
  server.on("connection", (socket) => sockets.push(socket));
  server.on("sessionError", () => {});
  closeAll = () => sockets.forEach((socket) => socket.destroy());
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  target = `127.0.0.1:${(server.address() as AddressInfo).port}`;
});

let closeAll: () => void;
afterEach(() => {
  closeAll();
  server.close();
});

const workflows = () => createClient(WorkflowService, transport(target));

const refusal = (code: Code, reason: string, retryAfterMs?: number): ConnectError =>
  new ConnectError(reason, code, undefined, [
    { desc: ErrorInfoSchema, value: { reason, domain: "wfe.persistence" } },
    ...(retryAfterMs === undefined
      ? []
      : [{ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(retryAfterMs) } }]),
  ]);

for (const [name, [accident, code]] of Object.entries(ACCIDENTS)) {
  test(`a read is repeated: ${name}`, async () => {
    accidents = [accident, accident];
    await workflows().getWorkflowInstance({ id: "w" });
    assert.equal(arrived.length, 3);
  });

  test(`the status says nothing about the server: ${name}`, async () => {
    accidents = [accident];
    const plain = createClient(WorkflowService, createGrpcTransport({ baseUrl: `http://${target}` }));
    await assert.rejects(plain.getWorkflowInstance({ id: "w" }), (error) => {
      assert.ok(error instanceof ConnectError);
      assert.deepEqual(error.findDetails(ErrorInfoSchema), []);
      assert.equal(Code[error.code], Code[code]);
      return true;
    });
  });

  test(`a write with a request id is repeated, with the same: ${name}`, async () => {
    accidents = [accident];
    const requestId = randomUUID();
    const { revision } = await workflows().persistWorkflow({ requestId });
    assert.equal(revision, 2n);
    assert.deepEqual(arrived, ["PersistWorkflow", "PersistWorkflow", requestId]);
  });

  test(`a write that the server would not recognize is not repeated: ${name}`, async () => {
    accidents = [accident, accident];
    await assert.rejects(workflows().persistWorkflow({ expectedRevision: 1n }));
    await assert.rejects(createClient(ScheduledCommandService, transport(target)).claimCommands({}));
    assert.deepEqual(arrived, ["PersistWorkflow", "ClaimCommands"]);
  });
}

test("locks and queues: an attempt is repeated as the same, and what was taken is not taken again", async () => {
  const [accident] = ACCIDENTS["stream refused"]!;
  const locks = createClient(LockService, transport(target));
  const queues = createClient(QueueService, transport(target));
  const requestId = randomUUID();
  accidents = [accident];
  await locks.acquireLock({ resource: "r", requestId });
  assert.deepEqual(arrived, ["AcquireLock", "AcquireLock", requestId]);
  [accidents, arrived] = [[accident, accident, accident], []];
  await assert.rejects(locks.acquireLock({ resource: "r" }));
  await assert.rejects(queues.dequeue({ queues: ["q"] }));
  await queues.enqueue({});
  assert.deepEqual(arrived, ["AcquireLock", "Dequeue", "Enqueue", "Enqueue"]);
});

test("what the server rejects is not repeated, whatever the code", async () => {
  for (const code of [Code.Aborted, Code.Internal, Code.Unavailable]) {
    refusals = [refusal(code, "REVISION_MISMATCH")];
    await assert.rejects(workflows().persistWorkflow({ requestId: randomUUID() }), { code });
  }
  assert.equal(arrived.filter((name) => name === "PersistWorkflow").length, 3);
});

test("what the server asks to repeat is repeated, not before it says so", async () => {
  refusals = [refusal(Code.Unavailable, "SHUTTING_DOWN", 300)];
  const start = performance.now();
  await workflows().getWorkflowInstance({ id: "w" });
  assert.ok(performance.now() - start >= 295);
  assert.equal(arrived.length, 2);
});

test("there is an end to it", async () => {
  refusals = Array.from({ length: 9 }, () => refusal(Code.Unavailable, "DATABASE_UNAVAILABLE", 0));
  await assert.rejects(workflows().getWorkflowInstance({ id: "w" }), { code: Code.Unavailable });
  assert.equal(arrived.length, 5);
});

test("the deadline includes the waiting", async () => {
  refusals = [refusal(Code.Unavailable, "SHUTTING_DOWN", 60_000)];
  await assert.rejects(workflows().getWorkflowInstance({ id: "w" }, { timeoutMs: 300 }));
  assert.equal(arrived.length, 1);
});

test("a call that its caller gave up is not repeated", async () => {
  const caller = new AbortController();
  accidents = [() => caller.abort()];
  await assert.rejects(workflows().getWorkflowInstance({ id: "w" }, { signal: caller.signal }), {
    code: Code.Canceled,
  });
  assert.equal(arrived.length, 1);
});
