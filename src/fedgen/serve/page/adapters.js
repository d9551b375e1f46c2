// The adapters: cards with search, and the mixture with its sliders.

import { at, counted, dot, icon, make, percent, tool } from "./dom.js";
import { MOST, STRONGEST, about, add, bare, change, choose, drop, follow, kindOf, models, shown, spelled, state, weigh } from "./state.js";

const SHOWN = 60;
const KINDS = ["backbone", "global", "cluster", "personal", "loaded"];
const NARROW = matchMedia("(max-width: 60rem)");

export function begin() {
  at("search").addEventListener("input", cards);
  at("route").addEventListener("click", () => change({ routed: !state.routed }));
  follow(cards);
  follow(mixture);
  NARROW.addEventListener("change", () => (at("adapters").open = !NARROW.matches));
  fold();
}

/** Where they stand before the answers, they make room for them. */
export function fold() {
  if (NARROW.matches) at("adapters").open = false;
}

const place = (model) => KINDS.indexOf(model.fedgen.kind);

/** Those that the search leaves, by kind. The rounds of an adapter are shown when an @ asks for them. */
function found() {
  const wanted = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (model) => [model.id, model.fedgen.kind, ...(model.fedgen.words ?? [])].join(" ").toLowerCase();
  const fits = (model) => wanted.every((word) => text(model).includes(word));
  const now = (model) => wanted.join("").includes("@") || !bare(model.id).includes("@round-");
  return models().filter((model) => now(model) && fits(model)).sort((one, two) => place(one) - place(two));
}

let before = "";

function cards() {
  const left = found();
  const seen = JSON.stringify([left, models().length, state.chosen.map((one) => one.id), state.routed]);
  if (seen === before) return; // nothing under a hand or a screen reader is drawn anew without need
  before = seen;
  const held = document.activeElement?.closest("#cards") ? document.activeElement.dataset.is : "";
  at("cards").replaceChildren(...left.slice(0, SHOWN).map(card));
  const more = left.length - SHOWN;
  at("more").textContent = more > 0 ? `${more} more: search for them` : left.length || !models().length ? "" : "No adapter is called so.";
  if (held) [...at("cards").querySelectorAll("[data-is]")].find((one) => one.dataset.is === held)?.focus();
}

function card(model) {
  const { kind, words = [] } = model.fedgen;
  const chosen = state.chosen.some((one) => one.id === model.id);
  const used = !state.routed && (chosen || (kind === "backbone" && !state.chosen.length));
  const name = make("button.name", { type: "button", "aria-pressed": String(used), "data-is": model.id, onclick: () => choose(model.id) });
  name.append(bare(model.id));
  const top = make("div.top", {}, dot(kind), name);
  if (kind !== "backbone") top.append(adder(model.id, chosen));
  const item = make(used ? "li.adapter.used" : "li.adapter", {}, top, make("p.facts", {}, ...facts(model).map((fact) => make("span", {}, fact))));
  if (words.length) item.append(make("p.words", {}, ...words.map(word)));
  return item;
}

function facts(model) {
  const { kind, round, gain, members, owner, pinned } = model.fedgen;
  if (kind === "backbone") return ["no adapter"];
  const said = kind === bare(model.id) ? [] : [kind];
  if (round) said.push(`round ${round}`);
  if (Number.isFinite(gain)) said.push(`gain ${percent(gain)}`);
  if (members && !owner) said.push(counted(members, "member"));
  if (pinned) said.push("pinned");
  return said;
}

function adder(id, chosen) {
  const act = chosen ? () => drop(id) : () => add(id);
  const label = chosen ? `Take ${bare(id)} out of the mixture` : `Add ${bare(id)} to the mixture`;
  const button = make("button.quiet.square", { type: "button", "aria-label": label, title: label, "data-is": `+${id}`, onclick: act });
  button.append(icon(chosen ? "minus" : "plus"));
  button.disabled = !chosen && state.chosen.length >= MOST;
  return button;
}

/** A trigger word; a click writes it into the prompt. */
function word(text) {
  const put = () => {
    const prompt = at("prompt");
    const { selectionStart: start, selectionEnd: end, value } = prompt;
    const gap = start > 0 && !/\s$/.test(value.slice(0, start)) ? " " : "";
    prompt.setRangeText(gap + text, start, end, "end");
    prompt.dispatchEvent(new Event("input"));
    prompt.focus();
  };
  return make("button.word", { type: "button", title: "Into the prompt", onclick: put }, text);
}

function mixture() {
  const held = document.activeElement?.closest("#chosen") ? document.activeElement.dataset.is : "";
  at("route").hidden = !about(state.run)?.routes;
  at("route").setAttribute("aria-pressed", String(state.routed));
  at("chosen").classList.toggle("idle", state.routed);
  at("chosen").replaceChildren(...(state.chosen.length ? state.chosen.map(slider) : [bareCard()]));
  words();
  if (held) [...at("chosen").querySelectorAll("[data-is]")].find((one) => one.dataset.is === held)?.focus();
}

const bareCard = () => make("p.faint.small", {}, "The backbone alone. Choose an adapter, or add up to four with +.");

function words() {
  const chosen = state.chosen.length ? shown(spelled(state.chosen)) : "backbone";
  at("chosen-words").textContent = state.routed ? "routed" : chosen;
}

function slider({ id, scale }) {
  const label = `Strength of ${bare(id)}`;
  const value = make("output", {}, scale.toFixed(2));
  const bar = make("input", { type: "range", min: 0, max: STRONGEST, step: 0.05, value: scale, "aria-label": label, "data-is": id });
  bar.addEventListener("input", () => {
    weigh(id, Number(bar.value));
    value.textContent = Number(bar.value).toFixed(2);
    words();
  });
  bar.addEventListener("change", () => change({}));
  const away = tool("close", `Take ${bare(id)} out`, () => drop(id), false);
  const name = make("span.of", { title: bare(id) }, dot(kindOf(id)), bare(id));
  return make("div.slider", {}, name, value, away, bar);
}

