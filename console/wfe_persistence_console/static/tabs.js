// Tabs: arrow keys go from one to the next, and which one is shown is in the address.

import { h } from "./dom.js";

/** `parts`: [name, heading, function that fills its panel when it is first shown]. */
export function tabs(label, parts, chosen, onchange) {
  const panels = new Map();
  const buttons = new Map();
  const list = h("div", { role: "tablist", "aria-label": label, class: "tabs" });
  const element = h("div", {}, list);
  function choose(name, focus) {
    for (const [other, button] of buttons) {
      const is = other === name;
      button.setAttribute("aria-selected", String(is));
      button.tabIndex = is ? 0 : -1;
      panels.get(other).hidden = !is;
      if (is && focus) button.focus();
    }
    const panel = panels.get(name);
    const begin = parts.find(([part]) => part === name)[2];
    if (!panel.begun) { panel.begun = true; begin(panel); }
    onchange(name);
  }
  for (const [name, heading] of parts) {
    const button = h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => choose(name) }, heading);
    const panel = h("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: true });
    buttons.set(name, button);
    panels.set(name, panel);
    list.append(button);
    element.append(panel);
  }
  list.addEventListener("keydown", (event) => {
    const names = [...buttons.keys()];
    const now = names.findIndex((name) => buttons.get(name) === document.activeElement);
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(names[(to + names.length) % names.length], true);
  });
  const first = buttons.has(chosen) ? chosen : parts[0][0];
  return { element, begin: () => choose(first), label: (name, text) => { buttons.get(name).textContent = text; }, panel: (name) => panels.get(name) };
}
