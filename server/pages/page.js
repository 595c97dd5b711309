// Sends the form of a page that a link with a key leads to. The key stands after
// the # of the address, which browsers do not send; it is taken off at once.
"use strict";
const key = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
const form = document.getElementById("account");
const outcome = document.getElementById("outcome");
const send = {
  setup: f => ["POST", "/setup", { token: key, email: f.get("email"), password: f.get("password") }],
  reset: f => ["PUT", "/password/reset", { token: key, password: f.get("password"), confirm_password: f.get("confirm_password") }],
  invite: f => ["POST", "/register/invite/" + encodeURIComponent(key), { user: { email: f.get("email"), password: f.get("password") } }],
  verify: () => ["POST", "/register/verify?token=" + encodeURIComponent(key), undefined],
};
form.addEventListener("submit", async event => {
  event.preventDefault();
  const f = new FormData(form);
  if (f.get("password") !== f.get("confirm_password")) {
    outcome.textContent = "The two passwords differ.";
    return;
  }
  const [method, path, body] = send[form.dataset.for](f);
  const answer = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body) });
  const text = await answer.text();
  outcome.textContent = answer.ok ? "Done. You can log in now." : JSON.parse(text).error;
  outcome.className = answer.ok ? "good" : "";
  form.hidden = answer.ok;
  document.getElementById("onwards").hidden = !answer.ok;
});
