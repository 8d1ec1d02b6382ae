// Elements, numbers and colours. What runs say is only ever text here: nothing takes markup.

function element(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") found.addEventListener(name.slice(2), value);
    else if (name === "class") found.className = value;
    else if (typeof value === "string") found.setAttribute(name, value);
    else found[name] = value;
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

const at = (id) => document.getElementById(id);

// Put children in the place of others; a button that had the focus keeps it.
function fill(id, ...children) {
  const host = typeof id === "string" ? at(id) : id;
  const place = [...host.querySelectorAll("button")].indexOf(document.activeElement);
  host.replaceChildren(...children.filter((child) => child !== null));
  if (place >= 0) host.querySelectorAll("button")[place]?.focus({ preventScroll: true });
}

function select(label, options, chosen, change) {
  const list = element("select", { "aria-label": label, onchange: () => change(list.value) });
  for (const [value, text] of options) {
    list.append(element("option", { value, selected: value === chosen }, text));
  }
  return element("label", {}, label, list);
}

// Buttons of which one is pressed.
function choice(label, options, chosen, change) {
  const host = element("span", { class: "choice", role: "group", "aria-label": label }, label);
  for (const [value, text] of options) {
    const button = element("button", { type: "button", "aria-pressed": String(value === chosen) }, text);
    button.addEventListener("click", () => {
      for (const other of host.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      change(value);
    });
    host.append(button);
  }
  return host;
}

function checkbox(label, checked, change) {
  const box = element("input", { type: "checkbox", checked, onchange: () => change(box.checked) });
  return element("label", {}, box, label);
}

function rowsTable(pairs) {
  const rows = pairs.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
  return element("table", {}, element("tbody", {}, ...rows));
}

// A number in few letters.
function short(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-4)) return value.toExponential(Math.max(digits - 2, 0)).replace(/\.?0*e\+?/, "e");
  const text = Number(value.toPrecision(digits));
  return size >= 1e4 ? Math.round(value).toLocaleString("en-US") : String(text);
}

const percent = (value) => `${short(value * 100, 4)} %`;

// What a text says as a number; NaN if it says none.
const toNumber = (text) => (text === "" || text === null || text === undefined ? NaN : Number(String(text).replaceAll(",", "")));

let theme = {};
function readTheme() {
  const style = getComputedStyle(document.documentElement);
  theme = Object.fromEntries(["text", "quiet", "line", "grid", "card", "accent"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// Dark to bright, told apart by colour-blind readers (viridis, five of its colours).
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function ramp(part) {
  const place = Math.min(Math.max(part, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  const mixed = RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (place - low)));
  return `rgb(${mixed.join(",")})`;
}
