// Who is told of what happens, and what could not be delivered.
import { h } from "./dom.js";
import { at, command, pages } from "./api.js";
import { badge, button, card, empty, table, toast } from "./ui.js";
import { on, when } from "./format.js";

export async function webhooks(ctx) {
  const { items } = await pages("/api/v1/webhooks", {}, 100, ctx.signal);
  const lists = await Promise.all(items.map(hook => Promise.all([
    ctx.get(at`/api/v1/webhooks/${hook.id}/deliveries?limit=20`), ctx.get(at`/api/v1/webhooks/${hook.id}/deliveries?limit=50&failed=true`),
  ])));
  return h("div", { class: "view" }, h("h1", {}, "Webhooks"),
    items.length === 0 && empty("Nobody is told", "keystead webhook create has changes of devices posted to a URL, signed, in order and at least once."),
    items.map((hook, i) => one(ctx, hook, ...lists[i])));
}

function one(ctx, hook, waiting, failed) {
  return card(hook.url, { action: button(hook.paused ? "Resume" : "Pause", async () => {
    await command(at`/api/v1/webhooks/${hook.id}/` + (hook.paused ? "resume" : "pause"));
    await ctx.again();
  }) },
  h("p", {}, hook.paused ? badge("paused") : badge("active"), " ", badge(hook.format, "info"), " ", hook.types.length > 0 ? hook.types.join(", ") : "every event", h("span", { class: "dim" }, " since ", on(hook.created_at))),
  table("Failed deliveries", [
    { head: "Failed", class: "main", cell: d => h("code", { class: "action" }, d.type) },
    { head: "Subject", class: "clip", cell: d => d.subject },
    { head: "What came back", class: "clip wrap", cell: d => [d.last_status ? d.last_status + " " : "", d.last_error] },
    { head: "When", class: "tight", cell: d => when(d.time) },
    { head: "", class: "do", cell: d => button("Send again", async () => { await command(at`/api/v1/webhooks/${hook.id}/deliveries/${d.id}/resend`); toast("It is tried again."); await ctx.again(); }, { kind: "small" }) },
  ], failed.items),
  table("Deliveries that wait", [
    { head: "Waiting", class: "main", cell: d => h("code", { class: "action" }, d.type) },
    { head: "Tries", class: "tight num", cell: d => d.tries },
    { head: "Last answer", class: "clip wrap", cell: d => [d.last_status ? d.last_status + " " : "", d.last_error || ""] },
    { head: "Next try", class: "tight", cell: d => when(d.next_at) },
  ], waiting.items),
  waiting.items.length + failed.items.length === 0 && h("p", { class: "calm" }, "Everything has been delivered."));
}
