/** The positions that reads are sent with, against a server that tells them. */
import assert from "node:assert/strict";
import * as http2 from "node:http2";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport } from "@connectrpc/connect-node";
import { EventService } from "../gen/wfe/persistence/v1/event_pb.js";
import { withPositions } from "../src/positions.js";

const FIRST = "home.1/00000001/0000000000000005";
const SECOND = "home.1/00000001/0000000000000006";
const WEST = "west.2/00000001/0000000000000001";
const LOST = new ConnectError("lost", Code.Unavailable);

/** What the next write is told, or ends with. */
type End = string | undefined | ConnectError;

test("reads are sent with what writes were told", async (t) => {
  let end: End;
  let sent: string | null = null;
  const answer = connectNodeAdapter({
    routes: (router) =>
      router.service(EventService, {
        createEvent: (_, context) => {
          if (end instanceof ConnectError) throw end;
          if (end) context.responseTrailer.set("wfe-lsn", end);
          return {};
        },
        getEvent: (_, context) => {
          sent = context.requestHeader.get("wfe-lsn");
          return {};
        },
      }),
  });
  const server = http2.createServer(answer);
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const { port } = server.address() as AddressInfo;
  const transport = createGrpcTransport({
    baseUrl: `http://127.0.0.1:${port}`,
    interceptors: [withPositions()],
    idleConnectionTimeoutMs: 10,
  });
  t.after(() => server.close());
  const events = createClient(EventService, transport);
  const read = async (namespace: string): Promise<string | null> => {
    await events.getEvent({ id: "e" }, { headers: { "wfe-namespace": namespace } });
    return sent;
  };
  const steps: [End, string | null][] = [
    [undefined, null],
    [SECOND, SECOND],
    [FIRST, SECOND],
    [WEST, WEST],
    [undefined, "unknown"],
    [FIRST, FIRST],
    [LOST, "unknown"],
    [SECOND, SECOND],
  ];
  for (const [told, known] of steps) {
    end = told;
    const written = events.createEvent({}, { headers: { "wfe-namespace": "a" } });
    if (told instanceof ConnectError) await assert.rejects(written);
    else await written;
    assert.equal(await read("a"), known);
  }
  assert.equal(await read("b"), null);
});
