// The CAs of the organisation, each below the one that signed it.
import { h, icon } from "./dom.js";
import { at, pages } from "./api.js";
import { badge, button, copyable, empty, facts, keep, save } from "./ui.js";
import { daysLeft, many, on, when } from "./format.js";

export async function authorities(ctx) {
  const { items } = await pages("/api/v1/cas", {}, 500, ctx.signal);
  const known = new Set(items.map(c => c.id));
  const below = parent => items.filter(c => (known.has(c.parent) ? c.parent : "") === parent);
  const branch = parent => {
    const list = below(parent);
    return list.length > 0 && h("ul", { class: "tree" }, list.map(c => h("li", {}, one(ctx, c), branch(c.id))));
  };
  return h("div", { class: "view" }, h("h1", {}, "Certificate authorities"),
    items.length === 0 ? empty("There is no CA", "keystead ca create makes one, keystead ca import takes one in.") : branch(""));
}

function one(ctx, c) {
  const left = c.not_after ? daysLeft(c.not_after) : null;
  const loud = c.state === "active" && left !== null && left < 90;
  return h("article", { class: "ca" + (loud ? " ends" : "") },
    h("header", {}, h("h2", {}, c.name), badge(c.state), badge(c.kind, "info"), c.default && badge("default", "good"), c.imported && badge("imported"), !c.has_key && c.state !== "pending" && badge("key elsewhere")),
    loud && h("p", { class: "hint " + (left < 30 ? "bad" : "warn") }, icon("warn"), left < 0 ? "It has expired." : `It ends in ${many(Math.floor(left), "day")}. keystead ca roll-over replaces it while what it issued is still good.`),
    c.not_after && h("div", { class: "life" }, life(c), h("p", { class: "dim" }, on(c.not_before), " – ", on(c.not_after), " (", when(c.not_after), ")")),
    facts([["key", c.algorithm], ["id", copyable(c.id)], c.subject_key_id && ["key id", copyable(c.subject_key_id)], c.revoked_at && ["revoked", [when(c.revoked_at), c.reason && ", " + c.reason]]]),
    h("div", { class: "actions" },
      c.certificate && button("Certificate", () => keep(new Blob([c.certificate], { type: "application/x-pem-file" }), c.name + ".pem"), { icon: "down", kind: "small", title: "Download the certificate (PEM)" }),
      c.chain && button("Chain", () => keep(new Blob([c.certificate + c.chain], { type: "application/x-pem-file" }), c.name + "-chain.pem"), { icon: "down", kind: "small", title: "Download the certificate with those above it (PEM)" }),
      c.certificate && c.has_key && button("CRL", () => save(at`/api/v1/cas/${c.id}/crl`, c.name + ".crl"), { icon: "down", kind: "small", title: "Download the list of what it has revoked (DER)" }),
      c.request && button("Request", () => keep(new Blob([c.request], { type: "application/pkcs10" }), c.name + ".csr"), { icon: "down", kind: "small" }),
      c.certificate && h("a", { class: "button small ghost", href: ctx.link("certificates", { ca: c.id }) }, "What it issued")));
}

function life(c) {
  const from = new Date(c.not_before).getTime();
  const part = Math.min(1, Math.max(0, (Date.now() - from) / (new Date(c.not_after).getTime() - from)));
  const bar = h("span", { class: "bar " + (part > 0.9 ? "bad" : part > 0.75 ? "warn" : "good") });
  bar.style.inlineSize = 100 * part + "%";
  return h("div", { class: "track", role: "img", "aria-label": Math.round(100 * part) + "% of its life is over" }, bar);
}
