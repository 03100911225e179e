"""A file of text as DuckDB reads it: UTF-8, not compressed, with a delimiter."""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import lzma
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# What the first bytes of a file say of its encoding.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CHUNK = 1 << 22


def _open_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [
            info.filename
            for info in archive.infolist()
            if not info.is_dir() and not info.filename.startswith("__MACOSX")
        ]
        if len(names) != 1:
            raise ValueError(
                f"it holds {len(names)} files, and one is wanted: {', '.join(names)}"
            )
        return archive.open(names[0])


COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": _open_zip,
}


def as_plain(path: Path, folder: Path) -> tuple[Path, list[str]]:
    """A file of UTF-8 text with the same content, and notes of what was done.

    **Arguments:**

    - `path`: a file of text, perhaps compressed, in any of the usual encodings.
    - `folder`: an empty folder, where the new file goes.

    **Raises:**

    A `ValueError` where the file is no text.
    """
    new = folder / "table.csv"
    encoding, is_plain = _inspect(path)
    if is_plain:
        # By another name: DuckDB takes some characters of a name for patterns.
        new.symlink_to(path.resolve())
        return new, []
    with (
        _open(path) as source,
        io.TextIOWrapper(source, encoding) as lines,
        new.open("w", encoding="utf-8", newline="\n") as target,
    ):
        first = lines.readline()
        # By this line a spreadsheet tells another one of its delimiter.
        if not re.fullmatch(r'"?sep=."?\n', first):
            target.write(first)
        while text := lines.read(_CHUNK):
            target.write(text)
    if encoding.startswith("utf-8"):
        return new, []
    return new, [f"read the text in the encoding {encoding}"]


def _open(path: Path) -> Any:
    opener = COMPRESSED.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)


def _inspect(path: Path) -> tuple[str, bool]:
    """The encoding of a file, and whether DuckDB can read the file as it is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    carriages = lines = ends = 0
    with _open(path) as file:
        head = file.read(_CHUNK)
        if not head:
            raise ValueError("it is empty")
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                return encoding, False
        if b"\0" in head:
            # Text of two bytes a letter has every other one of them empty.
            for encoding, half in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
                if half.count(0) > len(half) / 2:
                    return encoding, False
            raise ValueError("it is no text: it holds bytes of value 0")
        chunk = head
        try:
            while chunk:
                decoder.decode(chunk)
                carriages += chunk.count(b"\r")
                lines += chunk.count(b"\n")
                ends += chunk.count(b"\r\n")
                chunk = file.read(_CHUNK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return _single_byte(head), False
    # DuckDB refuses a file whose lines end in more than one way.
    alike = carriages == 0 or (carriages == ends == lines)
    compressed = path.suffix.lower() in COMPRESSED
    return "utf-8", alike and not compressed and not head.startswith((b"sep=", b'"sep'))


def _single_byte(head: bytes) -> str:
    """An encoding in which every byte is a letter."""
    try:
        head.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"


def is_aligned(path: Path) -> bool:
    """Whether runs of blanks stand between the cells of a file's first lines."""
    with path.open(encoding="utf-8") as file:
        lines = [line for line in itertools.islice(file, 20) if line.strip()]
    return all(re.search(r"\S {2,}\S", line) for line in lines)


def squeeze(path: Path, new: Path) -> Path:
    """Writes a file whose cells are divided by blanks as one divided by tabs."""
    with (
        path.open(encoding="utf-8") as source,
        new.open("w", encoding="utf-8", newline="") as target,
    ):
        writer = csv.writer(target, "excel-tab", lineterminator="\n")
        rows = _cells(source)
        first, second = next(rows, []), next(rows, [])
        # R names the columns, but not the one that holds the names of the rows.
        writer.writerow(["", *first] if len(second) == len(first) + 1 else first)
        if second:
            writer.writerow(second)
        writer.writerows(rows)
    return new


def _cells(lines: Iterable[str]) -> Iterator[list[str]]:
    plain = (line.strip().replace("\t", " ") for line in lines)
    comments = ("#", "%", "//")
    kept = (line for line in plain if line and not line.startswith(comments))
    yield from csv.reader(kept, delimiter=" ", skipinitialspace=True)


def first_ragged(path: Path) -> str | None:
    """A sentence on the first row that has not as many cells as the row above it."""
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
        count, delimiter = max((first.count(mark), mark) for mark in ",;\t|")
        if not count:
            return None
        file.seek(0)
        rows = csv.reader(file, delimiter=delimiter)
        wanted = len(next(rows))
        for number, row in enumerate(rows, 2):
            if row and len(row) != wanted:
                return ragged(number, len(row), wanted, delimiter.join(row))
    return None


def ragged(row: int, got: int, wanted: int, text: str) -> str:
    """What is wrong with a row of too few or too many cells."""
    text = text if len(text) <= 60 else text[:60] + "…"
    return (
        f"row {row} has {got} cell{'s' * (got != 1)} where {wanted} are wanted: "
        f"{text!r}. Mend the row, or put cells that hold the delimiter in quotes"
    )
