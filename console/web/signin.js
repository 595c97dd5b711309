// The way in: with an account, a passkey, or an API key. What is typed goes to the server once
// and comes back as a cookie that no script can read.
import { h, icon, set } from "./dom.js";
import { post } from "./api.js";
import { answer, known, question } from "./passkey.js";
import { button, field } from "./ui.js";

// Each way to sign in: its name, its fields, what is sent, and, where an account turns out to
// have a second factor, the field for its code, and whether a passkey may be that factor. All
// of them end in POST /api/v1/session.
const ways = [
  {
    id: "account", name: "Account",
    fields: () => [
      field("E-mail address", h("input", { type: "email", name: "email", autocomplete: "username", required: true, spellcheck: "false" })),
      field("Password", h("input", { type: "password", name: "password", autocomplete: "current-password", required: true })),
    ],
    more: () => field("Code", h("input", { type: "text", name: "code", autocomplete: "one-time-code", inputmode: "numeric", required: true, spellcheck: "false" }), "From your authenticator app, or one of your recovery codes."),
    ask: form => question({ email: form.get("email"), password: form.get("password") }),
    send: form => post("/api/v1/session", Object.fromEntries(["email", "password", "code"].filter(n => form.get(n)).map(n => [n, form.get(n)]))),
  },
  known() && {
    id: "passkey", name: "Passkey",
    fields: () => h("p", { class: "dim" }, "The one you have added to your account, on this device or on another: no address, and no password."),
    send: async () => post("/api/v1/session", await answer(await question())),
  },
  {
    id: "key", name: "API key",
    fields: () => [
      field("API key", h("input", { type: "password", name: "api_key", autocomplete: "off", required: true, spellcheck: "false", placeholder: "keystead_api_…" }), [
        "The first administrator's is ", h("code", {}, "api_key"), " in ", h("code", {}, "admin.json"), ", in the server's data directory."]),
    ],
    send: form => post("/api/v1/session", { api_key: form.get("api_key").trim() }),
  },
].filter(Boolean);

export function signIn(enter, note) {
  const outcome = h("p", { class: "outcome", role: "alert" }, note && h("span", { class: "note" }, note));
  const tabs = ways.map(way => h("button", { type: "button", role: "tab", id: "tab-" + way.id, "aria-controls": "way", onclick: () => pick(way) }, way.name));
  const form = h("form", { id: "way", role: "tabpanel" });
  let way;

  function pick(next) {
    way = next;
    ways.forEach((w, i) => {
      tabs[i].setAttribute("aria-selected", String(w === way));
      tabs[i].tabIndex = w === way ? 0 : -1;
    });
    form.setAttribute("aria-labelledby", "tab-" + way.id);
    set(form, way.fields(), button("Sign in", null, { kind: "primary", type: "submit" }));
    form.querySelector("input, button").focus();
  }

  // confirm asks for the second factor, once the password is right.
  async function confirm() {
    const ask = () => way.ask(new FormData(form));
    const byPasskey = known() && (await ask()).options !== null;
    const code = way.more();
    form.querySelector("button[type=submit]").before(...byPasskey ? [button("Use your passkey", () => attempt(async () =>
      post("/api/v1/session", { second_factor: true, ...await answer(await ask()) })), { kind: "primary" })] : [], code);
    (byPasskey ? code.previousElementSibling : code.querySelector("input")).focus();
    set(outcome, h("span", { class: "note" }, "The password is right. Your account has a second factor."));
  }

  async function attempt(send) {
    set(outcome);
    try {
      enter(await send());
    } catch (e) {
      if (e.code === "second_factor" && way.more && !form.querySelector("[name=code]")) return confirm().catch(refuse);
      refuse(e);
    }
  }

  function refuse(e) {
    set(outcome, icon("stop"), h("span", {}, e.message.charAt(0).toUpperCase() + e.message.slice(1) + "."), e.requestID && h("small", {}, "Request ", h("code", {}, e.requestID)));
    form.querySelector("input[type=password]")?.select();
  }

  const strip = h("div", { class: "tabs", role: "tablist", "aria-label": "How to sign in", onkeydown: e => {
    if (e.key !== "ArrowRight" && e.key !== "ArrowLeft") return;
    pick(ways[(ways.indexOf(way) + (e.key === "ArrowRight" ? 1 : ways.length - 1)) % ways.length]);
    tabs[ways.indexOf(way)].focus();
  } }, tabs);

  form.addEventListener("submit", async event => {
    event.preventDefault();
    const press = form.querySelector("button[type=submit]");
    press.disabled = true;
    await attempt(() => way.send(new FormData(form)));
    press.disabled = false;
  });

  queueMicrotask(() => pick(ways[0]));
  return h("main", { class: "signin" }, h("div", { class: "box" },
    h("div", { class: "brand" }, h("span", { class: "logo", "aria-hidden": "true" }, icon("mark")), h("h1", {}, "Keystead")),
    h("p", { class: "dim" }, "One identity for every device."),
    strip, form, outcome));
}
