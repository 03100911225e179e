"""From a file that nobody prepared to a frame of what it holds."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ._readers import (
    DataFrame,
    read_excel,
    read_json,
    read_npz,
    read_parquet,
    read_plain,
)
from ._text import COMPRESSED, as_plain

_TEXT = (".csv", ".tsv", ".txt", ".data", ".dat", ".tab", ".psv")
_JSON = (".json", ".jsonl", ".ndjson")
_EXCEL = (".xlsx", ".xlsm")


def read_table(path: str | Path) -> DataFrame:
    """Reads a table from a file, in the dialect that it is found to be written in.

    Text (.csv, .tsv, .txt, .data and the like) may have any delimiter, quotes, encoding
    and lines above the table, may lack a header, and may be compressed (.gz, .bz2, .xz,
    .zip). JSON, one object a line or a list of them; the first sheet of an Excel file
    that holds a table; Parquet; and NPZ, where a vector is a column of its name and a
    matrix `X` the columns `X0`, `X1` ...

    **Arguments:**

    - `path`: the file. Its ending tells the kind.

    **Returns:**

    A pandas frame. What could not be told at once is left as text. Columns without a
    header are named "1", "2" ... The index counts rows as they stand in the file, from
    1 with the header, and `attrs["jaxclip_notes"]` says how the file was read.

    **Raises:**

    A `ValueError` that names the file where it is missing, of another kind or no table.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    reader = _reader(path)
    try:
        frame = reader(path)
    except ImportError:
        raise
    # The readers raise a zoo of errors on files of another kind.
    except Exception as error:
        said = str(error).rstrip(".")
        raise ValueError(f"{str(path)!r} is not a table: {said}.") from error
    if frame.shape[0] < 2 or frame.shape[1] < 2:
        raise ValueError(
            f"{str(path)!r} must have at least two rows and two columns. "
            f"Got {frame.shape[0]} rows and {frame.shape[1]} columns."
        )
    frame.columns = [str(name) for name in frame.columns]
    return frame


def _reader(path: Path) -> Callable[[Path], DataFrame]:
    """What reads a file of this ending."""
    *_, inner, ending = ("", "", *(suffix.lower() for suffix in path.suffixes))
    kind = inner if ending in COMPRESSED else ending
    # An archive's own name says nothing of what it holds.
    if kind in _TEXT or (ending in COMPRESSED and kind not in (*_JSON, *_EXCEL)):
        return _read_text
    if ending in _JSON or (kind in _JSON and ending == ".gz"):
        return read_json
    if ending in _EXCEL:
        return read_excel
    if ending == ".parquet":
        return read_parquet
    if ending == ".npz":
        return read_npz
    raise ValueError(
        f"{str(path)!r} must be a file of text ({', '.join(_TEXT)}, also compressed: "
        f"{', '.join(COMPRESSED)}), {', '.join(_JSON)}, {', '.join(_EXCEL)}, .parquet "
        f"or .npz. Got the ending {path.suffix!r}."
    )


def _read_text(path: Path) -> DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        plain, notes = as_plain(path, Path(folder))
        frame = read_plain(plain, Path(folder))
    frame.attrs["jaxclip_notes"] = [*notes, *frame.attrs["jaxclip_notes"]]
    return frame
