// What is served and what is chosen. Everything else on the page is read from its own controls.

export const MOST = 4; // adapters in a mixture
export const STRONGEST = 1.5;
const PARTS = /(.+?)=([^=,]*)(?:,|$)/g; // of a mixture: a name may hold a comma

export const state = {
  models: [], // as /v1/models lists them
  runs: [], // as /v1/runs tells them
  run: "", // the one that is used now
  chosen: [], // [{ id, scale }]; none is the backbone
  routed: false,
};

const changes = new EventTarget();

/** Call `act` at once, and after every change. */
export function follow(act) {
  changes.addEventListener("change", act);
  act();
}

export function change(parts) {
  Object.assign(state, parts);
  changes.dispatchEvent(new Event("change"));
}

export const runs = () => [...new Set(state.models.map((model) => model.fedgen.run))];
export const models = () => state.models.filter((model) => model.fedgen.run === state.run);
/** A model by its id, with or without its run before it, as answers tell it. */
export const find = (id) => models().find((model) => model.id === id || bare(model.id) === id);
export const backbone = () => models().find((model) => model.fedgen.kind === "backbone");
export const kind = () => backbone()?.fedgen.type ?? "text";
export const about = (run) => state.runs.find((one) => one.name === run);

/** An id without the run before it. */
export function bare(id) {
  const run = `${state.run}:`;
  return id.startsWith(run) ? id.slice(run.length) : id;
}

export const kindOf = (id) => find(id)?.fedgen.kind ?? "hybrid";

/** The kind of all that a text spells: one adapter at any strength is of its own kind. */
export function kindOfMixture(text) {
  const chosen = find(text) ? [] : parsed(text).filter((one) => one.scale);
  return kindOf(chosen.length === 1 ? chosen[0].id : text);
}

const rounded = (scale) => Math.round(scale * 100) / 100;
const even = (count) => Math.round(20 / count) / 20;

/** A mixture as the server reads it: `bold=0.7,slanted=0.3`, a plain name for the whole of one, `backbone` for none. */
export function spelled(chosen) {
  if (!chosen.length) return backbone()?.id ?? "backbone";
  if (chosen.length === 1 && chosen[0].scale === 1) return chosen[0].id;
  const prefix = chosen[0].id.slice(0, chosen[0].id.length - bare(chosen[0].id).length);
  return prefix + chosen.map(({ id, scale }) => `${bare(id)}=${rounded(scale)}`).join(",");
}

/** The mixture that a text spells, as far as its adapters are known here. */
export function parsed(text) {
  const plain = bare(text);
  const parts = [...plain.matchAll(PARTS)];
  const named = parts.length ? parts.map(([, name, scale]) => [name.trim(), Number(scale)]) : [[plain, 1]];
  const known = named.map(([name, scale]) => ({ id: models().find((one) => bare(one.id) === name)?.id, scale: rounded(scale) }));
  return known.filter(({ id }) => id && kindOf(id) !== "backbone");
}

/** The same for people: `0.7 bold + 0.3 slanted`. */
export function shown(text) {
  const parts = find(text) ? [] : [...bare(text).matchAll(PARTS)];
  return parts.length ? parts.map(([, name, scale]) => `${rounded(Number(scale))} ${name.trim()}`).join(" + ") : bare(text);
}

export function choose(id) {
  const alone = state.chosen.length === 1 && state.chosen[0].id === id;
  change({ chosen: alone || kindOf(id) === "backbone" ? [] : [{ id, scale: 1 }], routed: false });
}

/** One more in the mixture. Shares that nobody has moved stay even. */
export function add(id) {
  const { chosen } = state;
  if (chosen.length >= MOST || chosen.some((one) => one.id === id)) return;
  const untouched = chosen.every((one) => one.scale === even(chosen.length));
  const share = even(chosen.length + 1);
  const before = untouched ? chosen.map((one) => ({ ...one, scale: share })) : chosen;
  change({ chosen: [...before, { id, scale: untouched ? share : 0.5 }], routed: false });
}

export const drop = (id) => change({ chosen: state.chosen.filter((one) => one.id !== id) });

/** A slider's move changes a share in place: what is being dragged must not be drawn anew. */
export function weigh(id, scale) {
  state.chosen.find((one) => one.id === id).scale = rounded(scale);
}

/** Use another run; what was chosen of the last one is let go. */
export function use(run) {
  if (run !== state.run) change({ run, chosen: [], routed: false });
}

/** What the server lists now; an adapter that has gone is no longer chosen. */
export function listed(found, told) {
  state.models = found;
  const run = runs().includes(state.run) ? state.run : (runs()[0] ?? "");
  const here = new Set(found.filter((model) => model.fedgen.run === run).map((model) => model.id));
  change({ runs: told, run, chosen: state.chosen.filter((one) => here.has(one.id)) });
}
