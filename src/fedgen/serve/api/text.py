"""Texts: completions and chats, whole or streamed, in OpenAI's shapes."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedgen.backbones import LanguageBackbone
from fedgen.records import Rows
from fedgen.serve.api.answers import Cached, ChatCompletion, Completion, Under, Usage
from fedgen.serve.api.asks import ChatAsk, CompletionAsk, Message, TextAsk
from fedgen.serve.api.choosing import Row, choose, opened, pointed, put, refuse_plain, rows_of, under
from fedgen.serve.api.errors import RefusedError
from fedgen.serve.api.forms import CHAT, PLAIN, Form, Written
from fedgen.serve.api.hearing import DONE, Heard, Hearing, Stream, begun, event_of, whole
from fedgen.serve.api.service import Call
from fedgen.serve.engine.wishes import Ended, Piece, Write
from fedgen.serve.house import Stand

TOKENS = 64


async def complete(call: Call, ask: CompletionAsk) -> Completion | ChatCompletion | Stream:
    """Continue texts."""
    prompts = [ask.prompt] if isinstance(ask.prompt, str) else ask.prompt
    given = Given("prompt", prompts, lambda stand: prompts or [], prompts[0] if prompts else None)
    likely = -1 if ask.logprobs is None else ask.logprobs
    return await _answered(call, ask, given, PLAIN, _manner(ask, ask.max_tokens, likely))


async def chat(call: Call, ask: ChatAsk) -> Completion | ChatCompletion | Stream:
    """Continue a conversation."""
    if ask.top_logprobs and not ask.logprobs:
        raise RefusedError("top_logprobs: wanted logprobs = true beside it", param="top_logprobs")
    if ask.max_tokens and ask.max_completion_tokens and ask.max_tokens != ask.max_completion_tokens:
        raise RefusedError("max_completion_tokens: says another number than max_tokens", param="max_completion_tokens")
    messages = ask.messages
    plain = None if messages is None else "\n\n".join(map(_content, messages))
    given = Given("messages", messages, lambda stand: [_templated(stand, messages or [], plain or "")], plain)
    likely = (ask.top_logprobs or 0) if ask.logprobs else -1
    return await _answered(call, ask, given, CHAT, _manner(ask, ask.max_tokens or ask.max_completion_tokens, likely))


# ---- what is asked


@dataclass(frozen=True)
class Given:
    """Plain prompts by the parameter they came in, as a run's backbone is to read them, and the one to be routed by."""

    name: str
    came: Sequence[object] | None
    read: Callable[[Stand], Sequence[str]]
    plain: str | None


def _manner(ask: TextAsk, tokens: int | None, likely: int) -> Callable[[str | Rows, int], Write]:
    """How every prompt is continued."""
    stops = [ask.stop] if isinstance(ask.stop, str) else ask.stop or []
    if not all(stops):
        raise RefusedError("stop: wanted words, none of them empty, came an empty one", param="stop")
    heat = 1.0 if ask.temperature is None else ask.temperature
    top = 1.0 if ask.top_p is None else ask.top_p
    return lambda prompt, seed: Write(prompt, tokens or TOKENS, heat, top, seed, tuple(stops), likely)


def _content(message: Message) -> str:
    parts = message.content
    return parts if isinstance(parts, str) else "".join(part.text for part in parts)


def _templated(stand: Stand, messages: Sequence[Message], plain: str) -> str:
    """The conversation as the model learnt conversations; one that learnt none reads its messages as paragraphs."""
    if not isinstance(stand.backbone, LanguageBackbone) or not stand.backbone.tokenizer.chat_template:
        return plain
    said = [
        {"role": one.role, "content": _content(one), **({"name": one.name} if one.name else {})} for one in messages
    ]
    try:
        found: str = stand.backbone.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001  a template may raise what it likes, as on two messages of one role
        raise RefusedError(f"messages: this model's template refuses them ({error!s:.200})", param="messages") from None
    return found


# ---- what is answered


@dataclass(frozen=True)
class Question:
    """Rows that are under way, and how they are to be told."""

    form: Form
    stand: Stand
    head: Mapping[str, Any]
    rows: Sequence[Row]
    told: bool  # each token, with its probability

    def usage(self, written: Sequence[Written]) -> Usage:
        """Each prompt is read once, however many answers it has."""
        ends = {row.prompt: one.end for row, one in reversed(list(zip(self.rows, written, strict=True)))}
        read, cached = (sum(getattr(end, part) for end in ends.values()) for part in ("given", "cached"))
        made = sum(end.made for end in _ends(written))
        details = Cached(cached_tokens=cached)
        return Usage(
            prompt_tokens=read, completion_tokens=made, total_tokens=read + made, prompt_tokens_details=details
        )

    def under(self, written: Sequence[Written]) -> Under:
        """What the answers were given under."""
        return under(self.stand, self.rows, _ends(written), self.usage(written).prompt_tokens_details.cached_tokens)


def _ends(written: Sequence[Written]) -> list[Ended]:
    return [one.end for one in written if one.end is not None]


async def _answered(
    call: Call, ask: TextAsk, given: Given, form: Form, manner: Callable[[str | Rows, int], Write]
) -> Completion | ChatCompletion | Stream:
    _check(call, ask, given)
    vector = await pointed(call.house, ask, "text", given.plain)
    with Hearing(call.service.metrics, "text") as hearing:
        question = await asyncio.to_thread(_put, call, ask, given, form, manner, vector=vector, hearing=hearing)
        call.queued()
        if ask.stream:
            options = ask.stream_options
            speaker = Speaker(question, counts=bool(options and options.include_usage))
            return await begun(hearing, call.receive, speaker.say, DONE)
        written = [Written() for _ in question.rows]
        for at, event in await whole(hearing, call.receive):
            _take(written[at], event)
    choices = [form.choice(at, one, question.told) for at, one in enumerate(written)]
    return form.whole(**question.head, choices=choices, usage=question.usage(written), fedgen=question.under(written))


def _take(written: Written, event: object) -> None:
    if isinstance(event, Piece | Ended):
        written.add(event)


def _check(call: Call, ask: TextAsk, given: Given) -> None:
    """Refuse what can be seen to be wrong at once."""
    if ask.stream_options is not None and not ask.stream:
        raise RefusedError("stream_options: wanted stream = true beside it", param="stream_options")
    if (given.came is None) == (ask.prompt_embeds is None):
        raise RefusedError(f"{given.name}: wanted either {given.name} or prompt_embeds", param=given.name)
    if given.came is not None:
        refuse_plain(call.house)
    if given.came is not None and not given.came:
        raise RefusedError(f"{given.name}: wanted at least one, came none", param=given.name)


def _put(
    call: Call, ask: TextAsk, given: Given, form: Form, manner: Callable[[str | Rows, int], Write], *,
    vector: Tensor | None, hearing: Hearing,
) -> Question:  # fmt: skip
    """Queue a question's rows; away from the loop, as prompts are read on the way."""
    stand, takens = choose(call.house, call.who, ask, "text", vector)
    prompts = given.read(stand) if ask.prompt_embeds is None else opened(stand, ask.prompt_embeds)
    if ask.route and len(prompts) > 1:
        raise RefusedError(f"route: wanted one prompt, which it is chosen for, came {len(prompts)}", param="route")
    rows = rows_of(ask, takens, len(prompts))
    wishes = [(row, manner(prompts[row.prompt], row.seed)) for row in rows]
    put(stand, hearing, call.who, wishes, ask.deadline)
    head = {
        "id": form.prefix + uuid.uuid4().hex,
        "created": int(time.time()),
        "model": takens[0].id,
        "system_fingerprint": stand.backbone.hash[:12],
    }
    return Question(form, stand, head, rows, told=wishes[0][1].likely >= 0)


class Speaker:
    """A question's stream: what is heard of a row since the last time is one chunk."""

    def __init__(self, question: Question, *, counts: bool) -> None:
        self._question, self._counts = question, counts
        self._head = {**question.head, "object": question.form.part}
        self._all = [Written() for _ in question.rows]  # without text, which is gone once it is told
        self._begin = [0] * len(question.rows)
        self._spoken: set[int] = set()

    async def say(self, heard: list[Heard]) -> bytes:
        """What was heard, as events."""
        new: dict[int, Written] = {}
        for at, event in heard:
            _take(new.setdefault(at, Written()), event)
        return b"".join(self._chunks(at, one) for at, one in new.items()) + self._last()

    def _chunks(self, at: int, new: Written) -> bytes:
        form, told = self._question.form, self._question.told
        found = b""
        if new.text or new.tokens or at not in self._spoken:
            change = form.change(new, self._begin[at], at not in self._spoken, told)
            found = self._event([{"index": at, **change, "finish_reason": None}])
        self._spoken.add(at)
        self._begin[at] += sum(len(token.text) for token in new.tokens)
        if new.end is None:
            return found
        self._all[at].end = new.end
        change = form.change(Written(), self._begin[at], False, False)
        ended = len(_ends(self._all)) == len(self._all)
        more = {"fedgen": self._question.under(self._all)} if ended else {}
        return found + self._event([{"index": at, **change, "finish_reason": new.reason}], more)

    def _last(self) -> bytes:
        """The tokens' count, behind the last row's end."""
        if not self._counts or len(_ends(self._all)) < len(self._all):
            return b""
        return self._event([], {"usage": self._question.usage(self._all)})

    def _event(self, choices: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._counts else {}
        return event_of({**self._head, "choices": choices, **usage, **(more or {})})
