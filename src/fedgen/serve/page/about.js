// The run: how it went, who is like whom, what it saved, and what was published.

import { curves, mark, scatter } from "./charts.js";
import { at, bytes, counted, dot, lasting, make, percent, saving, short } from "./dom.js";
import { about, follow, state } from "./state.js";

let before = "";

export function begin() {
  follow(() => {
    const run = about(state.run);
    const seen = JSON.stringify(run ?? null);
    if (seen !== before) at("run").replaceChildren(...(run ? page(run) : [make("p.faint", {}, "There is no run to tell of.")]));
    before = seen;
  });
}

function page(run) {
  const markOf = (name) => mark(Math.max(0, run.clusters.findIndex((one) => one.name === name)));
  const charts = [measured(run), sent(run)];
  if (run.points.length) charts.push(scatter("Clients by their encoded prompts", run.points, markOf));
  if (run.clusters.length) charts.push(clusters(run, markOf));
  return [heading(run), tiles(run), make("div.charts", {}, ...charts), verdicts(run)];
}

function heading(run) {
  const stand = run.finished ? "Finished" : "Still running";
  const words = `${stand} after ${counted(run.rounds, "round")} and ${lasting(run.seconds)}, on the backbone ${run.backbone}.`;
  return make("header.lead", {}, make("h1", {}, run.name), make("p", {}, words));
}

function tiles(run) {
  const last = run.curve.filter((line) => Number.isFinite(line.measure)).at(-1);
  const sum = (key) => run.curve.reduce((total, line) => total + (line[key] ?? 0), 0);
  const found = [];
  if (last) found.push([short(last.measure), run.measure.name, `validation, round ${last.round}`]);
  for (const [kind, gain] of Object.entries(run.gains)) {
    if (Number.isFinite(gain)) found.push([percent(gain), kind, `lower ${run.measure.name} than the backbone, the mean over clients`, kind]);
  }
  found.push([bytes(sum("up")), "sent by clients", `${bytes(sum("down"))} sent to them`]);
  if (Number.isFinite(run.saved)) found.push([saving(run.saved), "uplink saved", "against full-model FedAvg"]);
  return make("ul.tiles", {}, ...found.map(tile));
}

const tile = ([value, label, note, kind]) =>
  make("li.card", {}, make("strong", {}, value), make("span", {}, ...(kind ? [dot(kind)] : []), label), make("small.faint", {}, note));

function measured(run) {
  const points = (key) => run.curve.filter((line) => Number.isFinite(line[key])).map((line) => [line.round, line[key]]);
  const name = run.measure.name;
  const better = run.measure.lower_is_better ? "lower is better" : "higher is better";
  const lines = [{ name, hue: "one", points: points("measure") }];
  return curves(`${name[0].toUpperCase()}${name.slice(1)} over rounds, ${better}`, lines);
}

function sent(run) {
  const total = (key) => {
    let sum = 0;
    return run.curve.map((line) => [line.round, (sum += line[key] ?? 0)]);
  };
  const lines = [
    { name: "up, from clients", hue: "two", points: total("up") },
    { name: "down, to clients", hue: "six", dash: true, points: total("down") },
  ];
  return curves("Bytes so far", lines, { told: bytes, ground: [0] });
}

function clusters(run, markOf) {
  const labelled = run.clusters.some((one) => one.labels.length);
  const head = ["Cluster", "Members", run.measure.name, ...(labelled ? ["Labels"] : [])];
  const rows = run.clusters.map(({ name, members, measure, labels }) =>
    make("tr", {}, make("th", { scope: "row" }, make("i.dot", markOf(name)), name), make("td", {}, String(members)),
      make("td", {}, short(measure)), ...(labelled ? [make("td.words", {}, labels.join(", "))] : []))); // prettier-ignore
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head.map((one) => make("th", { scope: "col" }, one)))));
  table.append(make("tbody", {}, ...rows));
  return make("figure.card", {}, make("figcaption", {}, "Clusters"), make("div.scroll", {}, table));
}

function verdicts(run) {
  if (!run.verdicts.length) return make("p.faint", {}, "Nothing was published or held back since the server began.");
  const line = ({ name, round, published, reason }) =>
    make("li", {}, make(published ? "b.good" : "b.held", {}, published ? "Published" : "Held back"), make("span", {}, `${name}, round ${round}`),
      make("span.faint", {}, reason ?? "")); // prettier-ignore
  const list = make("ol.verdicts", {}, ...[...run.verdicts].reverse().slice(0, 30).map(line));
  return make("section", {}, make("h2", {}, "What was published"), list);
}
