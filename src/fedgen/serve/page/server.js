// The way to the server: the key, plain answers, and answers that stream.

/** What the server said no to. Status 0 is a server that does not answer. */
export class Refused extends Error {
  constructor(status, message, { code = "", after = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.after = after;
  }
}

const GONE = "The server does not answer.";
const LOST = "The server went away in the middle of the answer.";
const PLACE = "fedgen-key";

let secret = taken();

/** The key of the address's fragment, which it then leaves; or the one that this tab knows. */
function taken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return kept();
  history.replaceState(null, "", location.pathname + location.search);
  keep(given);
  return given;
}

function kept() {
  try {
    return sessionStorage.getItem(PLACE) ?? "";
  } catch {
    return "";
  }
}

function keep(value) {
  try {
    if (value) sessionStorage.setItem(PLACE, value);
    else sessionStorage.removeItem(PLACE);
  } catch {
    // a browser that keeps nothing is asked for the key again
  }
}

export const hasKey = () => secret !== "";

export function useKey(value) {
  secret = value.trim();
  keep(secret);
}

export const address = (path) => new URL(path, document.baseURI).href;

async function ask(path, options = {}, key = secret) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refused(0, GONE);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const { error = {} } = await answer.json().catch(() => ({}));
  const after = Number(answer.headers.get("Retry-After")) || 1;
  return new Refused(answer.status, error.message || `The server answered ${answer.status}.`, { code: error.code, after });
}

export const get = async (path, key = secret) => (await ask(path, {}, key)).json();

/** The events of a streamed answer, each as its parsed JSON, until the server ends it or `signal` does. */
export async function* stream(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refused(400, event.error.message, { code: event.error.code });
    yield event;
  }
}

async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Refused(0, LOST);
      });
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const lost = () => new Refused(0, LOST);
