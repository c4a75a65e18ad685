// Queues, and the items of one.

import { badge, count, duration, h, id, link, muted, theirs, time, words, workflowLink } from "../dom.js";
import { open } from "../dialog.js";
import { json } from "../json.js";
import { list, parametersOf } from "../table.js";

const FIELDS = [["state", "State", "select", [["", "any"], ...["waiting", "delayed", "leased", "dead"].map((s) => [s, s])]], ["id", "Id"]];
export const parameters = (given) => (given.get("queue") ? ["queue", ...parametersOf(FIELDS)] : parametersOf([]));

export async function page(ctx) {
  const queue = ctx.parameters.get("queue");
  if (queue) {
    await items(ctx, queue);
    return;
  }
  ctx.root.append(h("h1", {}, "Queues"));
  const of = (q, state, n) => (n ? link("queues", { queue: q.name, state }, count(n)) : "0");
  const read = await list(ctx, {
    page: "queues", api: "queues", name: "queues", caption: "Queues", empty: "There are no queues.",
    columns: [
      ["Queue", (q) => link("queues", { queue: q.name }, q.name)],
      ["Kind", (q) => words(q.kind)],
      ["Waiting", (q) => of(q, "waiting", q.waiting), "number"],
      ["Oldest", (q) => (q.oldest_seconds === null ? "–" : duration(q.oldest_seconds * 1000)), "number"],
      ["Delayed", (q) => of(q, "delayed", q.delayed), "number"],
      ["Leased", (q) => of(q, "leased", q.leased), "number"],
      ["Dead", (q) => of(q, "dead", q.dead), "number"],
      ["Attempts", (q) => (q.max_attempts ? `at most ${q.max_attempts}` : "without end")],
    ],
  });
  ctx.every(3000, read);
}

async function items(ctx, queue) {
  ctx.root.append(h("p", {}, link("queues", {}, "All queues")), h("h1", {}, "Queue ", theirs(queue)));
  const read = await list(ctx, {
    page: "queues", api: "queue-items", name: "items", caption: `Items of ${queue}`, empty: "No item matches.",
    fixed: { queue }, kept: { queue },
    fields: FIELDS,
    columns: [
      ["State", (i) => badge(i.state)],
      ["Id", (i) => [id(i.id), " ", h("span", { class: "small" }, workflowLink(i.id, "open"))]],
      ["Attempt", (i) => count(i.attempt), "number"],
      ["Visible", (i) => time(i.visible)],
      ["Held by", (i) => (i.lease ? [theirs(i.lease.worker || "(no name)"), " until ", time(i.lease.expiry)] : "")],
      ["Blocked by", (i) => i.blocked_by.map((name) => [id(name), " "])],
      ["Payload", (i) => (i.payload === null ? muted("–") : h("button", { type: "button", class: "quiet", onclick: () => open("Payload", json(i.payload), { kind: "wide" }) }, "Show"))],
    ],
  });
  ctx.every(3000, read);
}
