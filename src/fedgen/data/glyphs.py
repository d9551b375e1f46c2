"""Glyphs: letters and digits drawn in the typefaces that come with matplotlib, a picture world that needs no download.

A style is one face, named by words that add up: `bold`, `slanted`, `bold slanted`. The embedded image backbone has seen
the plain ones alone. What a client holds is one style, and some characters it never drew are held out.
"""

import functools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedgen.data.pixels import pillow
from fedgen.errors import DataError
from fedgen.records import Document, Range

CHARACTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits
FINE = 4  # drawn so many times larger, then averaged down: places between pixels
EM, BASELINE = 0.8, 0.7  # the face's size and its base line, as shares of a picture
SCALES, SHIFT = (0.9, 1.1), 0.04  # how far drawings differ in size, and in place as a share of a picture


@dataclass(frozen=True)
class Face:
    """A font file, and where its capitals, small letters and digits begin if not where everyone's do."""

    file: str
    letters: int = 0
    digits: int = 0

    def point(self, character: str) -> str:
        """The character that stands for this one in the file."""
        if character in string.digits:
            return chr(self.digits + int(character)) if self.digits else character
        if not self.letters:
            return character
        at = self.letters + (string.ascii_uppercase + string.ascii_lowercase).index(character)
        return chr(ELSEWHERE.get(at, at))


# Letters that Unicode had before it got the alphabets they belong to.
ELSEWHERE = {
    0x1D506: 0x212D, 0x1D50B: 0x210C, 0x1D50C: 0x2111, 0x1D515: 0x211C, 0x1D51D: 0x2128,
    0x1D53A: 0x2102, 0x1D53F: 0x210D, 0x1D545: 0x2115, 0x1D547: 0x2119, 0x1D548: 0x211A, 0x1D549: 0x211D,
    0x1D551: 0x2124,
}  # fmt: skip

PLAIN = ("plain", "plain STIX", "plain Modern")
"""What the embedded backbone was pre-trained on."""

STYLES = {
    "plain": Face("DejaVuSans"),
    "plain STIX": Face("STIXGeneral", 0x1D5A0, 0x1D7E2),
    "plain Modern": Face("cmss10"),
    "bold": Face("DejaVuSans-Bold"),
    "slanted": Face("DejaVuSans-Oblique"),
    "bold slanted": Face("DejaVuSans-BoldOblique"),
    "serif": Face("DejaVuSerif"),
    "bold serif": Face("DejaVuSerif-Bold"),
    "slanted serif": Face("DejaVuSerif-Italic"),
    "bold slanted serif": Face("DejaVuSerif-BoldItalic"),
    "typewriter": Face("cmtt10"),
    "typewriter STIX": Face("STIXGeneral", 0x1D670, 0x1D7F6),
    "mono": Face("DejaVuSansMono"),
    "bold mono": Face("DejaVuSansMono-Bold"),
    "slanted mono": Face("DejaVuSansMono-Oblique"),
    "bold slanted mono": Face("DejaVuSansMono-BoldOblique"),
    "roman": Face("STIXGeneral"),
    "bold roman": Face("STIXGeneralBol"),
    "slanted roman": Face("STIXGeneralItalic"),
    "bold slanted roman": Face("STIXGeneralBolIta"),
    "modern": Face("cmr10"),
    "bold modern": Face("cmb10"),
    "slanted modern": Face("cmti10"),
    "bold STIX": Face("STIXGeneral", 0x1D5D4, 0x1D7EC),
    "slanted STIX": Face("STIXGeneral", 0x1D608, 0x1D7E2),
    "bold slanted STIX": Face("STIXGeneral", 0x1D63C, 0x1D7EC),
    "gothic": Face("STIXGeneral", 0x1D504),
    "bold gothic": Face("STIXGeneral", 0x1D56C),
    "outline": Face("STIXGeneral", 0x1D538, 0x1D7D8),
    "outline serif": Face("DejaVuSerif", 0x1D538, 0x1D7D8),
    "bold script": Face("STIXGeneral", 0x1D4D0),
}
"""Every style by its name."""


@dataclass(frozen=True)
class Glyphs:
    """Each of `clients` a style draws `characters` in it, `copies` of each, smaller or larger and a little off.

    Each style has `tail` times as many clients as the one before it, and at least one.
    `left_out` characters of each client are for testing alone, and half as many for validation. The prompt says the
    character, and with `words` the style too. Pictures are `size` pixels wide, ink on paper.
    """

    styles: tuple[str, ...] = ("bold", "slanted", "serif", "typewriter", "gothic", "outline")
    clients: Annotated[int, Range(1)] = 4
    characters: str = string.ascii_lowercase
    copies: Annotated[int, Range(1)] = 4
    left_out: Annotated[int, Range(1)] = 4
    words: bool = False
    size: Literal[16, 32] = 32
    tail: Annotated[float, Range(0, 1, open=True)] = 1.0

    def __post_init__(self) -> None:
        if unknown := [style for style in self.styles if style not in STYLES]:
            raise DataError(f"styles: '{unknown[0]}' is none; there are {', '.join(STYLES)}")
        if twice := [style for at, style in enumerate(self.styles) if style in self.styles[:at]]:
            raise DataError(f"styles: wanted each once, came '{twice[0]}' again")
        odd = sorted({*self.characters} - {*CHARACTERS})
        if odd or len({*self.characters}) != len(self.characters):
            raise DataError(f"characters: wanted letters and digits, each once, came {self.characters!r}")
        if self.left_out + self.validated >= len(self.characters) or not self.styles:
            came = f"{len(self.styles)} styles, {len(self.characters)} characters, {self.left_out} left out"
            raise DataError(f"styles and characters: wanted some of each left to train on, came {came}")

    @property
    def validated(self) -> int:
        """How many characters are for validation alone."""
        return max(self.left_out // 2, 1)

    def read(self) -> list[Document]:
        """Client by client, character by character; the same drawings every time."""
        counts = [max(1, round(self.clients * self.tail**at)) for at in range(len(self.styles))]
        holders = [(style, at) for style, count in zip(self.styles, counts, strict=True) for at in range(count)]
        return [document for style, number in holders for document in self._of(style, number)]

    def _of(self, style: str, number: int) -> Iterator[Document]:
        owner = f"{style.replace(' ', '-')}-{number + 1}"
        draw = torch.Generator().manual_seed(1 + 1000 * list(STYLES).index(style) + number)
        known = [character for character in self.characters if has(style, character)]
        if len(known) <= self.left_out + self.validated:
            wish = f"wanted more than {self.left_out + self.validated} of the characters, came {len(known)}"
            raise DataError(f"style '{style}': {wish}; take characters that its face has, or leave fewer out")
        order = torch.randperm(len(known), generator=draw).tolist()
        part = dict(zip(order, ["test"] * self.left_out + ["valid"] * self.validated, strict=False))
        for at, character in enumerate(known):
            prompt = prompt_of(character, style if self.words else "")
            for picture in drawings(style, character, self.copies, self.size, draw):
                yield Document(owner, "", prompt, style, part.get(at, "train"), picture)


def prompt_of(character: str, style: str = "") -> str:
    """What a picture of the character is called."""
    kind = "digit" if character.isdigit() else "capital letter" if character.isupper() else "letter"
    return f"the {kind} {character}" + (f", {style}" if style else "")


def character_of(prompt: str) -> str:
    """The character that such a prompt is of."""
    return prompt.partition(",")[0].rpartition(" ")[2]


def drawings(style: str, character: str, count: int, size: int, draw: torch.Generator) -> list[Tensor]:
    """So many drawings of a character, each of its own size and place."""
    low, high = SCALES
    larger, across, down = torch.rand(3, count, generator=draw).mul(2).sub(1).tolist()
    places = zip(larger, across, down, strict=True)
    return [
        glyph(style, character, size, scale=(low + high + (high - low) * a) / 2, across=SHIFT * b, down=SHIFT * c)
        for a, b, c in places
    ]


def glyph(
    style: str, character: str, size: int = 32, *, scale: float = 1.0, across: float = 0.0, down: float = 0.0
) -> Tensor:
    """One picture [1, size, size]: ink (0) on paper (255)."""
    fine = size * FINE
    face, font = STYLES[style], _font(STYLES[style].file, round(EM * fine * scale))
    point = face.point(character)
    left, _, right, _ = font.getbbox(point, anchor="ls")
    sheet = pillow().new("L", (fine, fine), 255)
    place = (fine - left - right) / 2 + across * fine, (BASELINE + down) * fine
    import_module("PIL.ImageDraw").Draw(sheet).text(place, point, font=font, fill=0, anchor="ls")
    return torch.from_numpy(np.array(sheet.reduce(FINE)))[None]


@functools.cache
def has(style: str, character: str) -> bool:
    """Whether the style's face has the character: gothic, for one, has no digits."""
    face = STYLES[style]
    known = _matplotlib().ft2font.FT2Font(str(_file(face.file))).get_charmap()
    alone = face.letters and not face.digits and character in string.digits
    return ord(face.point(character)) in known and not alone


def _file(name: str) -> Path:
    return Path(_matplotlib().get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


@functools.cache
def _font(name: str, pixels: int) -> Any:
    return import_module("PIL.ImageFont").truetype(str(_file(name)), pixels)


def _matplotlib() -> Any:
    try:
        import_module("matplotlib.ft2font")
        return import_module("matplotlib")
    except ImportError as error:
        raise DataError("glyphs: wanted matplotlib for its faces; pip install fedgen-edge[images]") from error
