// A stored document, foldable. It is not parsed by JSON.parse, which would round its numbers.

import { h } from "./dom.js";

const AT_A_TIME = 100;
const LONGEST_TEXT = 2000;

/** The tree of a JSON text: `{kind, text}` of what is single, `{kind, items: [[key, node]]}` else. */
export function parse(text) {
  let at = 0;
  const space = /[ \t\r\n]*/y;
  const single = /"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null/y;

  function skip() {
    space.lastIndex = at;
    space.test(text);
    at = space.lastIndex;
  }
  function token() {
    single.lastIndex = at;
    const found = single.exec(text);
    if (!found) throw new SyntaxError(`at ${at}`);
    at = single.lastIndex;
    return found[0];
  }
  function node() {
    skip();
    const open = text[at];
    if (open !== "{" && open !== "[") {
      const literal = token();
      const kind = literal[0] === '"' ? "text" : literal[0] === "-" || (literal[0] >= "0" && literal[0] <= "9") ? "number" : "word";
      return { kind, text: literal };
    }
    const close = open === "{" ? "}" : "]";
    const items = [];
    at += 1;
    skip();
    while (text[at] !== close) {
      let key = null;
      if (open === "{") {
        if (text[at] !== '"') throw new SyntaxError(`at ${at}`);
        key = token();
        skip();
        if (text[at] !== ":") throw new SyntaxError(`at ${at}`);
        at += 1;
      }
      items.push([key, node()]);
      skip();
      if (text[at] === ",") { at += 1; skip(); }
      else if (text[at] !== close) throw new SyntaxError(`at ${at}`);
    }
    at += 1;
    return { kind: open === "{" ? "object" : "array", items };
  }
  const tree = node();
  skip();
  if (at !== text.length) throw new SyntaxError(`at ${at}`);
  return tree;
}

function literal(node) {
  if (node.text.length <= LONGEST_TEXT) return h("bdi", { class: `json-${node.kind}` }, node.text);
  const shown = h("bdi", { class: `json-${node.kind}` }, node.text.slice(0, LONGEST_TEXT));
  const more = h("button", {
    type: "button",
    onclick: () => { shown.replaceWith(h("bdi", { class: `json-${node.kind}` }, node.text)); more.remove(); },
  }, `… all ${node.text.length} characters`);
  return [shown, more];
}

function summary(node) {
  const n = node.items.length;
  return node.kind === "object" ? `{ ${n} ${n === 1 ? "member" : "members"} }` : `[ ${n} ${n === 1 ? "item" : "items"} ]`;
}

function children(node) {
  const list = h("ul", { class: "json" });
  let shown = 0;
  function more() {
    const end = Math.min(shown + AT_A_TIME, node.items.length);
    for (; shown < end; shown += 1) {
      const [key, value] = node.items[shown];
      list.append(h("li", {}, ...branch(key ?? `${shown}`, value, false)));
    }
    if (shown < node.items.length) {
      const button = h("button", { type: "button", onclick: () => { button.parentElement.remove(); more(); } },
        `${node.items.length - shown} more`);
      list.append(h("li", {}, button));
    }
  }
  more();
  return list;
}

function branch(key, node, open) {
  const name = key === null ? [] : [h("bdi", { class: "json-key" }, key), ": "];
  if (!node.items) return [...name, literal(node)];
  if (!node.items.length) return [...name, node.kind === "object" ? "{}" : "[]"];
  const details = h("details", {}, h("summary", {}, ...name, h("span", { class: "muted" }, summary(node))));
  details.addEventListener("toggle", () => {
    if (details.open && !details.filled) { details.filled = true; details.append(children(node)); }
  });
  details.open = open;
  return [details];
}

/** A document as a tree that is drawn as far as it is unfolded. */
export function json(text, { open = true } = {}) {
  const copy = h("button", { type: "button", class: "quiet", onclick: async (event) => {
    const button = event.currentTarget;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not possible here";
    }
  } }, "Copy");
  let tree;
  try {
    tree = parse(text);
  } catch {
    return h("div", { class: "document" }, copy, h("pre", { tabindex: "0" }, text.slice(0, 10000)));
  }
  return h("div", { class: "document" }, copy, h("div", { class: "json-root" }, ...branch(null, tree, open)));
}
