// The pointers of a workflow as rows with bars in time. Only the rows in sight exist.

import { badge, clean, duration, h, moment, tone } from "./dom.js";
import { nameOf, took } from "./graph.js";

const ROW = 34;
const MORE = 6;

/** A grid of rows; `choose` is called with the pointer that is chosen. */
export function timeline(choose) {
  const rows = h("div", { class: "rows", role: "rowgroup" });
  const heading = h("div", { class: "row head", role: "row", "aria-rowindex": "1" },
    ["Step", "Status", "Started", "Took", "Retries", "Waits for", "Time"].map((text) => h("div", { role: "columnheader" }, text)));
  const view = h("div", { class: "timeline", role: "grid", tabindex: "0", "aria-label": "Timeline of the steps", "aria-colcount": "7" },
    h("div", { role: "rowgroup", class: "heads" }, heading), rows);
  let pointers = [];
  let from = 0;
  let until = 1;
  let active = 0;
  let frame = 0;

  function bar(pointer) {
    if (pointer.start === undefined) return null;
    const end = pointer.end ?? Math.max(Date.now(), pointer.start);
    const element = h("span", { class: `bar ${tone(pointer.status)}`, title: duration(end - pointer.start) });
    const span = Math.max(1, until - from);
    element.style.left = `${Math.min(99.5, Math.max(0, ((pointer.start - from) / span) * 100))}%`;
    element.style.width = `max(3px, ${Math.min(100, Math.max(0, ((end - pointer.start) / span) * 100))}%)`;
    return element;
  }
  function row(pointer, at) {
    const waits = pointer.status === "WAITING_FOR_EVENT" && pointer.event
      ? h("bdi", {}, pointer.key ? `${pointer.event} / ${pointer.key}` : pointer.event)
      : pointer.status === "SLEEPING" && pointer.sleep !== undefined ? moment(pointer.sleep) : "";
    const name = h("div", { role: "gridcell", class: "step", title: clean(nameOf(pointer)) }, h("bdi", {}, nameOf(pointer)));
    name.style.paddingInlineStart = `${8 + Math.min(pointer.scope?.length ?? 0, 12) * 12}px`;
    const element = h("div", {
      class: "row", role: "row", id: `step-${at}`, "aria-rowindex": at + 2, "aria-selected": String(at === active),
      onclick: () => { active = at; choose(pointer); draw(); },
    },
    name,
    h("div", { role: "gridcell" }, badge(pointer.status)),
    h("div", { role: "gridcell" }, pointer.start === undefined ? "" : new Date(pointer.start).toLocaleTimeString("sv-SE")),
    h("div", { role: "gridcell", class: "number" }, took(pointer)),
    h("div", { role: "gridcell", class: "number" }, pointer.retries ?? ""),
    h("div", { role: "gridcell", class: "waits" }, waits),
    h("div", { role: "gridcell", class: "bars" }, bar(pointer)));
    element.style.top = `${at * ROW}px`;
    return element;
  }
  function draw() {
    frame = 0;
    const first = Math.max(0, Math.floor(view.scrollTop / ROW) - MORE);
    const last = Math.min(pointers.length, Math.ceil((view.scrollTop + view.clientHeight) / ROW) + MORE);
    const shown = [];
    for (let at = first; at < last; at += 1) shown.push(row(pointers[at], at));
    rows.replaceChildren(...shown);
    if (active >= first && active < last) view.setAttribute("aria-activedescendant", `step-${active}`);
    else view.removeAttribute("aria-activedescendant");
  }
  view.addEventListener("scroll", () => { frame ||= requestAnimationFrame(draw); }, { passive: true });
  view.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(view.clientHeight / ROW) - 2);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: pointers.length - 1 }[event.key];
    if (event.key === "Enter" && pointers[active]) { event.preventDefault(); choose(pointers[active]); return; }
    if (to === undefined || !pointers.length) return;
    event.preventDefault();
    active = Math.max(0, Math.min(pointers.length - 1, to));
    const top = active * ROW;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + 2 * ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + 2 * ROW - view.clientHeight;
    draw();
  });
  new ResizeObserver(() => { frame ||= requestAnimationFrame(draw); }).observe(view);

  return {
    element: view,
    update(next) {
      pointers = next;
      active = Math.min(active, Math.max(0, pointers.length - 1));
      from = Infinity;
      until = -Infinity;
      for (const { start, end } of pointers) {
        if (start !== undefined) { from = Math.min(from, start); until = Math.max(until, end ?? Date.now()); }
        if (end !== undefined) until = Math.max(until, end);
      }
      if (from > until) { from = 0; until = 1; }
      view.setAttribute("aria-rowcount", String(pointers.length + 1));
      rows.style.height = `${pointers.length * ROW}px`;
      draw();
    },
  };
}
