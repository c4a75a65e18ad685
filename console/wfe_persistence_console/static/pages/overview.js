// How it is now, and how it was a moment ago.

import { get } from "../api.js";
import { badge, count, duration, h, id, link, muted, theirs, time, workflowLink } from "../dom.js";
import { bars, line } from "../plot.js";
import { seldom, table } from "../table.js";

const SAMPLES = 120;
const samples = new Map(); // by namespace: this page remembers while the tab is open

function remember(name, value) {
  const key = `${new URLSearchParams(location.search).get("namespace") ?? ""} ${name}`;
  const kept = samples.get(key) ?? [];
  kept.push(value);
  if (kept.length > SAMPLES) kept.shift();
  samples.set(key, kept);
  return kept;
}

const card = (heading, figure, note, plot) =>
  h("section", { class: "card" }, h("h2", {}, heading), h("p", { class: "figure" }, figure), h("p", { class: "muted" }, note), plot);

export const parameters = [];

export async function page(ctx) {
  const cards = h("div", { class: "cards" });
  const slow = h("div", { class: "cards" });
  const queues = h("div");
  const failed = h("div");
  ctx.root.append(h("h1", {}, "Overview"), cards, slow, h("h2", {}, "Queues"), queues, h("h2", {}, "Latest errors"), failed);

  async function now() {
    const found = await ctx.load((signal) => get("overview", {}, signal));
    const oldest = found.oldest_due;
    // A next_execution of 0 means "at once": it has not been due for longer than it has existed.
    const late = oldest ? Math.max(0, found.at - Math.max(oldest.next, oldest.created ?? 0)) : 0;
    const backlog = remember("backlog", found.backlog);
    const ages = remember("age", late / 1000);
    const errors = `${count(found.errors)}${found.errors_are_more ? "+" : ""}`;
    const depth = found.queues.reduce((sum, queue) => sum + queue.waiting, 0);
    const depths = remember("depth", depth);
    cards.replaceChildren(
      card("Backlog", link("workflows", { stuck: 0 }, count(found.backlog)), "workflows that are due", line(backlog, `Backlog, last ${backlog.length} samples`)),
      card("Oldest due", oldest ? duration(late) : "–",
        oldest ? h("span", {}, workflowLink(oldest.id, theirs(oldest.name, { class: "id" }))) : "nothing is due", line(ages, "Age of the oldest due workflow")),
      card("Errors", link("workflows", { errors: 3600 }, errors), "logged in the last hour", null),
      card("Waiting in queues", link("queues", {}, count(depth)), "items", line(depths, "Items that wait in queues")));
    queues.replaceChildren(table([
      ["Queue", (q) => link("queues", { queue: q.name }, q.name)],
      ["Waiting", (q) => count(q.waiting), "number"],
      ["Oldest", (q) => (q.oldest_seconds === null ? "–" : duration(q.oldest_seconds * 1000)), "number"],
      ["Delayed", (q) => count(q.delayed), "number"],
      ["Leased", (q) => count(q.leased), "number"],
      ["Dead", (q) => (q.dead ? link("queues", { queue: q.name, state: "dead" }, count(q.dead)) : "0"), "number"],
    ], found.queues, { caption: "Queues", empty: "There are no queues." }));
    failed.replaceChildren(table([
      ["When", (e) => time(e.time)],
      ["Workflow", (e) => workflowLink(e.workflow)],
      ["Message", (e) => theirs(e.message, { class: "cut" })],
    ], found.latest_errors, { caption: "Latest errors", empty: "No errors in the last hour." }));
  }
  async function seldomRead() {
    const found = await ctx.load((signal) => get("throughput", {}, signal));
    const total = Object.values(found.counts).reduce((a, b) => a + b, 0);
    const ended = found.ended.reduce((a, b) => a + b, 0);
    const minutes = found.bucket_seconds / 60;
    const last = found.ended.at(-1);
    slow.replaceChildren(
      card("Throughput", `${count(last)} in ${minutes} min`, `${count(ended)} workflows have ended in the last ${(found.ended.length * minutes) / 60} hours`,
        bars(found.ended, `Workflows that ended, in steps of ${minutes} minutes: ${found.ended.join(", ")}`)),
      h("section", { class: "card" }, h("h2", {}, "Workflows"), h("p", { class: "figure" }, link("workflows", {}, count(total))),
        h("ul", { class: "plain" }, Object.entries(found.counts).map(([status, n]) =>
          h("li", {}, link("workflows", { status: status.toLowerCase() }, badge(status)), " ", count(n))))));
  }
  slow.append(muted("Counting…"));
  await now();
  const again = seldom(2000, now);
  ctx.live({}, again);
  ctx.every(5000, again);
  // Counting may take long, which is nothing to the rest.
  ctx.every(60000, seldomRead);
  await seldomRead();
}
