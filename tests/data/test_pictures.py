"""A folder of pictures: captions, labels and owners from metadata or from where files lie, and what cannot be read."""

import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fedgen.data import ImageFolder
from fedgen.errors import DataError
from fedgen.records import Document

Image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")


def draw(path: Path, grey: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """A picture of noise, of which the file's end is missing."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, path.suffix.strip(".").replace("jpg", "jpeg"))
    path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * share)])
    return path


def metadata(root: Path, *records: object) -> None:
    (root / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def greys(documents: list[Document]) -> list[int]:
    return [int(document.picture[0, 0, 0]) for document in documents if document.picture is not None]


# --- what is read


def test_places_say_owner_and_label_and_text_beside_says_the_caption(tmp_path: Path) -> None:
    draw(tmp_path / "b" / "one.png", 10)
    draw(tmp_path / "a" / "cat" / "two.bmp", 20)
    draw(tmp_path / "a" / "dog" / "TWO.PNG", 30)
    draw(tmp_path / "loose.png", 40)
    draw(tmp_path / ".hidden" / "no.png")
    (tmp_path / "b" / "one.txt").write_text("a grey square\n")
    (tmp_path / "b" / "notes.md").write_text("neither picture nor caption")
    documents = ImageFolder(str(tmp_path)).read()
    assert documents == [
        Document("a", "", label="cat"),
        Document("a", "", label="dog"),
        Document("b", "", "a grey square", label="b"),
        Document("", ""),
    ]
    assert greys(documents) == [20, 30, 10, 40]
    assert all(d.picture is not None and d.picture.shape == (3, 4, 4) for d in documents)


def test_metadata_says_which_pictures_and_in_which_order(tmp_path: Path) -> None:
    draw(tmp_path / "b.png", 10)
    draw(tmp_path / "ann" / "cat" / "a.png", 20)
    draw(tmp_path / "unlisted.png", size=(9, 9))
    metadata(
        tmp_path, {"file_name": "b.png", "text": "first"}, {"file_name": "ann/cat/a.png", "text": "second", "n": 1}
    )
    documents = ImageFolder(str(tmp_path)).read()
    assert documents == [Document("", "", "first"), Document("ann", "", "second", "cat")]
    assert greys(documents) == [10, 20]


def test_metadata_names_its_own_fields(tmp_path: Path) -> None:
    draw(tmp_path / "x" / "a.png")
    metadata(tmp_path, {"file_name": "x/a.png", "title": "square", "who": 7, "style": "flat"})
    source = ImageFolder(str(tmp_path), caption="title", owner="who", label="style")
    assert source.read() == [Document("7", "", "square", "flat")]
    assert replace(source, caption="", label="").read() == [Document("7", "", "", "x")]


def test_pictures_are_scaled_and_made_grey_when_asked(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 10, (6, 4))
    draw(tmp_path / "b.jpg", 20, (9, 30))
    documents = ImageFolder(str(tmp_path), size=5, mode="grey").read()
    assert [document.picture.shape for document in documents if document.picture is not None] == [(1, 5, 5)] * 2


def test_the_same_every_time(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        draw(tmp_path / name / "x.png", ord(name))
    one, other = ImageFolder(str(tmp_path)).read(), ImageFolder(str(tmp_path)).read()
    assert one == other
    assert greys(one) == greys(other) == [97, 98, 99]


# --- what cannot be


def test_pictures_of_two_sizes(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", size=(4, 4))
    draw(tmp_path / "b.png", size=(5, 4))
    with pytest.raises(DataError, match=r"wanted one size, came 4 x 4 in .*a\.png and 5 x 4 in .*b\.png"):
        ImageFolder(str(tmp_path)).read()


BROKEN: dict[str, tuple[Any, str]] = {
    "png cut short": (lambda root: cut(root / "z.png"), r"z\.png: wanted a whole picture, came"),
    "jpg cut short": (
        lambda root: cut(root / "z.jpg"),
        r"z\.jpg: wanted a whole picture, came OSError: image file is tru",
    ),
    "nothing in it": (lambda root: cut(root / "z.png", 0), r"z\.png: wanted a whole picture, came Unidentified"),
    "no picture": (lambda root: (root / "z.gif").write_text("hello"), r"z\.gif: wanted a whole picture, came Unid"),
    "floats": (
        lambda root: Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(root / "z.tif"),
        r"z\.tif: wanted a whole picture, came ValueError: pixels of mode 'F'",
    ),
    "caption alone": (
        lambda root: (root / "z.txt").write_text("lonely"),
        r"z\.txt: wanted a picture beside this caption",
    ),
    "caption of nothing": (
        lambda root: metadata(root, {"file_name": "a.png", "text": ""}, {"file_name": "z.png", "text": "lonely"}),
        r"metadata\.jsonl, line 2: wanted the picture 'z\.png', came nothing",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named_or_left_out(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, message = BROKEN[kind]
    draw(tmp_path / "a.png", 10)
    make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        ImageFolder(str(tmp_path)).read()
    assert "\n" not in str(caught.value)
    assert "data.broken = 'skip'" in str(caught.value)
    assert caplog.records == []
    assert greys(ImageFolder(str(tmp_path), broken="skip").read()) == [10]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fedgen.data", logging.WARNING)
    assert record.getMessage().startswith("left out: ")
    assert str(tmp_path / ("metadata.jsonl" if "of nothing" in kind else "z")) in record.getMessage()


def test_nothing_left_when_all_are_broken(tmp_path: Path) -> None:
    cut(tmp_path / "a.png")
    with pytest.raises(DataError, match="wanted at least one picture, came none"):
        ImageFolder(str(tmp_path), broken="skip").read()


def test_nothing_there_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted at least one picture, came none"):
        ImageFolder(str(tmp_path)).read()
    with pytest.raises(DataError, match="nowhere: wanted a folder of pictures, came nothing"):
        ImageFolder(str(tmp_path / "nowhere")).read()


@pytest.mark.parametrize("broken", ["error", "skip"])
def test_metadata_that_is_wrong_is_an_error_even_when_pictures_may_be_skipped(
    broken: Literal["error", "skip"], tmp_path: Path
) -> None:
    source = ImageFolder(str(tmp_path), broken=broken)
    draw(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "title": ""})
    with pytest.raises(DataError, match="line 1: wanted the field 'text', came the fields file_name, title"):
        source.read()
    metadata(tmp_path, {"text": "which?"})
    with pytest.raises(DataError, match="line 1: wanted the field 'file_name', came the fields text"):
        source.read()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.p')
    with pytest.raises(DataError, match="line 1: wanted one whole JSON object"):
        source.read()


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png"])
def test_metadata_names_nothing_outside_the_folder(name: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "inner").mkdir()
    metadata(tmp_path / "inner", {"file_name": name, "text": ""})
    with pytest.raises(DataError, match="line 1: wanted a picture inside the folder, came"):
        ImageFolder(str(tmp_path / "inner")).read()


@pytest.mark.parametrize("name", ["x/metadata.jsonl", "metadata.csv"])
def test_metadata_in_another_place_is_not_passed_over(name: str, tmp_path: Path) -> None:
    draw(tmp_path / "x" / "a.png")
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"{name}: wanted captions in .*metadata\.jsonl, came another file"):
        ImageFolder(str(tmp_path)).read()


@pytest.mark.parametrize("field", ["owner", "label"])
def test_a_field_without_metadata(field: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    source: Any = ImageFolder(str(tmp_path))
    with pytest.raises(DataError, match=r"wanted the field 'who' of a metadata\.jsonl, came no such file"):
        replace(source, **{field: "who"}).read()
