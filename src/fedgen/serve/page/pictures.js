// Pictures as they are drawn: a gallery, columns, or a grid over strengths; and one of them in large.

import { at, copy, counted, dot, lasting, make, tool } from "./dom.js";
import { keepable } from "./entries.js";
import { restore } from "./controls.js";
import { parameters } from "./png.js";
import { lattice } from "./requests.js";
import { lost, stream } from "./server.js";
import { bare, kindOfMixture, parsed, shown, spelled, use } from "./state.js";

const SMALL = 160; // pixels a side up to which a picture is shown by its pixels
const DONE = "image_generation.completed";

/** Ask, and show the pictures in the entry, while they are drawn and when they are done. */
export async function paint(entry, { path, body }, signal) {
  const begun = performance.now();
  const tiles = laid(entry);
  let told = null;
  let done = 0;
  const stand = () => entry.say(done ? `${done} of ${tiles.length} drawn` : "Drawing");
  entry.say("Waiting");
  for await (const event of stream(path, body, signal)) {
    told = event.fedgen ?? told;
    if (!event.b64_json) continue;
    const tile = tiles[event.index ?? 0];
    done += event.type === DONE;
    if (event.type === DONE) tile.finish(event);
    else tile.sketch(event.b64_json);
    stand();
  }
  if (done < tiles.length) throw lost();
  keepable(entry, told);
  if (told.fallback) entry.body.append(make("p.faint.small", {}, told.fallback));
  entry.end(`${counted(done, "picture")} in ${lasting((performance.now() - begun) / 1000)}`);
}

/** Empty places for what was asked for, in the order of the request. */
function laid(entry) {
  const { now, body } = entry;
  if (now.way === "grid") return grid(entry);
  const columns = now.way === "side" ? now.columns : Array(now.n).fill({ kind: "", model: spelled(now.chosen) });
  const tiles = columns.map((column) => tile(now, column.model, true));
  const heads = columns.map(({ kind, model }) => (kind ? [make("h3", {}, dot(kind), kind), make("p.under", {}, bare(model) === kind ? "" : shown(model))] : []));
  const figures = tiles.map((one, at) => make("figure", {}, ...heads[at], one.node, one.caption));
  body.append(make(now.way === "side" ? "div.columns" : "div.gallery", {}, ...figures));
  return tiles;
}

function grid({ now, body }) {
  const rows = lattice(now);
  const head = make("tr", {}, make("td"), ...rows[0].map(({ x }) => make("th", { scope: "col" }, String(x))));
  const table = make("table.grid", {}, make("caption", {}, axes(now)), make("thead", {}, head));
  const tiles = [];
  for (const row of rows) {
    const found = row.map(({ model }) => tile(now, model, false));
    tiles.push(...found);
    const side = make("th", { scope: "row" }, row[0].y === null ? "" : String(row[0].y));
    table.append(make("tr", {}, side, ...found.map((one) => make("td", {}, one.node))));
  }
  body.append(make("div.scroll", {}, table));
  return tiles;
}

const axes = ({ across, down }) => `Across: ${bare(across)}${down ? `. Down: ${bare(down)}.` : "."} 0 is the backbone.`;

/** One picture's place. */
function tile(now, model, tools) {
  const image = make("img", { alt: "", hidden: true });
  const button = make("button.picture", { type: "button", disabled: true, "aria-label": "Being drawn" }, image);
  const caption = make("figcaption");
  const show = (base64) => {
    image.src = `data:image/png;base64,${base64}`;
    image.hidden = false;
    image.onload = () => image.classList.toggle("pixels", image.naturalWidth <= SMALL);
  };
  const finish = (event) => {
    const made = { base64: event.b64_json, seed: event.seed ?? now.seed, model: event.model ?? model };
    show(made.base64);
    image.alt = `${now.prompt}, under ${shown(made.model)}, seed ${made.seed}`;
    button.classList.add("done");
    button.disabled = false;
    button.setAttribute("aria-label", `${image.alt}: show it large`);
    button.onclick = () => enlarge(now, made);
    if (tools) caption.replaceChildren(make("span", { title: "seed" }, now.way === "one" ? String(made.seed) : ""), saver(now, made, false), againer(now, made, false));
  };
  return { node: button, caption, finish, sketch: show };
}

function saver(now, { base64, seed, model }, shown) {
  const name = `${bare(model)}-${seed}`.replace(/[^\w.=+-]+/g, "_");
  const link = () => make("a", { href: `data:image/png;base64,${base64}`, download: `${name}.png` }).click();
  return tool("save", "Download", link, shown);
}

/** Everything as it was for this one picture: its own seed, and what it was drawn under. */
function againer(now, { seed, model }, shown) {
  const act = () => {
    at("large").close();
    use(now.run);
    restore({ ...now, way: "one", n: 1, seed, chosen: parsed(model), routed: false });
  };
  return tool("again", "Use again", act, shown);
}

function enlarge(now, made) {
  const image = make("img", { src: `data:image/png;base64,${made.base64}`, alt: `${now.prompt}, seed ${made.seed}` });
  image.onload = () => image.classList.toggle("pixels", image.naturalWidth <= SMALL);
  const facts = parameters(made.base64);
  const list = make("dl", {}, ...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, said(value))]));
  const away = tool("close", "Close", () => at("large").close(), false);
  const tools = make("div.tools", {}, saver(now, made, true), againer(now, made, true));
  tools.append(tool("copy", "Parameters", () => copy(JSON.stringify(facts, null, 2), "Parameters")));
  away.classList.add("away");
  at("large").replaceChildren(image, make("div.facts", {}, make("h2", {}, dot(kindOfMixture(made.model)), shown(made.model)), list, tools), away);
  at("large").showModal();
}

const said = (value) => (Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value));
