// One entry for each request: what was asked, what came of it, and what can be done with it.

import { at, copy, counted, lasting, make, short, tool } from "./dom.js";
import { restore } from "./controls.js";
import { curl, python } from "./requests.js";
import { bare, change, parsed, shown, spelled } from "./state.js";

const KEPT = 30;
const LONG = 240; // letters and lines of a prompt that is shown whole
const LINES = 6;

/** An open entry at the top of the page. `say` tells how it stands; `end` what it took; `fail` why it came to nothing. */
export function open(now, asked) {
  at("empty").hidden = true;
  const body = make("div.body", { "aria-live": "polite", "aria-busy": "true" });
  const status = make("span.status", { role: "status" });
  const tools = make("div.tools");
  const title = make("h2", {}, titled(now));
  const node = make("article.entry.card", {}, make("header", {}, title, status));
  if (now.kind !== "text" || now.way !== "one") node.append(make("div.asked", {}, ...folded(now.prompt)));
  node.append(body, make("p.made.faint.small", {}, made(now)), tools);
  at("output").prepend(node);
  while (at("output").querySelectorAll(".entry").length > KEPT) at("output").lastElementChild.remove();
  tools.append(
    tool("again", "Use again", () => restore(now)),
    tool("copy", "curl", () => copy(curl(asked), "curl")),
    tool("copy", "Python", () => copy(python(asked), "Python")),
  );
  const entry = {
    node, body, now,
    say: (words) => (status.textContent = words),
    tool: (...parts) => tools.prepend(tool(...parts)),
    under: (models) => title.replaceChildren(now.routed ? `Routed: ${shown(models[0])}` : titled(now)),
    end(words) {
      body.setAttribute("aria-busy", "false");
      node.classList.add("over");
      status.textContent = words;
    },
    fail(message) {
      entry.end("");
      const wrong = make("p.wrong", { role: "alert" }, message);
      node.firstElementChild.after(wrong); // above what was asked, however long
      wrong.scrollIntoView({ block: "nearest" });
    },
  }; // prettier-ignore
  return entry;
}

/** A prompt; of a long one the first lines, until all of it is asked for. */
export function folded(prompt) {
  const node = make("span.prompt", {}, prompt);
  if (prompt.length <= LONG && prompt.split("\n").length <= LINES) return [node];
  const show = () => {
    node.classList.remove("folded");
    node.tabIndex = -1;
    node.focus({ preventScroll: true });
    all.remove();
  };
  const all = make("button.quiet.tool.all", { type: "button", onclick: show }, "Show the whole prompt");
  node.classList.add("folded");
  return [node, all];
}

function titled(now) {
  if (now.way === "side") return "Side by side";
  if (now.way === "grid") return `Strengths of ${bare(now.across)}${now.down ? ` and ${bare(now.down)}` : ""}`;
  return now.routed ? "Routed" : shown(spelled(now.chosen));
}

function made(now) {
  const text = [`temperature ${now.temperature}`, counted(now.tokens, "token"), `top-p ${now.top_p}`];
  const image = [counted(now.steps, "step"), `guidance ${now.guidance}`];
  return [`seed ${now.seed}`, ...(now.kind === "text" ? text : image)].join(" · ");
}

/** Where the server chose, its choice can be kept and turned by hand. */
export function keepable(entry, told) {
  entry.under(told.models);
  const chosen = parsed(told.models[0]);
  if (entry.now.routed && chosen.length) entry.tool("plus", "Keep this mixture", () => change({ chosen, routed: false }));
}

/** What a text took: `64 tokens in 1.2 s, 53 a second`. */
export function pace(tokens, seconds) {
  const speed = seconds > 0 ? `, ${short(tokens / seconds, 2)} a second` : "";
  return `${counted(tokens, "token")} in ${lasting(seconds)}${speed}`;
}
