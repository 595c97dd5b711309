// The certificates, and one of them.
import { h, icon } from "./dom.js";
import { at, pages, post, query } from "./api.js";
import { anchor, badge, button, card, choice, copyable, dialog, empty, facts, field, pager, save, table, toast } from "./ui.js";
import { daysLeft, exact, on, short, when } from "./format.js";

const windows = [["", "Any time left"], ["1d", "Within a day"], ["7d", "Within 7 days"], ["30d", "Within 30 days"], ["90d", "Within 90 days"], ["expired", "Expired"], ["renewal_pending", "To be renewed"], ["expiring_soon", "Expiring soon"]];
const states = [["", "Any state"], ["active", "Active"], ["hold", "On hold"], ["revoked", "Revoked"], ["expired", "Expired"]];
const reasons = ["unspecified", "keyCompromise", "superseded", "cessationOfOperation", "affiliationChanged", "privilegeWithdrawn", "certificateHold"];

function params(q) {
  const p = { state: q.state, ca: q.ca, device: q.device, common_name: q.cn };
  if (q.window === "renewal_pending" || q.window === "expiring_soon") p.renewal = q.window;
  else if (q.window === "expired") p.expires_before = new Date().toISOString().slice(0, 19) + "Z";
  else if (q.window) Object.assign(p, { expires_after: new Date().toISOString().slice(0, 19) + "Z", expires_before: q.window });
  return p;
}

export async function certificates(ctx) {
  const q = ctx.query;
  const [list, authorities] = await Promise.all([
    ctx.get(query("/api/v1/certificates", { limit: 50, cursor: q.cursor, ...params(q) })),
    pages("/api/v1/cas", {}, 500, ctx.signal),
  ]);
  const names = new Map(authorities.items.map(a => [a.id, a.name]));
  const cn = h("input", { type: "search", value: q.cn || "", placeholder: "Common name", "aria-label": "Common name, all of it", spellcheck: "false", autocomplete: "off" });
  const go = change => ctx.go("certificates", { ...q, cn: cn.value.trim(), cursor: "", ...change });
  const pick = (name, label, value, options) => {
    const el = choice(name, value, options, v => go({ [name]: v }));
    el.setAttribute("aria-label", label);
    return el;
  };
  return h("div", { class: "view" },
    h("div", { class: "title" }, h("h1", {}, "Certificates"), h("div", { class: "actions" },
      button("Export as CSV", () => save(query("/api/v1/certificates/export", { format: "csv", ...params(q) }), "certificates.csv"), { icon: "down" }))),
    h("form", { class: "filters", role: "search", onsubmit: e => { e.preventDefault(); go({}); } },
      h("div", { class: "search" }, icon("search"), cn),
      pick("window", "Time left", q.window || "", windows),
      pick("state", "State", q.state || "", states),
      authorities.items.length > 1 && pick("ca", "CA", q.ca || "", [["", "Any CA"], ...authorities.items.map(a => [a.id, a.name])])),
    q.device && h("p", { class: "band quiet" }, icon("info"), "Only those of the device ", h("code", {}, short(q.device)), ". ", h("a", { href: ctx.link("certificates") }, "Show all")),
    table("Certificates", [
      { head: "Common name", class: "main", cell: c => h("a", { href: ctx.link(at`certificates/${c.serial}`) }, c.common_name || c.subject || short(c.serial)) },
      { head: "State", cell: c => [badge(c.state), c.renewal && badge(c.renewal), c.flags.map(f => h("span", { class: "chip warn" }, f.replaceAll("_", " ")))] },
      { head: "Expires", class: "tight", cell: c => h("span", { class: c.state === "active" && daysLeft(c.not_after) < 7 ? "loud" : "" }, when(c.not_after)) },
      { head: "CA", class: "clip", cell: c => names.get(c.ca) || c.ca },
      { head: "Device", cell: c => (c.device ? h("a", { href: ctx.link(at`devices/${c.device}`) }, short(c.device)) : h("span", { class: "dim" }, "none")) },
      { head: "Issued", class: "tight", cell: c => on(c.issued_at) },
      { head: "", class: "do", cell: c => button("PEM", () => save(at`/api/v1/certificates/${c.serial}/pem`, (c.common_name || c.serial) + ".pem"), { icon: "down", kind: "small ghost", title: "Download the certificate" }) },
    ], list.items, Object.values(q).some(Boolean)
      ? empty("No certificate fits", "Another window, state or CA may have some. Common names are compared as a whole.", anchor("All certificates", ctx.link("certificates")))
      : empty("No certificate has been issued yet", "Devices get them over EST with an enrolment token, or you sign a request with keystead ca sign.", anchor("Enrolment", ctx.link("enrolment"), { icon: "ticket" }))),
    pager(ctx, list.next));
}

export async function certificate(ctx) {
  const c = await ctx.get(at`/api/v1/certificates/${ctx.params.serial}`);
  const ca = await ctx.get(at`/api/v1/cas/${c.ca}`).catch(e => { if (e.status === 404) return null; throw e; });
  return h("div", { class: "view" },
    h("nav", { class: "crumbs", "aria-label": "Path" }, h("a", { href: ctx.link("certificates") }, "Certificates")),
    h("div", { class: "title" }, h("h1", {}, c.common_name || c.subject), badge(c.state), h("div", { class: "actions" },
      button("Download", () => save(at`/api/v1/certificates/${c.serial}/pem`, (c.common_name || c.serial) + ".pem"), { icon: "down" }),
      ctx.can("credentials:write") && c.state === "hold" && button("Release", () => change(ctx, c, "removeFromCRL", "The certificate is good again."), { kind: "primary" }),
      ctx.can("credentials:write") && (c.state === "active" || c.state === "hold") && button("Revoke", () => revoke(ctx, c), { kind: "danger-quiet" }))),
    card("What it says", {}, facts([
      ["subject", c.subject], ["serial", copyable(c.serial)], ["SHA-256", copyable(c.sha256)],
      ["issued by", ca ? h("a", { href: ctx.link("cas") }, ca.name) : c.ca],
      ["device", c.device ? h("a", { href: ctx.link(at`devices/${c.device}`) }, c.device) : "none"],
      ["key", c.algorithm], ["profile", c.profile], c.dms && ["enrolled by", c.dms],
      ["from", exact(c.not_before)], ["until", [exact(c.not_after), " (", when(c.not_after), ")"]],
      c.renew_from && c.state === "active" && ["to be renewed", [exact(c.renew_from), c.renewal && [" ", badge(c.renewal)]]],
      c.replaces && ["renews", h("a", { href: ctx.link(at`certificates/${c.replaces}`) }, short(c.replaces))],
      c.revoked_at && ["revoked", [exact(c.revoked_at), c.reason && ", " + c.reason]],
      c.flags.length > 0 && ["flags", c.flags.map(f => h("span", { class: "chip warn" }, f.replaceAll("_", " ")))],
    ])));
}

async function revoke(ctx, c) {
  const reason = choice("reason", "unspecified", reasons.map(r => [r, r]));
  const answer = await dialog(`Revoke the certificate of ${c.common_name || c.serial}?`, [
    h("p", {}, "It is refused at its next use, its open connections are closed, and it is on the next CRL. Only a hold can be taken back."),
    field("Reason", reason),
  ], close => [button("Cancel", () => close("")), button("Revoke", () => close("yes"), { kind: "danger", type: "submit" })]);
  if (answer === "yes") await change(ctx, c, reason.value, "The certificate is revoked.");
}

async function change(ctx, c, reason, said) {
  await post(at`/api/v1/certificates/${c.serial}/revoke`, { reason });
  toast(said);
  await ctx.again();
}
