// The graph of a workflow's pointers. Only what is in sight is drawn, so it may have any size.

import { clean, count, duration, glyph, h, s, tone, words } from "./dom.js";
import { layout } from "./layout.js";

const WIDTH = 256;
const HEIGHT = 56;
const GAP_X = 24;
const GAP_Y = 34;
const MARGIN = 16;
const STEP_X = WIDTH + GAP_X;
const STEP_Y = HEIGHT + GAP_Y;

const x = (node) => MARGIN + node.column * STEP_X;
const y = (node) => MARGIN + node.level * STEP_Y;

/** How long a step took, or has taken so far. */
export function took(pointer) {
  if (pointer.start === undefined) return "";
  return duration((pointer.end ?? Date.now()) - pointer.start);
}

export const nameOf = (pointer) => pointer.name || `step ${pointer.step}`;

/** The graph; `choose` is called with the pointer that is chosen. `update` gives it other pointers. */
export function graph(choose) {
  const edges = s("svg", { class: "edges", "aria-hidden": "true" });
  const boxes = h("div", { class: "boxes" });
  const none = h("p", { class: "muted none", hidden: true }, "It has no steps.");
  const inside = h("div", { class: "inside" }, none, edges, boxes);
  const view = h("div", { class: "graph", role: "group", tabindex: "0", "aria-label": "Graph of the steps. Arrow keys go from step to step, Enter shows one." }, inside);
  let plan = layout([]);
  let focus = 0;
  let frame = 0;
  const drawn = new Map();

  function box(node) {
    const { pointer } = node;
    const waits = pointer.status === "WAITING_FOR_EVENT" && pointer.event;
    const state = waits ? `waits for ${pointer.event}` : words(pointer.status);
    const extra = [took(pointer), pointer.retries ? `${pointer.retries} ${pointer.retries === 1 ? "retry" : "retries"}` : ""].filter(Boolean).join(", ");
    const element = h("button", {
      type: "button", class: `node ${tone(pointer.status)}`, tabindex: "-1",
      title: clean(`${nameOf(pointer)}: ${state}`),
      onclick: () => { focus = node.at; choose(pointer); },
    },
    h("span", { class: "name" }, h("bdi", {}, nameOf(pointer))),
    h("span", { class: "status" }, h("span", { "aria-hidden": "true" }, glyph(pointer.status), " "), h("bdi", {}, state), extra ? ` · ${extra}` : null));
    element.style.left = `${x(node)}px`;
    element.style.top = `${y(node)}px`;
    return element;
  }

  function path(a, b, kind) {
    const x1 = x(a) + WIDTH / 2;
    const y1 = y(a) + HEIGHT;
    const x2 = x(b) + WIDTH / 2;
    const y2 = y(b);
    const middle = (y1 + y2) / 2;
    return s("path", { class: kind, d: `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}` });
  }

  function draw() {
    frame = 0;
    const top = view.scrollTop - STEP_Y;
    const bottom = view.scrollTop + view.clientHeight + STEP_Y;
    const left = view.scrollLeft - STEP_X;
    const right = view.scrollLeft + view.clientWidth + STEP_X;
    const seen = new Set();
    const first = Math.max(0, Math.floor((top - MARGIN) / STEP_Y));
    const last = Math.min(plan.levels.length - 1, Math.ceil((bottom - MARGIN) / STEP_Y));
    for (let level = first; level <= last; level += 1) {
      const row = plan.levels[level];
      // The columns of a level are in order: the first that is in sight is found by halving.
      let low = 0;
      let high = row.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (x(row[middle]) < left) low = middle + 1;
        else high = middle;
      }
      for (let at = low; at < row.length && x(row[at]) <= right; at += 1) seen.add(row[at]);
    }
    if (plan.nodes[focus] && boxes.contains(document.activeElement)) seen.add(plan.nodes[focus]);
    for (const [node, element] of drawn) {
      if (!seen.has(node)) { element.remove(); drawn.delete(node); }
    }
    const lines = [];
    const known = new Set();
    for (const node of seen) {
      if (!drawn.has(node)) {
        const element = box(node);
        drawn.set(node, element);
        boxes.append(element);
      }
      for (const [list, forward] of [[node.to, true], [node.from, false]]) {
        let n = 0;
        for (const edge of list) {
          const other = plan.nodes[edge.node];
          // Of a step with thousands of followers, those in sight.
          if (forward && (x(other) < left - STEP_X || x(other) > right + STEP_X) && (n += 1) > 20) continue;
          const key = forward ? `${node.at}>${other.at}` : `${other.at}>${node.at}`;
          if (known.has(key)) continue;
          known.add(key);
          lines.push(forward ? path(node, other, edge.kind) : path(other, node, edge.kind));
        }
      }
    }
    // As large as what is in sight, and a little more for the next frame of a scroll: to paint one as large
    // as the graph takes a browser ten times as long.
    const width = view.clientWidth + 2 * STEP_X;
    const height = view.clientHeight + 2 * STEP_Y;
    edges.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
    edges.style.transform = `translate(${left}px, ${top}px)`;
    edges.style.width = `${width}px`;
    edges.style.height = `${height}px`;
    edges.replaceChildren(...lines);
  }
  const redraw = () => { frame ||= requestAnimationFrame(draw); };

  function go(node) {
    if (!node) return;
    focus = node.at;
    const inset = 8;
    if (x(node) < view.scrollLeft) view.scrollLeft = x(node) - inset;
    else if (x(node) + WIDTH > view.scrollLeft + view.clientWidth) view.scrollLeft = x(node) + WIDTH - view.clientWidth + inset;
    if (y(node) < view.scrollTop) view.scrollTop = y(node) - inset;
    else if (y(node) + HEIGHT > view.scrollTop + view.clientHeight) view.scrollTop = y(node) + HEIGHT - view.clientHeight + inset;
    draw();
    drawn.get(node)?.focus({ preventScroll: true });
  }
  view.addEventListener("scroll", redraw, { passive: true });
  view.addEventListener("keydown", (event) => {
    const node = plan.nodes[focus];
    if (!node) return;
    const inBox = boxes.contains(document.activeElement);
    const row = plan.levels[node.level];
    const place = row.indexOf(node);
    const to = {
      ArrowDown: () => (inBox ? plan.nodes[node.to[0]?.node] : node),
      ArrowUp: () => plan.nodes[node.from[0]?.node],
      ArrowRight: () => row[place + 1],
      ArrowLeft: () => row[place - 1],
      Home: () => plan.nodes[0],
      End: () => plan.nodes.at(-1),
    }[event.key];
    if (!to) return;
    event.preventDefault();
    go(to());
  });
  new ResizeObserver(redraw).observe(view);

  return {
    element: view,
    update(pointers) {
      const kept = plan.nodes[focus]?.pointer.id;
      const focused = boxes.contains(document.activeElement);
      plan = layout(pointers);
      none.hidden = pointers.length > 0;
      focus = Math.max(0, plan.nodes.findIndex((node) => node.pointer.id === kept));
      for (const element of drawn.values()) element.remove();
      drawn.clear();
      const width = 2 * MARGIN + plan.width * STEP_X - GAP_X;
      const height = 2 * MARGIN + plan.levels.length * STEP_Y - GAP_Y;
      inside.style.width = `${Math.max(0, width)}px`;
      inside.style.height = `${Math.max(0, height)}px`;
      view.setAttribute("aria-label", `Graph of ${count(pointers.length)} steps. Arrow keys go from step to step, Enter shows one.`);
      draw();
      if (focused) drawn.get(plan.nodes[focus])?.focus({ preventScroll: true });
    },
  };
}
