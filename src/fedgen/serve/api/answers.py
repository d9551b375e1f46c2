"""What is answered over HTTP, as plain dataclasses: OpenAI's shapes, and under `fedgen` what only this server has."""

import json
from dataclasses import dataclass
from typing import Any, Literal


def packed(answer: object) -> bytes:
    """An answer as JSON."""
    return json.dumps(answer, default=vars, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """What is wrong with a request, and with which of its parameters."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


@dataclass(frozen=True, kw_only=True)
class Error:
    """A request that came to nothing."""

    error: Wrong


# ---- models


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model is: `gain` is the mean fall of its clients' held-out measure from the backbone's."""

    run: str
    type: Literal["text", "image"]
    kind: str
    round: int
    rank: int
    hash: str
    metrics: dict[str, float]
    owner: str
    pinned: bool
    words: list[str]
    gain: float | None
    members: int | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A backbone or an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None
    fedgen: Card


@dataclass(frozen=True, kw_only=True)
class Models:
    """All that the asker may use."""

    object: Literal["list"] = "list"
    data: list[Model]


# ---- texts


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Tokens of prompts that were known before."""

    cached_tokens: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Cached


@dataclass(frozen=True, kw_only=True)
class Under:
    """What each choice was answered under, and what it took."""

    models: list[str]
    hashes: list[list[str]]
    fallback: str
    waited: float
    seconds: float
    cached: int


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Each token's log-probability, the likeliest in its place, and where in the text it begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One text."""

    index: int
    text: str
    logprobs: TokenLogprobs | None
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Texts that were continued."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    fedgen: Under


@dataclass(frozen=True, kw_only=True)
class Likely:
    """A token that was likely, and its bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


@dataclass(frozen=True, kw_only=True)
class Content:
    """A token that was written, and the likeliest in its place."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[Likely]


@dataclass(frozen=True, kw_only=True)
class ChatLogprobs:
    """Each token's log-probability."""

    content: list[Content]
    refusal: None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What was said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


@dataclass(frozen=True, kw_only=True)
class ChatChoice:
    """One reply."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class ChatCompletion:
    """Replies to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    fedgen: Under


# ---- pictures


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, which seed drew it, and under what."""

    b64_json: str
    seed: int
    model: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures that were drawn."""

    created: int
    data: list[Picture]
    output_format: Literal["png"] = "png"
    size: str
    fedgen: Under


# ---- the rest


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Whether the server lives, or answers."""

    status: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """Which server this is."""

    version: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was done."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One round of a run."""

    round: int
    loss: float | None
    measure: float | None
    up: int
    down: int


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What the run's adapters are held against."""

    name: str
    lower_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Point:
    """One client's profile on a plane; its name where it is the asker's own."""

    x: float
    y: float
    cluster: str
    own: bool
    name: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """One cluster: how many are in it, the labels most of them have, and its adapter's measure."""

    name: str
    members: int
    labels: list[str]
    measure: float | None


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of a version of an adapter."""

    name: str
    round: int
    published: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run: how it went, where its clients lie, what it gained and saved, and how prompts are encoded for it.

    `asks` is what its backbone is told, `plain` whether as it is or sealed alone, `longest` how many tokens of text it
    reads and writes at most; with `routes` it has clusters that prompts can be routed to.
    """

    name: str
    type: Literal["text", "image"]
    asks: Literal["prompt", "label", "nothing"]
    plain: bool
    longest: int
    routes: bool
    backbone: str
    seconds: float
    rounds: int
    finished: bool
    curve: list[Turn]
    measure: Measure
    points: list[Point]
    clusters: list[Group]
    saved: float | None
    gains: dict[str, float]
    verdicts: list[Told]
    encode: dict[str, Any]
