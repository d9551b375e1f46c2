"""Pictures: whole or with sketches on the way, as PNGs that carry how they were made."""

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgen import sheet
from fedgen.backbones import DiffusionBackbone
from fedgen.records import Document, Rows
from fedgen.serve.api import runs
from fedgen.serve.api.answers import Picture, Pictures
from fedgen.serve.api.asks import ImageAsk
from fedgen.serve.api.choosing import Row, choose, hashes, opened, pointed, put, refuse_plain, rows_of, under
from fedgen.serve.api.errors import RefusedError
from fedgen.serve.api.hearing import Heard, Hearing, Stream, begun, event_of, whole
from fedgen.serve.api.service import Call
from fedgen.serve.engine.wishes import Draw, Drawn, Ended, Sketch
from fedgen.serve.house import Stand

STEPS, GUIDANCE = 20, 2.0


@dataclass(frozen=True)
class Sitting:
    """Pictures under way, and how they are made."""

    stand: Stand
    rows: Sequence[Row]
    steps: int
    guidance: float
    asked: dict[str, str]
    created: int
    size: str

    def png(self, at: int, picture: Tensor) -> str:
        """One picture as a PNG in base64."""
        row = self.rows[at]
        made = {
            **self.asked, "adapter": row.taken.model, "run": self.stand.name, "steps": self.steps,
            "guidance": self.guidance, "seed": row.seed, "hashes": hashes(self.stand, row),
        }  # fmt: skip
        return base64.b64encode(sheet.png(picture, made)).decode()

    def picture(self, at: int, picture: Tensor) -> Picture:
        """One picture as it is answered."""
        row = self.rows[at]
        return Picture(b64_json=self.png(at, picture), seed=row.seed, model=row.taken.id)


async def draw(call: Call, ask: ImageAsk) -> Pictures | Stream:
    """Draw pictures."""
    _check(call, ask)
    vector = await pointed(call.house, ask, "image", ask.prompt)
    with Hearing(call.service.metrics, "image") as hearing:
        sitting = await asyncio.to_thread(_put, call, ask, vector, hearing)
        call.queued()
        if ask.stream:
            return await begun(hearing, call.receive, Speaker(sitting).say)
        heard = await whole(hearing, call.receive)
    drawn = {at: event.picture for at, event in heard if isinstance(event, Drawn)}
    ends = [event for _, event in heard if isinstance(event, Ended)]
    data = await asyncio.to_thread(lambda: [sitting.picture(at, drawn[at]) for at in sorted(drawn)])
    return Pictures(
        created=sitting.created, data=data, size=sitting.size, fedgen=under(sitting.stand, sitting.rows, ends)
    )


def _given(ask: ImageAsk) -> list[str]:
    return [name for name in ("prompt", "label", "prompt_embeds") if getattr(ask, name) is not None]


def _check(call: Call, ask: ImageAsk) -> None:
    """Refuse what can be seen to be wrong at once."""
    if ask.partial_images and not ask.stream:
        raise RefusedError("partial_images: wanted stream = true beside it", param="partial_images")
    given = _given(ask)
    if len(given) != 1:
        came = " and ".join(given) or "none"
        raise RefusedError(f"prompt: wanted one of prompt, label and prompt_embeds, came {came}", param="prompt")
    if ask.prompt_embeds is None:
        refuse_plain(call.house)


def _put(call: Call, ask: ImageAsk, vector: Tensor | None, hearing: Hearing) -> Sitting:
    """Queue all pictures; away from the loop, as prompts are read on the way."""
    stand, takens = choose(call.house, call.who, ask, "image", vector)
    size = _size(stand, ask.size)
    steps, guidance = _one(ask, "steps", "num_inference_steps"), _one(ask, "guidance", "guidance_scale")
    asked = _asked(stand, ask)
    sitting = Sitting(
        stand, rows_of(ask, takens, len(asked)), int(STEPS if steps is None else steps),
        GUIDANCE if guidance is None else guidance,
        {name: str(getattr(ask, name)) for name in _given(ask) if name != "prompt_embeds"}, int(time.time()), size,
    )  # fmt: skip
    sketches = ask.partial_images or 0
    wishes = [Draw(asked[row.prompt], sitting.steps, sitting.guidance, row.seed, sketches) for row in sitting.rows]
    put(stand, hearing, call.who, list(zip(sitting.rows, wishes, strict=True)), ask.deadline)
    return sitting


def _asked(stand: Stand, ask: ImageAsk) -> Sequence[Document | Rows]:
    if ask.prompt_embeds is None:
        wanted, came = runs.asks(stand.backbone), _given(ask)[0]
        if came != wanted and (wanted != "nothing" or ask.prompt or ask.label):
            remedy = "an empty prompt" if wanted == "nothing" else f"a {wanted}"
            raise RefusedError(f"{came}: run '{stand.name}' draws by {wanted}; give {remedy} instead", param=came)
        return [Document("", "", prompt=ask.prompt or "", label=ask.label or "")]
    found = opened(stand, ask.prompt_embeds)
    if ask.route and len(found) > 1:
        raise RefusedError(f"route: wanted one prompt, which it is chosen for, came {len(found)}", param="route")
    return [rows for rows in found if not isinstance(rows, str)]


def _one(ask: ImageAsk, name: str, other: str) -> float | None:
    """A setting that has two names."""
    one, two = getattr(ask, name), getattr(ask, other)
    if one is not None and two is not None and one != two:
        raise RefusedError(f"{other}: says another number than {name}, which is the same", param=other)
    found: float | None = two if one is None else one
    return found


def _size(stand: Stand, asked: str | None) -> str:
    """The backbone's own size, which is the only one."""
    if not isinstance(stand.backbone, DiffusionBackbone):
        return ""
    _, high, wide = stand.backbone.picture
    own = f"{wide}x{high}"
    if asked not in (None, "auto", own):
        raise RefusedError(f"size: wanted {own}, which is all that this backbone draws, came {asked!r}", param="size")
    return own


class Speaker:
    """A stream of pictures: each sketch, and each picture once it is done."""

    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting
        self._drawn: dict[int, Tensor] = {}

    async def say(self, heard: list[Heard]) -> bytes:
        """What was heard, as events."""
        return await asyncio.to_thread(lambda: b"".join(self._event(at, event) for at, event in heard))

    def _event(self, at: int, event: object) -> bytes:
        if isinstance(event, Sketch):
            return self._told("partial_image", at, event.picture, {"partial_image_index": event.at})
        if isinstance(event, Drawn):
            self._drawn[at] = event.picture
        if not isinstance(event, Ended):
            return b""
        row = self._sitting.rows[at]
        return self._told(
            "completed",
            at,
            self._drawn.pop(at),
            {"seed": row.seed, "fedgen": under(self._sitting.stand, [row], [event])},
        )

    def _told(self, name: str, at: int, picture: Tensor, more: dict[str, object]) -> bytes:
        kind, sitting = f"image_generation.{name}", self._sitting
        about = {"created_at": sitting.created, "size": sitting.size, "output_format": "png"}
        known = {"type": kind, "index": at, "b64_json": sitting.png(at, picture), "model": sitting.rows[at].taken.id}
        return event_of({**known, **about, **more}, kind)
