"""A picture of any format and mode as bytes in a tensor: upright, on white, grey or in colour, in one size."""

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedgen.errors import DataError
from fedgen.records import Document

Mode = Literal["RGB", "grey"]


def pillow() -> ModuleType:
    """Pillow's `Image`, imported when the first picture is read."""
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        wish = "wanted the extra 'images', came a Python without it; pip install fedgen-edge[images]"
        raise DataError(f"pictures: {wish} ({error})") from error


def pixels(picture: Any, size: int, mode: Mode) -> Tensor:
    """Bytes as [channels, height, width]; with a size, scaled and cropped about the centre to that many each way."""
    image, ops = pillow(), import_module("PIL.ImageOps")
    flat = _flat(image, ops.exif_transpose(picture)).convert("RGB")
    flat = flat.convert("L") if mode == "grey" else flat
    flat = ops.fit(flat, (size, size), image.Resampling.BICUBIC) if size else flat
    values = torch.from_numpy(np.array(flat))
    return values[None] if mode == "grey" else values.permute(2, 0, 1).contiguous()


def _flat(image: ModuleType, picture: Any) -> Any:
    """Eight bits a channel and nothing to see through; Pillow itself would clip deep pixels and forget the ground."""
    if picture.mode.startswith(("I", "F")):
        deep = np.asarray(picture)
        if picture.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"pixels of mode '{picture.mode}', whose white is unknown")
        return image.fromarray(((deep.astype(np.int64) + 128) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    seen = picture.convert("RGBA")
    return image.alpha_composite(image.new("RGBA", seen.size, "white"), seen)


def same_size(pictures: Iterable[tuple[str, Document]]) -> list[Document]:
    """The documents, if all their pictures are as large as the first; the names tell which is not."""
    found = list(pictures)
    for name, document in found:
        if _size(document) != _size(found[0][1]):
            came = f"{_size(found[0][1])} in {found[0][0]} and {_size(document)} in {name}"
            raise DataError(f"pictures: wanted one size, came {came}; say a size to scale and crop to (data.size)")
    return [document for _, document in found]


def _size(document: Document) -> str:
    if document.picture is None:
        return "none"
    return f"{document.picture.shape[2]} x {document.picture.shape[1]}"
