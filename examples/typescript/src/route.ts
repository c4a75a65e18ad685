/** Which member of a namespace set has what has a key; the same in every language. */
import { createHash } from "node:crypto";

/**
 * The index of a key among the members that GetNamespaceSet names. A key is a workflow's id, an event's
 * id, the resource of a lock.
 */
export function memberOf(key: string, members: number): number {
  const digest = createHash("sha256").update(key, "utf8").digest();
  return jump(digest.readBigUInt64BE(0), members);
}

/** Jump consistent hash, by Lamping and Veach: the bucket of a 64-bit key, from 0. */
function jump(key: bigint, buckets: number): number {
  let bucket = -1;
  let following = 0;
  while (following < buckets) {
    bucket = following;
    key = BigInt.asUintN(64, key * 2862933555777941757n + 1n);
    following = Math.floor((bucket + 1) * (2 ** 31 / (Number(key >> 33n) + 1)));
  }
  return bucket;
}
