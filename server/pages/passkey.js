// Has the browser answer the question that a form carries, with a passkey, and sends the
// form with the answer in it.
"use strict";
const bytes = text => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), c => c.charCodeAt(0));
const words = buffer => buffer && btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const known = list => (list || []).map(c => ({ ...c, id: bytes(c.id) }));
const ask = {
  get: q => navigator.credentials.get({ publicKey: { ...q, challenge: bytes(q.challenge), allowCredentials: known(q.allowCredentials) } }),
  create: q => navigator.credentials.create({
    publicKey: { ...q, challenge: bytes(q.challenge), user: { ...q.user, id: bytes(q.user.id) }, excludeCredentials: known(q.excludeCredentials) },
  }),
};
const write = c => {
  const r = c.response;
  const response = { clientDataJSON: words(r.clientDataJSON) };
  if (r.attestationObject) {
    response.attestationObject = words(r.attestationObject);
    response.transports = r.getTransports ? r.getTransports() : [];
  } else {
    response.authenticatorData = words(r.authenticatorData);
    response.signature = words(r.signature);
    response.userHandle = words(r.userHandle) || undefined;
  }
  return JSON.stringify({ id: c.id, rawId: words(c.rawId), type: c.type, response, clientExtensionResults: {} });
};
for (const form of document.querySelectorAll("form[data-passkey]")) {
  if (!window.PublicKeyCredential) continue;
  form.hidden = false;
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const button = form.querySelector("button");
    const outcome = form.querySelector("[role=status]");
    button.disabled = true;
    try {
      const { publicKey } = JSON.parse(form.dataset.options);
      form.elements.credential.value = write(await ask[form.dataset.passkey](publicKey));
      form.submit();
    } catch (error) {
      button.disabled = false;
      outcome.textContent = error.name === "InvalidStateError" ? "This authenticator has a passkey of yours already." : "No passkey was used. Try again, or go another way.";
    }
  });
}
