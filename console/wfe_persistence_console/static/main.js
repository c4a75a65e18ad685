// The frame around the pages: which one is shown, and whether it is live.

import { ApiError, get, live, namespace, post } from "./api.js";
import { closeAll, logIn } from "./dialog.js";
import { address, clean, h, problem, refreshTimes, theirs } from "./dom.js";
import * as commands from "./pages/commands.js";
import * as errors from "./pages/errors.js";
import * as events from "./pages/events.js";
import * as locks from "./pages/locks.js";
import * as namespaces from "./pages/namespaces.js";
import * as overview from "./pages/overview.js";
import * as queues from "./pages/queues.js";
import * as storage from "./pages/storage.js";
import * as workflow from "./pages/workflow.js";
import * as workflows from "./pages/workflows.js";

// All are loaded at once: one that is chosen while the server is away is shown, too.
const PAGES = {
  "": ["Overview", overview],
  workflows: ["Workflows", workflows],
  errors: ["Errors", errors],
  events: ["Events", events],
  commands: ["Commands", commands],
  queues: ["Queues", queues],
  locks: ["Locks", locks],
  namespaces: ["Namespaces", namespaces],
  storage: ["Storage", storage],
};
const HIDDEN = { workflow: ["Workflow", workflow, "workflows"] };

const nav = h("nav", { "aria-label": "Pages" });
const main = h("main", { id: "main", tabindex: "-1" });
const banner = h("p", { class: "banner", role: "status", hidden: true });
const liveSwitch = h("button", { type: "button", class: "quiet live", title: "Follow the changes of workflows" });
const theme = h("button", { type: "button", class: "quiet" }, "Theme");
const spaces = h("select", { "aria-label": "Namespace", hidden: true });
const out = h("button", { type: "button", class: "quiet", hidden: true }, "Log out");
const find = h("input", { type: "search", name: "find", "aria-label": "Open a workflow by its id or name", placeholder: "Id or name of a workflow", autocomplete: "off", spellcheck: "false" });

let session = { authentication: false, signed_in: true, write: false, explanations: {} };
let leave = new AbortController();
const wantsLive = () => localStorage.getItem("wfe-live") !== "no";

function frame() {
  document.body.append(
    h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } }, "Skip to content"),
    h("header", { class: "top" },
      h("a", { class: "brand", href: "./" }, "wfe", h("span", { class: "muted" }, "-persistence")),
      nav,
      h("form", { role: "search", onsubmit: open }, find),
      h("div", { class: "tools" }, spaces, liveSwitch, theme, out)),
    banner, main);

  spaces.addEventListener("change", () => {
    const page = location.pathname.split("/").pop();
    go(address(page === "workflow" ? "workflows" : page, { namespace: spaces.value }));
  });
  liveSwitch.addEventListener("click", () => {
    localStorage.setItem("wfe-live", wantsLive() ? "no" : "yes");
    show();
  });
  theme.addEventListener("click", () => {
    const order = ["auto", "light", "dark"];
    const now = document.documentElement.dataset.theme ?? "auto";
    const next = order[(order.indexOf(now) + 1) % 3];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    localStorage.setItem("wfe-theme", next);
    nameTheme();
  });
  out.addEventListener("click", async () => {
    await post("logout", {}).catch(() => {});
    location.assign("./");
  });
  nameTheme();
}

function nameTheme() {
  const now = document.documentElement.dataset.theme ?? "auto";
  theme.textContent = { auto: "◐", light: "☀", dark: "☾" }[now];
  theme.setAttribute("aria-label", `Colours: ${now}`);
  theme.title = `Colours: ${now}`;
}

/** `on`: changes come. A page without a live part shows what is wanted elsewhere. */
function nameLive(on) {
  liveSwitch.textContent = on ? "● Live" : wantsLive() ? "○ Live" : "Live: off";
  liveSwitch.classList.toggle("on", on);
  liveSwitch.setAttribute("aria-pressed", String(wantsLive()));
  liveSwitch.dataset.on = on ? "yes" : "no";
}

async function open(event) {
  event.preventDefault();
  const text = find.value.trim();
  if (!text) return;
  for (const by of ["id", "name"]) {
    try {
      const found = await get("workflow", { [by]: text });
      find.value = "";
      go(address("workflow", { id: found.workflow.id }));
      return;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) break;
    }
  }
  go(address("workflows", { name: text }));
}

function say(text) {
  banner.hidden = !text;
  banner.textContent = text;
}

const wait = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("", "AbortError")); });
});

/** What a page may use, for as long as it is shown. */
function context(root, signal) {
  return {
    root,
    signal,
    write: session.write,
    explanations: session.explanations,
    parameters: new URLSearchParams(location.search),
    title(text) { document.title = `${clean(text)} – wfe-persistence`; },
    /** Another address of the same page, without showing it anew. */
    rename(where) { history.replaceState(null, "", where); },
    go,
    reload: show,
    /** What `make` gets from the server, however long it is away; other errors are thrown. */
    async load(make) {
      for (let pause = 500; ; pause = Math.min(pause * 2, 5000)) {
        try {
          const value = await make(signal);
          say("");
          return value;
        } catch (error) {
          if (signal.aborted) throw new DOMException("", "AbortError");
          if (!(error instanceof ApiError)) throw error;
          if (error.status === 401) await logIn();
          else if (error.passes) {
            say(`${error.message} – trying again`);
            await wait(pause, signal);
          } else throw error;
        }
      }
    },
    /** Do it now and then, while somebody looks. */
    every(ms, act) {
      let busy = false; // while the server is slow or away, one at a time
      const timer = setInterval(async () => {
        if (document.hidden || busy) return;
        busy = true;
        try { await act(); } catch (error) { if (error.name !== "AbortError") console.error(error); } finally { busy = false; }
      }, ms);
      signal.addEventListener("abort", () => clearInterval(timer));
    },
    /** Call `changed` with the changes of workflows, or null: some may have been missed. */
    live(parameters, changed) {
      if (!wantsLive()) return;
      live(parameters, changed, (on) => { if (!signal.aborted) nameLive(on); }, signal);
    },
  };
}

async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const name = location.pathname.split("/").pop();
  const [heading, shown, within] = PAGES[name] ?? HIDDEN[name] ?? PAGES[""];
  document.title = `${heading} – wfe-persistence`;
  nav.replaceChildren(...Object.entries(PAGES).map(([page, [text]]) =>
    h("a", { href: address(page), "aria-current": page === (within ?? name) ? "page" : null }, text)));
  nameLive(false);
  closeAll();
  nameNamespace();
  const root = h("div", { class: "page" });
  main.replaceChildren(root);
  main.dataset.page = name || "overview";
  delete main.dataset.ready;
  root.append(...ignored(shown));
  try {
    await shown.page(context(root, signal));
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    root.append(h("h1", {}, heading), problem(error));
    if (!(error instanceof ApiError)) console.error(error);
  }
  if (!signal.aborted) main.dataset.ready = "yes";
}

/** What is said of parameters of the address with which the page does nothing. */
function ignored({ parameters }) {
  const given = new URLSearchParams(location.search);
  const known = ["namespace", ...(typeof parameters === "function" ? parameters(given) : parameters)];
  const names = new Set(given.keys());
  const unknown = [...names].filter((name) => !known.includes(name));
  const twice = [...names].filter((name) => known.includes(name) && given.getAll(name).length > 1);
  return [
    [unknown, "This page has no such filter, so it does not choose by it: "],
    [twice, "Given more than once, of which only the first counts: "],
  ].filter(([which]) => which.length).map(([which, text]) =>
    h("div", { class: "problem ignored", role: "alert" },
      h("p", {}, text, which.flatMap((name, at) => [at ? ", " : "", theirs(name)]))));
}

function go(where) {
  if (new URL(where, location.href).href !== location.href) history.pushState(null, "", where);
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
  show();
}

/** Show which namespace the page is of. */
function nameNamespace() {
  const now = namespace();
  if (![...spaces.options].some((option) => option.value === now)) {
    spaces.append(h("option", { value: now }, now || "default"));
  }
  spaces.value = now;
}

async function nameNamespaces() {
  try {
    const found = await get("namespaces", { size: 1000 });
    const names = found.namespaces.map((one) => one.name);
    const now = namespace() || "default";
    if (!names.includes(now)) names.push(now);
    spaces.replaceChildren(...names.map((name) =>
      h("option", { value: name === "default" ? "" : name, selected: name === now }, name)));
    spaces.hidden = names.length < 2;
  } catch { /* the page itself says what is wrong */ }
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  if (!anchor || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const where = new URL(anchor.href, location.href);
  if (where.origin !== location.origin || where.pathname.replace(/[^/]*$/, "") !== location.pathname.replace(/[^/]*$/, "")) return;
  event.preventDefault();
  go(where.href);
});
addEventListener("popstate", show);
setInterval(() => refreshTimes(document), 1000);

async function begin() {
  frame();
  for (let pause = 500; ; pause = Math.min(pause * 2, 5000)) {
    try {
      session = await get("session");
      break;
    } catch (error) {
      say(`${error.message} – trying again`);
      await wait(pause, leave.signal);
    }
  }
  say("");
  out.hidden = !session.authentication;
  if (session.authentication && !session.signed_in) await logIn();
  document.addEventListener("logged-in", nameNamespaces);
  nameNamespaces();
  await show();
}

begin();
