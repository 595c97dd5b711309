// How times, amounts and ids are written.
import { h } from "./dom.js";

const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const number = new Intl.NumberFormat("en");

const units = [["year", 31557600], ["month", 2629800], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

export function ago(date) {
  const s = (date - Date.now()) / 1000;
  for (const [unit, size] of units) {
    if (Math.abs(s) >= size || unit === "second") return relative.format(Math.trunc(s / size), unit);
  }
  return "";
}

// when is a time as people say it; the exact one is a touch away.
export function when(text, none = "–") {
  if (!text || text.startsWith("0001-")) return none;
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return none;
  return h("time", { datetime: text, title: full.format(date) }, ago(date));
}

// on is a day.
export function on(text, none = "–") {
  if (!text || text.startsWith("0001-")) return none;
  const date = new Date(text);
  return h("time", { datetime: text, title: full.format(date) }, day.format(date));
}

export const exact = text => (text ? full.format(new Date(text)) : "–");

// daysLeft is how many days there are until a time, negative once it is over.
export const daysLeft = text => (new Date(text) - Date.now()) / 86400000;

export const count = n => number.format(n);

export const many = (n, one, more = one + "s") => count(n) + " " + (n === 1 ? one : more);

export function bytes(n) {
  for (const [unit, size] of [["GiB", 1 << 30], ["MiB", 1 << 20], ["KiB", 1 << 10]]) {
    if (n >= size) return (n / size).toFixed(1) + " " + unit;
  }
  return n + " B";
}

// short is enough of an id to tell it from others.
export function short(id) {
  const text = String(id);
  return text.length > 20 ? text.slice(0, 8) + "…" + text.slice(-6) : text;
}

export const kinds = {
  certificate: "certificate", psk: "pre-shared key", thing_key: "thing key", external_key: "external key", auth_set: "auth set",
  device_token: "device token", api_key: "API key", login_key: "login key", session: "browser session", access_key: "access key", oauth_token: "OAuth token",
};

export const kind = k => kinds[k] || String(k).replaceAll("_", " ");
