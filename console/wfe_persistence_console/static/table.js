// Lists that come in pages: a form with filters, a table, and the way to the next page. All of it is in the
// address, so that it can be shared.

import { get } from "./api.js";
import { address, count, duration, h, problem } from "./dom.js";

/** A table. `columns`: [heading, cell of an item, class]. */
export function table(columns, items, { caption, empty = "Nothing here.", key } = {}) {
  const body = h("tbody", {}, items.map((item) =>
    h("tr", { "data-key": key?.(item) }, columns.map(([, cell, kind]) => h("td", { class: kind }, cell(item))))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([heading, , kind]) => h("th", { scope: "col", class: kind }, heading)))),
      body),
    items.length ? null : h("p", { class: "muted" }, empty));
}

/** Where a list goes on; with ages, also the moment from which they count. */
const places = (fields) => (fields.some(([name]) => name === "younger") ? ["cursor", "at"] : ["cursor"]);

/** The parameters of the address of a list with these filters. */
export const parametersOf = (fields) => [...fields.map(([name]) => name), ...places(fields)];

/** A field of a form: `[name, label, kind, options]`; kind: text, number or select. */
function field([name, label, kind = "text", options], value) {
  const id = `filter-${name}`;
  // What an address says is shown, also if it is none of the choices: the server refuses what has no meaning.
  if (kind === "select" && !options.some(([option]) => option === value)) {
    options = [...options, [value, /^\d{1,10}$/.test(value) ? duration(value * 1000) : value]];
  }
  const control = kind === "select"
    ? h("select", { id, name }, options.map(([option, text]) => h("option", { value: option, selected: option === value }, text)))
    : h("input", { id, name, type: kind === "number" ? "number" : "text", min: kind === "number" ? "0" : null, value, autocomplete: "off", spellcheck: "false" });
  return h("div", { class: "field" }, h("label", { for: id }, label), control);
}

/** A form whose values become the address of the page. */
export function filters(ctx, page, fields, kept = {}) {
  if (!fields.length) return null;
  const form = h("form", { class: "filters", onsubmit: (event) => {
    event.preventDefault();
    ctx.go(address(page, { ...kept, ...Object.fromEntries(new FormData(form)) }));
  } },
    fields.map((one) => field(one, ctx.parameters.get(one[0]) ?? "")),
    h("div", { class: "field buttons" },
      h("button", { type: "submit", class: "primary" }, "Filter"),
      h("a", { class: "button", href: address(page, kept) }, "Clear")));
  form.addEventListener("change", (event) => { if (event.target.tagName === "SELECT") form.requestSubmit(); });
  return form;
}

/**
 * A list of one kind, from `api`: `name` is the list in its answers. `fields` are the filters. Returns what
 * reads it anew.
 */
export async function list(ctx, { page, api, name, fields = [], fixed = {}, kept = {}, columns, caption, key, empty, target = ctx.root, onpage }) {
  const asked = { ...fixed };
  for (const [field] of fields) {
    const value = ctx.parameters.get(field);
    if (value !== null && value !== "") asked[field] = value;
  }
  for (const field of places(fields)) if (ctx.parameters.get(field)) asked[field] = ctx.parameters.get(field);
  const place = h("div", { class: "list" });
  target.append(filters(ctx, page, fields, kept) ?? "", place);

  async function read() {
    try {
      const found = await ctx.load((signal) => get(api, asked, signal));
      const shown = found[name];
      const focused = place.contains(document.activeElement);
      const own = Object.fromEntries([...ctx.parameters].filter(([field]) => !["cursor", "at"].includes(field)));
      place.replaceChildren(
        table(columns, shown, { caption, key, empty }),
        h("p", { class: "pager" },
          asked.cursor ? h("a", { class: "button", href: address(page, own) }, "First page") : null,
          found.next
            ? h("a", { class: "button", rel: "next", href: address(page, { ...own, cursor: found.next, at: found.at }) }, "Next page")
            : null,
          h("span", { class: "muted" }, `${count(shown.length)} shown`)));
      if (focused) place.querySelector(".scroll")?.focus({ preventScroll: true });
      onpage?.(found);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      place.replaceChildren(problem(error));
    }
  }
  await read();
  return read;
}

/** The same function, at most once in so many milliseconds; the last call is never left out. */
export function seldom(ms, act) {
  let waiting = false;
  let running = false;
  let once = false; // more, because it was called while it ran
  let last = 0;
  const call = () => {
    if (running) once = true;
    if (waiting || running) return;
    waiting = true;
    setTimeout(async () => {
      [waiting, running, once] = [false, true, false];
      last = Date.now();
      try { await act(); } catch (error) { if (error.name !== "AbortError") console.error(error); }
      running = false;
      if (once) call();
    }, Math.max(50, last + ms - Date.now()));
  };
  return call;
}
