"""From what a request says of adapters and prompts to rows for an engine."""

import asyncio
import base64
import binascii
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen import sample
from fedgen.encode import unseal
from fedgen.errors import FedgenError, LateError, ServeError
from fedgen.records import Rows
from fedgen.serve.api.answers import Under
from fedgen.serve.api.asks import ROWS, Ask, ImageAsk, Part, Route
from fedgen.serve.api.errors import RefusedError
from fedgen.serve.api.hearing import Hearing
from fedgen.serve.engine.wishes import Draw, Ended, Job, Write
from fedgen.serve.house import House, Stand, Taken
from fedgen.serve.keys import Who

SEEDS = 1 << 31  # from so many one is drawn where none is given
ENCODING = 30.0  # seconds that a prompt to be routed by may wait to be read


@dataclass(frozen=True)
class Row:
    """One answer to come: of which prompt, under which adapters, from which seed."""

    prompt: int
    taken: Taken
    seed: int


def rows_of(ask: Ask, takens: Sequence[Taken], prompts: int) -> list[Row]:
    """Every answer to come: each prompt under each adapter, `n` times; without a seed each prompt has its own."""
    times = ask.n or 1
    if (count := prompts * len(takens) * times) > ROWS:
        raise RefusedError(f"n: wanted at most {ROWS} answers to one request, came {count}", param="n")
    seeds = [secrets.randbelow(SEEDS) if ask.seed is None else ask.seed for _ in range(prompts)]
    return [Row(at, taken, seed + more) for at, seed in enumerate(seeds) for taken in takens for more in range(times)]


def put(
    stand: Stand, hearing: Hearing, who: Who, wishes: Sequence[tuple[Row, Write | Draw]], deadline: float | None
) -> None:
    """Queue all rows, or none."""
    until = math.inf if deadline is None else time.monotonic() + deadline
    hearing.jobs = [
        Job(wish, row.taken.course, hearing.ear(at), who.name, until) for at, (row, wish) in enumerate(wishes)
    ]
    stand.engine.put(hearing.jobs)


def under(stand: Stand, rows: Sequence[Row], ends: Sequence[Ended], cached: int = 0) -> Under:
    """What each answer was given under."""
    return Under(
        models=[row.taken.id for row in rows],
        hashes=[hashes(stand, row) for row in rows],
        fallback="; ".join(dict.fromkeys(row.taken.note for row in rows if row.taken.note)),
        waited=max(end.waited for end in ends),
        seconds=max(end.seconds for end in ends),
        cached=cached,
    )


def hashes(stand: Stand, row: Row) -> list[str]:
    """The contents that a row is made of."""
    return [entry.adapter.hash or stand.backbone.hash for entry in row.taken.entries]


# ---- adapters


def choose(house: House, who: Who, ask: Ask, kind: str, vector: Tensor | None) -> tuple[Stand, list[Taken]]:
    """The run that answers, and under what; `vector` is what to be routed by, where that is asked for."""
    stand, found = _chosen(house, who, ask, kind, vector)
    return stand, [replace(taken, before=house.before(stand)) for taken in found]


def _chosen(house: House, who: Who, ask: Ask, kind: str, vector: Tensor | None) -> tuple[Stand, list[Taken]]:
    parts, back = _parts(ask), bool(ask.fallback)
    ways = {"models": ask.models, "mix": parts, "route": ask.route not in (None, False)}
    said = [name for name, given in ways.items() if given]
    if len(said) > 1:
        raise RefusedError(f"{said[1]}: cannot be with {said[0]}; choose one", param=said[1])
    if ask.models is not None:
        return _side_by_side(house, who, ask.models, kind, back=back)
    if not ask.model and not said:
        raise RefusedError("model: wanted an adapter's name, see /v1/models, came none", param="model")
    stand, name = house.stand(kind, ask.model or (parts[0].name if parts else sample.BARE))
    if parts:
        mix = {stand.local(part.name): part.scale for part in parts}
        if len(mix) < len(parts):
            raise RefusedError("mix: names one adapter twice; name it once, with the sum of its weights", param="mix")
        return stand, [stand.take(name, who, fallback=back, mix=mix)]
    if vector is not None:
        name = _routed(stand, who, ask.route if isinstance(ask.route, Route) else Route(), vector)
    return stand, [stand.take(name, who, fallback=back)]


def _parts(ask: Ask) -> list[Part]:
    lora = ask.lora if isinstance(ask, ImageAsk) else None
    if lora and ask.mix:
        raise RefusedError("lora: cannot be with mix, which is the same; choose one", param="lora")
    return [lora] if isinstance(lora, Part) else lora or ask.mix or []


def _side_by_side(house: House, who: Who, models: Sequence[str], kind: str, *, back: bool) -> tuple[Stand, list[Taken]]:
    if not models:
        raise RefusedError("models: wanted at least one adapter's name, came none", param="models")
    found = [house.stand(kind, model) for model in models]
    stand = found[0][0]
    if other := next((each.name for each, _ in found if each is not stand), ""):
        raise RefusedError(f"models: wanted adapters of one run, came '{stand.name}' and '{other}'", param="models")
    return stand, [stand.take(name, who, fallback=back) for _, name in found]


async def pointed(house: House, ask: Ask, kind: str, plain: str | None) -> Tensor | None:
    """What to be routed by, where that is asked for: the vector that came, or the plain prompt, encoded here."""
    if not ask.route:
        return None
    if isinstance(ask.route, Route) and ask.route.vector is not None:
        return torch.tensor(ask.route.vector)
    if plain is None:
        raise RefusedError("route: wanted a `vector`, as the prompt is sealed and cannot be read here", param="route")
    stand, _ = house.stand(kind, ask.model or sample.BARE)
    try:
        async with asyncio.timeout(ENCODING):
            return await asyncio.shield(asyncio.wrap_future(stand.encode(plain)))  # which the engine fills in any case
    except TimeoutError:
        raise LateError(f"route: the prompt was not encoded within {ENCODING:.0f} s; send a vector") from None
    except ServeError as error:
        raise _unrouted(stand, error) from None


def _routed(stand: Stand, who: Who, route: Route, vector: Tensor) -> str:
    """The mixture for this prompt."""
    try:
        return stand.route(vector, who, top=route.top, spread=route.spread, gain=route.gain)
    except ServeError as error:
        raise _unrouted(stand, error) from None


def _unrouted(stand: Stand, error: ServeError) -> ServeError:
    """Why a prompt cannot be routed, which may name the run's folder on this machine."""
    if type(error) is not ServeError:  # has a status of its own
        return error
    return RefusedError(str(error).replace(str(stand.run.folder), stand.name), param="route")


# ---- prompts


def refuse_plain(house: House) -> None:
    """Take no plain prompt, where the server takes sealed ones alone."""
    if not house.plain:
        wish = "this server takes sealed prompts alone; send prompt_embeds, as fedgen.Client does"
        raise RefusedError(f"prompt: {wish}", code="plain_prompt_refused", param="prompt")


def opened(stand: Stand, sealed: str | list[str]) -> list[str | Rows]:
    """Sealed prompts, as this run's backbone reads them."""
    each = [sealed] if isinstance(sealed, str) else sealed
    if not each:
        raise RefusedError("prompt_embeds: wanted at least one sealed prompt, came none", param="prompt_embeds")
    if len(each) > ROWS:
        raise RefusedError(f"prompt_embeds: wanted at most {ROWS}, came {len(each)}", param="prompt_embeds")
    return [_unsealed(stand, one) for one in each]


def _unsealed(stand: Stand, sealed: str) -> Rows:
    try:
        raw = base64.b64decode(sealed, validate=True)
    except (binascii.Error, ValueError):
        wish = "wanted base64 of what `fedgen seal` writes, came something else"
        raise RefusedError(f"prompt_embeds: {wish}", param="prompt_embeds") from None
    try:
        return unseal(raw, stand.backbone, "prompt_embeds")
    except FedgenError as error:
        raise RefusedError(str(error), param="prompt_embeds") from None
