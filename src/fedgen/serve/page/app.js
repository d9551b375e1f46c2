// The page: what a hand does to it, and what is asked of the server.

import * as about from "./about.js";
import * as adapters from "./adapters.js";
import * as controls from "./controls.js";
import { at, icon, illustrate } from "./dom.js";
import { open } from "./entries.js";
import { clear, gone, health, keyRefused, patient } from "./notice.js";
import { paint } from "./pictures.js";
import { request } from "./requests.js";
import { Refused, get, hasKey, useKey } from "./server.js";
import { listed, state } from "./state.js";
import { write } from "./texts.js";

const LOOK = 4000; // while a run goes on

let running = null;

// ---- asking

async function go() {
  if (running || at("go").disabled || !at("composer").reportValidity()) return;
  controls.rollUnlessLocked();
  const now = controls.snapshot();
  if (now.way !== "one" && !(now.way === "side" ? now.columns.length : now.across)) return;
  const asked = request(now);
  adapters.fold();
  running = new AbortController();
  busy(true);
  const { signal } = running;
  const entry = open(now, asked);
  entry.node.scrollIntoView({ block: "nearest", behavior: "smooth" });
  const act = () => (entry.body.replaceChildren(), (now.kind === "text" ? write : paint)(entry, asked, signal));
  try {
    await patient(act, entry.say, signal);
    clear();
  } catch (error) {
    stopped(error, entry);
  } finally {
    running = null;
    busy(false);
  }
}

function stopped(error, entry) {
  if (error.name === "AbortError") return entry.end("Stopped");
  entry.fail(error.message);
  trouble(error);
}

const stop = () => running?.abort();

function busy(on) {
  const held = [at("go"), at("stop")].includes(document.activeElement);
  at("go").hidden = on;
  at("stop").hidden = !on;
  if (held) at(on ? "stop" : "go").focus();
}

// ---- the server

/** What is in the way of everything is said above everything; what belongs to one request, in its entry. */
function trouble(error) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) {
    listed([], []); // what another key has opened
    keyRefused(openKey);
  } else if (error.status === 0 || error.status === 503) gone(error, look);
}

async function look() {
  try {
    const [found, runs] = await Promise.all([get("v1/models"), get("v1/runs")]);
    listed(found.data, runs);
    clear();
    health("Ready", true);
  } catch (error) {
    if (error instanceof Refused && ![0, 401, 503].includes(error.status)) health(error.message, false);
    else trouble(error);
  }
}

/** A run that goes on is looked at again and again, as long as somebody looks at the page. */
async function watch() {
  for (;;) {
    await new Promise((done) => setTimeout(done, LOOK));
    const live = state.runs.some((run) => !run.finished);
    if (live && !document.hidden && at("notice").hidden) await look();
  }
}

// ---- the key

function openKey(said = "") {
  at("key").value = "";
  at("key-said").textContent = said;
  at("key-forget").hidden = !hasKey();
  at("key-box").showModal();
}

async function closeKey() {
  const done = at("key-box").returnValue;
  if (done === "use" && at("key").value.trim()) useKey(at("key").value);
  else if (done === "forget") useKey("");
  else return;
  at("key").value = "";
  await look();
  if (hasKey() && (await opensNothing())) openKey("This key opens nothing more than everybody sees.");
}

/** Whether everybody is told of the same models without a key. */
async function opensNothing() {
  if (!state.models.length || state.models.some((model) => model.fedgen.owner)) return false;
  const everybody = await get("v1/models", "").catch(() => null);
  return JSON.stringify(everybody?.data) === JSON.stringify(state.models);
}

// ---- views, theme, keyboard

const TABS = ["make", "run"];

function view(name) {
  for (const tab of TABS) {
    at(tab).hidden = tab !== name;
    at(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    at(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
}

function step(event) {
  if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const next = TABS.find((tab) => at(tab).hidden);
  view(next);
  at(`tab-${next}`).focus();
}

const isDark = () => {
  const kept = document.documentElement.dataset.theme;
  return kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  at("theme").replaceChildren(icon(isDark() ? "sun" : "moon"));
  at("theme").title = isDark() ? "To light" : "To dark";
  try {
    if (name) localStorage.setItem("fedgen-theme", name);
  } catch {
    // a browser that keeps nothing follows the system next time
  }
}

function keys(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    view("make");
    go();
  } else if (event.key === "Escape") stop();
  else if (event.key === "/" && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    view("make");
    at("adapters").open = true;
    at("search").focus();
  }
}

function begin() {
  illustrate(document);
  theme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
  at("theme").addEventListener("click", () => theme(isDark() ? "light" : "dark"));
  for (const tab of TABS) at(`tab-${tab}`).addEventListener("click", () => view(tab));
  document.querySelector(".tabs").addEventListener("keydown", step);
  at("composer").addEventListener("submit", (event) => (event.preventDefault(), go()));
  at("stop").addEventListener("click", stop);
  at("key-open").addEventListener("click", () => openKey());
  at("key-box").addEventListener("close", closeKey);
  at("large").addEventListener("click", (event) => event.target === at("large") && at("large").close());
  document.addEventListener("keydown", keys);
  for (const part of [adapters, controls, about]) part.begin();
  look();
  watch();
}

begin();
