// Elements are made here and nowhere else. Whatever is put into one is text: names of
// devices, common names and diagnostics come from strangers.

const urls = new Set(["href", "src", "action", "formaction"]);
const properties = new Set(["value", "checked", "selected", "disabled", "open", "hidden", "indeterminate"]);

// h makes an element. Properties that begin with "on" are listeners; children are nodes,
// text, numbers, or lists of them; nothing, null and false are left out.
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

// svg is h for drawings.
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function fill(el, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (name === "class") el.setAttribute("class", value);
    else if (name === "dataset") Object.assign(el.dataset, value);
    else if (properties.has(name)) el[name] = value;
    else if (urls.has(name)) el.setAttribute(name, ownURL(value));
    else el.setAttribute(name, value === true ? "" : String(value));
  }
  add(el, children);
  return el;
}

function add(el, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(el, child);
    else if (child instanceof Node) el.append(child);
    else if (child !== undefined && child !== null && child !== false) el.append(document.createTextNode(String(child)));
  }
}

// ownURL lets only addresses of this console and this server through.
function ownURL(value) {
  const text = String(value);
  if (/^(#|\/(?!\/)|blob:)/.test(text)) return text;
  throw new Error("not an address of this server: " + text.slice(0, 40));
}

// set replaces what is in an element.
export function set(el, ...children) {
  el.replaceChildren();
  add(el, children);
  return el;
}

const shapes = {
  mark: "M12 2.5 3.5 9.300V21.500h17V9.300zM12 9.300a2.500 2.500 0 1 0 0 5 2.500 2.500 0 0 0 0-5zm0 5v7.200m0-3.200h2.600",
  home: "M4 11 12 4l8 7v9h-5v-6H9v6H4z",
  chip: "M7 7h10v10H7zM10 3v4m4-4v4m-4 10v4m4-4v4M3 10h4m-4 4h4m10-4h4m-4 4h4",
  clock: "M12 7v5l3 2m6-2a9 9 0 1 1-18 0 9 9 0 0 1 18 0z",
  ticket: "M4 8h16v3a1.5 1.5 0 0 0 0 3v3H4v-3a1.5 1.5 0 0 0 0-3zM14 8v9",
  badge: "M5 4h14v11H5zM9 15v6l3-2 3 2v-6M8 8h8m-8 3h5",
  tree: "M12 3v5m0 0H6v4m6-4h6v4M3.5 12h5v4h-5zM15.5 12h5v4h-5zM6 16v4m12-4v4",
  link: "M10 13a4 4 0 0 0 6 .5l3-3a4 4 0 0 0-5.7-5.700l-1.500 1.500M14 11a4 4 0 0 0-6-.5l-3 3A4 4 0 0 0 10.700 19.200l1.500-1.500",
  radio: "M12 12v9M8.500 15.500a5 5 0 1 1 7 0M5.600 18.400a9 9 0 1 1 12.800 0",
  list: "M8 6h12M8 12h12M8 18h12M4 6h.01M4 12h.01M4 18h.01",
  people: "M9 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM2.500 20c0-4 3-6 6.500-6s6.500 2 6.500 6M16 4.500a3.500 3.500 0 0 1 0 6.300M18 14.500c2.200.8 3.500 2.700 3.500 5.500",
  hook: "M12 4v8m0 0a4 4 0 1 0 4 4M12 4a2 2 0 1 0 0-.01M18 12l-2 4 4 1",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zm5 12 5 5",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "m4 12 5 5L20 6",
  warn: "M12 4 2.500 20h19zM12 10v4m0 3h.01",
  info: "M12 11v5m0-8h.01M21 12a9 9 0 1 1-18 0 9 9 0 0 1 18 0z",
  stop: "M8 3h8l5 5v8l-5 5H8l-5-5V8zM12 8v5m0 3h.01",
  down: "M12 4v11m0 0-4-4m4 4 4-4M5 20h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  out: "M14 4h6v16h-6M10 8l-4 4 4 4M6 12h9",
  plus: "M12 5v14M5 12h14",
  next: "m9 5 7 7-7 7",
  first: "M6 5v14M18 5l-8 7 8 7",
  key: "M8 11a4 4 0 1 0 0 8 4 4 0 0 0 0-8zm3 1 9-9m-4 4 3 3m-6 0 2 2",
  refresh: "M20 11a8 8 0 0 0-14.500-4L3 9.500M3 4v5.500h5.500M4 13a8 8 0 0 0 14.500 4L21 14.500M21 20v-5.500h-5.500",
};

// icon is a drawing that says nothing by itself: there is always a word beside it.
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, svg("path", { d: shapes[name] }));
}
