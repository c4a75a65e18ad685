// The requests of the pages. Which namespace is meant, the address of the page says.

export class ApiError extends Error {
  constructor(status, reason, message) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
  /** Whether it may be over in a moment: the server is away, or busy. */
  get passes() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

export const namespace = () => new URLSearchParams(location.search).get("namespace") ?? "";

function url(name, parameters) {
  const query = new URLSearchParams();
  if (namespace()) query.set("namespace", namespace());
  for (const [key, value] of Object.entries(parameters ?? {})) {
    if (value !== undefined && value !== null) query.set(key, value);
  }
  return `api/${name}?${query}`;
}

// Longer than the console lets a call or a change take: then the server is away without having hung up.
const LONGEST_MS = 45000;

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "AWAY", "the server does not answer");
  }
  let value;
  try {
    value = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(response.ok ? 0 : response.status, "AWAY", `the answer was cut off (${response.status})`);
  }
  if (!response.ok) {
    throw new ApiError(response.status, value.error?.reason ?? "", value.error?.message ?? response.statusText);
  }
  return value;
}

export const get = (name, parameters, signal) =>
  answer(fetch(url(name, parameters), {
    signal: AbortSignal.any([AbortSignal.timeout(LONGEST_MS), ...(signal ? [signal] : [])]),
    credentials: "same-origin",
  }));

export const post = (name, body) =>
  answer(fetch(url(name), {
    method: "POST",
    credentials: "same-origin",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(LONGEST_MS),
  }));

/**
 * Calls `changed` with the changes of workflows, or with null if some may have been missed, until
 * `signal` is aborted; `state` with whether it is connected. A page that nobody sees is not
 * connected: a browser has few connections to a server, for all its pages together.
 */
export function live(parameters, changed, state, signal) {
  let source = null;
  let cursor = "";
  let pause = 500;
  let timer = 0;

  function close() {
    clearTimeout(timer);
    source?.close();
    source = null;
    state(false);
  }
  function again() {
    close();
    if (signal.aborted || document.hidden) return;
    timer = setTimeout(open, pause * (0.5 + Math.random()));
    pause = Math.min(pause * 2, 10000);
  }
  function open() {
    if (signal.aborted || document.hidden || source) return;
    source = new EventSource(url("watch", { ...parameters, after: cursor }));
    source.addEventListener("changes", (event) => {
      const value = JSON.parse(event.data);
      const resumed = cursor !== "";
      cursor = value.cursor;
      pause = 500;
      state(true);
      if (value.changes.length) changed(value.changes);
      else if (!resumed) changed(null); // what came between the page and the first answer
    });
    source.addEventListener("failed", (event) => {
      if (JSON.parse(event.data).reason === "CURSOR_EXPIRED") cursor = "";
      again();
    });
    source.onerror = again;
  }
  const turn = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", turn);
  signal.addEventListener("abort", () => {
    document.removeEventListener("visibilitychange", turn);
    close();
  });
  open();
}
