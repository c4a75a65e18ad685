// Elements and how values are shown. Text is only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

// What would be invisible, or turn the text around it: shown as it is written in JSON.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** A text of somebody else, in which nothing is hidden. */
export function clean(text) {
  return String(text).replace(UNSEEN, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(clean(child)));
  }
  return element;
}

/** An element with attributes, listeners (`onclick`) and children. */
export const h = (tag, properties, ...children) =>
  fill(document.createElement(tag), properties, children);

/** The same, of SVG. */
export const s = (tag, properties, ...children) =>
  fill(document.createElementNS(SVG, tag), properties, children);

/** A text of somebody else, on its own: its direction does not affect what is around it. */
export const theirs = (text, properties) => h("bdi", properties, text ?? "");

/** An id or a name that may be long: cut off in a table, whole when one points at it. */
export const id = (text) => h("bdi", { class: "id", title: clean(text ?? "") }, text ?? "");

/** A link to a page of the console, which keeps the namespace. */
export function link(page, parameters, ...children) {
  return h("a", { href: address(page, parameters) }, ...children);
}

/** The address of a page of the console; parameters that are empty are left out. */
export function address(page, parameters = {}) {
  const query = new URLSearchParams();
  const namespace = new URLSearchParams(location.search).get("namespace");
  if (namespace && !("namespace" in parameters)) query.set("namespace", namespace);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null && value !== "") query.set(name, value);
  }
  const text = query.toString();
  return `./${page}${text ? `?${text}` : ""}`;
}

export const workflowLink = (workflowId, ...children) =>
  link("workflow", { id: workflowId }, ...(children.length ? children : [id(workflowId)]));

const GLYPHS = {
  RUNNABLE: "▶", RUNNING: "▶", PENDING: "○", COMPLETE: "✓", SKIPPED: "»", SLEEPING: "☾",
  WAITING_FOR_EVENT: "✉", FAILED: "✗", COMPENSATED: "↺", CANCELLED: "⊘", TERMINATED: "■",
  SUSPENDED: "‖", PENDING_PREDECESSOR: "○", DEAD: "✗", LEASED: "▶", DELAYED: "☾", WAITING: "○",
};
const TONES = {
  RUNNABLE: "blue", RUNNING: "blue", LEASED: "blue", COMPLETE: "green", SUSPENDED: "amber",
  SLEEPING: "teal", DELAYED: "teal", WAITING_FOR_EVENT: "purple", FAILED: "red", DEAD: "red",
  CANCELLED: "grey", TERMINATED: "grey", COMPENSATED: "amber",
};
export const tone = (status) => TONES[status] ?? "grey";
export const glyph = (status) => GLYPHS[status] ?? "?";
export const words = (status) => status.toLowerCase().replaceAll("_", " ");

/** A status: by colour, sign and word. */
export const badge = (status) =>
  h("span", { class: `badge ${tone(status)}` }, h("span", { "aria-hidden": "true" }, glyph(status)), " ", words(status));

const number = new Intl.NumberFormat("en");
export const count = (value) => number.format(value);

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A duration in milliseconds, with two units at most. */
export function duration(ms) {
  if (!Number.isFinite(ms)) return "";
  const sign = ms < 0 ? "−" : "";
  let rest = Math.abs(ms);
  if (rest < 1000) return `${sign}${Math.round(rest)} ms`;
  if (rest < 60000) return `${sign}${(rest / 1000).toFixed(rest < 10000 ? 1 : 0)} s`;
  const parts = [];
  for (const [unit, size] of [["d", 86400000], ["h", 3600000], ["min", 60000], ["s", 1000]]) {
    if (rest >= size || parts.length) {
      const whole = Math.floor(rest / size);
      if (parts.length < 2 && (whole || parts.length)) parts.push(`${whole} ${unit}`);
      rest -= whole * size;
    }
  }
  return sign + parts.filter((part) => !part.startsWith("0 ")).join(" ");
}

/** How long ago, or in how long, a time is. */
export function relative(ms) {
  const away = Date.now() - ms;
  if (Math.abs(away) < 1000) return "now";
  const [unit, size] = [["d", 86400000], ["h", 3600000], ["min", 60000], ["s", 1000]].find((one) => Math.abs(away) >= one[1]);
  const text = `${Math.floor(Math.abs(away) / size)} ${unit}`;
  return away > 0 ? `${text} ago` : `in ${text}`;
}

/** A time, as long ago as it is; the whole of it when one points at it. */
export function time(ms) {
  if (ms === null || ms === undefined) return h("span", { class: "muted" }, "–");
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return h("span", {}, String(ms));
  const iso = date.toISOString();
  return h("time", { datetime: iso, title: iso, "data-ms": ms }, relative(ms));
}

/** A time in full, in the zone of whoever looks. */
export function moment(ms) {
  if (ms === null || ms === undefined) return h("span", { class: "muted" }, "–");
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return h("span", {}, String(ms));
  const local = date.toLocaleString("sv-SE");
  return h("time", { datetime: date.toISOString(), title: date.toISOString() }, local, " ",
    h("span", { class: "muted" }, `(${relative(ms)})`));
}

/** Show how long ago it is by now. */
export function refreshTimes(root) {
  for (const element of root.querySelectorAll("time[data-ms]")) {
    element.textContent = relative(Number(element.dataset.ms));
  }
}

export const muted = (text) => h("span", { class: "muted" }, text);

/** A list of names and values; those without a value are left out. */
export function facts(entries) {
  return h("dl", { class: "facts" }, entries.filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => {
      const element = h("div", {}, h("dt", {}, name), h("dd", {}, value));
      if (element.textContent.length > 70) element.className = "long";
      return element;
    }));
}

/** Show an error of a page in its place. */
export function problem(error) {
  return h("div", { class: "problem", role: "alert" },
    h("p", {}, h("strong", {}, error.reason || "Error"), " – ", error.message));
}
