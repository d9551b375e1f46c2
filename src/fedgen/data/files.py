"""Folders, lines and records as sources read them: what is wrong with one is said in one clear line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedgen.errors import DataError


def folder(path: str, of: str) -> Path:
    """The folder at `path`, which must be there."""
    root = Path(path).expanduser()
    if not root.is_dir():
        came = "a file" if root.exists() else "nothing"
        raise DataError(f"{root}: wanted a folder of {of}, came {came}; give the path of a folder that exists")
    return root


def visible(root: Path) -> Iterator[Path]:
    """All files below a folder, entry by entry, but those that are hidden or in hidden folders."""
    for entry in sorted(root.iterdir()):
        for file in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            hidden = any(name.startswith(".") for name in file.relative_to(root).parts)
            if file.is_file() and not hidden:
                yield file


def text(path: Path) -> str:
    """A file's UTF-8 text with newlines as they are on Unix."""
    try:
        return path.read_bytes().decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        came = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise DataError(f"{path}: wanted UTF-8 text, came {came}; save it as UTF-8 or take it away") from error
    except OSError as error:
        raise DataError(f"{path}: wanted a file that can be read, came '{error.strerror}'") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, broken at newlines alone: `splitlines` would also break at marks that JSON allows in a string."""
    found = text(path).split("\n")
    yield from enumerate(found if found[-1] else found[:-1], 1)


def records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """The JSON object of every line that is not blank, and where it stands."""
    for number, line in lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _record(where, line)


def _record(where: str, line: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: wanted one whole JSON object, came a broken line ({error}); mend it") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: wanted a JSON object with fields, came {type(record).__name__}")
    return record


def present(fields: Sequence[str], field: str, where: str) -> None:
    """Refuse a field that is not among those found."""
    if field not in fields:
        found = ", ".join(sorted(fields)) or "none"
        raise DataError(f"{where}: wanted the field '{field}', came the fields {found}; name one of those")


def value(record: Mapping[str, object], field: str, where: str) -> str:
    """What a record says under a field, as text."""
    present(list(record), field, where)
    found = record[field]
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise DataError(f"{where}: '{field}' wanted text or a whole number, came {type(found).__name__}")
    whole = str(found)
    try:
        whole.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character; a tokenizer would only say "type error"
        raise DataError(f"{where}: '{field}' has half a character at position {error.start}; write it whole") from error
    return whole


@contextmanager
def reading(where: str, wish: str, remedy: str = "") -> Iterator[None]:
    """Whatever a library of formats raises inside is one line: it knows a dozen unrelated kinds for a broken file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        also = f"; {remedy}" if remedy else ""
        raise DataError(f"{where}: wanted {wish}, came {type(error).__name__}: {first}{also}") from error
