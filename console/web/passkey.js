// Passkeys: the server asks, and an authenticator of the browser answers.
import { post } from "./api.js";

export const known = () => "PublicKeyCredential" in window;

// question asks the server for one: for a passkey alone, or, with a password, for a second
// factor. Its options are null where a code is all that will do.
export const question = (login = {}) => post("/tokens/passkey/begin", login);

// answer has an authenticator answer, and returns what signs in with that.
export async function answer({ state, options }) {
  const q = options.publicKey;
  let credential;
  try {
    credential = await navigator.credentials.get({ publicKey: { ...q, challenge: bytes(q.challenge), allowCredentials: (q.allowCredentials ?? []).map(c => ({ ...c, id: bytes(c.id) })) } });
  } catch (e) {
    throw new Error(e.name === "SecurityError" ? "passkeys work at the public address of the server only, by its name: open the console there" : "no passkey was used; try again, or go another way");
  }
  const { authenticatorData, clientDataJSON, signature, userHandle } = credential.response;
  return { state, credential: { id: credential.id, rawId: words(credential.rawId), type: credential.type, clientExtensionResults: {}, response: {
    authenticatorData: words(authenticatorData), clientDataJSON: words(clientDataJSON), signature: words(signature), userHandle: userHandle ? words(userHandle) : undefined,
  } } };
}

// Binary values are written in base64url.
const bytes = text => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), c => c.charCodeAt(0));
const words = buffer => btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
