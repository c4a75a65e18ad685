// The log of errors.

import { h, id, theirs, time, workflowLink } from "../dom.js";
import { list, parametersOf } from "../table.js";

const FIELDS = [["workflow", "Workflow"], ["younger", "Within", "select", [["", "any time"], ["3600", "1 hour"], ["86400", "1 day"], ["604800", "7 days"]]]];
export const parameters = parametersOf(FIELDS);

export async function page(ctx) {
  ctx.root.append(h("h1", {}, "Errors"));
  const read = await list(ctx, {
    page: "errors", api: "errors", name: "errors", caption: "Errors", empty: "No error is logged.",
    fields: FIELDS,
    columns: [
      ["When", (e) => time(e.time)],
      ["Workflow", (e) => workflowLink(e.workflow)],
      ["Pointer", (e) => id(e.pointer)],
      ["Message", (e) => h("pre", { class: "message" }, theirs(e.message))],
    ],
  });
  ctx.every(5000, read);
}
