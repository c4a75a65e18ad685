// Events, and who waits for them.

import { get, post } from "../api.js";
import { confirm, open, where } from "../dialog.js";
import { address, badge, h, id, link, moment, muted, problem, theirs, time, workflowLink } from "../dom.js";
import { json } from "../json.js";
import { list, parametersOf, table } from "../table.js";

const document_ = (text, heading) => (text
  ? h("button", { type: "button", class: "quiet", onclick: () => open(heading, json(text), { kind: "wide" }) }, "Show")
  : muted("–"));

/** A key leads to what has it; an empty one can't be a filter. */
const keyOf = (event, key) => (key ? link("events", { event, key }, id(key)) : muted("(empty)"));

/** A button that takes a claim from its worker. */
export function forceRelease(one, done) {
  if (!one.held) return "";
  return h("button", { type: "button", class: "danger", onclick: () => confirm("Release this subscription?", h("div", {},
    h("p", {}, theirs(one.event), " / ", theirs(one.key), where()),
    h("p", {}, "The worker ", theirs(one.worker || "that holds it"), " loses its claim, and others may take it. If it is still at work, its write is refused.")), "Release",
  async () => { await post("release-subscription", { id: one.id, epoch: one.epoch }); await done(); }) }, "Release");
}

export const columns = [
  ["Event", (s) => link("events", { event: s.event }, id(s.event))],
  ["Key", (s) => keyOf(s.event, s.key)],
  ["Workflow", (s) => workflowLink(s.workflow)],
  ["Since", (s) => time(s.since)],
  ["Claim", (s) => (s.held ? [badge("LEASED"), " ", theirs(s.worker ?? ""), " until ", s.expiry === null ? "released" : time(s.expiry)] : "open")],
  ["Data", (s) => document_(s.data, "Data of the subscription")],
];

const FIELDS = [["event", "Event"], ["key", "Key, of an event"], ["processed", "Processed", "select", [["", "any"], ["false", "not yet"], ["true", "processed"]]],
  ["order", "Order", "select", [["", "newest first"], ["oldest", "oldest first"]]]];
export const parameters = [...parametersOf(FIELDS), "waiting"];

export async function page(ctx) {
  ctx.root.append(h("h1", {}, "Events and who waits for them"));
  await list(ctx, {
    page: "events", api: "events", name: "events", caption: "Events", fields: FIELDS, key: (e) => e.id, empty: "No event matches.",
    columns: [
      ["When", (e) => moment(e.time)],
      ["Event", (e) => link("events", { event: e.name }, id(e.name))],
      ["Key", (e) => keyOf(e.name, e.key)],
      ["Processed", (e) => (e.processed ? "yes" : "not yet")],
      ["Data", (e) => document_(e.data, "Data of the event")],
      ["Id", (e) => id(e.id)],
    ],
  });
  const waiting = h("section", {}, h("h2", {}, "Waiting"));
  ctx.root.append(waiting);
  const only = {};
  for (const name of ["event", "key"]) if (ctx.parameters.get(name)) only[name] = ctx.parameters.get(name);
  await waitingList(ctx, waiting, only);
}

async function waitingList(ctx, target, only) {
  // The place in the list above is not one in this list.
  const parameters = new URLSearchParams(ctx.parameters);
  const cursor = parameters.get("waiting");
  for (const name of ["cursor", "at", "waiting"]) parameters.delete(name);
  const place = h("div");
  target.append(place);
  async function read() {
    try {
      const found = await ctx.load((signal) => get("subscriptions", { ...only, cursor }, signal));
      place.replaceChildren(
        table(ctx.write ? [...columns, ["Action", (one) => forceRelease(one, read)]] : columns, found.subscriptions, { caption: "Subscriptions", empty: "Nobody waits." }),
        found.next ? h("p", { class: "pager" }, h("a", { class: "button", href: address("events", { ...Object.fromEntries(parameters), waiting: found.next }) }, "More who wait")) : "");
    } catch (error) {
      if (error.name === "AbortError") throw error;
      place.replaceChildren(problem(error));
    }
  }
  await read();
}
