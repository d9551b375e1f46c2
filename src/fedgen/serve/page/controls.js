// The controls of the composer: read as one record, and set again from one.

import { at, dot, icon, make } from "./dom.js";
import { lattice } from "./requests.js";
import { about, backbone, bare, change, follow, kind, models, runs, shown, spelled, state, use } from "./state.js";

const NUMBERS = { text: ["temperature", "tokens", "top_p"], image: ["steps", "guidance", "n"] };
const SIDE = ["backbone", "global", "cluster", "personal", "loaded"];

export const way = () => document.querySelector("input[name=way]:checked").value;
const locked = () => at("lock").getAttribute("aria-pressed") === "true";
const numbers = () => Object.fromEntries(NUMBERS[kind()].map((name) => [name, Number(at(name).value)]));

/** What the backbone is told: a prompt, a label, or nothing. */
const asks = () => about(state.run)?.asks ?? "prompt";

/** All that the next request depends on. */
export function snapshot() {
  return {
    run: state.run, kind: kind(), way: way(), prompt: at("prompt").value, asks: asks(),
    seed: Number(at("seed").value), chosen: state.chosen.map((one) => ({ ...one })), routed: state.routed,
    columns: columns(), ...axes(), ...numbers(),
  }; // prettier-ignore
}

/** Set everything as it was; the seed is kept, as otherwise the next one would be another. */
export function restore(then) {
  change({ run: then.run, chosen: then.chosen.map((one) => ({ ...one })), routed: then.routed });
  at("prompt").value = then.prompt;
  for (const name of NUMBERS[then.kind]) at(name).value = then[name];
  for (const name of ["seed", "across", "down", "by"]) at(name).value = then[name];
  document.querySelector(`input[name=way][value=${then.way}]`).checked = true;
  lock(true);
  ways();
  grow();
  at("prompt").focus();
}

/** The two sides of a grid; one adapter against itself is one side. */
function axes() {
  const [across, down] = [at("across").value, at("down").value];
  return { across, down: down === across ? "" : down, by: Number(at("by").value) };
}

export function roll() {
  at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
}

export function rollUnlessLocked() {
  if (!locked()) roll();
}

function lock(on) {
  at("lock").setAttribute("aria-pressed", String(on));
  at("lock").replaceChildren(icon(on ? "lock" : "open"));
}

function grow() {
  const prompt = at("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight / 2)}px`;
}

export function begin() {
  lock(false);
  roll();
  at("dice").addEventListener("click", roll);
  at("lock").addEventListener("click", () => lock(!locked()));
  at("prompt").addEventListener("input", grow);
  for (const name of ["ways", "across", "down", "by"]) at(name).addEventListener("change", ways);
  follow(switchRuns);
  follow(fit);
}

/** A switch between runs; called after what they make where that tells them apart. */
function switchRuns() {
  const names = runs();
  const types = names.map((name) => state.models.find((model) => model.fedgen.run === name).fedgen.type);
  const apart = new Set(types).size === names.length;
  const said = (at) => (apart ? { text: "Text", image: "Pictures" }[types[at]] : names[at]);
  at("runs").hidden = names.length < 2;
  if (JSON.stringify(names) !== at("runs").dataset.names) {
    const pick = (name) => make("input", { type: "radio", name: "run", value: name, onchange: () => use(name) });
    const labels = names.map((name, at) => make("label", {}, pick(name), make("span", {}, said(at))));
    at("runs").replaceChildren(at("runs").firstElementChild, ...labels);
    at("runs").dataset.names = JSON.stringify(names);
  }
  for (const radio of at("runs").querySelectorAll("input")) radio.checked = radio.value === state.run;
}

/** Show what belongs to the kind of the run. */
function fit() {
  const text = kind() === "text";
  for (const node of document.querySelectorAll("[data-kind]")) node.hidden = node.dataset.kind !== kind();
  for (const name of [...NUMBERS.text, ...NUMBERS.image]) at(name).disabled = NUMBERS[kind()].includes(name) === false;
  if (text && way() === "grid") document.querySelector("input[name=way][value=one]").checked = true;
  at("prompt-label").textContent = asks() === "label" ? "Label" : "Prompt";
  at("prompt").placeholder = text ? "Begin a text, and the model goes on" : asks() === "label" ? "A class, such as 7" : "What to draw";
  for (const name of ["prompt", "prompt-label"]) at(name).hidden = asks() === "nothing";
  const { plain = true, longest = 0 } = about(state.run) ?? {};
  at("sealed").hidden = plain;
  at("go").disabled = !plain || !models().length;
  at("tokens").max = longest ? longest - 1 : 4096; // one at least is the prompt's
  at("tokens").value = Math.min(at("tokens").value, at("tokens").max);
  offerColumns();
  offerStrengths();
  ways();
}

function ways() {
  at("columns").hidden = way() !== "side";
  at("strengths").hidden = way() !== "grid";
  at("prompt").required = state.routed && way() === "one"; // what is routed by
  at("many").hidden = kind() !== "image" || way() !== "one";
  at("cells").textContent = axes().across ? `${lattice(axes()).flat().length} pictures` : "There is no adapter yet.";
}

// ---- side by side

/** A box for each kind that exists, with a choice where there are several, and one for the mixture. */
function offerColumns() {
  const off = new Set([...at("columns").querySelectorAll("input:not(:checked)")].map((box) => box.value));
  const was = Object.fromEntries([...at("columns").querySelectorAll("select")].map((one) => [one.name, one.value]));
  const kinds = SIDE.map((one) => [one, models().filter((model) => model.fedgen.kind === one && !bare(model.id).includes("@round-"))]);
  const boxes = kinds.filter(([, ids]) => ids.length).map(([name, found]) => column(name, found, !off.has(name), was[name]));
  const mixed = spelled(hybrid());
  if (hybrid().length > 1) boxes.push(column("hybrid", [{ id: mixed }], !off.has("hybrid")));
  at("columns").querySelector(".picks").replaceChildren(...boxes);
}

function column(name, found, on, was) {
  const box = make("input", { type: "checkbox", value: name, checked: on });
  const label = make("label.pick", {}, box, dot(name), name);
  const ids = found.map((model) => model.id);
  const select = make("select", { name, "aria-label": `Which ${name}` }, ...ids.map((id) => new Option(bare(id), id)));
  select.hidden = ids.length < 2;
  if (ids.includes(was)) select.value = was;
  if (name === "hybrid") label.append(make("span.faint", {}, shown(ids[0])));
  return make("span.pair", {}, label, select);
}

/** The mixture of the sliders; before there is one, halves of the two nearest to a user. */
function hybrid() {
  if (state.chosen.length > 1) return state.chosen;
  const first = (one) => models().find((model) => model.fedgen.kind === one && !bare(model.id).includes("@round-"));
  const near = ["personal", "cluster", "global"].map(first).filter(Boolean).slice(0, 2);
  return near.map((model) => ({ id: model.id, scale: 0.5 }));
}

function columns() {
  const pairs = [...at("columns").querySelectorAll(".pair")].filter((pair) => pair.querySelector("input").checked);
  return pairs.map((pair) => {
    const name = pair.querySelector("input").value;
    return { kind: name, model: name === "hybrid" ? spelled(hybrid()) : pair.querySelector("select").value };
  });
}

// ---- strengths

function offerStrengths() {
  const ids = models().filter((model) => model !== backbone()).map((model) => model.id);
  for (const [name, nothing] of [["across", null], ["down", "nothing"]]) {
    const was = at(name).value;
    const options = ids.map((id) => new Option(bare(id), id));
    at(name).replaceChildren(...(nothing ? [new Option(nothing, "")] : []), ...options);
    const wish = [was, name === "across" ? state.chosen[0]?.id : ""].find((id) => id !== undefined && (ids.includes(id) || (id === "" && nothing)));
    if (wish !== undefined) at(name).value = wish;
  }
}
