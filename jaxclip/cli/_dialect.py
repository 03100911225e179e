"""How a file of text holds a table: its delimiter, quotes, header and types."""

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

# duckdb is an extra and not imported here; its own annotations are loose.
Connection: TypeAlias = Any
# In the order of preference where several make a table: a comma may also stand within
# the numbers or the words of a file that another one delimits.
_DELIMITERS = (";", "\t", "|", ",")
# Rows from which the dialect is told. DuckDB's own default.
_SAMPLE = 20_480
# Rows from which the header and the decimal mark are told.
_HEAD = 200
_WORD = "VARCHAR"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Numbers with a currency or a decimal comma, and dates: no names, either.
_DATA = re.compile(
    r"[$€£(+-]* ?\d[\d.,' ]*[)%$€£ ]*|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b.*"
)
# Not 1,234, where the comma may divide the thousands; and not 1,234.5, where it does.
_DECIMAL_COMMA = re.compile(r"[+-]?([\d.]+,(\d{1,2}|\d{4,})|0,\d+)")
_POINT_AFTER_COMMA = re.compile(r",.*\.")


@dataclass(frozen=True)
class Dialect:
    """The dialect of a file.

    - `delimiter`, `quote`, `escape`: characters, the latter two empty where none.
    - `skip`: the lines above the table.
    - `header`: whether the first row holds names.
    - `names`, `types`: of each column.
    """

    delimiter: str
    quote: str
    escape: str
    skip: int
    header: bool
    names: tuple[str, ...]
    types: tuple[str, ...]

    def read(self, connection: Connection, path: Path) -> Any:
        """The table that the file holds, as DuckDB's cursor of its rows. Columns have
        no names yet: to DuckDB, "a" and "A" are the same."""
        return connection.execute(
            "SELECT * FROM read_csv($path, auto_detect=false, delim=$delimiter, "
            "quote=$quote, escape=$escape, skip=$skip, header=$header, "
            "columns=$columns)",
            {
                "path": str(path),
                "delimiter": self.delimiter,
                "quote": self.quote,
                "escape": self.escape,
                "skip": self.skip,
                "header": self.header,
                "columns": {str(j): kind for j, kind in enumerate(self.types)},
            },
        )

    def as_text(self) -> "Dialect":
        """The same, but for each cell being taken as it is written."""
        return replace(self, types=(_WORD,) * len(self.types))


def sniff(connection: Connection, path: Path, *, all_rows: bool) -> Dialect | None:
    """The dialect of a file, or None where no delimiter makes a table of it.

    DuckDB's sniffer is asked once for each delimiter and the answer that leaves out
    the fewest lines wins. Asked for all at once it prefers the one with the most
    columns, and so takes `0,5;1,5` below a header of two names for three columns, and
    leaves the header out.

    **Arguments:**

    - `path`: a file of UTF-8 text.
    - `all_rows`: whether to tell the types from all rows, not only from the first.
    """
    found = [_ask(connection, path, delimiter, all_rows) for delimiter in _DELIMITERS]
    found = [dialect for dialect in found if dialect is not None]
    if not found:
        return None
    dialect = min(found, key=lambda dialect: dialect.skip)
    rows = _head(connection, path, dialect)
    types = dialect.types
    header = _has_header(rows, types)
    if not header:
        types = tuple(map(_widened, types, rows[0]))
    names = header_names(rows[0]) if header else [str(j + 1) for j in range(len(types))]
    # Never whole numbers: in a column that starts with them DuckDB rounds what follows.
    # And with either decimal mark it reads 1.234 as a fraction: what is meant in a file
    # that has both marks is told later, from all cells.
    number = _WORD if _has_decimal_commas(rows[header:]) else "DOUBLE"
    types = tuple(_WORD if kind == _WORD else number for kind in types)
    return replace(dialect, header=header, names=tuple(names), types=types)


def _ask(
    connection: Connection, path: Path, delimiter: str, all_rows: bool
) -> Dialect | None:
    """What DuckDB's sniffer says of a file with some delimiter."""
    import duckdb

    size = -1 if all_rows else _SAMPLE
    try:
        quote, escape, skip, header, columns = connection.execute(
            "SELECT Quote, Escape, SkipRows, HasHeader, Columns "
            f"FROM sniff_csv($path, delim=$delimiter, sample_size={size})",
            {"path": str(path), "delimiter": delimiter},
        ).fetchone()
    except duckdb.InvalidInputException:
        return None
    if len(columns) < 2:
        return None
    # Only numbers are worth their type here. Words such as "yes", and dates, whose
    # format may be ambiguous, are for those who then say what they made of them.
    types = [
        "DOUBLE" if column["type"] in ("DOUBLE", "FLOAT", "HUGEINT") else column["type"]
        for column in columns
    ]
    return Dialect(
        delimiter,
        *("" if mark == "(empty)" else mark for mark in (quote, escape)),
        skip=skip,
        header=header,
        names=(),
        types=tuple(kind if kind in ("BIGINT", "DOUBLE") else _WORD for kind in types),
    )


def _head(connection: Connection, path: Path, dialect: Dialect) -> list[list[str]]:
    """The first rows as text, the header among them; what is empty as ""."""
    dialect = replace(dialect.as_text(), header=False)
    rows = dialect.read(connection, path).fetchmany(_HEAD)
    return [[(cell or "").strip() for cell in row] for row in rows]


def _has_header(rows: list[list[str]], types: tuple[str, ...]) -> bool:
    """Whether the first row holds names.

    DuckDB tells it by the types, and so takes the 1.5 above a column of whole numbers
    for a name, and the words of a table of words for names, whatever they are.
    """
    first, rest = rows[0], rows[1:]
    numbers = [int(cell) for cell in first if cell.isdecimal()]
    words = [cell for cell in first if cell and not _NUMBER.fullmatch(cell)]
    if all(b - a == 1 for a, b in itertools.pairwise(numbers)) and (
        len(numbers) + len(words) >= len(first) - (first[0] == "")
        and len(numbers) >= (2 if words else 3)
        # 1, 2, 3 may also be data; but not above fractions, or beside an index.
        and (first[0] == "" or types.count("DOUBLE") >= len(numbers) / 2)
    ):
        return True
    numeric = [cell for cell, kind in zip(first, types, strict=True) if kind != _WORD]
    if numeric:
        return not any(_NUMBER.fullmatch(cell) for cell in numeric)
    if any(_DATA.fullmatch(cell) for cell in first):
        return False
    again = sum(cell in {row[j] for row in rest} for j, cell in enumerate(first))
    return again < len(first) / 2


def _widened(kind: str, cell: str) -> str:
    """The type of a column with one more cell."""
    if kind == _WORD or not cell:
        return kind
    if not _NUMBER.fullmatch(cell):
        return _WORD
    return kind if cell.lstrip("+-").isdecimal() else "DOUBLE"


def header_names(cells: list[str]) -> list[str]:
    """A name for each column, no two alike."""
    names: list[str] = []
    for j, cell in enumerate(cells):
        name = new = cell or f"unnamed {j + 1}"
        for number in itertools.count(1):
            if new not in names:
                break
            new = f"{name}_{number}"
        names.append(new)
    return names


def _has_decimal_commas(rows: list[list[str]]) -> bool:
    """Whether there is a column of numbers such as 0,25 or 1.234,56."""
    return any(
        any(map(_DECIMAL_COMMA.fullmatch, column))
        and not any(map(_POINT_AFTER_COMMA.search, column))
        for column in zip(*rows, strict=True)
    )
