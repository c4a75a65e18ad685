import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import type { EventService } from "../../typescript/gen/wfe/persistence/v1/event_pb.js";

/** The ids of the events of a name and key since a time, which the engine calls "as of". */
export async function* eventsSince(
  events: Client<typeof EventService>,
  { eventName, eventKey, subscribeAsOf }: { eventName: string; eventKey: string; subscribeAsOf?: Timestamp },
): AsyncGenerator<string> {
  let pageToken = "";
  do {
    const page = await events.getEvents({ eventName, eventKey, eventTimeFrom: subscribeAsOf, pageToken });
    yield* page.eventIds;
    pageToken = page.nextPageToken;
  } while (pageToken);
}
