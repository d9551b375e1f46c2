"""Pictures that come as arrays: CIFAR-10's batches, archives of NumPy, and scikit-learn's digits."""

import codecs
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from fedgen.data import files
from fedgen.data.pixels import pillow, pixels
from fedgen.errors import DataError
from fedgen.records import Document, Range

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 in its own folder, `cifar-10-batches-py`; with `parts` what its test batch holds is the test part."""

    path: str
    parts: bool = False

    def read(self) -> list[Document]:
        """All pictures, the test batch last."""
        root = files.folder(self.path, "CIFAR-10's batches")
        return [document for name in BATCHES for document in self._part(root, name)]

    def _part(self, root: Path, name: str) -> list[Document]:
        pictures, labels = _batch(root / name)
        return _documents(pictures, labels, CLASSES, "test" if self.parts and name == "test_batch" else "")


@dataclass(frozen=True)
class Npz:
    """An archive of NumPy: bytes `x` as [n, height, width] or [n, height, width, 3], and `y`, the class numbers.

    With `names` of the classes a caption is "a photo of a ..."; without there is none. The first `limit` pictures are
    taken (0: all).
    """

    path: str
    names: tuple[str, ...] = ()
    limit: Annotated[int, Range(0)] = 0

    def read(self) -> list[Document]:
        """One document a picture."""
        path = Path(self.path).expanduser()
        x, y = _archive(path)
        if x.dtype != np.uint8 or not x.size or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)):
            raise DataError(f"{path}: 'x' wanted uint8 [n, height, width] or [n, height, width, 3], came {_said(x)}")
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
            raise DataError(f"{path}: 'y' wanted {len(x)} whole numbers, came {_said(y)}")
        if self.names and not 0 <= y.min() <= y.max() < len(self.names):
            came = f"{y.min()} to {y.max()}"
            raise DataError(
                f"{path}: 'y' wanted 0 to {len(self.names) - 1}, came {came}; name every class (data.names)"
            )
        x, y = (values[: self.limit or None] for values in (x, y))
        pictures = torch.tensor(x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2))
        return _documents(pictures, y.tolist(), self.names)


@dataclass(frozen=True)
class Digits:
    """The 1797 handwritten digits that come with scikit-learn, grey and 8 by 8, scaled to `size`."""

    size: Annotated[int, Range(1)] = 8

    def read(self) -> list[Document]:
        """One document a digit."""
        from sklearn.datasets import load_digits  # a second to import, and only digits need it

        found = load_digits()
        pictures = torch.tensor(found.images * 255 / 16).round().to(torch.uint8)
        if self.size != 8:
            image = pillow()
            pictures = torch.cat([pixels(image.fromarray(one.numpy()), self.size, "grey") for one in pictures])
        pairs = zip(pictures[:, None], found.target.tolist(), strict=True)
        return [Document("", "", f"the digit {digit}", str(digit), picture=picture) for picture, digit in pairs]


def _documents(pictures: Tensor, labels: list[int], names: tuple[str, ...], part: str = "") -> list[Document]:
    captions = [f"a photo of a {names[label]}" if names else "" for label in labels]
    told = zip(captions, labels, pictures.contiguous(), strict=True)
    return [Document("", "", caption, str(label), part, picture) for caption, label, picture in told]


def _archive(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with files.reading(str(path), "an archive of NumPy"), path.open("rb") as file:
        archive = np.lib.npyio.NpzFile(file, allow_pickle=False)
        for name in ("x", "y"):
            files.present(archive.files, name, str(path))
        return archive["x"], archive["y"]


def _said(values: np.ndarray) -> str:
    return f"{values.dtype} {list(values.shape)}"


ARRAY: Any = np.empty(0).__reduce__()[0]  # what makes an array moves between versions of NumPy; an array knows it
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): ARRAY,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _Arrays(pickle.Unpickler):
    """Reads arrays and plain values; anything else that a pickle asks for is refused before it is touched."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the few names that an array is made by."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"a pickle that asks for '{module}.{name}', which makes no array")
        return ALLOWED[module, name]


def _batch(path: Path) -> tuple[Tensor, list[int]]:
    with files.reading(str(path), "a batch of CIFAR-10"), path.open("rb") as file:
        batch = _Arrays(file, encoding="bytes").load()
        values, labels = batch[b"data"], batch[b"labels"]
        if not isinstance(values, np.ndarray) or values.dtype != np.uint8 or values.shape != (len(labels), 3072):
            raise ValueError("'data' that is not a row of 3072 bytes a label")
        if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
            raise ValueError("'labels' that are not whole numbers from 0 to 9")
        return torch.tensor(values).view(-1, 3, 32, 32), labels
