// Commands, and the leases on them.

import { h, id, theirs, time, words, workflowLink } from "../dom.js";
import { list, parametersOf } from "../table.js";

export const columns = [
  ["Command", (c) => words(c.name)],
  ["For", (c) => (c.name === "PROCESS_WORKFLOW" ? workflowLink(c.data) : id(c.data))],
  ["Due", (c) => time(c.due)],
  ["Held by", (c) => (c.lease ? theirs(c.lease.worker || "(no name)", { class: "id" }) : "nobody")],
  ["Lease ends", (c) => (c.lease ? time(c.lease.expiry) : "")],
];

const FIELDS = [
  ["command", "Command", "select", [["", "any"], ["process_workflow", "process workflow"], ["process_event", "process event"]]],
  ["data", "For id, of a command"],
  ["leased", "Held", "select", [["", "any"], ["true", "held"], ["false", "by nobody"]]],
  ["worker", "Worker"],
];
export const parameters = parametersOf(FIELDS);

export async function page(ctx) {
  ctx.root.append(h("h1", {}, "Commands and leases"));
  const read = await list(ctx, {
    page: "commands", api: "commands", name: "commands", caption: "Commands", columns, empty: "No command is scheduled.",
    fields: FIELDS,
  });
  ctx.every(5000, read);
}
