// The locks that are held.

import { post } from "../api.js";
import { confirm, where } from "../dialog.js";
import { h, id, theirs, time } from "../dom.js";
import { list, parametersOf } from "../table.js";

const FIELDS = [["resource", "Resource begins with"], ["owner", "Holder"]];
export const parameters = parametersOf(FIELDS);

export async function page(ctx) {
  ctx.root.append(h("h1", {}, "Locks"));
  let read = null;
  const release = (lock) => h("button", { type: "button", class: "danger", onclick: () => confirm("Release this lock?", h("div", {},
    h("p", {}, theirs(lock.resource), where()),
    h("p", {}, "Its holder ", theirs(lock.owner || "(no name)"), " loses it, and others may take it. If it is still at work, its writes with this lock are refused.")), "Release",
  async () => { await post("break-lock", { resource: lock.resource, epoch: lock.epoch }); await read(); }) }, "Release");
  read = await list(ctx, {
    page: "locks", api: "locks", name: "locks", caption: "Locks", empty: "No lock is held.",
    fields: FIELDS,
    columns: [
      ["Resource", (l) => id(l.resource)],
      ["Holder", (l) => theirs(l.owner || "(no name)", { class: "id" })],
      ["Acquired", (l) => time(l.acquired)],
      ["Ends", (l) => time(l.expiry)],
      ["Epoch", (l) => l.epoch, "number"],
      ...(ctx.write ? [["Action", release]] : []),
    ],
  });
  ctx.every(5000, read);
}
