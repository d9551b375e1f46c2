"""Pictures as arrays: CIFAR-10's batches, archives and digits, and what they refuse."""

import io
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgen.data import Cifar, Digits, Npz
from fedgen.errors import DataError
from fedgen.records import Document

DATA = Path(os.environ.get("FEDGEN_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]

# --- CIFAR-10


def batch(at: int, count: int = 3) -> dict[bytes, Any]:
    values = np.random.default_rng(at).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": values, b"labels": [at, 3, 9][:count], b"filenames": [b"a.png"] * count, b"batch_label": b"one"}


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A folder of six small batches."""
    for at, name in enumerate(BATCHES):
        (tmp_path / name).write_bytes(pickle.dumps(batch(at), protocol=2))
    return tmp_path


def test_cifar_reads_every_batch_in_order(cifar: Path) -> None:
    documents = Cifar(str(cifar)).read()
    assert [d.label for d in documents] == [label for at in range(6) for label in (str(at), "3", "9")]
    assert documents[1] == Document("", "", "a photo of a cat", "3")
    assert documents[-1] == Document("", "", "a photo of a truck", "9")
    assert [d.part for d in Cifar(str(cifar), parts=True).read()] == [""] * 15 + ["test"] * 3


def test_cifar_pictures_are_planes_of_red_green_and_blue(cifar: Path) -> None:
    found = Cifar(str(cifar)).read()[3].picture
    assert found is not None
    assert (found.dtype, found.shape) == (torch.uint8, (3, 32, 32))
    values = batch(1)[b"data"][0]
    assert found[0, 0, :5].tolist() == values[:5].tolist()
    assert found[2, 31, 31] == values[3071]


def test_cifar_as_python_2_wrote_it(cifar: Path) -> None:
    """The real files: bytes for text, and NumPy's old name for what makes an array."""
    made = pickle.dumps(batch(0), protocol=2)
    old = made.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != made
    (cifar / "data_batch_1").write_bytes(old)
    assert len(Cifar(str(cifar)).read()) == 18


class Trap:
    """What a pickle can be made to do when it is read."""

    def __init__(self, call: Any, *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.given


@pytest.mark.parametrize("call", [os.mkdir, eval, np.load, getattr, np.memmap], ids=lambda call: call.__name__)
def test_cifar_that_would_run_something_is_refused_and_named(call: Any, cifar: Path) -> None:
    trap = cifar / "sprung"
    (cifar / "data_batch_2").write_bytes(pickle.dumps(batch(1) | {b"more": Trap(call, str(trap))}, protocol=2))
    with pytest.raises(DataError, match=rf"data_batch_2: wanted a batch .* asks for '.*{call.__name__}'"):
        Cifar(str(cifar)).read()
    assert not trap.exists()


def broken(**changes: Any) -> bytes:
    return pickle.dumps(batch(1) | {key.encode(): value for key, value in changes.items()}, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (broken()[:900], "came .*truncated"),
        (b"", "came EOFError"),
        (b"\x1f\x8b not a batch", "came UnpicklingError"),
        (pickle.dumps([1, 2], protocol=2), "came TypeError"),
        (pickle.dumps({b"labels": [1]}, protocol=2), "came KeyError: b'data'"),
        (broken(data=np.zeros((2, 3072), dtype=np.uint8)), "'data' that is not a row of 3072 bytes a label"),
        (broken(data=np.zeros((3, 3072))), "'data' that is not a row of 3072 bytes a label"),
        (broken(data=[[0] * 3072] * 3), "'data' that is not a row of 3072 bytes a label"),
        (broken(labels=[1, 2, 10]), "'labels' that are not whole numbers from 0 to 9"),
        (broken(labels=[1, 2, b"x"]), "'labels' that are not whole numbers from 0 to 9"),
    ],
)
def test_cifar_batch_that_is_broken(content: bytes, message: str, cifar: Path) -> None:
    (cifar / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_2: wanted a batch of CIFAR-10, .*{message}"):
        Cifar(str(cifar)).read()


@pytest.mark.parametrize("name", BATCHES)
def test_cifar_batch_that_is_missing(name: str, cifar: Path) -> None:
    (cifar / name).unlink()
    with pytest.raises(DataError, match=f"{name}: wanted a batch of CIFAR-10, came FileNotFoundError"):
        Cifar(str(cifar)).read()


# --- archives


def archive(path: Path, **tables: Any) -> Npz:
    np.savez_compressed(path, **tables)
    return Npz(str(path))


X, Y = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4), np.array([1, 0, 1])


def test_npz_grey_and_colour(tmp_path: Path) -> None:
    grey = archive(tmp_path / "a.npz", x=X, y=Y.astype(np.uint8), idx=Y).read()
    assert grey == [Document("", "", label=label) for label in "101"]
    assert [d.picture.tolist() for d in grey if d.picture is not None] == [[picture.tolist()] for picture in X]
    colour = archive(tmp_path / "b.npz", x=np.stack([X, X + 50, X + 100], -1), y=Y).read()[2].picture
    assert colour is not None
    assert colour.tolist() == [(X[2] + more).tolist() for more in (0, 50, 100)]


def test_npz_names_make_captions_and_a_limit_takes_the_first(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz", x=X, y=Y)
    found = Npz(str(tmp_path / "a.npz"), names=("cat", "dog"), limit=2).read()
    assert found == [Document("", "", "a photo of a dog", "1"), Document("", "", "a photo of a cat", "0")]
    assert len(Npz(str(tmp_path / "a.npz"), limit=9).read()) == 3


def test_npz_with_a_class_that_has_no_name(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(DataError, match=r"'y' wanted 0 to 0, came 0 to 1; name every class"):
        Npz(str(tmp_path / "a.npz"), names=("cat",)).read()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"x": X, "labels": Y}, "wanted the field 'y', came the fields labels, x"),
        ({"images": X, "y": Y}, "wanted the field 'x', came the fields images, y"),
        ({"x": X / 255, "y": Y}, r"'x' wanted uint8 .*, came float64 \[3, 2, 4\]"),
        ({"x": X[0], "y": Y}, r"'x' wanted uint8 .*, came uint8 \[2, 4\]"),
        ({"x": X[..., None], "y": Y}, r"'x' wanted uint8 .*, came uint8 \[3, 2, 4, 1\]"),
        ({"x": X[:0], "y": Y[:0]}, r"'x' wanted uint8 .*, came uint8 \[0, 2, 4\]"),
        ({"x": X, "y": Y[:2]}, r"'y' wanted 3 whole numbers, came int64 \[2\]"),
        ({"x": X, "y": Y[:, None]}, r"'y' wanted 3 whole numbers, came int64 \[3, 1\]"),
        ({"x": X, "y": Y / 2}, r"'y' wanted 3 whole numbers, came float64 \[3\]"),
        ({"x": X, "y": np.array([1, "a", None], dtype=object)}, "wanted an archive of NumPy, came ValueError: Object"),
    ],
)
def test_npz_that_holds_something_else(tables: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = archive(tmp_path / "a.npz", **tables)
    with pytest.raises(DataError, match=r"a\.npz: " + message) as caught:
        source.read()
    assert "\n" not in str(caught.value)


def test_npz_that_is_none(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.npz", io.BytesIO()
    np.savez(whole, x=X, y=Y)
    for content in (b"", b"hello", whole.getvalue()[:-40], pickle.dumps({"x": 1})):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: wanted an archive of NumPy, came BadZipFile"):
            Npz(str(path)).read()
    with pytest.raises(DataError, match="nowhere: wanted an archive of NumPy, came FileNotFoundError"):
        Npz(str(tmp_path / "nowhere")).read()


REAL = DATA / "cifar10" / "cifar10_test2k.npz"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason=f"no CIFAR-10 in {DATA}; set FEDGEN_DATA")
def test_npz_of_real_pictures() -> None:
    documents = Npz(str(REAL), names=tuple("abcdefghij")).read()
    assert Counter(document.label for document in documents) == {str(label): 200 for label in range(10)}
    assert all(d.picture is not None and d.picture.shape == (3, 32, 32) for d in documents)


# --- digits


def test_digits_are_grey_and_named() -> None:
    documents = Digits().read()
    assert len(documents) == 1797
    assert documents[7] == Document("", "", "the digit 7", "7")
    pictures = torch.stack([document.picture for document in documents if document.picture is not None])
    assert (pictures.dtype, pictures.shape) == (torch.uint8, (1797, 1, 8, 8))
    assert (int(pictures.min()), int(pictures.max())) == (0, 255)
    assert sorted(pictures.unique().tolist())[:3] == [0, 16, 32]


def test_digits_are_scaled() -> None:
    pytest.importorskip("PIL", reason="the extra 'images' is not installed")
    small, large = Digits().read()[0].picture, Digits(size=16).read()[0].picture
    assert small is not None
    assert large is not None
    assert large.shape == (1, 16, 16)
    halved = large.float().view(8, 2, 8, 2).mean((1, 3))
    assert (halved - small[0]).abs().mean() < 12  # of 255: the same drawing, finer
