// What stands in the way: a refused key, a full queue, a server that is gone.

import { at, counted, make } from "./dom.js";
import { Refused, get, hasKey } from "./server.js";

const AGAIN = 2000;
const pause = (time) => new Promise((done) => setTimeout(done, time));

function show(title, words, ...more) {
  at("notice").replaceChildren(make("b", {}, title), make("span", {}, words), ...more);
  at("notice").hidden = false;
}

export function clear() {
  at("notice").hidden = true;
}

export function health(words, well) {
  at("health").textContent = words;
  at("health").classList.toggle("well", well);
}

/** The key is missing or wrong: say which, and offer to change it. */
export function keyRefused(open) {
  const title = hasKey() ? "The key was refused." : "This server asks for a key.";
  const words = hasKey() ? "The server does not know it, or not any more." : "Whoever runs it can give you one.";
  health(hasKey() ? "Key refused" : "Wants a key", false);
  show(title, words, make("button.main", { type: "button", onclick: () => open() }, hasKey() ? "Enter another key" : "Enter a key"));
}

let waiting = false;

/** The server is gone or not ready: look again until it answers, then `back`. */
export async function gone(error, back) {
  if (waiting) return;
  waiting = true;
  const starting = error.status === 503;
  health(starting ? "Not ready" : "Not reachable", false);
  const words = "What you have stays here. Looking again every two seconds.";
  show(starting ? "The server is starting or stopping." : "The server does not answer.", words);
  for (;;) {
    await pause(AGAIN);
    const found = await ready();
    if (found) break;
  }
  waiting = false;
  clear();
  await back();
}

async function ready() {
  try {
    await get("ready");
    return true;
  } catch (error) {
    return error instanceof Refused && ![0, 503].includes(error.status);
  }
}

/** Do it, and while the queue is full do it again after as long as the server says; `signal` ends the waiting. */
export async function patient(act, say, signal) {
  for (;;) {
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 429) throw error;
      for (let left = Math.ceil(error.after); left > 0; left -= 1) {
        say(`The queue is full. Trying again in ${counted(left, "second")}.`);
        await pause(1000);
        signal.throwIfAborted();
      }
    }
  }
}
