"""Where documents come from: the embedded corpus, files on disk, and Hugging Face data sets, behind one verb."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Protocol

from fedgen.data import stdlib
from fedgen.errors import DataError
from fedgen.records import Document, Range


class Source(Protocol):
    """Anything that can be read into documents, in the same order every time."""

    def read(self) -> list[Document]:
        """All documents."""
        ...


@dataclass(frozen=True)
class Stdlib:
    """Python's standard library: a module is an owner, of whose text `limit` characters are kept (0 keeps all).

    `modules` names the owners that are wanted, none named all of them.
    """

    limit: Annotated[int, Range(0)] = 0
    modules: tuple[str, ...] = ()

    def read(self) -> list[Document]:
        """One document a file of the federation's modules."""
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
            if text.strip():
                documents.append(Document(owner, text))
        return documents


@dataclass(frozen=True)
class Folder:
    """A folder of UTF-8 text: an owner is a direct sub-folder with all files below it, or a direct file.

    A file's owner is its stem: `ann.txt`, `ann.md` and the sub-folder `ann` belong to one owner.
    """

    path: str

    def read(self) -> list[Document]:
        """One document a file; hidden files and files of nothing but space are passed over."""
        root = _folder(self.path)
        documents = [Document(owner, text) for owner, file in _owned(root) if (text := _text(file)).strip()]
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
        documents = [self._document(path, number, line) for number, line in _lines(path) if line.strip()]
        if not documents:
            raise DataError(f"{path}: wanted a JSON object a line, came an empty file")
        return documents

    def _document(self, path: Path, number: int, line: str) -> Document:
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: wanted one whole JSON object, came a broken line ({error}); mend it") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: wanted a JSON object with fields, came {type(record).__name__}")
        return _document(record, self, self.answer, where)


@dataclass(frozen=True)
class PennTreebank:
    """The Penn Treebank in its three usual files; a document is `block` lines, each ended by the word `<eos>`."""

    path: str
    block: Annotated[int, Range(1)] = 20

    def read(self) -> list[Document]:
        """Documents of all three parts; `<eos>` stands where a line broke, as perplexities of this text are counted."""
        root = _folder(self.path)
        return [document for part in ("train", "valid", "test") for document in self._part(root, part)]

    def _part(self, root: Path, part: str) -> Iterator[Document]:
        lines = [" ".join([*line.split(), "<eos>"]) for _, line in _lines(root / f"ptb.{part}.txt")]
        if not lines:
            raise DataError(f"{root / f'ptb.{part}.txt'}: wanted lines of text, came an empty file")
        for start in range(0, len(lines), self.block):
            yield Document("", " ".join(lines[start : start + self.block]), part=part)


@dataclass(frozen=True)
class Hub:
    """What Hugging Face's `datasets` loads: a set's name, a local folder of files, or one made by `save_to_disk`."""

    name: str
    split: str = "train"
    text: str = "text"
    prompt: str = ""
    owner: str = ""
    label: str = ""

    def read(self) -> list[Document]:
        """One document a row; only the columns that are asked for are decoded."""
        wanted = [field for field in (self.text, self.prompt, self.owner, self.label) if field]
        where = f"data set '{self.name}', split '{self.split}'"
        table = _loaded(_datasets(), self.name, self.split)
        for field in wanted:
            _present(table.column_names, field, where)
        rows = table.select_columns(sorted(set(wanted)))
        return [_document(row, self, self.text, f"{where}, row {number}") for number, row in enumerate(rows)]


def _folder(path: str) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        came = "a file" if root.exists() else "nothing"
        raise DataError(f"{root}: wanted a folder of text, came {came}; give the path of a folder that exists")
    return root


def _owned(root: Path) -> Iterator[tuple[str, Path]]:
    for entry in sorted(root.iterdir()):
        files = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
        for file in files:
            hidden = any(name.startswith(".") for name in file.relative_to(root).parts)
            if file.is_file() and not hidden:
                yield entry.name if entry.is_dir() else entry.stem, file


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        came = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise DataError(f"{path}: wanted UTF-8 text, came {came}; save it as UTF-8 or take it away") from error
    except OSError as error:
        raise DataError(f"{path}: wanted a file that can be read, came '{error.strerror}'") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, broken at newlines alone: `splitlines` would also break at marks that JSON allows in a string."""
    lines = _text(path).split("\n")
    yield from enumerate(lines if lines[-1] else lines[:-1], 1)


def _document(record: Mapping[str, object], names: Jsonl | Hub, text: str, where: str) -> Document:
    owner, prompt, label = (
        _field(record, field, where) if field else "" for field in (names.owner, names.prompt, names.label)
    )
    return Document(owner, _field(record, text, where), prompt=prompt, label=label)


def _present(fields: list[str], field: str, where: str) -> None:
    if field not in fields:
        found = ", ".join(sorted(fields)) or "none"
        raise DataError(f"{where}: wanted the field '{field}', came the fields {found}; name one of those")


def _field(record: Mapping[str, object], field: str, where: str) -> str:
    _present(list(record), field, where)
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: '{field}' wanted text or a whole number, came {type(value).__name__}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character; a tokenizer would only say "type error"
        raise DataError(f"{where}: '{field}' has half a character at position {error.start}; write it whole") from error
    return text


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
    try:
        if not saved:
            return datasets.load_dataset(str(local) if local.exists() else name, split=split)
        found = datasets.load_from_disk(str(local))
    except Exception as error:  # the library raises a dozen unrelated kinds for what is one thing to a user
        raise DataError(f"{where}: wanted a data set, came {type(error).__name__}: {_first(error)}") from error
    splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or split): found}
    if split not in splits:
        raise DataError(f"{where}: wanted that split, came {', '.join(sorted(splits))}; name one of those")
    return splits[split]


def _first(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]


SOURCES: dict[str, type[Source]] = {
    "stdlib": Stdlib,
    "folder": Folder,
    "jsonl": Jsonl,
    "ptb": PennTreebank,
    "hub": Hub,
}
