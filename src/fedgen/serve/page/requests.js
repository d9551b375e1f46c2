// What is asked: one request for each click, and the same one as curl and as Python.

import { STRONGEST, backbone, spelled } from "./state.js";
import { address, hasKey } from "./server.js";

const PARTIALS = 2;

/** The strengths of a grid: 0 to 1.5. */
export const strengths = (by) => Array.from({ length: STRONGEST / by + 1 }, (_, step) => step * by);

/** The models of a grid, row by row. */
export function lattice({ across, down, by }) {
  const rows = down ? strengths(by) : [null];
  const spell = (x, y) => spelled([{ id: across, scale: x }, ...(y === null ? [] : [{ id: down, scale: y }])]);
  return rows.map((y) => strengths(by).map((x) => ({ x, y, model: spell(x, y) })));
}

/** Under what it is asked. */
function under(now) {
  const many = now.way === "side" ? now.columns.map((one) => one.model) : lattice(now).flat().map((one) => one.model);
  if (now.way !== "one") return { model: many[0], models: many };
  if (now.routed) return { model: backbone().id, route: true };
  return { model: spelled(now.chosen) };
}

/** The path and the body of a snapshot of the controls. */
export function request(now) {
  const { prompt, seed, temperature, top_p, steps, guidance } = now;
  if (now.kind === "text") {
    const sampling = { max_tokens: now.tokens, temperature, top_p, seed };
    const told = { stream: true, stream_options: { include_usage: true } };
    if (now.way === "side") told.logprobs = 0; // each column's tokens, to be counted
    return { path: "v1/completions", body: { ...under(now), prompt, ...sampling, ...told } };
  }
  const asked = now.asks === "label" ? { label: prompt } : { prompt };
  const drawing = { seed, steps, guidance, response_format: "b64_json" };
  if (now.way === "one") drawing.n = now.n;
  const told = { stream: true, partial_images: now.way === "grid" ? 0 : PARTIALS };
  return { path: "v1/images/generations", body: { ...under(now), ...asked, ...drawing, ...told } };
}

// ---- the same request elsewhere; the key is a name in both

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl({ path, body }) {
  const lines = [`curl -N ${address(path)}`, "-H 'Content-Type: application/json'"];
  if (hasKey()) lines.push('-H "Authorization: Bearer $FEDGEN_KEY"');
  return [...lines, `-d ${quoted(JSON.stringify(body))}`].join(" \\\n  ");
}

const OURS = ["models", "route", "label", "steps", "guidance"]; // and of pictures the seed
const LITERALS = { true: "True", false: "False", null: "None" };

/** A value as Python writes it; JSON's strings and numbers are Python's too. */
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
  }
  return LITERALS[String(value)] && typeof value !== "string" ? LITERALS[String(value)] : JSON.stringify(value);
}

const TEXT = `for chunk in answer:
    for choice in chunk.choices:
        print(choice.text, end="", flush=True)`;
const COLUMNS = `texts = {}
for chunk in answer:
    for choice in chunk.choices:
        texts[choice.index] = texts.get(choice.index, "") + choice.text
for at, text in sorted(texts.items()):
    print(at, text)`;
const PICTURES = `for event in answer:
    if event.type == "image_generation.completed":
        Path(f"{event.index}.png").write_bytes(base64.b64decode(event.b64_json))`;

export function python({ path, body }) {
  const text = path === "v1/completions";
  const ours = (key) => OURS.includes(key) || (!text && key === "seed");
  const more = Object.fromEntries(Object.entries(body).filter(([key]) => ours(key)));
  const plain = Object.entries(body).filter(([key]) => !ours(key)).map(([key, one]) => `    ${key}=${literal(one)},`);
  if (body.label !== undefined) plain.unshift("    prompt=NOT_GIVEN,"); // which the client asks for, and does not send
  if (Object.keys(more).length) plain.push(`    extra_body=${literal(more)},`);
  const imports = text ? "import os\n" : "import base64\nimport os\nfrom pathlib import Path\n";
  const key = hasKey() ? 'os.environ["FEDGEN_KEY"]' : '"none"';
  const call = `client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=${key})`;
  const verb = text ? "completions.create" : "images.generate";
  const shown = text ? (body.models ? COLUMNS : TEXT) : PICTURES;
  const head = hasKey() || !text ? imports : "";
  return `${head}${head && "\n"}from openai import ${body.label === undefined ? "" : "NOT_GIVEN, "}OpenAI\n\n${call}\nanswer = client.${verb}(\n${plain.join("\n")}\n)\n${shown}\n`;
}
