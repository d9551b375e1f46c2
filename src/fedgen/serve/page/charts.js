// Drawings of a run, made by hand: curves over rounds, and clients in two dimensions.

import { make, shape, short } from "./dom.js";

const WIDE = 460;
const HIGH = 220;
const PAD = { left: 54, right: 14, top: 12, bottom: 30 };
const HUES = ["three", "four", "five", "six"]; // of clusters, whose own is green; one and two are others' everywhere
const FEW = 6; // own points that can have their names beside them

/** The mark of the n-th of many: four colours, and when they are used up another shape. */
export const mark = (nth) => ({ "data-hue": HUES[nth % HUES.length], "data-turn": Math.floor(nth / HUES.length) % 3 });

/** Round numbers across a range, about so many. */
function ticks(low, high, wish) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / wish;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, at) => (first + at) * step);
}

function scale(values, [from, to]) {
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

const at = (value) => value.toFixed(1);

/** Lines over rounds. A line is `{ name, hue, dash, points: [[round, value]] }`; `told` writes a value; `ground` is shown too. */
export function curves(title, lines, { told = (value) => short(value, 4), ground = [] } = {}) {
  const drawn = lines.filter((line) => line.points.length);
  const all = drawn.flatMap((line) => line.points);
  if (!all.length) return make("figure.card", {}, make("figcaption", {}, title), make("p.faint", {}, "Nothing was measured yet."));
  const rounds = all.map(([round]) => round);
  const values = [...ground, ...all.map(([, value]) => value)];
  const x = scale(rounds, [PAD.left, WIDE - PAD.right]);
  const y = scale(values, [HIGH - PAD.bottom, PAD.top]);
  const svg = shape("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": heard(title, drawn, told) });
  for (const value of ticks(Math.min(...values), Math.max(...values), 4)) svg.append(level(y(value), told(value)));
  for (const round of ticks(Math.min(...rounds), Math.max(...rounds), 6).filter(Number.isInteger)) svg.append(below(x(round), String(round)));
  for (const line of drawn) svg.append(...stroke(line, x, y, told));
  const keys = drawn.length > 1 ? [legend(drawn)] : [];
  return make("figure.card", {}, make("figcaption", {}, title), svg, ...keys);
}

const level = (y, words) =>
  shape("g", { class: "level" },
    shape("line", { x1: PAD.left, x2: WIDE - PAD.right, y1: at(y), y2: at(y) }),
    shape("text", { x: PAD.left - 8, y: at(y + 4), "text-anchor": "end" }, words)); // prettier-ignore

const below = (x, words) => shape("text", { x: at(x), y: HIGH - 8, "text-anchor": "middle", class: "below" }, words);

function stroke(line, x, y, told) {
  const path = line.points.map(([round, value], step) => `${step ? "L" : "M"}${at(x(round))} ${at(y(value))}`).join("");
  const spot = ([round, value]) =>
    shape("circle", { cx: at(x(round)), cy: at(y(value)), r: 3 }, shape("title", {}, `round ${round}: ${told(value)}`));
  const marks = line.points.length <= 60 ? line.points : [line.points.at(-1)];
  return [shape("g", { "data-hue": line.hue, class: line.dash ? "curve dash" : "curve" }, shape("path", { d: path }), ...marks.map(spot))];
}

function heard(title, lines, told) {
  const ends = lines.map(({ name, points }) => `${name}: ${told(points[0][1])} to ${told(points.at(-1)[1])}`);
  return `${title}. ${ends.join("; ")}.`;
}

const legend = (lines) =>
  make("p.keys", {}, ...lines.map(({ name, hue, dash }) => make("span", {}, make(dash ? "i.dash" : "i.line", { "data-hue": hue }), name)));

/** Clients as points, marked by cluster; your own have a ring, and a name where they are few. */
export function scatter(title, points, markOf) {
  const [across, high] = [WIDE, 300];
  const x = scale(points.map((one) => one.x), [24, across - 24]);
  const y = scale(points.map((one) => one.y), [high - 24, 24]);
  const own = points.filter((one) => one.own);
  const words = `${title}: ${points.length} clients, ${own.length} of them yours.`;
  const svg = shape("svg", { viewBox: `0 0 ${across} ${high}`, role: "img", "aria-label": words, class: "points" });
  for (const one of points) svg.append(point(one, at(x(one.x)), at(y(one.y)), markOf(one.cluster)));
  for (const one of own.length < points.length ? own : []) {
    svg.append(shape("circle", { cx: at(x(one.x)), cy: at(y(one.y)), r: 10, class: "own" }));
    if (own.length > FEW) continue;
    const end = x(one.x) > across - 90;
    svg.append(shape("text", { x: at(x(one.x) + (end ? -14 : 14)), y: at(y(one.y) + 4), "text-anchor": end ? "end" : "start" }, one.name || "yours"));
  }
  return make("figure.card", {}, make("figcaption", {}, title), svg);
}

function point(one, x, y, mark) {
  const told = shape("title", {}, [one.name, one.cluster].filter(Boolean).join(", "));
  const form = { class: "point", x: x - 5, y: y - 5, width: 10, height: 10, rx: mark["data-turn"] ? 1 : 5 };
  if (mark["data-turn"] === 2) form.transform = `rotate(45 ${x} ${y})`;
  return shape("rect", { ...form, ...mark }, told);
}
