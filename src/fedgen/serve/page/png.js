// A picture as the server sent it: its bytes, and how it was made, which a text chunk of the PNG tells.

const NAME = "parameters";

export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
}

/** The record in the PNG's `parameters`, or nothing. */
export function parameters(base64) {
  const raw = bytesOf(base64);
  const view = new DataView(raw.buffer);
  const latin = new TextDecoder("latin1");
  for (let at = 8; at + 8 <= raw.length; at += 12 + view.getUint32(at)) {
    const body = raw.subarray(at + 8, at + 8 + view.getUint32(at));
    const cut = body.indexOf(0);
    if (latin.decode(raw.subarray(at + 4, at + 8)) !== "tEXt" || latin.decode(body.subarray(0, cut)) !== NAME) continue;
    return read(latin.decode(body.subarray(cut + 1)));
  }
  return {};
}

function read(text) {
  try {
    const found = JSON.parse(text);
    return found !== null && typeof found === "object" ? found : { [NAME]: text };
  } catch {
    return { [NAME]: text };
  }
}
