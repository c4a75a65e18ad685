// The namespaces in which whoever looks has a role.

import { count, h, link } from "../dom.js";
import { list, parametersOf } from "../table.js";

export const parameters = parametersOf([]);

export async function page(ctx) {
  ctx.root.append(h("h1", {}, "Namespaces"));
  await list(ctx, {
    page: "namespaces", api: "namespaces", name: "namespaces", caption: "Namespaces", empty: "You have a role in none.",
    columns: [
      ["Namespace", (n) => link("", { namespace: n.name === "default" ? "" : n.name }, n.name)],
      ["Schema", (n) => n.schema],
      ["Version of the schema", (n) => String(n.schema_version), "number"],
      ["Rows, estimated", (n) => count(n.rows), "number"],
    ],
  });
}
