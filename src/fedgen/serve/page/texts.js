// Texts as they are written: one, or several in columns.

import { copy, counted, dot, make } from "./dom.js";
import { folded, keepable, pace } from "./entries.js";
import { lost, stream } from "./server.js";
import { bare, shown } from "./state.js";

const WHY = { length: ({ tokens }) => `stopped at ${counted(tokens, "token")}`, stop: () => "ended by itself" };
const CODE = /\n(\t| {2,})\S/; // whose indentation is to be seen

/** Ask, and write what comes into the entry. */
export async function write(entry, { path, body }, signal) {
  const begun = performance.now();
  const since = () => (performance.now() - begun) / 1000;
  const columns = panes(entry);
  entry.say("Waiting");
  let told = null;
  let made = 0;
  try {
    for await (const chunk of stream(path, body, signal)) {
      made = chunk.usage?.completion_tokens ?? made;
      told = chunk.fedgen ?? told;
      if (chunk.choices.length) entry.say("Writing");
      for (const choice of chunk.choices) columns[choice.index].take(choice, since());
    }
  } finally {
    const words = () => columns.map((one) => one.text()).join("\n\n");
    if (columns.some((one) => one.begun())) entry.tool("copy", "Text", () => copy(words(), "Text")); // of a stopped one too
  }
  if (!told || columns.some((one) => !one.why)) throw lost();
  told.models.forEach((name, at) => columns[at].under(name));
  if (told.fallback) entry.body.append(make("p.faint.small", {}, told.fallback));
  keepable(entry, told);
  entry.end(columns.length === 1 ? pace(made, since()) : `${pace(made, since())}, all in one request`);
}

function panes(entry) {
  const { way, prompt, columns } = entry.now;
  if (way === "one") {
    const one = pane(entry.now, prompt);
    entry.body.append(one.node);
    return [one];
  }
  const found = columns.map((column) => pane(entry.now, "", column));
  entry.body.append(make("div.columns", {}, ...found.map((one) => one.node)));
  return found;
}

/** A place where one text grows. The prompt stands before it, as a continuation is read with it. */
function pane(now, prompt, column = null) {
  const grown = document.createTextNode("");
  const node = make("div.pane", { className: column ? "pane column" : "pane" });
  const head = make("p.under");
  const foot = make("p.faint.small.foot");
  if (column) node.append(make("h3", {}, dot(column.kind), column.kind), head);
  const text = make("div.text", {}, ...folded(prompt), grown);
  node.append(text, foot);
  let tokens = 0;
  const one = {
    node, why: "",
    text: () => prompt + grown.data,
    begun: () => grown.data !== "",
    under: (name) => (head.textContent = bare(name) === column?.kind ? "" : shown(name)),
    take(choice, seconds) {
      grown.appendData(column && !grown.data ? choice.text.trimStart() : choice.text);
      if (CODE.test(one.text())) text.classList.add("code");
      tokens += choice.logprobs?.tokens.length ?? 0;
      one.why = choice.finish_reason ?? one.why;
      foot.textContent = [column && pace(tokens, seconds), WHY[one.why]?.(now)].filter(Boolean).join(", ");
    },
  }; // prettier-ignore
  if (column) one.under(column.model);
  return one;
}
