/** The vectors that every language has to meet. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { memberOf } from "../src/route.js";

interface Vectors {
  vectors: { key: string; members: Record<string, number> }[];
}

test("keys belong to the members of the vectors", () => {
  const file = new URL("../../../../protos/wfe/persistence/v1/namespace_sets.json", import.meta.url);
  const { vectors } = JSON.parse(readFileSync(file, "utf8")) as Vectors;
  let checked = 0;
  for (const { key, members } of vectors) {
    for (const [count, index] of Object.entries(members)) {
      assert.equal(memberOf(key, Number(count)), index, `${key} of ${count}`);
      checked++;
    }
  }
  assert.ok(checked >= 200);
});
