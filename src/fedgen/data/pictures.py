"""A folder of pictures with their captions, as Hugging Face's `imagefolder` lays it out."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from fedgen.data import files
from fedgen.data.pixels import Mode, pillow, pixels, same_size
from fedgen.errors import DataError
from fedgen.records import Document, Range

LOG = logging.getLogger("fedgen.data")
METADATA = "metadata.jsonl"
MISPLACED = {METADATA, "metadata.csv", "metadata.parquet"}  # what else would be read, and is not here
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures: those its `metadata.jsonl` lists; without one all, each with the `.txt` beside it, if any.

    `caption`, `label` and `owner` name fields of the metadata. Without such a field the owner is the first folder on
    the way to a picture and the label the last; a picture that lies directly in the folder has neither. Pictures are
    scaled and cropped to `size` (0: left as they are). What cannot be read is an error, or skipped and logged.
    """

    path: str
    caption: str = "text"
    label: str = ""
    owner: str = ""
    size: Annotated[int, Range(0)] = 0
    mode: Mode = "RGB"
    broken: Literal["error", "skip"] = "error"

    def read(self) -> list[Document]:
        """One document a picture, in the order of the metadata's lines or of the paths."""
        root = files.folder(self.path, "pictures")
        pillow()  # missing, it is no fault of a picture's
        listed = self._listed(root) if (root / METADATA).is_file() else self._found(root)
        documents = same_size((str(file), read) for file, document in listed for read in self._read(file, document))
        if not documents:
            raise DataError(f"{root}: wanted at least one picture, came none; put pictures there")
        return documents

    def _listed(self, root: Path) -> Iterator[tuple[Path, Document]]:
        for where, record in files.records(root / METADATA):
            name = Path(files.value(record, "file_name", where))
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"{where}: wanted a picture inside the folder, came '{name}'; move it there")
            owner, label = _placed(name)
            owner = files.value(record, self.owner, where) if self.owner else owner
            label = files.value(record, self.label, where) if self.label else label
            caption = files.value(record, self.caption, where) if self.caption else ""
            if (root / name).is_file():
                yield root / name, Document(owner, "", caption, label)
            else:
                self._leave_out(f"{where}: wanted the picture '{name}', came nothing")

    def _found(self, root: Path) -> Iterator[tuple[Path, Document]]:
        if self.label or self.owner:
            wish = f"the field '{self.label or self.owner}' of a {METADATA}"
            raise DataError(f"{root}: wanted {wish}, came no such file; write it, or name no field")
        found = list(files.visible(root))
        pictured = {file.with_suffix("") for file in found if _is_picture(file)}
        for file in found:
            if _is_picture(file):
                beside = file.with_suffix(".txt")
                caption = files.text(beside).strip() if beside.is_file() else ""
                owner, label = _placed(file.relative_to(root))
                yield file, Document(owner, "", caption, label)
            elif file.name in MISPLACED:
                raise DataError(f"{file}: wanted captions in {root / METADATA}, came another file; write that one")
            elif file.suffix == ".txt" and file.with_suffix("") not in pictured:
                self._leave_out(f"{file}: wanted a picture beside this caption, came none")

    def _read(self, file: Path, document: Document) -> Iterator[Document]:
        try:
            with files.reading(str(file), "a whole picture"), pillow().open(file) as picture:
                read = replace(document, picture=pixels(picture, self.size, self.mode))
        except DataError as error:
            self._leave_out(str(error))
        else:
            yield read

    def _leave_out(self, why: str) -> None:
        if self.broken == "error":
            raise DataError(f"{why}; mend it, take it away, or leave such out (data.broken = 'skip')")
        LOG.warning("left out: %s", why)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _placed(name: Path) -> tuple[str, str]:
    """The first and the last folder on the way to a file."""
    folders = name.parts[:-1] or ("",)
    return folders[0], folders[-1]
