// The trail of what was changed, by whom.
import { h, icon, set } from "./dom.js";
import { at, post, query } from "./api.js";
import { anchor, badge, button, empty, idOf, pager, save, table } from "./ui.js";
import { count, exact, kind, short, when } from "./format.js";

// line is one record in few words.
export function line(ctx, r, ofDevice) {
  return h("li", {}, h("code", { class: "action" }, r.action), " ",
    !ofDevice && r.device ? [h("a", { href: ctx.link(at`devices/${r.device}`) }, short(r.device)), " "] : null,
    h("span", { class: "dim" }, "by ", actor(ctx, r), " ", when(r.at)));
}

function actor(ctx, r) {
  if (r.actor.kind === "system") return "the server";
  if (r.actor.kind === "user" && r.actor.id === ctx.home.user) return "you";
  return r.actor.kind + " " + short(r.actor.id || "");
}

export async function audit(ctx) {
  const q = ctx.query;
  const params = { device: q.device, action: q.action, actor: q.actor, since: q.since && new Date(q.since + "T00:00:00").toISOString().slice(0, 19) + "Z", all: q.all };
  const list = await ctx.get(query("/api/v1/audit", { limit: 50, cursor: q.cursor, ...params }));
  const text = (name, label, hint) => h("label", { class: "inlinefield" }, h("span", {}, label), h("input", { type: "search", name, value: q[name] || "", placeholder: hint, spellcheck: "false", autocomplete: "off" }));
  const form = h("form", { class: "filters", role: "search", onsubmit: e => {
    e.preventDefault();
    const f = new FormData(form);
    ctx.go("audit", { action: f.get("action").trim(), actor: f.get("actor").trim(), device: f.get("device").trim(), since: f.get("since"), all: f.get("all") || "" });
  } },
  text("action", "Action", "device, psk.create"), text("actor", "Actor", "id"), text("device", "Device", "id"),
  h("label", { class: "inlinefield" }, h("span", {}, "Since"), h("input", { type: "date", name: "since", value: q.since || "" })),
  ctx.can("platform:admin") && h("label", { class: "check" }, h("input", { type: "checkbox", name: "all", value: "true", checked: q.all === "true" }), " every organisation"),
  button("Search", null, { type: "submit" }));
  const verdict = h("div", { role: "status" });
  return h("div", { class: "view" },
    h("div", { class: "title" }, h("h1", {}, "Audit trail"), h("div", { class: "actions" },
      ctx.can("platform:admin") && button("Verify", () => verify(verdict), { icon: "check" }),
      button("Export", () => save(query("/api/v1/audit/export", params), "audit.jsonl"), { icon: "down" }))),
    verdict, form,
    table("Audit trail, the latest first", [
      { head: "When", class: "tight", cell: r => h("span", { title: exact(r.at) }, when(r.at)) },
      { head: "Action", class: "main", cell: r => h("code", { class: "action" }, r.action) },
      { head: "Actor", cell: r => [actor(ctx, r), r.actor.credential && h("span", { class: "sub" }, kind(r.actor.credential))] },
      { head: "Device", cell: r => (r.device ? h("a", { href: ctx.link(at`devices/${r.device}`) }, short(r.device)) : h("span", { class: "dim" }, "–")) },
      { head: "Target", cell: r => (r.target && r.target !== r.device ? idOf(r.target) : h("span", { class: "dim" }, "–")) },
      { head: "Details", class: "clip wrap", cell: r => details(r) },
      { head: "No.", class: "tight num dim", cell: r => count(r.seq) },
    ], list.items, list.next ? empty("None on this page", "Records that fit may be further back; the next page goes on.") : empty("No record fits", "Every change is recorded when it is made. Another filter may find it.", anchor("All records", ctx.link("audit")))),
    pager(ctx, list.next));
}

function details(r) {
  const list = Object.entries(r.detail || {});
  if (list.length === 0) return h("span", { class: "dim" }, "–");
  return h("span", { class: "kv" }, list.map(([k, v]) => h("span", {}, h("span", { class: "dim" }, k, " "), v)));
}

async function verify(verdict) {
  set(verdict, h("p", { class: "band quiet" }, "Walking the trail …"));
  let found;
  try { found = await post("/api/v1/audit/verify", {}); } catch (e) { set(verdict); throw e; }
  set(verdict, h("p", { class: "band " + (found.sound ? "good" : "bad") }, icon(found.sound ? "check" : "stop"), h("span", {},
    found.sound ? badge("sound") : badge("not sound", "bad"), ` ${count(found.records)} records, ${count(found.first)} to ${count(found.last)}, compared with ${count(found.checkpoints)} checkpoints.`,
    found.fault && " " + found.fault)));
}
