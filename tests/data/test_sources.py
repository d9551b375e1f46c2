"""Sources: what each reads, in which order, and the one line it says about bad input."""

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedgen.data import SOURCES, Cifar, Digits, Folder, Hub, ImageFolder, Jsonl, Npz, PennTreebank, Stdlib
from fedgen.data.glyphs import Glyphs
from fedgen.data.stdlib import FEDERATED
from fedgen.errors import DataError
from fedgen.records import Document

DATA = Path(os.environ.get("FEDGEN_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(path: Path, *records: object) -> str:
    return str(write(path, "\n".join(json.dumps(record) for record in records) + "\n"))


def treebank(root: Path, **parts: str) -> str:
    for part in ("train", "valid", "test"):
        write(root / f"ptb.{part}.txt", parts.get(part, f" {part} one \n {part} two \n {part} three \n"))
    return str(root)


def test_table_names_every_source() -> None:
    texts = {"stdlib": Stdlib, "folder": Folder, "jsonl": Jsonl, "ptb": PennTreebank, "hub": Hub}
    pictures = {"glyphs": Glyphs, "imagefolder": ImageFolder, "cifar10": Cifar, "npz": Npz, "digits": Digits}
    assert dict(SOURCES) == texts | pictures


# --- the embedded corpus


def test_stdlib_owners_are_the_federated_modules() -> None:
    documents = Stdlib().read()
    assert {document.owner for document in documents} <= set(FEDERATED)
    assert len({document.owner for document in documents}) >= 32
    assert all(document.text.strip() and not document.part for document in documents)


def test_stdlib_in_pieces_is_the_same_text_with_its_module_as_label() -> None:
    whole, pieces = (Stdlib(modules=("json",), limit=5000, piece=piece).read() for piece in (0, 700))
    assert "".join(document.text for document in pieces) == "".join(document.text for document in whole)
    assert max(len(document.text) for document in pieces) == 700 < len(whole[0].text)
    assert {document.label for document in pieces} == {"json"}


def test_stdlib_limit_keeps_the_first_characters_of_each_owner() -> None:
    whole, short = Stdlib().read(), Stdlib(limit=2000).read()

    def held(documents: list[Document], owner: str) -> str:
        return "".join(document.text for document in documents if document.owner == owner)

    for owner in ("json", "argparse"):
        assert held(short, owner) == held(whole, owner)[:2000]


# --- a folder


def test_folder_owners_are_files_and_subfolders(tmp_path: Path) -> None:
    write(tmp_path / "bob.txt", "bob's")
    write(tmp_path / "ann" / "b" / "deep.md", "ann's second")
    write(tmp_path / "ann" / "a.txt", "ann's first")
    write(tmp_path / "blank.txt", " \n")
    assert Folder(str(tmp_path)).read() == [
        Document("ann", "ann's first"),
        Document("ann", "ann's second"),
        Document("bob", "bob's"),
    ]


@pytest.mark.parametrize("hidden", [".secret", ".git/config", "ann/.cache/x.txt", "ann/.x"])
def test_folder_ignores_hidden(tmp_path: Path, hidden: str) -> None:
    write(tmp_path / hidden, b"\xff not even text")
    write(tmp_path / "bob.txt", "bob's")
    assert [document.owner for document in Folder(str(tmp_path)).read()] == ["bob"]


def test_folder_reads_windows_text(tmp_path: Path) -> None:
    write(tmp_path / "bob.txt", b"\xef\xbb\xbfone\r\ntwo")
    assert Folder(str(tmp_path)).read() == [Document("bob", "one\ntwo")]


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no-such: wanted a folder of text, came nothing"):
        Folder(str(tmp_path / "no-such")).read()


def test_folder_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="came a file"):
        Folder(str(write(tmp_path / "a.txt", "text"))).read()


def test_folder_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted at least one text file, came none"):
        Folder(str(tmp_path)).read()


def test_folder_file_that_is_not_utf8(tmp_path: Path) -> None:
    write(tmp_path / "ann" / "latin.txt", b"caf\xe9!")
    with pytest.raises(DataError, match=r"latin\.txt: wanted UTF-8 text, came byte 0xe9 at position 3"):
        Folder(str(tmp_path)).read()


# --- JSON lines


def test_jsonl_takes_named_fields(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"who": 7, "q": "2+2?", "a": "4", "kind": "sum", "more": None})
    assert Jsonl(path, answer="a").read() == [Document("", "4")]
    full = Jsonl(path, answer="a", prompt="q", owner="who", label="kind").read()
    assert full == [Document("7", "4", prompt="2+2?", label="sum")]


def test_jsonl_breaks_lines_at_newlines_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": "one\u2028still one\x85"}\r\n\n{"a": "two"}')
    assert [document.text for document in Jsonl(str(path), answer="a").read()] == ["one\u2028still one\x85", "two"]


@pytest.mark.parametrize("line", ['{"a": "cut sh', "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_jsonl_broken_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: wanted one whole JSON object"):
        Jsonl(str(path), answer="a").read()


def test_jsonl_line_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: wanted a JSON object with fields, came list"):
        Jsonl(lines(tmp_path / "a.jsonl", ["a"]), answer="a").read()


@pytest.mark.parametrize("field", ["answer", "prompt", "owner", "label"])
def test_jsonl_missing_field_names_those_found(tmp_path: Path, field: str) -> None:
    path = lines(tmp_path / "a.jsonl", {"a": "x", "b": "y"}, {"b": "y", "c": "z"})
    settings = {"answer": "b", field: "a"}
    with pytest.raises(DataError, match="line 2: wanted the field 'a', came the fields b, c"):
        Jsonl(path, **settings).read()


@pytest.mark.parametrize("value", [None, True, 1.5, ["x"], {"x": 1}])
def test_jsonl_field_that_is_no_text(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match=f"'a' wanted text or a whole number, came {type(value).__name__}"):
        Jsonl(lines(tmp_path / "a.jsonl", {"a": value}), answer="a").read()


def test_jsonl_half_a_character(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: 'a' has half a character at position 2"):
        Jsonl(lines(tmp_path / "a.jsonl", {"a": "ab\ud83d"}), answer="a").read()


def test_jsonl_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        Jsonl(str(tmp_path / "a.jsonl"), answer="a").read()


def test_jsonl_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="came an empty file"):
        Jsonl(str(write(tmp_path / "a.jsonl", "\n")), answer="a").read()


def test_jsonl_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="byte 0xff at position 0"):
        Jsonl(str(write(tmp_path / "a.jsonl", b"\xff\xfe")), answer="a").read()


# --- Penn Treebank


def test_treebank_documents_are_blocks_of_lines(tmp_path: Path) -> None:
    documents = PennTreebank(treebank(tmp_path), block=2).read()
    assert [document.part for document in documents] == ["train", "train", "valid", "valid", "test", "test"]
    assert documents[0].text == "train one <eos> train two <eos>"
    assert documents[1] == Document("", "train three <eos>", part="train")


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_treebank_missing_file(tmp_path: Path, part: str) -> None:
    path = treebank(tmp_path)
    (tmp_path / f"ptb.{part}.txt").unlink()
    with pytest.raises(DataError, match=rf"ptb\.{part}\.txt"):
        PennTreebank(path).read()


def test_treebank_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ptb\.valid\.txt: wanted lines of text, came an empty file"):
        PennTreebank(treebank(tmp_path, valid="")).read()


def test_treebank_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted a folder"):
        PennTreebank(str(tmp_path / "no-such")).read()


@pytest.mark.skipif(
    not (DATA / "ptb" / "ptb.train.txt").exists(), reason=f"no Penn Treebank in {DATA}; set FEDGEN_DATA"
)
def test_treebank_itself() -> None:
    documents = PennTreebank(str(DATA / "ptb")).read()
    count = {
        part: [d.text.split().count("<eos>") for d in documents if d.part == part]
        for part in ("train", "valid", "test")
    }
    assert {part: sum(found) for part, found in count.items()} == {"train": 42068, "valid": 3370, "test": 3761}
    assert all(found[:-1] == [20] * (len(found) - 1) for found in count.values())
    words = sum(len(document.text.split()) for document in documents if document.part == "train")
    assert words == 929_589  # the number every paper on this text gives, ends of sentences included


# --- Hugging Face datasets


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("datasets", reason="the extra 'data' is not installed")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(module.config, "HF_HUB_OFFLINE", True)
    return module


@pytest.fixture
def table(datasets: Any) -> Any:
    return datasets.Dataset.from_dict({"body": ["one", "two"], "user": [3, 4], "score": [0.5, 1.5]})


def test_hub_reads_a_saved_set(table: Any, tmp_path: Path) -> None:
    table.save_to_disk(tmp_path / "set")
    documents = Hub(str(tmp_path / "set"), text="body", owner="user").read()
    assert documents == [Document("3", "one"), Document("4", "two")]


def test_hub_picks_a_saved_split(datasets: Any, table: Any, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "set")
    documents = Hub(str(tmp_path / "set"), split="test", text="body", prompt="body", label="body").read()
    assert documents == [Document("", "two", prompt="two", label="two")]


def test_hub_loads_a_folder_of_files(datasets: Any, tmp_path: Path) -> None:
    lines(tmp_path / "set" / "train.jsonl", {"body": "one"}, {"body": "two"}, {"body": "three"})
    documents = Hub(str(tmp_path / "set"), split="train[1:]", text="body").read()
    assert [document.text for document in documents] == ["two", "three"]


def test_hub_missing_split(datasets: Any, table: Any, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="split 'dev': wanted that split, came test, train"):
        Hub(str(tmp_path / "set"), split="dev", text="body").read()


def test_hub_missing_column(table: Any, tmp_path: Path) -> None:
    table.save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="wanted the field 'text', came the fields body, score, user"):
        Hub(str(tmp_path / "set")).read()


def test_hub_column_that_is_no_text(table: Any, tmp_path: Path) -> None:
    table.save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="row 0: 'score' wanted text or a whole number, came float"):
        Hub(str(tmp_path / "set"), text="score").read()


def test_hub_empty_set(datasets: Any, tmp_path: Path) -> None:
    lines(tmp_path / "set" / "train.jsonl", {"body": "one"})
    with pytest.raises(DataError, match=r"wanted a data set, came .* no data"):
        Hub(str(tmp_path / "set"), split="train[:0]", text="body").read()


def test_hub_nothing_there(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="wanted a data set, came"):
        Hub(str(tmp_path / "set")).read()


def test_hub_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install fedgen-edge\[data\]"):
        Hub("some/set").read()


def pictured(datasets: Any, folder: Path, **columns: list[Any]) -> Hub:
    """A saved set of two pictures, one wide and one high, with more columns."""
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    images = [image.new("RGB", (6, 4), "red"), image.new("L", (4, 6), 90)]
    table = datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())
    table.save_to_disk(folder)
    return Hub(str(folder), picture="image", size=4)


def test_hub_reads_pictures_with_captions(datasets: Any, tmp_path: Path) -> None:
    hub = pictured(datasets, tmp_path / "set", text=["a red one", "a grey one"], digit=[3, 4], user=["ann", "bob"])
    documents = replace(hub, owner="user", label="digit").read()
    assert documents == [Document("ann", "", "a red one", "3"), Document("bob", "", "a grey one", "4")]
    red, grey = (document.picture for document in documents)
    assert red is not None
    assert grey is not None
    assert red.tolist() == [[[value] * 4] * 4 for value in (255, 0, 0)]
    assert grey.tolist() == [[[90] * 4] * 4] * 3
    named = replace(hub, mode="grey", text="user").read()
    assert [document.prompt for document in named] == ["ann", "bob"]
    assert [d.picture.shape for d in named if d.picture is not None] == [(1, 4, 4)] * 2


def test_hub_pictures_need_no_caption_but_one_that_is_named(datasets: Any, tmp_path: Path) -> None:
    hub = pictured(datasets, tmp_path / "set", caption=["one", "two"])
    assert [document.prompt for document in hub.read()] == ["", ""]
    assert [document.prompt for document in replace(hub, text="").read()] == ["", ""]
    assert [document.prompt for document in replace(hub, text="caption").read()] == ["one", "two"]
    with pytest.raises(DataError, match="wanted the field 'titel', came the fields caption, image"):
        replace(hub, text="titel").read()


def test_hub_pictures_of_two_sizes(datasets: Any, tmp_path: Path) -> None:
    hub = replace(pictured(datasets, tmp_path / "set"), size=0)
    with pytest.raises(DataError, match=r"wanted one size, came 6 x 4 in .*row 0 and 4 x 6 in .*row 1; say a size"):
        hub.read()


def test_hub_picture_that_is_none(datasets: Any, table: Any, tmp_path: Path) -> None:
    table.save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="row 0: wanted a whole picture, came TypeError: 'score' is of type float"):
        Hub(str(tmp_path / "set"), picture="score").read()


def test_hub_picture_that_is_cut_short(datasets: Any, tmp_path: Path) -> None:
    whole = io.BytesIO()
    pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed").new("RGB", (64, 64), "red").save(
        whole, "png"
    )
    images = [{"bytes": whole.getvalue()[:size], "path": None} for size in (None, 60)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="row 1: wanted a whole picture, came"):
        Hub(str(tmp_path / "set"), picture="image").read()


def test_hub_picture_with_two_names_for_its_caption() -> None:
    with pytest.raises(DataError, match="a caption is named by text, came prompt = 'title'; use text"):
        Hub("some/set", picture="image", prompt="title")


def test_the_standard_library_can_be_narrowed_to_named_modules() -> None:
    documents = Stdlib(limit=500, modules=("json", "enum")).read()
    assert {document.owner for document in documents} == {"json", "enum"}
    with pytest.raises(DataError, match=r"data\.modules: .jsn. is no client.s; there are argparse,"):
        Stdlib(modules=("json", "jsn")).read()
