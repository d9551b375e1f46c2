"""A client's profile: its encoded prompts, pooled, and as noisy as a plan asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen import seeds
from fedgen.backbones import Backbone
from fedgen.encode.encoders import Encoder
from fedgen.errors import DataError
from fedgen.records import Range

STARTS, PASSES = 8, 10  # of k-means over a client's own few vectors


@dataclass(frozen=True)
class Profile:
    """What a client tells of its prompts: the mean of at most so many of them, for each of its `tastes`.

    A taste is `width` numbers (0: as encoded), by a fixed random projection. With `epsilon` above 0 noise is added on
    the device (metric privacy): whatever is sent, two clients whose tastes lie d apart send it with odds that differ by
    a factor of at most exp(epsilon d). Tastes have length 1, so d is at most 2; each taste spends epsilon anew. The
    noise is about width / epsilon long, beside a taste's 1, so a narrow one needs less.
    """

    prompts: Annotated[int, Range(1)] = 64
    tastes: Annotated[int, Range(1)] = 1
    width: Annotated[int, Range(0)] = 0
    epsilon: Annotated[float, Range(0)] = 0.0

    def of(self, texts: Sequence[str], encoder: Encoder, backbone: Backbone, draw: torch.Generator) -> Tensor:
        """Vectors [tastes, width] of length 1, the taste with most prompts first; few prompts have fewer tastes."""
        said = [text for text in texts if text.strip()][: self.prompts]
        if not said:
            raise DataError(
                "profile: wanted at least one prompt, came none; leave the client out, or encode.kind = 'none'"
            )
        narrow = self.narrow(_tastes(encoder.read(said, backbone), self.tastes, draw))
        return F.normalize(narrow + noise(narrow, self.epsilon, draw), dim=1) if self.epsilon else narrow

    def narrow(self, vectors: Tensor) -> Tensor:
        """Encoded vectors [n, as encoded] as profiles have them, [n, width], without noise."""
        if not self.width:
            return vectors
        if self.width > vectors.shape[1]:
            wish = f"wanted at most the {vectors.shape[1]} numbers that are encoded, came {self.width}"
            raise DataError(f"profile.width: {wish}; set it to 0 to keep all")
        return F.normalize(vectors @ _projection(vectors.shape[1], self.width), dim=1)


@cache
def _projection(wide: int, narrow: int) -> Tensor:
    """Orthonormal columns [wide, narrow], the same on every device."""
    chance = torch.randn(wide, narrow, generator=seeds.generator(0, -1, "", "projection"))
    columns: Tensor = torch.linalg.qr(chance)[0]
    return columns


def _tastes(vectors: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """The directions of at most so many groups of vectors, the largest first: the best of a few spherical k-means."""
    if count == 1:
        return F.normalize(vectors.mean(0, keepdim=True), dim=1)
    starts = [torch.randperm(len(vectors), generator=draw)[:count] for _ in range(STARTS)]
    found = [_grouped(vectors, vectors[start]) for start in starts]
    return max(found, key=lambda centres: float((vectors @ centres.T).amax(1).sum()))


def _grouped(vectors: Tensor, centres: Tensor) -> Tensor:
    for _ in range(PASSES):
        own = F.one_hot((vectors @ centres.T).argmax(1), len(centres)).T.float()
        own = own[own.any(1)]  # of equal vectors, some centres have none
        centres = F.normalize(own @ vectors, dim=1)
    return centres[own.sum(1).argsort(descending=True, stable=True)]


def noise(rows: Tensor, epsilon: float, draw: torch.Generator) -> Tensor:
    """Noise for rows [n, width], of density ~ exp(-epsilon length): any direction, and a length by the Gamma law."""
    direction = F.normalize(torch.randn(rows.shape, generator=draw), dim=1)
    waits = torch.empty(rows.shape).exponential_(generator=draw)  # the sum of as many as a row is wide: Gamma(width, 1)
    return direction * waits.sum(1, keepdim=True) / epsilon
