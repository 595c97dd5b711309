// The console: who is signed in, where one is, and the frame around what is shown.
import { h, icon, set } from "./dom.js";
import { actIn, get, hooks, query, remove } from "./api.js";
import { button, choice, empty, failure, toast } from "./ui.js";
import { signIn } from "./signin.js";
import { overview } from "./overview.js";
import { device, devices } from "./devices.js";
import { pending } from "./pending.js";
import { enrolment } from "./enrolment.js";
import { certificate, certificates } from "./certificates.js";
import { authorities } from "./authorities.js";
import { sessions } from "./sessions.js";
import { bootstraps } from "./bootstraps.js";
import { audit } from "./audit.js";
import { people } from "./people.js";
import { webhooks } from "./webhooks.js";

// Every view: its path, what it needs, what the navigation says of it.
const views = [
  { path: "", show: overview, need: "devices:read", name: "Overview", icon: "home" },
  { path: "devices", show: devices, need: "devices:read", name: "Devices", icon: "chip" },
  { path: "devices/:id", show: device, need: "devices:read", in: "devices" },
  { path: "pending", show: pending, need: "devices:read", name: "Pending", icon: "clock" },
  { path: "enrolment", show: enrolment, need: "pki:read", name: "Enrolment", icon: "ticket" },
  { path: "certificates", show: certificates, need: "pki:read", name: "Certificates", icon: "badge" },
  { path: "certificates/:serial", show: certificate, need: "pki:read", in: "certificates" },
  { path: "cas", show: authorities, need: "pki:read", name: "CAs", icon: "tree" },
  { path: "sessions", show: sessions, need: "sessions:read", name: "Live sessions", icon: "link" },
  { path: "bootstraps", show: bootstraps, need: "bootstrap:read", name: "LwM2M bootstraps", icon: "radio" },
  { path: "audit", show: audit, need: "audit:read", name: "Audit", icon: "list" },
  { path: "people", show: people, need: "account:read", name: "People and keys", icon: "people" },
  { path: "webhooks", show: webhooks, need: "org:admin", name: "Webhooks", icon: "hook" },
];

const root = document.getElementById("app");
let home = null; // who is signed in, in the own organisation
let frame = null; // what is around the views
let current = null; // ends what the view before has under way

// where reads the address: #/devices?state=active.
function where() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.replace(/\/$/, ""), query: Object.fromEntries(new URLSearchParams(search)) };
}

function find(path) {
  const have = path.split("/");
  for (const view of views) {
    const parts = view.path.split("/");
    if (parts.length !== have.length) continue;
    const params = {};
    const fits = parts.every((part, i) => {
      if (!part.startsWith(":")) return part === have[i];
      try { params[part.slice(1)] = decodeURIComponent(have[i]); } catch { return false; }
      return have[i] !== "";
    });
    if (fits) return { view, params };
  }
  return null;
}

// link is the address of a view, in the organisation that is looked at.
function link(org, path, params = {}) {
  return query("#/" + path, { ...params, org: org === home.organisation ? "" : org });
}

async function start() {
  try {
    home = await get("/api/v1/session");
  } catch (e) {
    set(root, h("main", { class: "alone" }, failure(e, start)));
    return;
  }
  if (home) enter(home);
  else leave();
}

// enter shows the console to somebody who has signed in.
function enter(who) {
  home = who;
  frame = null;
  show();
}

// leave shows the way in, and forgets who was there.
function leave(note) {
  current?.abort();
  home = null;
  frame = null;
  actIn("");
  document.title = "Sign in · Keystead";
  set(root, signIn(enter, note));
}

hooks.signedOut = () => { if (home) leave("Your session has ended. Sign in again to go on."); };

async function signOut() {
  await remove("/api/v1/session");
  location.hash = "#/";
  leave("You are signed out.");
}

// show is called for each address.
async function show() {
  if (!home) return;
  current?.abort();
  const here = current = new AbortController();
  const { path, query: params } = where();
  const org = params.org || home.organisation || "";
  try {
    if (!frame || frame.org !== org) await surround(org, here.signal);
  } catch (e) {
    if (here.signal.aborted || !home) return;
    set(root, h("main", { class: "alone" }, failure(e, show), button("Back to your own organisation", () => { location.hash = "#/"; }), button("Sign out", signOut)));
    frame = null;
    return;
  }
  if (here.signal.aborted) return;
  const found = find(path);
  frame.mark(found && (found.view.in ?? found.view.path));
  const ctx = context(path, params, found ? found.params : {}, here.signal);
  const waiting = setTimeout(() => set(frame.main, h("div", { class: "loading", role: "status" }, h("span", { class: "aside" }, "Loading"))), 150);
  let node;
  try {
    if (!found) node = empty("There is no such page", "The address may have been cut off.", h("a", { class: "button", href: ctx.link("") }, "Overview"));
    else if (!ctx.can(found.view.need)) node = empty("You may not look at this", `It needs the permission ${found.view.need}, which your role, ${frame.me.role || "none"}, does not have here.`);
    else node = await found.view.show(ctx);
  } catch (e) {
    if (here.signal.aborted) return;
    node = failure(e, show);
  }
  clearTimeout(waiting);
  if (here.signal.aborted) return;
  set(frame.main, node);
  const title = frame.main.querySelector("h1");
  document.title = (title ? title.textContent + " · " : "") + "Keystead";
  if (!ctx.stay) {
    scrollTo(0, 0);
    title?.setAttribute("tabindex", "-1");
    title?.focus({ preventScroll: true });
  }
  stay = false;
}

let stay = false; // the view is shown again: what is on the screen stays where it is

function context(path, params, names, signal) {
  const ctx = {
    path, params: names, query: params, signal, me: frame.me, home, org: frame.org, stay,
    can: need => frame.me.permissions?.includes(need) ?? false,
    link: (to, more) => { const { org: _, ...rest } = more || {}; return link(frame.org, to, rest); },
    go: (to, more) => { location.hash = ctx.link(to, more); },
    again: () => { stay = true; return show(); },
    get: to => get(to, signal),
    // every does something again and again, as long as the view is there and looked at.
    every: (ms, work) => {
      const timer = setInterval(async () => {
        if (document.hidden) return;
        try { await work(); } catch (e) { if (!signal.aborted && e.name !== "AbortError") { clearInterval(timer); toast(e); } }
      }, ms);
      signal.addEventListener("abort", () => clearInterval(timer));
    },
  };
  return ctx;
}

// surround makes the frame for an organisation.
async function surround(org, signal) {
  actIn(org === home.organisation ? "" : org);
  const me = org === home.organisation ? home : await get("/api/v1/whoami", signal);
  const orgs = (await get("/orgs?limit=200&order=name&dir=asc", signal)).orgs;
  const here = orgs.find(o => o.id === org);
  const may = need => me.permissions?.includes(need) ?? false;
  const items = views.filter(v => v.name && may(v.need));
  const links = new Map(items.map(v => [v.path, h("a", { href: link(org, v.path) }, icon(v.icon), h("span", {}, v.name))]));
  const main = h("main", { id: "main", tabindex: "-1" });
  const nav = h("nav", { "aria-label": "Console", id: "nav" }, h("ul", {}, [...links.values()].map(a => h("li", {}, a))));
  const toggle = h("button", { type: "button", class: "ghost toggle", "aria-controls": "nav", "aria-expanded": "false", "aria-label": "Menu", onclick: () => open(!nav.classList.contains("open")) }, icon("menu"));
  const open = yes => { nav.classList.toggle("open", yes); toggle.setAttribute("aria-expanded", String(yes)); };
  nav.addEventListener("click", () => open(false));
  const picker = orgs.length > 1
    ? h("label", { class: "org" }, h("span", { class: "aside" }, "Organisation"), choice("org", org, orgs.map(o => [o.id, o.name || o.id]), id => { location.hash = link(id, where().path.split("/")[0]); }))
    : h("span", { class: "org" }, here ? here.name || "" : "");
  const roleWord = me.role === "platform" ? "platform administrator" : me.role || "no role here";
  const who = h("details", { class: "who" },
    h("summary", {}, h("span", { class: "avatar", "aria-hidden": "true" }, (me.name || "?").slice(0, 1).toUpperCase()), h("span", { class: "name" }, me.name)),
    h("div", { class: "menu" },
      h("p", {}, h("strong", {}, me.name), h("br"), h("span", { class: "dim" }, roleWord)),
      h("p", { class: "dim" }, me.credential.kind === "api_key" ? "Signed in with an API key" : "Signed in with an account"),
      button("Sign out", signOut, { icon: "out" })));
  document.addEventListener("click", e => { if (!who.contains(e.target)) who.open = false; });
  set(root,
    h("a", { class: "skip", href: "#main", onclick: e => { e.preventDefault(); main.focus(); } }, "Skip to content"),
    h("header", { class: "top" }, toggle, h("a", { class: "brand", href: link(org, "") }, h("span", { class: "logo", "aria-hidden": "true" }, icon("mark")), h("span", {}, "Keystead")), picker, who),
    h("div", { class: "body" }, nav, main));
  frame = {
    org, me, main,
    mark: path => links.forEach((a, p) => (p === path ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current"))),
  };
}

// Keys: / is for the search field, g and a letter goes somewhere, Escape closes the menu.
const jumps = { o: "", d: "devices", p: "pending", e: "enrolment", c: "certificates", a: "cas", s: "sessions", b: "bootstraps", t: "audit", u: "people", w: "webhooks" };
let going = false;
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !frame) return;
  if (event.target.closest("input, textarea, select, dialog")) return;
  if (event.key === "/") {
    const search = frame.main.querySelector("input[type=search]");
    if (search) { event.preventDefault(); search.focus(); }
  } else if (event.key === "g") {
    going = true;
    setTimeout(() => { going = false; }, 1000);
  } else if (going && event.key in jumps) {
    going = false;
    location.hash = link(frame.org, jumps[event.key]);
  }
});

addEventListener("hashchange", show);
start();
