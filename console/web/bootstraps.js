// LwM2M bootstraps: those that were, and what happens now.
import { h, set } from "./dom.js";
import { at, events, pages } from "./api.js";
import { badge, card, empty, table } from "./ui.js";
import { many, short, when } from "./format.js";

const tone = o => (o === "SUCCESS" || o === "DELIVERED" ? "good" : o === "" ? "info" : "bad");
const word = o => (o || "under way").toLowerCase();
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

export async function bootstraps(ctx) {
  const { items, more } = await pages("/api/v1/lwm2m/sessions", { device: ctx.query.device }, 2000, ctx.signal);
  const list = items.reverse();
  const rows = h("div", {}, show());
  const state = h("p", { class: "live" });
  const tail = h("ol", { class: "tail", "aria-label": "What happens now", tabindex: "0" }, h("li", { class: "dim" }, "Waiting for a device to bootstrap …"));

  function show() {
    return table("Bootstraps, the latest first", [
      { head: "Endpoint", class: "main", cell: b => h("a", { href: ctx.link(at`devices/${b.device}`) }, b.endpoint || short(b.device)) },
      { head: "Outcome", cell: b => [badge(word(b.outcome), tone(b.outcome)), b.detail && h("span", { class: "sub" }, b.detail)] },
      { head: "Sent to", class: "clip", cell: b => (b.servers || []).join(", ") || h("span", { class: "dim" }, "nowhere") },
      { head: "Steps", cell: b => steps(b) },
      { head: "From", cell: b => h("code", {}, b.remote) },
      { head: "Began", class: "tight", cell: b => when(b.started_at) },
    ], list.slice(0, 100), empty("No device has bootstrapped yet", "Give a device a pre-shared key and an LwM2M server (keystead lwm2m server add), and point its client at this gateway."));
  }

  function note(e) {
    const s = e.session;
    if (tail.firstChild?.classList.contains("dim")) tail.replaceChildren();
    const what = e.what === "step" && e.step
      ? [h("code", {}, `${e.step.method} ${e.step.path}`), " ", badge(e.step.error || e.step.code || "sent", e.step.error ? "bad" : "good"), h("span", { class: "dim" }, ` ${e.step.ms} ms`)]
      : e.what === "ended" ? [badge(word(s.outcome), tone(s.outcome)), s.detail && " " + s.detail] : ["began, from ", h("code", {}, s.remote)];
    tail.prepend(h("li", {}, h("time", {}, clock.format(new Date())), h("strong", {}, s.endpoint || short(s.device)), h("span", {}, what)));
    while (tail.children.length > 200) tail.lastChild.remove();
    if (e.what !== "ended") return;
    list.unshift(s);
    set(rows, show());
  }

  async function watch() {
    for (let wait = 1000; !ctx.signal.aborted; wait = Math.min(wait * 2, 30000)) {
      try {
        set(state, h("span", { class: "pulse", "aria-hidden": "true" }), "live");
        await events("/api/v1/lwm2m/sessions/live", ctx.signal, e => { wait = 1000; note(e); });
      } catch (e) {
        if (ctx.signal.aborted || e.status === 401 || e.status === 403) return;
      }
      set(state, "the connection was lost; trying again");
      await new Promise(done => setTimeout(done, wait));
    }
  }
  watch();

  return h("div", { class: "view" },
    h("div", { class: "title" }, h("h1", {}, "LwM2M bootstraps"), state),
    card("As it happens", {}, tail),
    card("Bootstraps", { action: h("span", { class: "dim" }, many(list.length, "record") + (more ? " and more; keystead lwm2m sessions lists all" : "")) }, rows));
}

function steps(b) {
  const all = b.steps || [];
  if (all.length === 0) return h("span", { class: "dim" }, "none");
  return h("details", {}, h("summary", {}, many(all.length, "step")), h("ol", { class: "steps" }, all.map(s =>
    h("li", {}, h("code", {}, `${s.method} ${s.path}`), " ", h("span", { class: s.error ? "loud" : "dim" }, s.error || s.code || "", ` ${s.ms} ms`)))));
}
