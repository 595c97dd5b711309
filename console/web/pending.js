// What waits for somebody to decide: auth sets, and enrolments with manual approval.
import { h, icon } from "./dom.js";
import { at, command, put, remove } from "./api.js";
import { anchor, button, card, copyable, empty, sure, table, toast } from "./ui.js";
import { many, short, when } from "./format.js";

const reasons = {
  preauthorized_key_mismatch: "Another key was preauthorised for this device.",
  new_key: "The device is accepted with another key. Accepting this one rejects that.",
};
const perPage = 50;

export async function pending(ctx) {
  const page = Math.max(1, Number.parseInt(ctx.query.page || "1", 10) || 1);
  const base = "/api/management/v2/devauth/devices";
  const [list, total, enrolments] = await Promise.all([
    ctx.get(`${base}?status=pending&per_page=${perPage}&page=${page}`),
    ctx.get(base + "/count?status=pending"),
    ctx.can("pki:read") ? ctx.get("/api/v1/enrolments?limit=200") : null,
  ]);
  const rows = list.flatMap(d => d.auth_sets.filter(s => s.status === "pending").map(s => ({ d, s })));
  const waiting = (enrolments?.items ?? []).filter(w => w.state === "waiting");
  const may = ctx.can("credentials:write");
  return h("div", { class: "view" }, h("h1", {}, "Pending"),
    card("Auth sets", { action: total.count > 0 && h("span", { class: "dim" }, many(total.count, "device") + " waiting") },
      table("Pending auth sets", [
        { head: "Identity", class: "main", cell: ({ d }) => identity(d.identity_data) },
        { head: "Key", cell: ({ s }) => [h("span", { class: "dim" }, "SHA-256 "), copyable(s.fingerprint, short(s.fingerprint)), s.reason && h("p", { class: "hint warn" }, icon("warn"), reasons[s.reason] || s.reason)] },
        { head: "Asked", class: "tight", cell: ({ s }) => when(s.ts) },
        { head: "Last heard", class: "tight", cell: ({ d }) => when(d.check_in_time) },
        may && { head: "", class: "do", cell: row => decide(ctx, row) },
      ], rows, empty("Nobody waits", "Devices that ask with a key nobody has decided about appear here. Preauthorised ones and those that a rule accepts do not.")),
      (page > 1 || page * perPage < total.count) && h("nav", { class: "pager", "aria-label": "Pages" },
        page > 1 ? anchor("Page before", ctx.link("pending", { page: page - 1 }), { icon: "first" }) : h("span"),
        page * perPage < total.count ? anchor("Next page", ctx.link("pending", { page: page + 1 }), { icon: "next" }) : h("span"))),
    enrolments && card("Enrolments that wait for approval", {},
      table("Enrolments that wait for approval", [
        { head: "Subject", class: "main", cell: w => w.subject || w.name },
        { head: "Profile", cell: w => w.dms },
        { head: "From", cell: w => h("code", {}, w.from) },
        { head: "Asked", class: "tight", cell: w => when(w.created_at) },
        may && { head: "", class: "do", cell: w => h("span", { class: "actions" },
          button("Approve", async () => { await command(at`/api/v1/enrolments/${w.id}/approve`); toast("Approved: the device gets its certificate when it asks again."); await ctx.again(); }, { kind: "small primary" }),
          button("Deny", async () => { await command(at`/api/v1/enrolments/${w.id}/deny`); toast("Denied."); await ctx.again(); }, { kind: "small danger-quiet" })) },
      ], waiting, empty("None", "Enrolment profiles with manual approval put their requests here."))));
}

function identity(data) {
  return h("dl", { class: "inline" }, Object.entries(data || {}).map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, typeof v === "string" ? v : JSON.stringify(v)))));
}

function decide(ctx, { d, s }) {
  const one = at`/api/management/v2/devauth/devices/${d.id}/auth/${s.id}`;
  return h("span", { class: "actions" },
    button("Accept", async () => { await put(one + "/status", { status: "accepted" }); toast("Accepted. The device comes in at its next try."); await ctx.again(); }, { kind: "small primary" }),
    button("Reject", async () => { await put(one + "/status", { status: "rejected" }); toast("Rejected."); await ctx.again(); }, { kind: "small danger-quiet" }),
    button("Dismiss", async () => {
      if (!await sure({ title: "Dismiss this auth set?", verb: "Dismiss", text: ["It is forgotten. If the device asks again, it is pending again."] })) return;
      await remove(one);
      toast("Dismissed.");
      await ctx.again();
    }, { kind: "small ghost" }));
}
