// What the console asks the server: the public REST API, by the session of the browser.
// The session is a cookie that no script can read; nothing of it is kept here.

// Problem is an answer that says no.
export class Problem extends Error {
  constructor(status, body) {
    super(body.error || body.error_description || "the server answered " + status);
    this.status = status;
    this.code = body.code || "";
    this.requestID = body.request_id || "";
    this.fields = body.fields || [];
  }
}

// Offline is no answer at all.
export class Offline extends Error {
  constructor() { super("The server does not answer. Is it running, and is the network there?"); }
}

let org = ""; // the organisation to act in, "" for the own one

export function actIn(id) { org = id; }

// onSignedOut is called when the session turns out to have ended.
export const hooks = { signedOut() {} };

async function send(method, path, { body, signal, accept } = {}) {
  const headers = { Accept: accept || "application/json" };
  if (org) headers["X-Org-ID"] = org;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers, signal, cache: "no-store", credentials: "same-origin", redirect: "error", referrerPolicy: "no-referrer",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Offline();
  }
  if (answer.ok) return answer;
  let text = {};
  try { text = await answer.json(); } catch { /* what is no JSON says nothing more */ }
  const problem = new Problem(answer.status, text || {});
  problem.requestID ||= answer.headers.get("X-Request-Id") || "";
  if (answer.status === 401 && !path.startsWith("/api/v1/session") && !path.startsWith("/tokens/")) hooks.signedOut();
  throw problem;
}

async function json(method, path, options) {
  const answer = await send(method, path, options);
  if (answer.status === 204) return null;
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

export const get = (path, signal) => json("GET", path, { signal });
export const post = (path, body = {}) => json("POST", path, { body });
export const put = (path, body) => json("PUT", path, { body });
export const patch = (path, body) => json("PATCH", path, { body });
export const remove = path => json("DELETE", path);

// command posts without a body, to operations that take none.
export const command = path => json("POST", path);

// query writes parameters, without those that are empty.
export function query(path, params) {
  const q = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== null && value !== "") q.set(name, value);
  }
  const text = q.toString();
  return text ? path + "?" + text : path;
}

// at writes a path: each part is escaped.
export function at(strings, ...parts) {
  return strings.reduce((path, s, i) => path + encodeURIComponent(parts[i - 1]) + s);
}

// pages gathers the items of a list, up to most of them; more says that there are others.
export async function pages(path, params, most, signal) {
  const items = [];
  let cursor = "";
  do {
    const p = await get(query(path, { limit: Math.min(500, most), ...params, cursor }), signal);
    items.push(...p.items);
    cursor = p.next || "";
  } while (cursor && items.length < most);
  return { items: items.slice(0, most), more: cursor !== "" || items.length > most };
}

// blob is an answer to be kept as a file.
export async function blob(path) {
  return (await send("GET", path, { accept: "*/*" })).blob();
}

// events reads server-sent events until signal ends it, or the server does.
export async function events(path, signal, each) {
  const answer = await send("GET", path, { signal, accept: "text/event-stream" });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const block of whole) {
      const data = block.split("\n").filter(l => l.startsWith("data:")).map(l => l.slice(5).trimStart()).join("\n");
      if (data) each(JSON.parse(data));
    }
  }
}
