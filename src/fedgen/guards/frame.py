"""Pieces of bytes one after the other; how long each must be is known to who reads them, and nothing else is read."""

from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedgen.errors import TreeError

Bytes = NDArray[np.uint8]
WINDOW = 2**10, 2**31  # bytes that zstandard may be told to look back at least and at most
REMEDY = "both ends must have the same settings"


def framed(pieces: Sequence[Bytes], *, zipped: bool) -> Bytes:
    """The pieces as one; zipped each by itself, as they are unlike, and after its length."""
    return np.concatenate([_zipped(piece) for piece in pieces] if zipped else pieces)


class Frame:
    """The pieces again."""

    def __init__(self, raw: Bytes, *, zipped: bool) -> None:
        self.raw, self.zipped = raw, zipped

    def take(self, count: int) -> Bytes:
        """The next piece, of so many bytes; refused before any memory is taken for it if it has others."""
        if not self.zipped:
            return self._cut(count)
        length = int.from_bytes(self._cut(4).tobytes(), "little")
        return np.frombuffer(_unzipped(self._cut(length).tobytes(), count), np.uint8)

    def end(self) -> None:
        """Nothing may be left."""
        if len(self.raw):
            raise TreeError(f"compress: wanted no more bytes, came {len(self.raw):,}; {REMEDY}")

    def _cut(self, count: int) -> Bytes:
        if len(self.raw) < count:
            raise TreeError(f"compress: wanted {count:,} more bytes, came {len(self.raw):,}; {REMEDY}")
        found, self.raw = self.raw[:count], self.raw[count:]
        return found


def _zipped(piece: Bytes) -> Bytes:
    raw = zstandard.ZstdCompressor().compress(piece.tobytes())
    return np.frombuffer(len(raw).to_bytes(4, "little") + raw, np.uint8)


def _unzipped(raw: bytes, count: int) -> bytes:
    """What zstandard makes of it, which says beforehand how long that is and stops there."""
    try:
        size = zstandard.get_frame_parameters(raw).content_size
        if size != count:
            raise TreeError(f"compress: wanted {count:,} bytes once unzipped, came a promise of {size:,}; {REMEDY}")
        reader = zstandard.ZstdDecompressor(max_window_size=min(max(count, WINDOW[0]), WINDOW[1]))
        return reader.decompress(raw, max_output_size=count, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise TreeError(f"compress: wanted a whole zstandard frame, came {len(raw):,} other bytes ({error})") from error
