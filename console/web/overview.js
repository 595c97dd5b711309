// What there is, and what needs somebody.
import { h, icon } from "./dom.js";
import { at, get, pages } from "./api.js";
import { bars, card } from "./ui.js";
import { count, daysLeft, many, when } from "./format.js";
import { firstDevice, modes } from "./enrolment.js";
import { line } from "./audit.js";

export async function overview(ctx) {
  const [states, psks, things, accepted, pendingSets, waiting, expiry, sessions, worries, trail] = await Promise.all([
    ctx.get("/api/v1/devices/counts"),
    ctx.can("credentials:read") ? ctx.get("/identities/psk?pageSize=1").then(p => p.PageInfo.TotalCount) : null,
    ctx.get("/things?limit=1").then(p => p.total),
    ctx.get("/api/management/v2/devauth/devices/count?status=accepted").then(p => p.count),
    ctx.get("/api/management/v2/devauth/devices/count?status=pending").then(p => p.count),
    ctx.can("pki:read") ? ctx.get("/api/v1/enrolments?limit=500").then(p => ({ n: p.items.filter(w => w.state === "waiting").length, more: p.next ? "+" : "" })) : { n: 0, more: "" },
    ctx.can("pki:read") ? ctx.get("/api/v1/certificates/expiry") : null,
    ctx.can("sessions:read") ? ctx.get("/api/v1/sessions?limit=500") : null,
    attention(ctx),
    ctx.can("audit:read") ? ctx.get("/api/v1/audit?limit=8") : null,
  ]);
  const all = states.active + states.suspended;
  const certificates = expiry ? expiry.within_1d + expiry.within_7d + expiry.within_30d + expiry.within_90d + expiry.later : null;
  if (expiry && expiry.expired > 0) worries.push(worry("info", many(expiry.expired, "certificate") + " expired", "They prove nothing any more.", ctx.link("certificates", { window: "expired" })));
  if (expiry && expiry.within_7d + expiry.within_1d > 0) {
    worries.unshift(worry("warn", many(expiry.within_7d + expiry.within_1d, "certificate") + " within a week of the end", "Devices that do not renew in time are locked out.", ctx.link("certificates", { window: "7d" })));
  }
  if (expiry && expiry.expiring_soon > 0) {
    worries.unshift(worry("warn", many(expiry.expiring_soon, "certificate") + " should have been renewed", "Their enrolment profiles say that it is urgent.", ctx.link("certificates", { window: "expiring_soon" })));
  }
  const open = sessions ? sessions.items.length + (sessions.next ? "+" : "") : null;

  return h("div", { class: "view" }, h("h1", {}, "Overview"),
    h("div", { class: "tiles" },
      tile(ctx.link("devices"), "Devices", count(all), [
        ["good", states.active, "active", ctx.link("devices", { state: "active" })],
        ["warn", states.suspended, "suspended", ctx.link("devices", { state: "suspended" })],
        ["quiet", states.decommissioned, "decommissioned", ctx.link("devices", { state: "decommissioned" })],
      ]),
      open !== null && tile(ctx.link("sessions"), "Open sessions", open, null, "DTLS and TLS, on CoAP"),
      tile(ctx.link("pending"), "Pending", count(pendingSets + waiting.n) + waiting.more, null,
        pendingSets + waiting.n === 0 && !waiting.more ? "Nobody waits for a decision" : [pendingSets && many(pendingSets, "auth set"), (waiting.n > 0 || waiting.more) && (waiting.more ? count(waiting.n) + "+ enrolments" : many(waiting.n, "enrolment"))].filter(Boolean).join(", "), pendingSets + waiting.n > 0 || waiting.more !== ""),
      certificates !== null && tile(ctx.link("certificates"), "Certificates", count(certificates), null, "in their time and not revoked")),
    all === 0 && await firstDevice(ctx),
    h("div", { class: "grid" },
      h("div", { class: "stack" }, card("Needs attention", {}, worries.length === 0
        ? h("p", { class: "calm" }, icon("check"), "Nothing. Enrolment is closed to strangers, CAs and certificates are in their time.")
        : h("ul", { class: "worries" }, worries)),
      trail && card("Latest changes", { action: h("a", { href: ctx.link("audit") }, "Audit trail") },
        h("ol", { class: "trail" }, trail.items.map(r => line(ctx, r))))),
      h("div", { class: "stack" }, expiry && card("Certificates by the time they have left", { action: h("a", { href: ctx.link("certificates") }, "All certificates") }, bars("Certificates by the time they have left", [
        { name: "expired", amount: expiry.expired, tone: "bad", href: ctx.link("certificates", { window: "expired" }) },
        { name: "within a day", amount: expiry.within_1d, tone: "bad", href: ctx.link("certificates", { window: "1d" }) },
        { name: "within 7 days", amount: expiry.within_7d, tone: "warn", href: ctx.link("certificates", { window: "7d" }) },
        { name: "within 30 days", amount: expiry.within_30d, tone: "warn", href: ctx.link("certificates", { window: "30d" }) },
        { name: "within 90 days", amount: expiry.within_90d, tone: "good", href: ctx.link("certificates", { window: "90d" }) },
        { name: "later", amount: expiry.later, tone: "good", href: ctx.link("certificates") },
      ])),
      card("Credentials by kind", {}, bars("Credentials by kind", [
        certificates !== null && { name: "certificates", amount: certificates, href: ctx.link("certificates", { state: "active" }) },
        psks !== null && { name: "pre-shared keys", amount: psks },
        { name: "thing keys", amount: things },
        { name: "accepted auth sets", amount: accepted },
      ].filter(Boolean))))));
}

function tile(href, name, amount, parts, note, loud) {
  return h("section", { class: "tile" + (loud ? " waits" : "") },
    h("a", { href, class: "big" }, h("span", { class: "name" }, name), h("strong", {}, amount)),
    parts ? h("ul", {}, parts.map(([tone, n, word, to]) => h("li", {}, h("a", { href: to }, h("span", { class: "dot " + tone }), count(n), " ", word)))) : h("p", { class: "dim" }, note));
}

function worry(tone, title, text, href) {
  return h("li", { class: tone }, icon(tone === "bad" ? "stop" : tone === "warn" ? "warn" : "info"),
    h("div", {}, href ? h("a", { href }, title) : h("strong", {}, title), h("p", {}, text)));
}

// attention looks for what is loud: open enrolment, CAs that end, backups and webhooks.
async function attention(ctx) {
  const list = [];
  const [profiles, authorities, backups, hooks] = await Promise.all([
    ctx.can("pki:read") ? pages("/api/v1/dms", {}, 500, ctx.signal) : null,
    ctx.can("pki:read") ? pages("/api/v1/cas", {}, 500, ctx.signal) : null,
    ctx.can("platform:admin") ? ctx.get("/api/v1/backups") : null,
    ctx.can("org:admin") ? pages("/api/v1/webhooks", {}, 50, ctx.signal) : null,
  ]);
  for (const p of profiles?.items ?? []) {
    if (modes(p.settings.enrollment_settings).includes("NO_AUTH")) {
      list.push(worry("bad", `“${p.name}” enrols whoever asks`, "The enrolment profile " + p.id + " has the mode NO_AUTH.", ctx.link("enrolment")));
    }
  }
  for (const ca of authorities?.items ?? []) {
    if (!ca.not_after || ["revoked", "retiring"].includes(ca.state)) continue;
    const left = daysLeft(ca.not_after);
    if (left < 0) list.push(worry("bad", `The CA “${ca.name}” has expired`, "Nothing it issued is believed any more.", ctx.link("cas")));
    else if (left < 90) list.push(worry(left < 30 ? "bad" : "warn", `The CA “${ca.name}” ends in ${many(Math.floor(left), "day")}`, "Roll it over while what it issued is still in its time.", ctx.link("cas")));
  }
  if (backups) {
    const last = backups.items.at(-1);
    if (!last) list.push(worry("warn", "There is no backup", "keystead backup create makes one; backup.every has the server make them by itself."));
    else if (daysLeft(last.created_at) < -7) list.push(worry("warn", "The last backup is old", ["It was made ", when(last.created_at), "."]));
  }
  const failing = await Promise.all((hooks?.items ?? []).map(async hook => {
    const p = await get(at`/api/v1/webhooks/${hook.id}/deliveries?failed=true&limit=50`, ctx.signal);
    return { hook, amount: p.items.length, more: Boolean(p.next) };
  }));
  for (const { hook, amount, more } of failing) {
    if (amount > 0) list.push(worry("bad", `${amount}${more ? "+" : ""} deliveries to a webhook failed`, hook.url, ctx.link("webhooks")));
    else if (hook.paused) list.push(worry("info", "A webhook is paused", hook.url, ctx.link("webhooks")));
  }
  return list;
}
