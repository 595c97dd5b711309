// The way in: with an account, or with an API key. What is typed goes to the server once and
// comes back as a cookie that no script can read.
import { h, icon, set } from "./dom.js";
import { post } from "./api.js";
import { button, field } from "./ui.js";

// Each way to sign in: its name, its fields, and what is sent. Another way, such as a passkey,
// is one more entry; all of them end in POST /api/v1/session.
const ways = [
  {
    id: "account", name: "Account",
    fields: () => [
      field("E-mail address", h("input", { type: "email", name: "email", autocomplete: "username", required: true, spellcheck: "false" })),
      field("Password", h("input", { type: "password", name: "password", autocomplete: "current-password", required: true })),
    ],
    more: () => field("Code", h("input", { type: "text", name: "code", autocomplete: "one-time-code", inputmode: "numeric", required: true, spellcheck: "false" }), "From your authenticator app, or one of your recovery codes."),
    send: form => post("/api/v1/session", Object.fromEntries(["email", "password", "code"].filter(n => form.get(n)).map(n => [n, form.get(n)]))),
  },
  {
    id: "key", name: "API key",
    fields: () => [
      field("API key", h("input", { type: "password", name: "api_key", autocomplete: "off", required: true, spellcheck: "false", placeholder: "keystead_api_…" }), [
        "The first administrator's is ", h("code", {}, "api_key"), " in ", h("code", {}, "admin.json"), ", in the server's data directory."]),
    ],
    send: form => post("/api/v1/session", { api_key: form.get("api_key").trim() }),
  },
];

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
    form.querySelector("input").focus();
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
    set(outcome);
    try {
      enter(await way.send(new FormData(form)));
    } catch (e) {
      if (e.code === "second_factor" && way.more && !form.querySelector("[name=code]")) {
        const more = way.more();
        press.before(more);
        more.querySelector("input").focus();
        set(outcome, h("span", { class: "note" }, "The password is right. Your account has a second factor."));
      } else {
        set(outcome, icon("stop"), h("span", {}, e.message.charAt(0).toUpperCase() + e.message.slice(1) + "."), e.requestID && h("small", {}, "Request ", h("code", {}, e.requestID)));
        form.querySelector("input[type=password]")?.select();
      }
    } finally {
      press.disabled = false;
    }
  });

  queueMicrotask(() => pick(ways[0]));
  return h("main", { class: "signin" }, h("div", { class: "box" },
    h("div", { class: "brand" }, h("span", { class: "logo", "aria-hidden": "true" }, icon("mark")), h("h1", {}, "Keystead")),
    h("p", { class: "dim" }, "One identity for every device."),
    strip, form, outcome));
}
