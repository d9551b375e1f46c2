"""The batch of pictures: each with its own adapters, prompt, seed, steps and guidance, one step of all in one pass."""

import contextlib
import functools
import math

import torch

from fedgen import seeds
from fedgen.backbones import DiffusionBackbone
from fedgen.backbones.canvas import Canvas
from fedgen.backbones.conditions import Prompts
from fedgen.errors import BackboneError, ServeError
from fedgen.records import Document, Rows
from fedgen.serve.engine.under import Under
from fedgen.serve.engine.wishes import Broken, Draw, Drawn, Job, Sketch, Write
from fedgen.serve.pool.adapter import Course, Mixture
from fedgen.serve.pool.slots import Slots

REMEMBERED = 64  # prompts, as the text encoder read them


class Drawing:
    """At most so many pictures at work, each on a canvas of its own. A guided one is two rows of the network."""

    def __init__(self, backbone: DiffusionBackbone, slots: Slots, *, rows: int = 16) -> None:
        self.backbone = backbone
        self.slots = slots
        self.rows = rows
        self._work: dict[Job, tuple[Draw, Canvas]] = {}
        self._read = functools.lru_cache(REMEMBERED)(lambda user, prompt: backbone.seal(prompt))
        self._under = Under(slots)

    @property
    def nbytes(self) -> int:
        """What pictures on the way take in memory, beside what a pass of the network needs."""
        return 4 * self.rows * math.prod(self.backbone.shape)

    def __len__(self) -> int:
        """How many pictures are at work."""
        return len(self._work)

    def check(self, wish: Write | Draw) -> None:
        """Refuse what can never be drawn."""
        wish, most = _draw(wish), len(self.backbone.schedule.time)
        if not 1 <= wish.steps <= most:
            raise ServeError(f"steps: wanted 1 to {most}, came {wish.steps}")
        if not (math.isfinite(wish.guidance) and wish.guidance >= 0):
            raise ServeError(f"guidance: wanted 0 or more, and finite, came {wish.guidance}")
        if wish.sketches < 0:
            raise ServeError(f"sketches: wanted 0 or more, came {wish.sketches}")
        self.backbone.check(wish.asked)

    def room(self) -> int:
        """How many more may join."""
        return self.rows - len(self._work)

    def join(self, job: Job) -> None:
        """Begin a picture, which is noise until the next step."""
        wish = _draw(job.wish)
        with contextlib.ExitStack() as undo:
            self.slots.hold(job.under)
            undo.callback(self.slots.release, job.under)
            self._work[job] = wish, self._begun(job.user, wish)
            undo.pop_all()

    def leave(self, job: Job) -> None:
        """Drop a picture as it is."""
        if self._work.pop(job, None):
            self.slots.release(job.under)
        if not self._work:
            self._under.rest()

    def step(self) -> list[Job]:
        """One step of every picture; the jobs of those that are done, or spoilt."""
        canvases = [canvas for _, canvas in self._work.values()]
        self._under.lay("pictures", self._turns())
        self.backbone.advance(canvases)
        sound = torch.stack([canvas.made.isfinite().all() for canvas in canvases]).tolist()
        return [job for job, fine in zip(list(self._work), sound, strict=True) if self._over(job, fine)]

    def _begun(self, user: str, wish: Draw) -> Canvas:
        asked = self._asked(user, wish.asked)
        draw = seeds.generator(wish.seed, -1, "", "sample")  # as `fedgen generate` draws it
        return self.backbone.begin([asked], [draw], steps=wish.steps, guidance=wish.guidance)

    def _asked(self, user: str, asked: Document | Rows) -> Document | Rows:
        """A user's prompt is read once while it is remembered; nobody can tell by the time what others have asked."""
        if isinstance(asked, Document) and isinstance(self.backbone.condition, Prompts):
            return self._read(user, asked.prompt)
        return asked

    def _turns(self) -> list[Mixture]:
        """Whose turn it is in each row of the next pass; where all are guided, the two side by side share a line."""
        work = [(turn(job.under, canvas.done / canvas.steps), canvas.rows) for job, (_, canvas) in self._work.items()]
        each = math.gcd(*(rows for _, rows in work))
        return [mixed for mixed, rows in work for _ in range(rows // each)]

    def _over(self, job: Job, sound: bool) -> bool:
        """Whether a picture is over, and then out. One that cannot be told is, and the others do not hear of it."""
        try:
            over = self._told(job, sound)
        except Exception as error:  # noqa: BLE001  one picture's trouble is not the others'
            with contextlib.suppress(Exception):
                job.tell(Broken(error))
            over = True
        if over:
            self.leave(job)
        return over

    def _told(self, job: Job, sound: bool) -> bool:
        """Tell a job how its picture stands, and whether that was the last of it."""
        wish, canvas = self._work[job]
        if not sound:
            said = f"picture: turned to NaN or infinity at step {canvas.done} of {canvas.steps}"
            raise BackboneError(f"{said}; ask for other steps, less guidance, or another adapter")
        if canvas.done < canvas.steps:
            self._show(job, canvas, wish.sketches)
            return False
        job.tell(Drawn(self.backbone.shown(canvas.made)[0]))
        job.ended("stop", made=wish.steps)
        return True

    def _show(self, job: Job, canvas: Canvas, sketches: int) -> None:
        """Tell the sketch that is due now, if one is; one that cannot be shown is left out."""
        due = [math.ceil((at + 1) * canvas.steps / (sketches + 1)) for at in range(sketches)]
        if canvas.done in due:
            with contextlib.suppress(BackboneError):
                job.tell(Sketch(self.backbone.sketch(canvas)[0], due.index(canvas.done)))


def turn(course: Course, share: float) -> Mixture:
    """Whose turn it is after this share of the steps."""
    return next((mixed for until, mixed in course if share < until), course[-1][1])


def _draw(wish: Write | Draw) -> Draw:
    if not isinstance(wish, Draw):
        raise ServeError("this backbone draws pictures and writes no text; ask it for a picture")
    return wish
