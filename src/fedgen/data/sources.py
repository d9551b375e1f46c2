"""Where documents come from: the embedded corpus, files on disk, and Hugging Face data sets, behind one verb."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Protocol

from fedgen.data import files, stdlib
from fedgen.data.arrays import Cifar, Digits, Npz
from fedgen.data.glyphs import Glyphs
from fedgen.data.pictures import ImageFolder
from fedgen.data.pixels import Mode, pillow, pixels, same_size
from fedgen.errors import DataError
from fedgen.records import Document, Range


class Source(Protocol):
    """Anything that can be read into documents, in the same order every time."""

    def read(self) -> list[Document]:
        """All documents."""
        ...


@dataclass(frozen=True)
class Stdlib:
    """Python's standard library: a module is an owner and a label, of whose text `limit` characters are kept (0: all).

    `modules` names the owners that are wanted, none named all of them. A document is a file, or of a file's text a
    `piece` of so many characters (0: the whole), for modules that several clients share.
    """

    limit: Annotated[int, Range(0)] = 0
    modules: tuple[str, ...] = ()
    piece: Annotated[int, Range(0)] = 0

    def read(self) -> list[Document]:
        """File by file of the federation's modules."""
        limit = self.limit or sys.maxsize
        kept: Counter[str] = Counter()
        documents = []
        if unknown := sorted(set(self.modules) - set(stdlib.FEDERATED)):
            raise DataError(f"data.modules: '{unknown[0]}' is no client's; there are {', '.join(stdlib.FEDERATED)}")
        for owner, text in stdlib.federated():
            if self.modules and owner not in self.modules:
                continue
            text = text[: limit - kept[owner]]
            kept[owner] += len(text)
            pieces = [text[at : at + self.piece] for at in range(0, len(text), self.piece)] if self.piece else [text]
            documents += [Document(owner, piece, label=owner) for piece in pieces if piece.strip()]
        return documents


@dataclass(frozen=True)
class Folder:
    """A folder of UTF-8 text: an owner is a direct sub-folder with all files below it, or a direct file.

    A file's owner is its stem: `ann.txt`, `ann.md` and the sub-folder `ann` belong to one owner.
    """

    path: str

    def read(self) -> list[Document]:
        """One document a file; hidden files and files of nothing but space are passed over."""
        root = files.folder(self.path, "text")
        found = ((_owner(file.relative_to(root)), files.text(file)) for file in files.visible(root))
        documents = [Document(owner, text) for owner, text in found if text.strip()]
        if not documents:
            raise DataError(
                f"{root}: wanted at least one text file, came none; put a file or sub-folder there per owner"
            )
        return documents


@dataclass(frozen=True)
class Jsonl:
    """A JSON object a line: `answer` is learnt, `prompt` only read; `owner` and `label` are fields too, "" for none."""

    path: str
    answer: str
    prompt: str = ""
    owner: str = ""
    label: str = ""

    def read(self) -> list[Document]:
        """One document a line; blank lines are passed over."""
        path = Path(self.path).expanduser()
        documents = [_document(record, self, self.answer, where) for where, record in files.records(path)]
        if not documents:
            raise DataError(f"{path}: wanted a JSON object a line, came an empty file")
        return documents


@dataclass(frozen=True)
class PennTreebank:
    """The Penn Treebank in its three usual files; a document is `block` lines, each ended by the word `<eos>`."""

    path: str
    block: Annotated[int, Range(1)] = 20

    def read(self) -> list[Document]:
        """Documents of all three parts; `<eos>` stands where a line broke, as perplexities of this text are counted."""
        root = files.folder(self.path, "text")
        return [document for part in ("train", "valid", "test") for document in self._part(root, part)]

    def _part(self, root: Path, part: str) -> Iterator[Document]:
        lines = [" ".join([*line.split(), "<eos>"]) for _, line in files.lines(root / f"ptb.{part}.txt")]
        if not lines:
            raise DataError(f"{root / f'ptb.{part}.txt'}: wanted lines of text, came an empty file")
        for start in range(0, len(lines), self.block):
            yield Document("", " ".join(lines[start : start + self.block]), part=part)


@dataclass(frozen=True)
class Hub:
    """What Hugging Face's `datasets` loads: a set's name, a local folder of files, or one made by `save_to_disk`.

    With a `picture` column the documents are pictures, scaled and cropped to `size` (0: left as they are), and the
    `text` column is their caption; a set without a column of that default name has none.
    """

    name: str
    split: str = "train"
    text: str = "text"
    prompt: str = ""
    owner: str = ""
    label: str = ""
    picture: str = ""
    size: Annotated[int, Range(0)] = 0
    mode: Mode = "RGB"

    def __post_init__(self) -> None:
        if self.picture and self.prompt:
            raise DataError(f"picture and prompt: a caption is named by text, came prompt = '{self.prompt}'; use text")

    def read(self) -> list[Document]:
        """One document a row; only the columns that are asked for are decoded."""
        where = f"data set '{self.name}', split '{self.split}'"
        table = _loaded(_datasets(), self.name, self.split)
        bare = self.picture and self.text == "text" and "text" not in table.column_names
        names = replace(self, text="") if bare else self
        wanted = [field for field in (names.picture, names.text, self.prompt, self.owner, self.label) if field]
        for field in wanted:
            files.present(table.column_names, field, where)
        rows = table.select_columns(sorted(set(wanted)))
        if self.picture:
            return same_size(names._pictured(rows, number, f"{where}, row {number}") for number in range(len(rows)))
        return [_document(row, self, self.text, f"{where}, row {number}") for number, row in enumerate(rows)]

    def _pictured(self, rows: Any, number: int, where: str) -> tuple[str, Document]:
        image = pillow()
        with files.reading(where, "a whole picture"):
            row = rows[number]
            if not isinstance(row[self.picture], image.Image):
                raise TypeError(f"'{self.picture}' is of type {type(row[self.picture]).__name__}")
            picture = pixels(row[self.picture], self.size, self.mode)
        caption, owner, label = (_value(row, field, where) for field in (self.text, self.owner, self.label))
        return where, Document(owner, "", caption, label, picture=picture)


def _owner(name: Path) -> str:
    return name.parts[0] if len(name.parts) > 1 else name.stem


def _document(record: Mapping[str, object], names: Jsonl | Hub, text: str, where: str) -> Document:
    owner, prompt, label = (_value(record, field, where) for field in (names.owner, names.prompt, names.label))
    return Document(owner, files.value(record, text, where), prompt=prompt, label=label)


def _value(record: Mapping[str, object], field: str, where: str) -> str:
    return files.value(record, field, where) if field else ""


def _datasets() -> ModuleType:
    try:
        return import_module("datasets")
    except ImportError as error:
        wish = "wanted the extra 'data', came a Python without it; pip install fedgen-edge[data]"
        raise DataError(f"Hub: {wish} ({error})") from error


def _loaded(datasets: ModuleType, name: str, split: str) -> Any:
    where = f"data set '{name}', split '{split}'"
    local = Path(name).expanduser()
    saved = (local / "state.json").is_file() or (local / "dataset_dict.json").is_file()
    with files.reading(where, "a data set"):
        if not saved:
            return datasets.load_dataset(str(local) if local.exists() else name, split=split)
        found = datasets.load_from_disk(str(local))
    splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or split): found}
    if split not in splits:
        raise DataError(f"{where}: wanted that split, came {', '.join(sorted(splits))}; name one of those")
    return splits[split]


SOURCES: dict[str, type[Source]] = {
    "stdlib": Stdlib,
    "folder": Folder,
    "jsonl": Jsonl,
    "ptb": PennTreebank,
    "hub": Hub,
    "glyphs": Glyphs,
    "imagefolder": ImageFolder,
    "cifar10": Cifar,
    "npz": Npz,
    "digits": Digits,
}
