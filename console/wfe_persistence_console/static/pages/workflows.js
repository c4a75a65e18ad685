// The list of workflows.

import { get } from "../api.js";
import { badge, count, h, id, theirs, time, words, workflowLink } from "../dom.js";
import { list, parametersOf, seldom } from "../table.js";

const AGES = [["", "any"], ["300", "5 minutes"], ["3600", "1 hour"], ["86400", "1 day"], ["604800", "7 days"], ["2592000", "30 days"]];

export const columns = [
  ["Status", (w) => badge(w.status)],
  ["Name", (w) => workflowLink(w.id, id(w.name || w.id))],
  ["Definition", (w) => [theirs(w.definition, { class: "id" }), ` v${w.version}`]],
  ["Reference", (w) => id(w.reference ?? "")],
  ["Created", (w) => time(w.created)],
  ["Ended", (w) => time(w.completed)],
  ["Due", (w) => (w.status === "RUNNABLE" ? time(w.next) : "")],
];

const FIELDS = [
  ["status", "Status", "select", [["", "any"], ...["runnable", "suspended", "complete", "terminated"].map((s) => [s, words(s)])]],
  ["definition", "Definition"],
  ["version", "Version", "number"],
  ["reference", "Reference"],
  ["name", "Name begins with"],
  ["event", "Waits for event"],
  ["key", "Key of that event"],
  ["younger", "Created within", "select", AGES],
  ["older", "Older than", "select", AGES],
  ["ended", "Ended within", "select", AGES],
  ["errors", "With errors within", "select", AGES],
  ["stuck", "Stuck for", "select", [["", "–"], ["0", "due now"], ...AGES.slice(1)]],
  ["root", "Below workflow"],
  ["order", "Order", "select", [["", "newest first"], ["oldest", "oldest first"]]],
];

export const parameters = parametersOf(FIELDS);

export async function page(ctx) {
  const total = h("span", { class: "muted", role: "status" });
  const asked = Object.fromEntries(FIELDS.map(([field]) => [field, ctx.parameters.get(field)]).filter(([, value]) => value));
  let at = ctx.parameters.get("at");
  const counting = h("button", { type: "button", onclick: async () => {
    total.textContent = "Counting…";
    try {
      const { order, ...chosen } = asked;
      const found = await ctx.load((signal) => get("count", { ...chosen, at }, signal));
      const parts = Object.entries(found.counts).map(([status, n]) => `${count(n)} ${words(status)}`);
      total.textContent = parts.join(", ") || "none";
    } catch (error) {
      if (error.name !== "AbortError") total.textContent = error.message;
    }
  } }, "Count");
  ctx.root.append(h("div", { class: "heading" }, h("h1", {}, "Workflows"), counting, total));
  const news = h("p", { class: "news", role: "status" });
  ctx.root.append(news);
  const read = await list(ctx, {
    page: "workflows", api: "workflows", name: "workflows", caption: "Workflows", fields: FIELDS, columns,
    key: (w) => w.id, empty: "No workflow matches.", onpage: (found) => { at = found.at; },
  });
  const again = seldom(2000, read);
  ctx.live({ definition: asked.definition, root: asked.root }, (changes) => {
    // Only what is shown, or may belong on the first page, is worth reading again.
    const shown = new Set([...ctx.root.querySelectorAll("tr[data-key]")].map((row) => row.dataset.key));
    if (!changes || !ctx.parameters.get("cursor") || changes.some((one) => shown.has(one.id))) again();
  });
}
