import { readFileSync } from "node:fs";
import type { Interceptor, Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { withRetries } from "./retry.js";

/**
 * The connection as the environment says: WFE_TLS_CA, WFE_TLS_CERT and WFE_TLS_KEY name PEM files,
 * WFE_TOKEN is a token, and WFE_TOKEN_FILE a file with one.
 *
 * @param interceptors see each call once, however often it is repeated
 */
export function transport(target: string, ...interceptors: Interceptor[]): Transport {
  const { WFE_TLS_CA: ca, WFE_TLS_CERT: cert, WFE_TLS_KEY: key, WFE_TOKEN, WFE_TOKEN_FILE } = process.env;
  const hasToken = Boolean(WFE_TOKEN || WFE_TOKEN_FILE);
  if (hasToken && !ca) throw new Error("a token is sent over TLS only: set WFE_TLS_CA");
  const read = (file?: string) => (file ? readFileSync(file) : undefined);
  return createGrpcTransport({
    baseUrl: `${ca ? "https" : "http"}://${target}`,
    // Every call has its own deadline: without one, the server's default applies.
    defaultTimeoutMs: 10_000,
    // Each attempt has the token of its time.
    interceptors: [...interceptors, withRetries, ...(hasToken ? [withToken] : [])],
    nodeOptions: ca ? { ca: read(ca), cert: read(cert), key: read(key) } : {},
  });
}

/** Adds the token to each call, read anew, because tokens are replaced. */
const withToken: Interceptor = (next) => (request) => {
  const { WFE_TOKEN, WFE_TOKEN_FILE } = process.env;
  const token = WFE_TOKEN_FILE ? readFileSync(WFE_TOKEN_FILE, "ascii").trim() : WFE_TOKEN;
  request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};
