// Elements, icons and numbers. Children are nodes or text: what anybody wrote is never read as markup.

export const at = (id) => document.getElementById(id);

/** An element: `make("p.note.small", { id: "a", "aria-label": "b", onclick: go }, "text", node)`. */
export function make(tag, set = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(set)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** An element of a drawing. */
export function shape(tag, set = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(set)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const PATHS = {
  close: "M6 6l12 12M18 6 6 18",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5 21 21",
  key: "M8 15.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM11.5 12H21v3.5M17 12v3",
  dice: "M5 5h14v14H5zM9 9h.01M15 9h.01M12 12h.01M9 15h.01M15 15h.01",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  open: "M6 11h12v9H6zM8.5 11V7.5a3.5 3.5 0 0 1 6.8-1.2",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
  route: "M6 20a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM18 8a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM8 18h6a3 3 0 0 0 0-6h-4a3 3 0 0 1 0-6h6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  save: "M12 4v11M7.5 11l4.5 4.5 4.5-4.5M5 20h14",
  again: "M5 12a7 7 0 1 0 2.2-5.1L5 9M5 4.5V9h4.5",
};

/** A line drawing of 24 by 24 that takes the colour of the text around it. */
export function icon(name) {
  const line = shape("path", { d: PATHS[name] });
  return shape("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, line);
}

/** Put the drawings where the page names them. */
export function illustrate(root) {
  for (const spot of root.querySelectorAll("[data-icon]")) spot.replaceWith(icon(spot.dataset.icon));
}

/** A button with a drawing and a word; the word is only heard where it is not shown. */
export function tool(name, label, onclick, shown = true) {
  const button = make("button.quiet.tool", { type: "button", title: shown ? "" : label, onclick }, icon(name));
  if (shown) button.append(make("span", {}, label));
  else button.setAttribute("aria-label", label);
  return button;
}

/** The place of a name in the page: a span in the colour of its kind. */
export const dot = (kind) => make("i.dot", { "data-of": kind, "aria-hidden": "true" });

export const short = (value, digits = 3) =>
  Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : "—";

export function bytes(count) {
  if (!Number.isFinite(count)) return "—";
  const sizes = ["B", "kB", "MB", "GB", "TB"];
  const step = count < 1 ? 0 : Math.min(Math.floor(Math.log10(count) / 3), sizes.length - 1);
  return `${short(count / 1000 ** step)} ${sizes[step]}`;
}

export function lasting(seconds) {
  if (!Number.isFinite(seconds)) return "—";
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${short(seconds / 3600, 2)} h`;
}

export const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)}%`.replace("-", "−") : "—");

/** A saved share, never rounded up: 98.999% is not 99%. */
export const saving = (share) => `${(Math.floor(share * 10_000) / 100).toFixed(2)}%`.replace("-", "−");
export const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** Say it once, to the eye and to the ear. */
export function say(words) {
  const place = at("said");
  place.textContent = words;
  place.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => place.classList.remove("shown"), 2500);
}

/** Put a text on the clipboard; where the browser does not let us, through a selection. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const spot = make("textarea.unseen", { value: text });
    document.body.append(spot);
    spot.select();
    document.execCommand("copy");
    spot.remove();
  }
  say(`${what} copied`);
}
