"""A device's end of serving: prompts are encoded here, and what is sent is neither text nor tokens."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any, Literal

from fedgen.backbones import BACKBONES, Backbone, Model
from fedgen.encode import ENCODERS, Profile, seal
from fedgen.errors import BusyError, LateError, ServeError, UnknownError

Kind = Literal["text", "image"]
KINDS: dict[str, str] = {"text": "language", "image": "diffusion"}
ERRORS: dict[int, type[ServeError]] = {404: UnknownError, 504: LateError}


@dataclass(frozen=True)
class Client:
    """Asks a server to write or to draw, and sends it prompts as the backbone's own numbers; docs/privacy.md.

    `text` and `image` are this device's copies of the server's backbones: `embedded`, a folder, `hub:owner/name`, or
    one that is loaded. Each is loaded when it is first needed; a prompt sealed for another backbone is refused.
    """

    url: str
    key: str = ""
    text: str | Backbone = "embedded"
    image: str | Backbone = "embedded"
    timeout: float = 300.0
    _loaded: dict[str, Backbone] = field(default_factory=dict, repr=False, compare=False)

    def models(self) -> list[dict[str, Any]]:
        """What this client may ask under."""
        found: list[dict[str, Any]] = self._ask("/v1/models")["data"]
        return found

    def write(
        self, prompt: str, *, model: str = "global", tokens: int = 64, temperature: float = 0.0, seed: int = 0,
        route: Mapping[str, Any] | bool = False,
    ) -> Iterator[str]:  # fmt: skip
        """Continue a prompt, piece by piece; with `route` under the mixture of the clusters nearest to it."""
        body = {"model": model, "max_tokens": tokens, "temperature": temperature, "seed": seed, "stream": True}
        for found in self._stream("/v1/completions", body | self._sealed("text", prompt, route)):
            for choice in found.get("choices", ()):
                yield choice["text"]

    def draw(
        self, prompt: str, *, model: str = "global", n: int = 1, steps: int = 20, guidance: float = 2.0, seed: int = 0,
        route: Mapping[str, Any] | bool = False,
    ) -> list[bytes]:  # fmt: skip
        """Draw a prompt: `n` pictures as PNG, from seed, seed + 1 and so on."""
        body = {"model": model, "n": n, "steps": steps, "guidance": guidance, "seed": seed}
        found = self._ask("/v1/images/generations", body | self._sealed("image", prompt, route))
        return [base64.b64decode(one["b64_json"]) for one in found["data"]]

    def backbone(self, kind: Kind) -> Backbone:
        """This device's copy of the server's backbone."""
        if kind not in self._loaded:
            wanted = self.text if kind == "text" else self.image
            self._loaded[kind] = _model(kind, wanted).load() if isinstance(wanted, str) else wanted
        return self._loaded[kind]

    def _sealed(self, kind: Kind, prompt: str, route: Mapping[str, Any] | bool) -> dict[str, Any]:
        backbone = self.backbone(kind)
        found: dict[str, Any] = {"prompt_embeds": base64.b64encode(seal(prompt, backbone)).decode()}
        if route is not False:
            settings = dict(route) if isinstance(route, Mapping) else {}
            found["route"] = settings | {"vector": self._vector(kind, prompt, backbone)}
        return found

    def _vector(self, kind: Kind, prompt: str, backbone: Backbone) -> list[float]:
        """The prompt as the run's clients encode theirs, to be routed by."""
        runs = [run for run in self._ask("/v1/runs") if run["type"] == kind]
        if len(runs) != 1:
            raise ServeError(f"route: wanted one run of {kind} on {self.url}, came {len(runs)}; name a model instead")
        said = dict(runs[0]["encode"])
        width = said.pop("profile_width", 0)
        name = said.pop("kind", "none")
        if name == "folder":
            raise ServeError("route: this run's clients encode by a model of a folder, which this device does not know")
        vector: list[float] = Profile(width=width).narrow(ENCODERS[name](**said).read([prompt], backbone))[0].tolist()
        return vector

    # ---- the wire

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._open(path, body) as answer:
            return json.loads(answer.read())

    def _stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a stream, each as it comes."""
        with self._open(path, body) as answer:
            for line in answer:
                said = line.decode().removeprefix("data:").strip()
                if not line.startswith(b"data:"):
                    continue
                if said == "[DONE]":
                    return
                found = json.loads(said)
                if "error" in found:
                    raise ServeError(f"{self.url}: {found['error']['message']}")
                yield found
        raise ServeError(f"{self.url}{path}: the answer broke off; ask again")

    def _open(self, path: str, body: Mapping[str, Any] | None) -> HTTPResponse:
        heads = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        raw = json.dumps(body).encode() if body is not None else None
        asked = urllib.request.Request(self.url.rstrip("/") + path, raw, heads)
        try:
            found: HTTPResponse = urllib.request.urlopen(asked, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            raise _refused(self.url, error) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ServeError(f"{self.url}: cannot be reached ({reason}); is `fedgen serve` running there?") from error
        return found


def _model(kind: Kind, source: str) -> Model:
    return BACKBONES[KINDS[kind]](source=source)  # type: ignore[call-arg]  # every kind of model has a source


def _refused(url: str, error: urllib.error.HTTPError) -> ServeError:
    """A server's refusal, as its own error."""
    with error:
        raw = error.read(1 << 16)
    try:
        said = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = error.reason
    if error.code == 429:
        return BusyError(f"{url}: {said}", float(error.headers.get("Retry-After") or 1))
    return ERRORS.get(error.code, ServeError)(f"{url}: {said}")
