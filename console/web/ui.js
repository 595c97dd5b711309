// The parts that views are made of.
import { h, icon, set } from "./dom.js";
import { blob, Problem } from "./api.js";
import { short } from "./format.js";

const tones = {
  active: "good", accepted: "good", approved: "good", enabled: "good", sound: "good", used_up: "quiet",
  suspended: "warn", pending: "warn", hold: "warn", retiring: "warn", waiting: "warn", paused: "warn", preauthorized: "info", renewal_pending: "info", expiring_soon: "warn", unverified: "warn",
  decommissioned: "quiet", revoked: "bad", expired: "bad", rejected: "bad", denied: "bad", disabled: "bad", noauth: "quiet", failed: "bad",
};

export function badge(word, tone = tones[word] || "quiet") {
  return h("span", { class: "badge " + tone }, String(word).replaceAll("_", " "));
}

export function card(title, { action, class: more } = {}, ...children) {
  return h("section", { class: "card" + (more ? " " + more : ""), "aria-label": title },
    h("header", {}, h("h2", {}, title), action && h("div", { class: "actions" }, action)), children);
}

// table shows rows. A column has a head and a cell; on narrow screens each row is a card,
// and the heads stand beside what they are about.
export function table(caption, columns, rows, nothing) {
  if (rows.length === 0) return nothing;
  columns = columns.filter(Boolean);
  return h("div", { class: "tablewrap" }, h("table", {},
    h("caption", { class: "aside" }, caption),
    h("thead", {}, h("tr", {}, columns.map(c => h("th", { scope: "col", class: c.class }, c.head)))),
    h("tbody", {}, rows.map(row => h("tr", {}, columns.map((c, i) =>
      h(i === 0 ? "th" : "td", { class: c.class, scope: i === 0 ? "row" : undefined, dataset: { label: c.head } }, h("div", { class: "cell" }, c.cell(row)))))))));
}

// empty says that there is nothing, and what to do about it.
export function empty(title, text, ...actions) {
  return h("div", { class: "empty" }, h("p", { class: "title" }, title), text && h("p", {}, text), actions.length > 0 && h("div", { class: "actions" }, actions));
}

export function failure(error, again) {
  const fields = error.fields || [];
  return h("div", { class: "failure", role: "alert" }, icon("stop"),
    h("div", {},
      h("p", { class: "title" }, headline(error)),
      h("p", {}, sentence(error.message)),
      fields.length > 0 && h("ul", {}, fields.map(f => h("li", {}, h("code", {}, f.field), " ", f.message))),
      error.requestID && h("p", { class: "dim" }, "Request ", h("code", {}, error.requestID)),
      again && button("Try again", again, { icon: "refresh" })));
}

function headline(error) {
  if (!(error instanceof Problem)) return "That did not work";
  return { 403: "You may not do this", 404: "There is no such thing here", 409: "Something is in the way", 429: "Too many requests", 500: "The server has a fault", 503: "Not available now", 507: "The server's disk is full" }[error.status] || "That did not work";
}

const sentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

// button does something; while it does, it cannot be pressed again. What goes wrong is told.
export function button(label, act, { icon: shape, kind = "", title, type = "button" } = {}) {
  const el = h("button", { type, class: kind, title, onclick: async event => {
    if (!act || el.getAttribute("aria-disabled") === "true") return;
    el.setAttribute("aria-disabled", "true");
    try { await act(event); } catch (e) { if (e.name !== "AbortError") toast(e); }
    el.removeAttribute("aria-disabled");
  } }, shape && icon(shape), h("span", {}, label));
  return el;
}

export function anchor(label, href, { icon: shape, class: kind = "button" } = {}) {
  return h("a", { href, class: kind }, shape && icon(shape), h("span", {}, label));
}

// copyable is text that is worth having: an id, a key, a command.
export function copyable(text, shown = text) {
  const el = h("button", { type: "button", class: "copy", title: "Copy " + text, "aria-label": "Copy " + text, onclick: async () => {
    try { await navigator.clipboard.writeText(text); said(); } catch { select(el); }
  } }, h("code", {}, shown), icon("copy"));
  const said = () => {
    el.classList.add("copied");
    set(el, h("code", {}, shown), icon("check"));
    setTimeout(() => { el.classList.remove("copied"); set(el, h("code", {}, shown), icon("copy")); }, 1500);
  };
  return el;
}

export const idOf = id => copyable(id, short(id));

function select(el) {
  const range = document.createRange();
  range.selectNodeContents(el);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

// commands are lines to run in a terminal.
export function commands(title, text) {
  const pre = h("pre", { tabindex: "0", "aria-label": title }, text);
  const say = h("span", {}, "Copy");
  const copy = h("button", { type: "button", class: "small", "aria-label": "Copy: " + title, onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      say.textContent = "Copied";
      setTimeout(() => { say.textContent = "Copy"; }, 1500);
    } catch { select(pre); }
  } }, icon("copy"), say);
  return h("figure", { class: "commands" }, h("figcaption", {}, title, copy), pre);
}

// toast tells what came of something.
export function toast(what, tone = "good") {
  const error = what instanceof Error;
  const el = h("div", { class: "toast " + (error ? "bad" : tone), role: error ? "alert" : undefined }, icon(error ? "stop" : "check"),
    h("div", {}, h("p", {}, error ? sentence(what.message) : what),
      error && (what.fields || []).map(f => h("p", {}, h("code", {}, f.field), " ", f.message)),
      error && what.requestID && h("p", { class: "dim" }, "Request ", h("code", {}, what.requestID))),
    h("button", { type: "button", class: "ghost", "aria-label": "Dismiss", onclick: () => el.remove() }, "×"));
  document.getElementById("toasts").append(el);
  setTimeout(() => el.remove(), error ? 12000 : 4000);
}

// dialog shows content over everything and returns what it is closed with, "" for nothing.
export function dialog(title, content, actions) {
  return new Promise(resolve => {
    const el = h("dialog", { "aria-label": title }, h("form", { method: "dialog", onsubmit: e => e.preventDefault() },
      h("h2", {}, title), content, h("div", { class: "actions" }, actions(value => el.close(value || "")))));
    el.addEventListener("close", () => { el.remove(); resolve(el.returnValue); });
    el.addEventListener("click", e => { if (e.target === el) el.close(""); });
    document.body.append(el);
    el.showModal();
  });
}

// sure asks whether something is meant; word has to be typed where it cannot be undone.
export async function sure({ title, text, verb, word, danger = true }) {
  const typed = word && h("input", { type: "text", autocomplete: "off", spellcheck: "false", "aria-label": "Type " + word });
  const answer = await dialog(title, [
    text.map(t => h("p", {}, t)),
    word && h("label", {}, "Type ", h("code", {}, word), " to confirm", typed),
  ], close => {
    const yes = button(verb, () => close("yes"), { kind: danger ? "danger" : "primary", type: "submit" });
    if (word) {
      yes.disabled = true;
      typed.addEventListener("input", () => { yes.disabled = typed.value !== word; });
    }
    return [button("Cancel", () => close("")), yes];
  });
  return answer === "yes";
}

export function field(label, input, hint) {
  return h("label", { class: "field" }, h("span", {}, label), input, hint && h("small", {}, hint));
}

export function choice(name, value, options, onchange) {
  return h("select", { name, onchange: onchange && (e => onchange(e.target.value)) },
    options.map(([v, text]) => h("option", { value: v, selected: v === value }, text)));
}

// save keeps an answer of the server as a file.
export async function save(path, name) {
  keep(await blob(path), name);
}

export function keep(data, name) {
  const url = URL.createObjectURL(data);
  const a = h("a", { href: url, download: name.replace(/[^\w.@+-]+/g, "_") });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// facts is a list of names and values.
export function facts(list) {
  return h("dl", { class: "facts" }, list.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

// pager leads to the next page of a list, and back to the first.
export function pager(ctx, next) {
  if (!next && !ctx.query.cursor) return null;
  return h("nav", { class: "pager", "aria-label": "Pages" },
    ctx.query.cursor ? anchor("First page", ctx.link(ctx.path, { ...ctx.query, cursor: "" }), { icon: "first" }) : h("span"),
    next ? anchor("Next page", ctx.link(ctx.path, { ...ctx.query, cursor: next }), { icon: "next" }) : h("span", { class: "dim" }, "The end"));
}

// bars is a small chart: a name, a bar and an amount a line, each a link if it has one.
export function bars(title, list) {
  const most = Math.max(1, ...list.map(b => b.amount));
  return h("ul", { class: "bars", "aria-label": title }, list.map(b => {
    const bar = h("span", { class: "bar " + (b.tone || "") });
    bar.style.inlineSize = b.amount === 0 ? "0" : Math.max(1.5, 100 * b.amount / most) + "%";
    const inside = [h("span", { class: "name" }, b.name), h("span", { class: "track", "aria-hidden": "true" }, bar), h("span", { class: "amount" }, b.text || b.amount)];
    return h("li", {}, b.href ? h("a", { href: b.href }, inside) : h("div", {}, inside));
  }));
}
