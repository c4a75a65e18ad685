// How much space the namespace takes, and what is deleted by itself.

import { get } from "../api.js";
import { bytes, count, duration, facts, h, moment, muted, theirs } from "../dom.js";
import { table } from "../table.js";

const age = (seconds) => (seconds === null ? "never" : `after ${duration(seconds * 1000)}`);

export const parameters = [];

export async function page(ctx) {
  const found = await ctx.load((signal) => get("storage", {}, signal));
  const { policy, info, freed } = found;
  const total = found.tables.reduce((sum, one) => sum + one.table_bytes + one.index_bytes, 0);
  const rules = [
    ...policy.workflows.flatMap((rule) => {
      const which = rule.definition ? ["Workflows of ", theirs(rule.definition)] : ["All other workflows"];
      return [[[...which, ", complete"], age(rule.complete)], [[...which, ", terminated"], age(rule.terminated)]];
    }),
    ["Processed events", age(policy.processed_events)],
    ["Errors", age(policy.errors)],
    ["Overdue commands", age(policy.overdue_commands)],
  ];
  ctx.root.append(h("h1", {}, "Storage and retention"),
    facts([
      ["Space", bytes(total)],
      ["Server", info.server_version],
      ["PostgreSQL", info.postgres_version],
      ["Schema", `${info.schema}, version ${info.schema_version}${info.schema_version === info.latest_schema_version ? "" : ` (the server has ${info.latest_schema_version})`}`],
      ["Largest message", bytes(info.max_message_bytes)],
    ]),
    h("h2", {}, "Tables"),
    table([
      ["Table", (t) => t.name],
      ["Rows", (t) => count(t.rows), "number"],
      ["Dead rows", (t) => count(t.dead_rows), "number"],
      ["Data", (t) => bytes(t.table_bytes), "number"],
      ["Indexes", (t) => bytes(t.index_bytes), "number"],
      ["Bloat", (t) => (t.bloat_bytes === null ? muted("–") : bytes(t.bloat_bytes)), "number"],
    ], found.tables, { caption: "Tables" }),
    h("h2", {}, "Retention"),
    found.policy_set === null ? h("p", {}, "No policy is set: nothing is deleted by itself.") : h("div", {},
      facts([["Set", moment(found.policy_set)], ["Deleted since", `${count(found.policy_deleted_rows)} rows`], ["Last complete", moment(found.policy_complete)]]),
      table([["What", ([what]) => what], ["Deleted", ([, when]) => when]], rules, { caption: "Rules of the retention policy" })),
    h("h3", {}, "What it lets go now"),
    facts([
      ["Workflows", count(freed.workflows)], ["Steps", count(freed.execution_pointers)], ["Subscriptions", count(freed.subscriptions)],
      ["Events", count(freed.events)], ["Errors", count(freed.errors)], ["Commands", count(freed.commands)],
      ["Space", bytes(found.freed_bytes)],
    ]),
    freed.is_partial ? muted("There is more: only so much was counted.") : "");
}
