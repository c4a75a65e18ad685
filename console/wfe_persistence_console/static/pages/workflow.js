// A workflow: its state, its steps as a graph and in time, and all that belongs to it.

import { get, post } from "../api.js";
import { confirm, open, where } from "../dialog.js";
import { address, badge, count, facts, h, link, moment, problem, theirs, time, workflowLink } from "../dom.js";
import { graph, nameOf, took } from "../graph.js";
import { json } from "../json.js";
import { seldom, table } from "../table.js";
import { tabs } from "../tabs.js";
import { timeline } from "../timeline.js";
import { columns as commandColumns } from "./commands.js";
import { columns as subscriptionColumns, forceRelease } from "./events.js";

const PAGE = 500;
// By the statuses in which they are possible. What each means, the server says: the command line means the same.
const ACTIONS = {
  suspend: ["Suspend", ["RUNNABLE"]],
  resume: ["Resume", ["SUSPENDED"]],
  terminate: ["Terminate", ["RUNNABLE", "SUSPENDED"]],
  delete: ["Delete", null],
};

/** All pages of the pointers, handed to `some` as they come. `early`: the first, if it was asked for already. */
async function readPointers(ctx, workflowId, some, early = null) {
  let cursor = "";
  let all = [];
  do {
    const asked = cursor;
    const found = (asked === "" && (await early)) ||
      (await ctx.load((signal) => get("pointers", { id: workflowId, size: PAGE, cursor: asked }, signal)));
    for (const pointer of found.pointers) pointer.page = asked;
    all = all.concat(found.pointers);
    cursor = found.next;
    if (asked === "" || !cursor) some(all, !cursor);
  } while (cursor);
}

function showPointer(ctx, workflowId, pointer) {
  const documents = h("div", {}, "Reading…");
  open(nameOf(pointer), h("div", {},
    facts([
      ["Status", badge(pointer.status)],
      ["Pointer", theirs(pointer.id)],
      ["Step", String(pointer.step)],
      ["Active", pointer.active ? "yes" : "no"],
      ["Started", pointer.start === undefined ? null : moment(pointer.start)],
      ["Ended", pointer.end === undefined ? null : moment(pointer.end)],
      ["Took", took(pointer) || null],
      ["Sleeps until", pointer.sleep === undefined ? null : moment(pointer.sleep)],
      ["Retries", pointer.retries ? count(pointer.retries) : null],
      ["Event", pointer.event === undefined ? null
        : link("events", { event: pointer.event, key: pointer.key }, theirs(pointer.event), pointer.key ? [" / ", theirs(pointer.key)] : null)],
      ["Event came", pointer.event === undefined ? null : pointer.published ? "yes" : "no"],
      ["After", pointer.predecessor === undefined ? null : theirs(pointer.predecessor)],
      ["Started pointers", pointer.children ? count(pointer.children.length) : null],
    ]),
    documents), { kind: "wide" });
  const headings = { outcome: "Outcome", persistence_data: "State between runs", event_data: "Data of the event", context_item: "Item of the loop" };
  get("pointer", { id: workflowId, pointer: pointer.id, cursor: pointer.page, size: PAGE }, ctx.signal).then((found) => {
    const whole = found.pointer;
    documents.replaceChildren(
      ...Object.entries(whole.documents).flatMap(([name, text]) => [h("h3", {}, headings[name]), json(text)]),
      ...Object.entries(whole.attributes).flatMap(([name, text]) => [h("h3", {}, theirs(name)), json(text)]));
    if (!documents.childElementCount) documents.append(h("p", { class: "muted" }, "It has no documents."));
  }).catch((error) => { if (error.name !== "AbortError") documents.replaceChildren(problem(error)); });
}

/** Those above it, and those below, which are read as they are unfolded. */
async function tree(ctx, panel, workflow) {
  const above = [];
  let next = workflow.root;
  const seen = new Set([workflow.id]);
  while (next && !seen.has(next) && above.length < 20) {
    seen.add(next);
    const parent = next;
    try {
      const found = await get("workflow", { id: parent }, ctx.signal);
      above.unshift(found.workflow);
      next = found.workflow.root;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      above.unshift({ id: parent, name: parent, status: "UNKNOWN", gone: error.message });
      next = null;
    }
  }
  const label = (one) => h("span", { class: one.id === workflow.id ? "here" : null },
    badge(one.status), " ", workflowLink(one.id, theirs(one.name || one.id, { class: "id" })), one.gone ? [" ", theirs(one.gone)] : [" ", theirs(one.definition)]);

  async function below(parent, list, cursor = "", at = null) {
    const found = await ctx.load((signal) => get("workflows", { root: parent.id, order: "oldest", size: 50, cursor, at }, signal));
    for (const one of found.workflows) {
      const inner = h("ul", { class: "tree", hidden: true });
      const fold = h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-label": "Workflows below it", onclick: () => {
        inner.hidden = !inner.hidden;
        fold.setAttribute("aria-expanded", String(!inner.hidden));
        fold.textContent = inner.hidden ? "▸" : "▾";
        if (!inner.begun && !seen.has(one.id)) {
          inner.begun = true;
          below(one, inner).catch((error) => { if (error.name !== "AbortError") inner.append(problem(error)); });
        }
      } }, "▸");
      list.append(h("li", {}, fold, label(one), inner));
    }
    if (!found.workflows.length && !cursor) list.append(h("li", { class: "muted" }, "None below it."));
    if (found.next) {
      const more = h("li", {}, h("button", { type: "button", onclick: () => { more.remove(); below(parent, list, found.next, found.at); } }, "More"));
      list.append(more);
    }
  }
  const own = h("ul", { class: "tree" });
  let inner = h("li", {}, label(workflow), own);
  for (const one of above.reverse()) inner = h("li", {}, label(one), h("ul", { class: "tree" }, inner));
  panel.replaceChildren(h("ul", { class: "tree" }, inner));
  await below(workflow, own);
}

export const parameters = (given) => [given.has("id") ? "id" : "name", "tab"];

export async function page(ctx) {
  const by = ctx.parameters.get("id");
  // Together with the workflow; if it fails, it is asked for again, and then it is said why.
  const early = by === null ? null : get("pointers", { id: by, size: PAGE, cursor: "" }, ctx.signal).catch(() => null);
  const { workflow } = await ctx.load((signal) => get("workflow", by === null ? { name: ctx.parameters.get("name") ?? "" } : { id: by }, signal));
  const workflowId = workflow.id;
  let current = workflow;
  let pointers = [];
  ctx.title(workflow.name || workflow.id);

  const actions = h("div", { class: "actions" });
  const header = h("div");
  const gone = h("p", { class: "banner", hidden: true, role: "status" });
  ctx.root.append(gone, h("div", { class: "heading" }, h("h1", {}, theirs(workflow.name || workflow.id)), actions), header);

  function act(name) {
    const [verb] = ACTIONS[name];
    const seen = current;
    confirm(`${verb} this workflow?`, h("div", {},
      h("p", {}, theirs(seen.name || seen.id), ` (revision ${seen.revision})${where()}`),
      h("p", {}, ctx.explanations[name]),
      h("p", { class: "muted" }, "Nothing is changed if somebody has written it since you saw it.")), verb, async () => {
      await post(name, { id: workflowId, revision: seen.revision });
      if (name === "delete") ctx.go(address("workflows"));
      else await refresh();
    });
  }
  function showHeader() {
    const w = current;
    header.replaceChildren(facts([
      ["Status", badge(w.status)],
      ["Definition", [link("workflows", { definition: w.definition }, theirs(w.definition)), ` v${w.version}`]],
      ["Id", theirs(w.id)],
      ["Reference", w.reference === null ? null : link("workflows", { reference: w.reference }, theirs(w.reference))],
      ["Created", moment(w.created)],
      ["Ended", w.completed === null ? null : moment(w.completed)],
      ["Due", w.next === null || w.status !== "RUNNABLE" ? null : moment(w.next)],
      ["Revision", w.revision],
      ["Belongs to", w.root === null ? null : workflowLink(w.root)],
      ["Description", w.description === null ? null : theirs(w.description)],
    ]));
    const focused = actions.contains(document.activeElement) ? document.activeElement.textContent : null;
    actions.replaceChildren(...(ctx.write ? Object.entries(ACTIONS)
      .filter(([, [, statuses]]) => !statuses || statuses.includes(w.status))
      .map(([name, [verb]]) => h("button", { type: "button", class: name === "delete" || name === "terminate" ? "danger" : null, onclick: () => act(name) }, verb)) : []));
    if (focused) [...actions.children].find((button) => button.textContent === focused)?.focus();
  }
  showHeader();

  const choose = (pointer) => showPointer(ctx, workflowId, pointer);
  const drawing = graph(choose);
  const times = timeline(choose);
  const dataPanel = (panel) => {
    panel.replaceChildren(
      current.data ? json(current.data) : h("p", { class: "muted" }, "The data is too large to be shown."),
      ...Object.entries(current.attributes).flatMap(([name, text]) => [h("h2", {}, theirs(name)), json(text)]));
  };
  const rows = (api, name, asked, caption, columns, empty) => {
    const read = async (panel) => {
      try {
        const found = await ctx.load((signal) => get(api, { ...asked, size: 100 }, signal));
        panel.draw = () => panel.replaceChildren(table(columns(() => read(panel)), found[name], { caption, empty }),
          found.next ? h("p", { class: "muted" }, "These are the first hundred.") : "");
        panel.draw();
      } catch (error) {
        if (error.name !== "AbortError") panel.replaceChildren(problem(error));
      }
    };
    return read;
  };
  const readers = {
    errors: rows("errors", "errors", { workflow: workflowId }, "Errors", () => [
      ["When", (e) => time(e.time)],
      ["Step", (e) => theirs(nameOf(pointers.find((one) => one.id === e.pointer) ?? { name: e.pointer }))],
      ["Message", (e) => h("pre", { class: "message" }, theirs(e.message))],
    ], "No errors are logged."),
    subscriptions: rows("subscriptions", "subscriptions", { workflow: workflowId }, "Subscriptions",
      (again) => subscriptionColumns.filter(([heading]) => heading !== "Workflow").concat(ctx.write ? [["Action", (one) => forceRelease(one, again)]] : []),
      "It waits for no event."),
    commands: rows("commands", "commands", { command: "process_workflow", data: workflowId }, "Commands", () => commandColumns, "No command is scheduled for it."),
  };
  const parts = tabs("Workflow", [
    ["graph", "Graph", (panel) => { panel.append(drawing.element); drawing.update(pointers); }],
    ["timeline", "Timeline", (panel) => { panel.append(times.element); times.update(pointers); }],
    ["data", "Data", dataPanel],
    ["errors", "Errors", readers.errors],
    ["subscriptions", "Subscriptions", readers.subscriptions],
    ["commands", "Commands", readers.commands],
    ["tree", "Tree", (panel) => tree(ctx, panel, current).catch((error) => { if (error.name !== "AbortError") panel.replaceChildren(problem(error)); })],
  ], ctx.parameters.get("tab"), (name) => {
    ctx.rename(address("workflow", { id: workflowId, tab: name === "graph" ? null : name }));
  });
  ctx.root.append(parts.element);
  const asked = ctx.parameters.get("tab");
  if (asked && !parts.panel(asked)) {
    parts.element.before(h("div", { class: "problem ignored", role: "alert" }, h("p", {}, "There is no such tab: ", theirs(asked))));
  }
  parts.begin();

  function showPointers(all, complete) {
    pointers = all;
    parts.label("graph", `Graph (${count(all.length)}${complete ? "" : "…"})`);
    if (parts.panel("graph").begun) drawing.update(all);
    if (parts.panel("timeline").begun) times.update(all);
    parts.panel("errors").draw?.(); // which names the steps
  }
  await readPointers(ctx, workflowId, showPointers, early);

  async function refresh() {
    let found;
    try {
      found = await ctx.load((signal) => get("workflow", { id: workflowId }, signal));
    } catch (error) {
      if (error.status !== 404) throw error;
      gone.hidden = false;
      gone.textContent = "This workflow has been deleted. What you see is the last that was known of it.";
      actions.replaceChildren();
      return;
    }
    if (found.workflow.revision === current.revision) return;
    current = found.workflow;
    showHeader();
    await readPointers(ctx, workflowId, (all, complete) => { if (complete) showPointers(all, true); });
    if (parts.panel("data").begun) dataPanel(parts.panel("data"));
    for (const [name, read] of Object.entries(readers)) if (parts.panel(name).begun) await read(parts.panel(name));
  }
  const again = seldom(1000, refresh);
  ctx.live({ id: workflowId }, again);
  ctx.every(15000, again);
}
