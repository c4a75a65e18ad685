// The log of errors.

import { h, id, theirs, time, workflowLink } from "../dom.js";
import { list } from "../table.js";

export async function page(ctx) {
  ctx.root.append(h("h1", {}, "Errors"));
  const read = await list(ctx, {
    page: "errors", api: "errors", name: "errors", caption: "Errors", empty: "No error is logged.",
    fields: [["workflow", "Workflow"], ["younger", "Within", "select", [["", "any time"], ["3600", "1 hour"], ["86400", "1 day"], ["604800", "7 days"]]]],
    columns: [
      ["When", (e) => time(e.time)],
      ["Workflow", (e) => workflowLink(e.workflow)],
      ["Pointer", (e) => id(e.pointer)],
      ["Message", (e) => h("pre", { class: "message" }, theirs(e.message))],
    ],
  });
  ctx.every(5000, read);
}
