# ruff: noqa: RUF009
"""What may be asked over HTTP: each field with what it takes, as plain dataclasses that pydantic reads at the start.

What other servers know and this one does not is either here with the one value that changes nothing, or refused as
unknown: nothing that is asked is passed over in silence.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

ROWS = 64  # rows a request
LONG = 200  # characters of a name
EXACT = 2**53  # whole numbers up to it are the same in every reader of JSON
NOT_DONE = "Not done here."
SAID = [{"role": "user", "content": "Tell me of the harbour."}]


def said(
    text: str, default: Any = dataclasses.MISSING, *, least: float | None = None, most: float | None = None,
    long: int | None = None, such: Any = None,
) -> Any:  # fmt: skip
    """A field's meaning, its default (without one it must be given), its bounds in value or in length, an example."""
    limits = {"description": text, "ge": least, "le": most, "max_length": long, "examples": such and [such]}
    return dataclasses.field(default=default, metadata={key: one for key, one in limits.items() if one is not None})


@dataclass(frozen=True)
class Most:
    """At most so many characters or items, where a field may be of several shapes."""

    long: int

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), "max_length": self.long}


Name = Annotated[str, Most(1024)]  # of adapters, as long as four with their run and their weights are
Text = Annotated[str, Most(1 << 20)]
Texts = Annotated[list[Text], Most(ROWS)]
Sealed = Annotated[list[str], Most(ROWS)]
Stops = Annotated[list[Name], Most(4)]


@dataclass(frozen=True, kw_only=True)
class Strict:
    """Nothing is converted, nothing unknown is taken."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class Part(Strict):
    """One adapter of a mixture, and how much of it."""

    name: Name = said("The adapter's name.")
    scale: float = said("How much of it.", 1.0, least=-10, most=10)


@dataclass(frozen=True, kw_only=True)
class Route(Strict):
    """How the clusters nearest to the prompt are mixed."""

    top: int = said("How many clusters.", 2, least=1, most=4)
    spread: float = said("How far the weight spreads beyond the nearest one.", 0.1, least=1e-3, most=100)
    gain: float = said("The sum of the weights.", 1.0, least=-10, most=10)
    vector: list[float] | None = said("The prompt as the run's clients encode theirs.", None, long=65536)


@dataclass(frozen=True, kw_only=True)
class Ask(Strict):
    """What texts and pictures have in common."""

    model: Name = said(
        "An adapter's name, or a mixture as A=0.7,B=0.3; RUN:NAME where several runs are served.", "", such="global"
    )
    n: int | None = said("How many answers, each of its own seed.", 1, least=1, most=ROWS)
    seed: int | None = said("The first answer's seed; drawn without one.", None, least=-EXACT, most=EXACT)
    stream: bool | None = said("Answer piece by piece, as server-sent events.", False)
    user: Text | None = said("Whom you ask for. Taken, and used for nothing.", None)
    prompt_embeds: str | Sealed | None = said("Sealed prompts in place of plain ones, in base64.", None)
    models: list[Name] | None = said("Side by side: an answer under each, of one prompt and seed.", None, long=ROWS)
    mix: list[Part] | None = said("Several adapters at once, in place of `model`.", None, long=8)
    route: Route | bool | None = said("Mix the clusters nearest to the prompt, in place of `model`.", None)
    fallback: bool | None = said("Take the next best of an adapter that is missing, and say so.", False)
    deadline: float | None = said("Seconds after which the answer is of no use.", None, least=0, most=86400)


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Strict):
    """What a stream tells besides."""

    include_usage: bool | None = said("End with a chunk that counts the tokens.", False)
    include_obfuscation: Literal[False] | None = said(NOT_DONE, None)


@dataclass(frozen=True, kw_only=True)
class TextAsk(Ask):
    """What both ways to ask for texts have in common."""

    temperature: float | None = said("0 takes the likeliest token each time.", 1.0, least=0, most=2)
    top_p: float | None = said("Draw from the likeliest tokens that have this share.", 1.0, least=0, most=1)
    stop: Name | Stops | None = said("End before any of these; at most 4 of them.", None)
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = said(NOT_DONE, None, least=0, most=0)
    presence_penalty: float | None = said(NOT_DONE, None, least=0, most=0)
    logit_bias: dict[str, float] | None = said(NOT_DONE, None, long=0)


@dataclass(frozen=True, kw_only=True)
class CompletionAsk(TextAsk):
    """A text to be continued."""

    prompt: Text | Texts | None = said("One text, or several.", None, such="The harbour")
    max_tokens: int | None = said("At most so many tokens.", 64, least=1, most=1 << 20)
    logprobs: int | None = said("Tell log-probabilities: each token's, and of so many others.", None, least=0, most=20)
    best_of: Literal[1] | None = said(NOT_DONE, None)
    echo: Literal[False] | None = said(NOT_DONE, None)
    suffix: Literal[""] | None = said(NOT_DONE, None)


@dataclass(frozen=True, kw_only=True)
class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"] = said("Text alone is read here.")
    text: Text = said("What it says.")


@dataclass(frozen=True, kw_only=True)
class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = said("Who says it.", such="user")
    content: Text | Annotated[list[TextPart], Most(1024)] = said("What is said.", such="Tell me of the harbour.")
    name: Name | None = said("The speaker's name, for a template that shows it.", None)


@dataclass(frozen=True, kw_only=True)
class TextFormat(Strict):
    """Plain text, which is all there is."""

    type: Literal["text"] = "text"


@dataclass(frozen=True, kw_only=True)
class ChatAsk(TextAsk):
    """A conversation to be continued, by the tokenizer's template if it has one."""

    messages: list[Message] | None = said("What was said so far, the last one last.", None, long=1024, such=SAID)
    max_tokens: int | None = said("At most so many tokens; 64 without it.", None, least=1, most=1 << 20)
    max_completion_tokens: int | None = said("The same by its newer name.", None, least=1, most=1 << 20)
    logprobs: bool | None = said("Tell each token's log-probability.", False)
    top_logprobs: int | None = said("And those of so many others.", None, least=0, most=20)
    response_format: TextFormat | None = None
    tools: list[dict[str, Any]] | None = said(NOT_DONE, None, long=0)
    tool_choice: Literal["none"] | None = said(NOT_DONE, None)


@dataclass(frozen=True, kw_only=True)
class ImageAsk(Ask):
    """Pictures to be drawn."""

    prompt: Text | None = said("What is to be seen.", None, such="a seven")
    label: str | None = said("The class to draw, of a backbone that knows classes and no prompts.", None, long=LONG)
    size: str | None = said("`auto`, or WIDTHxHEIGHT, which must be the backbone's own.", None, long=16)
    response_format: Literal["b64_json"] | None = said("Pictures come inside the answer, never by address.", None)
    output_format: Literal["png"] | None = said("PNG is all there is.", None)
    steps: int | None = said("Steps of denoising; 20 without it.", None, least=1, most=1000)
    num_inference_steps: int | None = said("The same by diffusers' name.", None, least=1, most=1000)
    guidance: float | None = said("How closely to follow the prompt; 2 without it.", None, least=0, most=30)
    guidance_scale: float | None = said("The same by diffusers' name.", None, least=0, most=30)
    lora: Part | Annotated[list[Part], Most(8)] | None = said("The same as `mix`.", None)
    partial_images: int | None = said("Sketches on the way, in a stream.", 0, least=0, most=3)
    negative_prompt: Literal[""] | None = said(NOT_DONE, None)
    quality: Literal["auto", "standard"] | None = said("There is one.", None)
    style: Literal[""] | None = said(NOT_DONE, None)


@dataclass(frozen=True, kw_only=True)
class LoadAsk(Strict):
    """An adapter to be served from a bundle's folder."""

    lora_name: str = said("The name it is asked by.", long=LONG)
    lora_path: str = said("The bundle's folder, below the one that the server allows.", long=4096)
    load_inplace: bool | None = said("Put it in the place of one of this name.", False)


@dataclass(frozen=True, kw_only=True)
class UnloadAsk(Strict):
    """An adapter to be served no more."""

    lora_name: str = said("Its name.", long=LONG)
