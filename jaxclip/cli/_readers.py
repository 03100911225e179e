"""The formats of a table: text, JSON, Excel, Parquet, NPZ."""

import re
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ._dialect import Dialect, header_names, sniff
from ._text import first_ragged, is_aligned, ragged, squeeze

# pandas is an extra and not imported here; its own annotations are too loose to help.
DataFrame: TypeAlias = Any


def read_plain(path: Path, folder: Path) -> DataFrame:
    """Reads a file of UTF-8 text with some delimiter, or with blanks."""
    import duckdb

    with duckdb.connect() as connection:
        try:
            path, dialect = _dialect(connection, path, folder)
            try:
                frame = dialect.read(connection, path).df()
            except duckdb.ConversionException:
                # Further down, a column of numbers holds something else.
                dialect = sniff(connection, path, all_rows=True) or dialect.as_text()
                frame = dialect.read(connection, path).df()
        except duckdb.Error as error:
            raise ValueError(_shorter(str(error))) from error
    frame.columns = list(dialect.names)
    first = dialect.skip + dialect.header + 1
    frame.index = range(first, first + len(frame))
    frame.attrs["jaxclip_notes"] = _notes(path, dialect.skip, dialect.header)
    return frame


def _dialect(connection: Any, path: Path, folder: Path) -> tuple[Path, Dialect]:
    """The dialect of a file, and the file: another where blanks divide its cells."""
    dialect = sniff(connection, path, all_rows=False)
    if dialect is None or (dialect.delimiter == "\t" and is_aligned(path)):
        squeezed = squeeze(path, folder / "squeezed.csv")
        other = sniff(connection, squeezed, all_rows=False)
        if other is not None and other.delimiter == "\t":
            return squeezed, other
    if dialect is None:
        raise ValueError(
            first_ragged(path)
            or "no delimiter (comma, semicolon, tab, bar or blanks) divides all of its "
            "rows into as many cells"
        )
    return path, dialect


def _notes(path: Path, skip: int, header: bool) -> list[str]:
    notes = []
    if skip:
        with path.open(encoding="utf-8") as file:
            above = file.readline().strip()
        lines = "line" if skip == 1 else f"{skip} lines"
        notes.append(f"left out the {lines} above the table: {above!r}")
    if not header:
        notes.append("found no header: the columns are named by their number, from 1")
    return notes


def _shorter(error: str) -> str:
    """What DuckDB says of a row, without its advice to programmers."""
    found = re.search(
        r"Line: (\d+)\nOriginal Line: (.*?)\n"
        r"Expected Number of Columns: (\d+) Found: (\d+)",
        error,
        re.DOTALL,
    )
    if found:
        row, text, wanted, got = found.groups()
        return ragged(int(row), int(got), int(wanted), text)
    said = error.split("Possible")[0].split(": ", 1)[-1]
    return "; ".join(line for line in said.splitlines() if line)


def read_json(path: Path) -> DataFrame:
    import duckdb

    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        # By another name: DuckDB takes some characters of a name for patterns.
        plain = Path(folder, "table.json" + ".gz" * (path.suffix.lower() == ".gz"))
        plain.symlink_to(path.resolve())
        query = "SELECT * FROM read_json($path, sample_size=-1)"
        try:
            frame = connection.execute(query, {"path": str(plain)}).df()
        except duckdb.Error as error:
            said = str(error).splitlines()[0].split(": ", 1)[-1].rstrip(". ")
            raise ValueError(said.replace(f'"{plain}"', "it")) from error
    frame.index = range(1, len(frame) + 1)
    return frame


def read_excel(path: Path) -> DataFrame:
    """Reads the first sheet that holds a table as if it were a file of text: a sheet
    may lack a header and have lines above the table, too."""
    import pandas as pd

    # It warns of what it leaves out, such as the rules for a cell's values.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sheets = pd.read_excel(path, sheet_name=None, header=None, dtype=object)
    # A header and two rows; a sheet of remarks may come before them.
    tables = {name: sheet for name, sheet in sheets.items() if len(sheet) > 2}
    if not tables:
        raise ValueError("none of its sheets has a header and two rows")
    name, sheet = next(iter(tables.items()))
    # Empty rows above a table and columns beside it are no part of it.
    sheet = sheet.dropna(axis=1, how="all")
    sheet = sheet.loc[sheet.notna().any(axis=1).idxmax() :]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "sheet.csv")
        sheet.to_csv(plain, header=False, index=False)
        frame = read_plain(plain, Path(folder))
    frame.index += sheet.index[0]
    if len(sheets) > 1:
        frame.attrs["jaxclip_notes"].insert(
            0, f"took the sheet {name!r} of {len(sheets)}"
        )
    return frame


def read_parquet(path: Path) -> DataFrame:
    import pandas as pd

    frame = pd.read_parquet(path)
    if len(set(frame.columns)) < frame.shape[1]:
        frame.columns = header_names([str(name) for name in frame.columns])
    return frame


def read_npz(path: Path) -> DataFrame:
    import pandas as pd

    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays, such as `numpy.savez` writes")
    columns: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            new = _columns(name, arrays)
            if twice := columns.keys() & new.keys():
                raise ValueError(f"two of its columns are named {min(twice)!r}")
            columns |= new
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its arrays have different lengths: {lengths}")
    return pd.DataFrame(columns)


def _columns(name: str, arrays: Any) -> dict[str, np.ndarray]:
    """The columns that an array of an archive holds."""
    try:
        values = np.asarray(arrays[name])
    except ValueError as error:
        raise ValueError(f"the array {name!r} cannot be read: {error}") from error
    if values.ndim not in (1, 2) or values.dtype.kind == "V":
        raise ValueError(
            f"the array {name!r} must be a vector or a matrix. "
            f"Got shape {values.shape} of {values.dtype}"
        )
    # pandas reads the byte order of this machine only.
    values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 1:
        return {name: values}
    return {f"{name}{j}": values[:, j] for j in range(values.shape[1])}
