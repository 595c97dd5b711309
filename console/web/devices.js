// The devices, and one of them.
import { h, icon } from "./dom.js";
import { at, command, query, remove } from "./api.js";
import { anchor, badge, button, card, choice, copyable, empty, facts, idOf, pager, sure, table, toast } from "./ui.js";
import { bytes, kind, many, on, short, when } from "./format.js";
import { line } from "./audit.js";

const states = [["", "Any state"], ["active", "Active"], ["suspended", "Suspended"], ["decommissioned", "Decommissioned"]];
const perPage = 50;

export async function devices(ctx) {
  const { q = "", state = "", cursor = "" } = ctx.query;
  const { items, next, looked } = await search(ctx, q, state, cursor);
  const input = h("input", { type: "search", name: "q", value: q, placeholder: "Name, alias or label=value", "aria-label": "Search by name, alias or label", spellcheck: "false", autocomplete: "off" });
  const form = h("form", { class: "filters", role: "search", onsubmit: e => { e.preventDefault(); ctx.go("devices", { q: input.value.trim(), state }); } },
    h("div", { class: "search" }, icon("search"), input),
    choice("state", state, states, v => ctx.go("devices", { q: input.value.trim(), state: v })),
    button("Search", null, { type: "submit" }));
  form.querySelector("select").setAttribute("aria-label", "State");
  const nothing = q || state
    ? empty("No device fits", looked ? "None among those looked at so far; the next page goes on." : "Try a part of the name, a whole label such as site=north, or another state.", anchor("All devices", ctx.link("devices")))
    : empty("There is no device yet", "A device is there once it has its first credential: a pre-shared key, a certificate, a thing key or an accepted auth set.", ctx.can("pki:read") && anchor("Get the first one in", ctx.link("enrolment"), { icon: "ticket" }));
  return h("div", { class: "view" }, h("h1", {}, "Devices"), form,
    table("Devices", [
      { head: "Device", class: "main", cell: d => h("a", { href: ctx.link(at`devices/${d.id}`) }, d.name || short(d.id)) },
      { head: "State", cell: d => [badge(d.state), d.renewal && badge(d.renewal)] },
      { head: "Credentials", cell: d => chips(d.credentials) },
      { head: "Alias", class: "clip", cell: d => alias(d) },
      { head: "Labels", class: "clip", cell: d => labels(ctx, d.labels) },
      { head: "Added", class: "tight", cell: d => when(d.created_at) },
    ], items, nothing),
    pager(ctx, next));
}

// search finds devices by what is typed: key=value is a label, everything else a part of a
// name or alias. Pages of a search may be short; it goes on until there is enough to see.
async function search(ctx, q, state, cursor) {
  const [, key, value] = /^([^=\s]+)=(.*)$/.exec(q) || [];
  const params = { limit: perPage, state, ...(key ? { label: key + "=" + value } : { name: q }) };
  const items = [];
  let next = cursor;
  let looked = 0;
  do {
    const p = await ctx.get(query("/api/v1/devices", { ...params, limit: perPage - items.length, cursor: next }));
    items.push(...p.items);
    next = p.next || "";
    looked++;
  } while (next && items.length < perPage && looked < 10);
  return { items, next, looked: next !== "" };
}

function chips(credentials) {
  const live = credentials.filter(c => c.state !== "revoked");
  if (live.length === 0) return h("span", { class: "dim" }, "none");
  const by = new Map();
  for (const c of live) by.set(c.kind, (by.get(c.kind) || 0) + 1);
  return h("span", { class: "chips" }, [...by].map(([k, n]) => h("span", { class: "chip" }, kind(k), n > 1 && " × " + n)));
}

function alias(d) {
  if (d.aliases.length === 0) return h("span", { class: "dim" }, "–");
  return [d.aliases[0].value, d.aliases.length > 1 && h("span", { class: "dim" }, " +" + (d.aliases.length - 1))];
}

function labels(ctx, all) {
  const list = Object.entries(all);
  if (list.length === 0) return h("span", { class: "dim" }, "–");
  const shown = list.slice(0, 3).map(([k, v]) => h("a", { class: "chip", href: ctx.link("devices", { q: k + "=" + v }) }, k + "=" + v));
  return h("span", { class: "chips" }, shown, list.length > 3 && h("span", { class: "dim" }, "+" + (list.length - 3)));
}

export async function device(ctx) {
  const d = await ctx.get(at`/api/v1/devices/${ctx.params.id}`);
  const [open, trail] = await Promise.all([
    ctx.can("sessions:read") ? ctx.get(query("/api/v1/sessions", { device: d.id, limit: 50 })) : null,
    ctx.can("audit:read") ? ctx.get(query("/api/v1/audit", { device: d.id, limit: 12 })) : null,
  ]);
  const name = d.name || short(d.id);
  return h("div", { class: "view" },
    h("nav", { class: "crumbs", "aria-label": "Path" }, h("a", { href: ctx.link("devices") }, "Devices")),
    h("div", { class: "title" }, h("h1", {}, name), badge(d.state), h("div", { class: "actions" }, powers(ctx, d, name))),
    d.state === "suspended" && h("p", { class: "band warn" }, icon("warn"), "Suspended: refused on every protocol until it is resumed. Its credentials stay as they are."),
    d.state === "decommissioned" && h("p", { class: "band quiet" }, icon("info"), "Decommissioned: every credential is revoked, its names are free again. The record stays."),
      card("Credentials", {}, table("Credentials of the device", [
        { head: "Kind", cell: c => kind(c.kind) },
        { head: "Id", cell: c => (c.kind === "certificate" && ctx.can("pki:read") ? [h("a", { href: ctx.link(at`certificates/${c.id}`) }, h("code", {}, short(c.id))), " "] : idOf(c.id)) },
        { head: "State", cell: c => [badge(expired(c) ? "expired" : c.state), c.renewal && badge(c.renewal)] },
        { head: "Expires", class: "tight", cell: c => (c.expires_at ? when(c.expires_at) : h("span", { class: "dim" }, "never")) },
        { head: "Since", class: "tight", cell: c => on(c.created_at) },
        ctx.can("credentials:write") && { head: "", class: "do", cell: c => c.state !== "revoked" && button("Revoke", () => revoke(ctx, d, c, name), { kind: "small danger-quiet" }) },
      ], d.credentials, empty("No credential", "Nothing proves to be this device at the moment."))),
    h("div", { class: "grid" },
      card("Names and labels", {}, facts([
        ["Id", copyable(d.id)],
        ...d.aliases.map(a => [a.kind.replaceAll("_", " "), copyable(a.value)]),
        Object.keys(d.labels).length > 0 && ["labels", h("span", { class: "chips" }, Object.entries(d.labels).map(([k, v]) => h("a", { class: "chip", href: ctx.link("devices", { q: k + "=" + v }) }, k + "=" + v)))],
        ...Object.entries(d.metadata).map(([k, v]) => [k, v]),
        d.comment && ["comment", d.comment],
        d.profile && ["enrolled by", d.profile],
        ["added", when(d.created_at)],
        ["changed", when(d.updated_at)],
      ])),
      h("div", { class: "stack" }, open && card("Live sessions", { action: open.items.length > 0 && h("span", { class: "dim" }, many(open.items.length, "session")) },
        table("Live sessions of the device", [
          { head: "Transport", cell: s => s.transport },
          { head: "From", cell: s => h("code", {}, s.remote) },
          { head: "By", cell: s => (s.credential ? kind(s.credential.kind) : "–") },
          { head: "Since", class: "tight", cell: s => when(s.since) },
          { head: "Traffic", class: "tight", cell: s => bytes(s.bytes_received + s.bytes_sent) },
        ], open.items, h("p", { class: "dim" }, "None is open."))),
      trail && card("Recent changes", { action: h("a", { href: ctx.link("audit", { device: d.id }) }, "All of them") },
        trail.items.length === 0 ? h("p", { class: "dim" }, "None is recorded.") : h("ol", { class: "trail" }, trail.items.map(r => line(ctx, r, true)))))));
}

const expired = c => c.expires_at && c.state !== "revoked" && new Date(c.expires_at) < new Date();

function powers(ctx, d, name) {
  if (d.state === "decommissioned") return null;
  return [
    ctx.can("devices:write") && d.state === "active" && button("Suspend", async () => {
      if (!await sure({ title: `Suspend ${name}?`, verb: "Suspend", text: ["It is refused on every protocol from the next request on, and what it has open is closed now.", "You can resume it at any time."] })) return;
      await command(at`/api/v1/devices/${d.id}/suspend`);
      toast("The device is suspended.");
      await ctx.again();
    }, { kind: "danger-quiet" }),
    ctx.can("devices:write") && d.state === "suspended" && button("Resume", async () => {
      await command(at`/api/v1/devices/${d.id}/resume`);
      toast("The device may come in again.");
      await ctx.again();
    }, { kind: "primary" }),
    ctx.can("devices:delete") && button("Delete", async () => {
      const word = (d.name || d.id).trim().slice(0, 8);
      if (!await sure({ title: `Delete ${name}?`, verb: "Delete for good", word, text: ["Every credential of it is revoked for ever, and what it has open is closed. The record stays as a tombstone.", "This cannot be undone."] })) return;
      await remove(at`/api/v1/devices/${d.id}`);
      toast("The device is decommissioned.");
      await ctx.again();
    }, { kind: "danger-quiet" }),
  ];
}

async function revoke(ctx, d, c, name) {
  const others = d.credentials.filter(o => o !== c && o.state === "active").length;
  if (!await sure({
    title: `Revoke this ${kind(c.kind)}?`, verb: "Revoke",
    text: [`It stops proving to be ${name} at its next use, and what rests on it is closed now. This cannot be undone.`,
      others === 0 ? "It is the last one: the device cannot come in any more until it is given another." : `The device has ${many(others, "other active credential")}.`],
  })) return;
  await remove(at`/api/v1/devices/${d.id}/credentials/${c.kind}/${c.id}`);
  toast("The credential is revoked.");
  await ctx.again();
}
