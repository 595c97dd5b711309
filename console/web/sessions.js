// The sessions that are open on the CoAP gateway, as they are now.
import { h, set } from "./dom.js";
import { at, query, remove } from "./api.js";
import { anchor, button, empty, pager, sure, table, toast } from "./ui.js";
import { bytes, kind, short, when } from "./format.js";

export async function sessions(ctx) {
  const fetchPage = () => ctx.get(query("/api/v1/sessions", { limit: 100, cursor: ctx.query.cursor, device: ctx.query.device }));
  let page = await fetchPage();
  const rows = h("div", {}, show());
  function show() {
    return [table("Live sessions", [
      { head: "Device", class: "main", cell: s => (s.device ? h("a", { href: ctx.link(at`devices/${s.device}`) }, s.name || short(s.device)) : h("span", { class: "dim" }, "nobody known")) },
      { head: "Transport", cell: s => [s.transport, s.connection_id && h("span", { class: "chip", title: "Survives changes of address: connection id " + s.connection_id }, "CID")] },
      { head: "From", cell: s => h("code", {}, s.remote) },
      { head: "By", cell: s => (s.credential ? [kind(s.credential.kind), s.signed_in && " (signed in)"] : "–") },
      { head: "Since", class: "tight", cell: s => when(s.since) },
      { head: "Heard", class: "tight", cell: s => when(s.last_seen) },
      { head: "In / out", class: "tight num", cell: s => bytes(s.bytes_received) + " / " + bytes(s.bytes_sent) },
      ctx.can("sessions:write") && { head: "", class: "do", cell: s => button("Close", () => close(s), { kind: "small danger-quiet" }) },
    ], page.items, empty("No session is open", "Devices that come in over CoAP, by DTLS or TLS, appear here while they are connected.", ctx.query.device && anchor("All sessions", ctx.link("sessions")))), pager(ctx, page.next)];
  }
  async function refresh() {
    page = await fetchPage();
    if (!rows.contains(document.activeElement)) set(rows, show());
  }
  async function close(s) {
    if (!await sure({ title: `Close the session of ${s.name || short(s.device || s.id)}?`, verb: "Close it", text: ["The device may open another one. To keep it out, suspend it or revoke its credential."] })) return;
    await remove(at`/api/v1/sessions/${s.id}`);
    toast("The session is closed.");
    page = await fetchPage();
    set(rows, show());
  }
  ctx.every(4000, refresh);
  return h("div", { class: "view" }, h("div", { class: "title" }, h("h1", {}, "Live sessions"), h("p", { class: "live" }, h("span", { class: "pulse", "aria-hidden": "true" }), "as it is now")), rows);
}
