// Who may administer: members and invites of the organisation, API keys, users of the server.
import { h } from "./dom.js";
import { at, patch, post, remove } from "./api.js";
import { badge, button, card, choice, dialog, empty, field, sure, table, toast } from "./ui.js";
import { on, short, when } from "./format.js";
import { shown } from "./enrolment.js";

const roles = [["viewer", "Viewer: looks"], ["editor", "Editor: changes devices and credentials"], ["admin", "Admin: also CAs, people and webhooks"], ["owner", "Owner: also deletes the organisation"]];
const rank = ["viewer", "editor", "admin", "owner", "platform"];

export async function people(ctx) {
  const org = ctx.org;
  const [members, invites, keys, users] = await Promise.all([
    org && ctx.can("org:read") ? ctx.get(at`/orgs/${org}/memberships?limit=200`) : null,
    org && ctx.can("org:admin") ? ctx.get(at`/orgs/${org}/invites`) : null,
    ctx.get("/keys?limit=200"),
    ctx.can("platform:admin") ? ctx.get("/users?limit=200") : null,
  ]);
  const admin = ctx.can("org:admin");
  const open = (invites?.invites ?? []).filter(i => i.state === "pending");
  return h("div", { class: "view" }, h("h1", {}, "People and keys"),
    members && card("Members of the organisation", { action: admin && button("Invite", () => invite(ctx), { icon: "plus", kind: "primary" }) },
      table("Members", [
        { head: "Address", class: "main", cell: m => m.email || short(m.member_id) },
        { head: "Role", cell: m => badge(m.role, m.role === "owner" || m.role === "admin" ? "info" : "quiet") },
        { head: "Since", class: "tight", cell: m => on(m.created_at) },
        admin && { head: "", class: "do", cell: m => m.role !== "owner" && m.member_id !== ctx.me.user && button("Remove", async () => {
          if (!await sure({ title: `Remove ${m.email}?`, verb: "Remove", text: ["Their account stays; here they may do nothing any more, from the next request on."] })) return;
          await patch(at`/orgs/${org}/memberships`, { member_ids: [m.member_id] });
          toast("Removed.");
          await ctx.again();
        }, { kind: "small danger-quiet" }) },
      ], members.org_memberships, empty("Nobody is a member", "Platform administrators act here without being one.", admin && button("Invite somebody", () => invite(ctx), { icon: "plus" })))),
    open.length > 0 && card("Invites", {}, table("Invites", [
      { head: "Address", class: "main", cell: i => i.email },
      { head: "Role", cell: i => badge(i.role, "quiet") },
      { head: "Expires", class: "tight", cell: i => when(i.expires_at) },
      { head: "", class: "do", cell: i => button("Take back", async () => { await remove(at`/orgs/${org}/invites/${i.id}`); toast("Taken back."); await ctx.again(); }, { kind: "small danger-quiet" }) },
    ], open)),
    card("Your API keys", { action: ctx.me.credential.kind === "session" && button("New key", () => createKey(ctx), { icon: "plus", kind: "primary" }) },
      ctx.me.credential.kind !== "session" && h("p", { class: "dim" }, "To make keys, sign in with an account: a key cannot make another."),
      table("Your API keys", [
        { head: "Name", class: "main", cell: k => [k.name || h("span", { class: "dim" }, "no name"), k.id === ctx.me.credential.id && badge("this one", "info"), k.description && h("span", { class: "sub" }, k.description)] },
        { head: "Key", cell: k => h("code", {}, k.prefix) },
        { head: "May", class: "clip wrap", cell: k => (k.scopes ? k.scopes.join(", ") : "all that you may") },
        { head: "Last used", class: "tight", cell: k => when(k.last_used_at, "never") },
        { head: "Expires", class: "tight", cell: k => when(k.expires_at, "never") },
        ctx.can("account:write") && { head: "", class: "do", cell: k => button("Revoke", async () => {
          const own = k.id === ctx.me.credential.id;
          if (!await sure({ title: `Revoke the key ${k.name || k.prefix}?`, verb: "Revoke", text: ["Its next use is refused.", own ? "You are signed in with it: this signs you out." : "This cannot be undone."] })) return;
          await remove(at`/keys/${k.id}`);
          toast("The key is revoked.");
          await ctx.again();
        }, { kind: "small danger-quiet" }) },
      ], keys.keys, empty("You have no API key", "Keys are for scripts and for the command line."))),
    users && card("Users of the server", {}, table("Users of the server", [
      { head: "Address", class: "main", cell: u => [u.email || u.name || short(u.id), u.name && u.email && h("span", { class: "sub" }, u.name)] },
      { head: "State", cell: u => [badge(u.status), u.role === "root" && badge("platform administrator", "info")] },
      { head: "Second factor", cell: u => (u.second_factor ? badge("on", "good") : badge("off", u.role === "root" ? "warn" : "quiet")) },
      { head: "Since", class: "tight", cell: u => on(u.created_at) },
      { head: "", class: "do", cell: u => u.id !== ctx.me.user && button("Sign out", async () => {
        if (!await sure({ title: `Sign ${u.email || u.name} out?`, verb: "Sign out", text: ["Every login, session and token of the account ends now."] })) return;
        await post(at`/users/${u.id}/sign-out`);
        toast("Signed out everywhere.");
      }, { kind: "small danger-quiet" }) },
    ], users.users, empty("There is nobody", "keystead user create adds somebody."))));
}

async function ask(title, content, verb, act) {
  const error = h("p", { class: "outcome", role: "alert" });
  let made = null;
  await dialog(title, [content, error], close => [button("Cancel", () => close("")), button(verb, async () => {
    try { made = await act(); } catch (e) {
      error.textContent = [e.message, ...(e.fields || []).map(f => f.field + ": " + f.message)].join(" · ");
      return;
    }
    close("made");
  }, { kind: "primary", type: "submit" })]);
  return made;
}

async function invite(ctx) {
  const email = h("input", { type: "email", required: true, autocomplete: "off" });
  const role = choice("role", "viewer", roles.filter(([r]) => rank.indexOf(r) <= rank.indexOf(ctx.me.role)));
  const made = await ask("Invite somebody", [field("E-mail address", email), field("Role", role)], "Invite", () => post(at`/orgs/${ctx.org}/invites`, { email: email.value.trim(), role: role.value }));
  if (!made) return;
  await shown("The invite", made.link, "Where mail is set up it is on its way. Else hand this link over; it works once.");
  await ctx.again();
}

async function createKey(ctx) {
  const name = h("input", { type: "text", required: true, autocomplete: "off" });
  const days = choice("days", "90", [["1", "1 day"], ["30", "30 days"], ["90", "90 days"], ["365", "a year"], ["0", "no end"]]);
  const only = h("input", { type: "checkbox", checked: true });
  const made = await ask("New API key", [field("Name", name, "What it is for."), field("Good for", days), h("label", { class: "check" }, only, " only for the organisation you are in")], "Make it", () => {
    const body = { type: 2, name: name.value.trim(), duration: Number(days.value) * 86400 };
    if (only.checked && ctx.org) body.org_id = ctx.org;
    return post("/keys", body);
  });
  if (!made) return;
  await shown("The new API key", made.value, "It is shown this once: nobody can look it up later.");
  await ctx.again();
}
