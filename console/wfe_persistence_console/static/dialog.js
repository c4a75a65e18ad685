// Dialogs: the browser keeps the focus inside and gives it back.

import { ApiError, namespace, post } from "./api.js";
import { h } from "./dom.js";

let numbers = 0;

/** A dialog with a heading; it is gone when it is closed. */
export function open(heading, content, { kind = null, onclose } = {}) {
  const label = `dialog-${(numbers += 1)}`;
  const dialog = h("dialog", { "aria-labelledby": label, class: kind },
    h("header", {},
      h("h2", { id: label }, heading),
      h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => dialog.close() }, "✕")),
    content);
  dialog.addEventListener("close", () => { dialog.remove(); onclose?.(); });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Ask before something is changed; `act` does it, and what it throws is shown in the dialog. */
export function confirm(heading, explanation, verb, act) {
  const failed = h("p", { role: "alert", class: "problem", hidden: true });
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const go = h("button", { type: "button", class: "danger", onclick: async () => {
    go.disabled = true;
    try {
      await act();
      dialog.close();
    } catch (error) {
      failed.hidden = false;
      failed.textContent = error.message;
      go.disabled = false;
    }
  } }, verb);
  const dialog = open(heading, h("div", {}, explanation, failed, h("p", { class: "actions" }, cancel, go)));
  cancel.focus();
  return dialog;
}

/** Close what was asked about another page: the answer would be meant for that. */
export function closeAll() {
  for (const dialog of document.querySelectorAll("dialog:not(.login)")) dialog.close();
}

let login = null;

/** Ask for the token; the promise ends when somebody has logged in. */
export function logIn() {
  login ??= new Promise((resolve) => {
    let done = false;
    const token = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "token-problem" });
    const failed = h("p", { id: "token-problem", role: "alert", class: "problem" });
    const form = h("form", { onsubmit: async (event) => {
      event.preventDefault();
      failed.textContent = "";
      try {
        await post("login", { token: token.value });
        done = true;
        dialog.close();
      } catch (error) {
        failed.textContent = error instanceof ApiError ? error.message : String(error);
        token.select();
      }
    } },
      h("p", {}, "Log in with the token with which you call the server. It is kept by the server until you log out, not in this browser."),
      h("label", { for: "token" }, "Token"), token, failed,
      h("p", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Log in")));
    const show = () => open("Log in", form, { kind: "login", onclose: () => {
      if (!done) { dialog = show(); return; } // there is nothing else to see
      login = null;
      document.dispatchEvent(new Event("logged-in"));
      resolve();
    } });
    let dialog = show();
    token.focus();
  });
  return login;
}

/** What is said of the namespace where something is changed. */
export const where = () => ` in the namespace ${namespace() || "default"}`;
