// How devices get in: enrolment profiles, tokens, and the first device.
import { h, icon } from "./dom.js";
import { at, pages, post, query, remove } from "./api.js";
import { badge, button, card, choice, commands, copyable, dialog, empty, facts, field, pager, sure, table, toast } from "./ui.js";
import { on, short, when } from "./format.js";

// modes lists how clients prove that they may do what the settings are for.
export function modes(settings) {
  const est = settings?.est_rfc7030_settings;
  return est ? [est.auth_mode, ...(est.additional_auth_modes || [])].filter(Boolean) : [];
}

const words = {
  CLIENT_CERTIFICATE: "client certificate", NO_AUTH: "no authentication", EXTERNAL_WEBHOOK: "webhook", CLIENT_CERTIFICATE_AND_EXTERNAL_WEBHOOK: "certificate and webhook",
  ENROLMENT_TOKEN: "enrolment token", JWT: "bearer token", PSK: "pre-shared key",
};

function modeChips(list) {
  if (list.length === 0) return h("span", { class: "dim" }, "as the server's default");
  return h("span", { class: "chips" }, list.map(m => h("span", { class: "chip" + (m === "NO_AUTH" ? " bad" : "") }, words[m] || m)));
}

export async function enrolment(ctx) {
  const [profiles, authorities, tokens] = await Promise.all([
    pages("/api/v1/dms", {}, 500, ctx.signal),
    pages("/api/v1/cas", {}, 500, ctx.signal),
    ctx.can("credentials:read") ? ctx.get(query("/api/v1/enrolment-tokens", { limit: 50, cursor: ctx.query.cursor })) : null,
  ]);
  const ca = id => authorities.items.find(a => a.id === id)?.name || id;
  return h("div", { class: "view" }, h("h1", {}, "Enrolment"),
    card("Enrolment profiles", { action: h("span", { class: "dim" }, "changed with keystead dms") },
      profiles.items.length === 0
        ? empty("There is no profile", "keystead dms create makes one. Without one nobody enrols over EST.")
        : h("div", { class: "profiles" }, profiles.items.map(p => profile(p, ca)))),
    tokens && card("Enrolment tokens", { action: ctx.can("credentials:write") && button("New token", () => create(ctx, profiles.items), { icon: "plus", kind: "primary" }) },
      table("Enrolment tokens", [
        { head: "Token", class: "main", cell: t => [h("code", {}, short(t.id)), t.comment && h("span", { class: "sub" }, t.comment)] },
        { head: "State", cell: t => badge(t.state, t.state === "active" ? "good" : t.state === "revoked" ? "bad" : "quiet") },
        { head: "Profile", cell: t => t.dms },
        { head: "Only for", class: "clip", cell: t => (t.device ? h("a", { href: ctx.link(at`devices/${t.device}`) }, short(t.device)) : t.common_name || h("span", { class: "dim" }, "anybody who has it")) },
        { head: "Used", class: "tight", cell: t => t.uses + " of " + (t.max_uses || "any number") },
        { head: "Expires", class: "tight", cell: t => when(t.expires_at) },
        ctx.can("credentials:write") && { head: "", class: "do", cell: t => t.state === "active" && button("Revoke", async () => {
          if (!await sure({ title: "Revoke this token?", verb: "Revoke", text: ["Nobody enrols with it any more. What was enrolled with it stays."] })) return;
          await remove(at`/api/v1/enrolment-tokens/${t.id}`);
          toast("The token is revoked.");
          await ctx.again();
        }, { kind: "small danger-quiet" }) },
      ], tokens.items, empty("There is no token", "A token lets one device, or as many as you say, enrol for a while.")),
      pager(ctx, tokens.next)),
    await firstDevice(ctx));
}

function profile(p, ca) {
  const enrol = modes(p.settings.enrollment_settings);
  const renew = modes(p.settings.reenrollment_settings);
  const open = enrol.includes("NO_AUTH");
  const e = p.settings.enrollment_settings || {};
  return h("article", { class: "profile" + (open ? " open" : "") },
    h("h3", {}, p.name, " ", h("code", {}, p.id)),
    open && h("p", { class: "hint bad" }, icon("stop"), "Enrols whoever asks. Close it as soon as the devices are in."),
    facts([
      ["enrol with", modeChips(enrol)],
      ["renew with", modeChips(renew)],
      e.enrollment_ca && ["issued by", ca(e.enrollment_ca)],
      ["unknown devices", e.registration_mode === "PRE_REGISTRATION" ? "refused: only those added before" : "added when they enrol"],
      e.manual_approval && ["approval", "each by hand"],
      p.settings.server_keygen_settings?.enabled && ["keys", "made by the server on request"],
      ["EST", copyable(location.origin + "/.well-known/est/" + encodeURIComponent(p.id))],
      ["since", on(p.creation_ts)],
    ]));
}

async function create(ctx, profiles) {
  const error = h("p", { class: "outcome", role: "alert" });
  const form = {
    dms: choice("dms", "default", profiles.map(p => [p.id, p.name === p.id ? p.id : `${p.name} (${p.id})`])),
    device: h("input", { type: "text", name: "device", spellcheck: "false", autocomplete: "off" }),
    common_name: h("input", { type: "text", name: "common_name", spellcheck: "false", autocomplete: "off" }),
    max_uses: h("input", { type: "number", name: "max_uses", min: 0, value: "1", required: true }),
    expires_in: choice("expires_in", "1d", [["1h", "1 hour"], ["1d", "1 day"], ["7d", "7 days"], ["30d", "30 days"]]),
    comment: h("input", { type: "text", name: "comment", autocomplete: "off" }),
  };
  let made = null;
  await dialog("New enrolment token", [
    field("Enrolment profile", form.dms),
    field("Device", form.device, "The only one it enrols, by id or alias. Leave empty for any."),
    field("Common name", form.common_name, "The only name it enrols; a * at its end stands for anything."),
    field("Uses", form.max_uses, "0 is as often as one likes."),
    field("Good for", form.expires_in),
    field("Comment", form.comment),
    error,
  ], close => [button("Cancel", () => close("")), button("Make it", async () => {
    const body = { dms: form.dms.value, max_uses: Number(form.max_uses.value), expires_in: form.expires_in.value };
    for (const name of ["device", "common_name", "comment"]) if (form[name].value.trim()) body[name] = form[name].value.trim();
    try {
      made = await post("/api/v1/enrolment-tokens", body);
    } catch (e) {
      error.textContent = [e.message, ...(e.fields || []).map(f => f.field + ": " + f.message)].join(" · ");
      return;
    }
    close("made");
  }, { kind: "primary", type: "submit" })]);
  if (!made) return;
  await shown("The new enrolment token", made.token, "It is shown this once: nobody can look it up later. Keep it where the device finds it.", commands("Enrol with it", enrolCommands(made.token, made.device || "my-device")));
  await ctx.again();
}

// shown shows a secret, once.
export function shown(title, secret, text, more) {
  return dialog(title, [h("p", {}, text), h("p", { class: "secret" }, copyable(secret)), more], close => [button("I have it", () => close("done"), { kind: "primary" })]);
}

const enrolCommands = (token, name) => `openssl ecparam -name prime256v1 -genkey -noout -out device.key
openssl req -new -key device.key -subj "/CN=${name.replace(/[^\w.-]/g, "")}" -outform DER | openssl base64 -A |
  curl -sS --cacert data/ca.pem -u "enrol:${token}" -H 'Content-Type: application/pkcs10' \\
    --data-binary @- ${location.origin}/.well-known/est/simpleenroll |
  openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs -out device.crt`;

// firstDevice says how the first device gets in, as commands to copy.
export async function firstDevice(ctx) {
  if (!ctx.can("credentials:write")) return null;
  let coap = "coaps://" + location.hostname + ":5684/";
  if (ctx.can("bootstrap:read")) {
    try { coap = (await ctx.get("/configuration/bootstrap")).Url; } catch (e) { if (e.name === "AbortError") throw e; }
  }
  return card("The first device, in one minute", { class: "first" },
    h("p", {}, "On the machine of the server, in the directory it was started in. With a pre-shared key, over CoAP and DTLS:"),
    commands("A pre-shared key", `export PATH="$PWD/bin:$PATH"
keystead psk create --text -o csv | tee device.csv
IFS=, read -r identity _ secret device < <(tail -n 1 device.csv)

coap-client-openssl -A 50 -w -u "$identity" -k "$secret" ${coap}whoami`),
    h("p", {}, "The same device with a certificate, over EST:"),
    commands("A certificate", `token=$(keystead enrolment-token create --device "$device" -o json | jq -r .token)

${enrolCommands("$token", "$device").replace("CN=device", "CN=$device")}

curl -sS --cacert data/ca.pem --cert device.crt --key device.key ${location.origin}/api/v1/whoami`));
}
