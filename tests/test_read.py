"""Files as people have them: what is read of them, how it is said, what is refused."""

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxclip.cli._read import read_table

Y = np.array([3.0, 1.0, 4.0, 1.5, 5.0, 9.0])
Z = np.array([2.0, 7.0, 1.0, 8.0, 2.5, 8.0])


# Files that a program wrote


def _frame() -> pd.DataFrame:
    """Numbers that a decimal fraction holds exactly, whole ones, and text."""
    return pd.DataFrame(
        {
            "size": [0.5, -1.25, 3e10, 4.0],
            "rooms": [1, 2, 3, 2**40],
            "new": ["True", "False", "True", "True"],
            "town": ["Ys", "Thule", "Ys", "Łódź"],
            "price": [10.0, 20.5, 30.0, 7.0],
        }
    )


def _write_npz(frame: pd.DataFrame, path: Path) -> None:
    arrays: dict[str, Any] = {str(name): frame[name].to_numpy() for name in frame}
    del arrays["town"], arrays["new"]
    np.savez(path, **arrays)


def _write_zip(frame: pd.DataFrame, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/inner.csv", frame.to_csv(index=False))


def _compressed(compress: Callable[[bytes], bytes]) -> Callable[..., Any]:
    return lambda frame, path: path.write_bytes(
        compress(frame.to_csv(index=False).encode())
    )


WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".CSV": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    ".txt": lambda frame, path: frame.to_csv(path, index=False, sep="|"),
    ".data": lambda frame, path: frame.to_csv(path, index=False, sep=" "),
    "[1].csv": lambda frame, path: frame.to_csv(path, index=False),
    ".csv.gz": _compressed(gzip.compress),
    ".csv.bz2": _compressed(bz2.compress),
    ".tsv.xz": _compressed(lzma.compress),
    ".zip": _write_zip,
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    ".json": lambda frame, path: frame.to_json(path, orient="records"),
    ".xlsx": lambda frame, path: frame.to_excel(path, index=False),
    ".parquet": lambda frame, path: frame.to_parquet(path),
    ".npz": _write_npz,
}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_holds_what_was_written(tmp_path, ending, kind):
    path, frame = tmp_path / f"homes{ending}", _frame()
    WRITERS[ending](frame, path)
    read = read_table(kind(path))
    if ending == ".npz":
        frame = frame.drop(columns=["town", "new"])
    assert list(read.columns) == list(frame.columns)
    for name in frame.columns:
        assert read[name].tolist() == frame[name].tolist()
    assert read.attrs.get("jaxclip_notes", []) == []


def test_the_matrices_of_an_archive_become_columns(tmp_path):
    X = np.arange(12.0).reshape(4, 3) ** 2
    # As another machine would write it.
    np.savez(tmp_path / "a.npz", X=X, flags=X[:, :1] > 36, y=Y[:4].astype(">f8"))
    frame = read_table(tmp_path / "a.npz")
    assert list(frame.columns) == ["X0", "X1", "X2", "flags0", "y"]
    np.testing.assert_array_equal(frame[["X0", "X1", "X2"]], X)
    np.testing.assert_array_equal(frame["y"], Y[:4])


def test_numbers_are_read_to_the_last_digit(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.normal(size=500) * 10.0 ** rng.integers(-300, 300, 500)
    rows = [f"{value!r},1" for value in values.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(["a,y", *rows]))
    assert read_table(tmp_path / "a.csv")["a"].tolist() == values.tolist()


# Dialects: what is written, and the columns and notes that come of it

_BELOW = "left out the 2 lines above the table: "
_NO_HEADER = "found no header: the columns are named by their number, from 1"

DIALECTS: dict[str, tuple[str | bytes, dict[str, list[Any]], list[str]]] = {
    "semicolons": ("a;b;y\n1;2;3\n4;5;6\n", {"a": [1, 4], "b": [2, 5]}, []),
    "semicolons and commas": (
        # Of commas alone, below the header, there are three columns.
        "alpha;y\n0,5;1,25\n-0,25;2,5\n",
        {"alpha": ["0,5", "-0,25"], "y": ["1,25", "2,5"]},
        [],
    ),
    "points in thousands": (
        "a;b;y\n1,5;1.234;3\n0,25;12.345;6\n",
        # DuckDB alone takes 1.234 for a fraction.
        {"a": ["1,5", "0,25"], "b": ["1.234", "12.345"], "y": ["3", "6"]},
        [],
    ),
    "commas in quotes": (
        'a,b,y\n"Ys, old",1,3\n"a ""q"" b",2,6\n',
        {"a": ["Ys, old", 'a "q" b'], "b": [1, 2]},
        [],
    ),
    "semicolons in quotes": (
        '"a;b";y\n"x;1";2\n"y;2";3\n',
        {"a;b": ["x;1", "y;2"], "y": [2, 3]},
        [],
    ),
    "semicolons in words": (
        "tags,x,y\nu;v,1,2\nw;z,3,4\nq;r,5,6\n",
        {"tags": ["u;v", "w;z", "q;r"], "x": [1, 3, 5]},
        [],
    ),
    "lines in quotes": ('a,y\n"u\nv",2\nw,3\n', {"a": ["u\nv", "w"], "y": [2, 3]}, []),
    "thousands in quotes": (
        'a,y\n"1,234",2\n"12,345",3\n',
        {"a": ["1,234", "12,345"], "y": [2, 3]},
        [],
    ),
    "a byte-order mark": (b"\xef\xbb\xbfa,y\r\n1,2\r\n3,4\r\n", {"a": [1, 3]}, []),
    "mixed line ends": (b"a,y\r\n1,2\n3,4\r\n5,6\n", {"a": [1, 3, 5]}, []),
    "old line ends": (b"a,y\r1,2\r3,4\r", {"a": [1, 3]}, []),
    "latin-1": (
        "town,y\nKöln,1\nŁódź,2\n".encode("cp1250"),
        {"y": [1, 2]},
        ["read the text in the encoding cp1252"],
    ),
    "a euro": (
        "a;y\n5 €;1\n6 €;2\n".encode("cp1252"),
        {"a": ["5 €", "6 €"]},
        ["read the text in the encoding cp1252"],
    ),
    "bytes of no cp1252": (
        b"a,y\n\x81,1\n\xe4,2\n",
        {"a": ["\x81", "ä"]},
        ["read the text in the encoding latin-1"],
    ),
    "utf-16": (
        "town,y\nŁódź,1\nYs,2\n".encode("utf-16"),
        {"town": ["Łódź", "Ys"]},
        ["read the text in the encoding utf-16"],
    ),
    "utf-16 without a mark": (
        "town,y\nThule,1\nYs,2\n".encode("utf-16-le"),
        {"town": ["Thule", "Ys"]},
        ["read the text in the encoding utf-16-le"],
    ),
    "a spreadsheet's line": ("sep=;\na;y\n1;2\n3;4\n", {"a": [1, 3]}, []),
    "comments above": (
        "# made by hand\n# in May\na,y\n1,2\n3,4\n5,6\n",
        {"a": [1, 3, 5]},
        [_BELOW + "'# made by hand'"],
    ),
    "a title above": (
        "The homes of Ys\n\na,b,y\n1,2,3\n3,4,5\n5,6,7\n",
        {"a": [1, 3, 5]},
        [_BELOW + "'The homes of Ys'"],
    ),
    "no header": ("1.5,2,3\n4.5,5,6\n", {"1": [1.5, 4.5], "3": [3, 6]}, [_NO_HEADER]),
    "no header, words": (
        "p,x,s\ne,x,s\ne,b,t\np,x,s\n",
        {"1": ["p", "e", "e", "p"], "3": ["s", "s", "t", "s"]},
        [_NO_HEADER],
    ),
    "no header, blanks after commas": (
        "39, Ys, <=50K\n50, Thule, >50K\n38, ?, <=50K\n",
        {"1": [39, 50, 38]},
        [_NO_HEADER],
    ),
    "no header, currency": (
        "$1.50,Ys\n$2.50,Thule\n$3.25,Ys\n",
        {"1": ["$1.50", "$2.50", "$3.25"]},
        [_NO_HEADER],
    ),
    "no header, decimal commas": (
        "0,5;1,25\n-0,25;2,5\n",
        {"1": ["0,5", "-0,25"], "2": ["1,25", "2,5"]},
        [_NO_HEADER],
    ),
    "no header, dates": (
        "2020-01-02,Ys\n2020-01-03,Thule\n",
        {"1": ["2020-01-02", "2020-01-03"]},
        [_NO_HEADER],
    ),
    "names that start with digits": (
        "1stFloor,2ndFloor,street\nA1,B2,Ys\nA2,B3,Thule\n",
        {"1stFloor": ["A1", "A2"], "street": ["Ys", "Thule"]},
        [],
    ),
    "years as names": (
        "town,1990,1991,1992\nYs,1.5,2.5,3\nThule,2.5,2.5,3\n",
        {"town": ["Ys", "Thule"], "1990": [1.5, 2.5], "1992": [3, 3]},
        [],
    ),
    "a matrix with its index": (
        ",0,1,2\n0,1.5,2.5,3\n1,2.5,2.5,4\n",
        {"unnamed 1": [0, 1], "0": [1.5, 2.5], "2": [3, 4]},
        [],
    ),
    "whole numbers in a row are data": (
        "1,2,3\n4,8,6\n7,5,9\n",
        {"1": [1, 4, 7], "3": [3, 6, 9]},
        [_NO_HEADER],
    ),
    "names twice": ("a,a,y\n1,2,3\n4,5,6\n", {"a": [1, 4], "a_1": [2, 5]}, []),
    "names alike but for their case": (
        "A,a,y\n1,2,3\n4,5,6\n",
        {"A": [1, 4], "a": [2, 5]},
        [],
    ),
    "a delimiter at the end": (
        "a,y,\n1,2,\n3,4,\n",
        {"a": [1, 3], "y": [2, 4], "unnamed 3": [None, None]},
        [],
    ),
    "a delimiter at the end of rows": ("a,y\n1,2,\n3,4,\n", {"a": [1, 3]}, []),
    "aligned by blanks": (
        '  18.0   8   307.0  "chevy"\n  15.0  10   350.0  "buick sky"\n',
        {"1": [18.0, 15.0], "2": [8, 10], "4": ["chevy", "buick sky"]},
        [_NO_HEADER],
    ),
    "aligned by blanks and a tab": (
        '18.0   8   307.\t"chevy"\n15.0  10   350.\t"buick sky"\n',
        {"1": [18.0, 15.0], "2": [8, 10], "4": ["chevy", "buick sky"]},
        [_NO_HEADER],
    ),
    "names of rows, as R writes them": (
        '"a" "y"\n"1" 2 3.5\n"2" 3 4\n"3" 4 1\n',
        {"unnamed 1": [1, 2, 3], "a": [2, 3, 4], "y": [3.5, 4, 1]},
        [],
    ),
    "dates and truth are text": (
        "d,t,y\n2020-01-02,true,1\n01/02/2021,no,2\n",
        {"d": ["2020-01-02", "01/02/2021"], "t": ["true", "no"]},
        [],
    ),
    "empty cells": ("a,b,y\n1,,3\n4,5,\n", {"a": [1, 4], "b": [None, 5]}, []),
}


@pytest.mark.parametrize(
    ("content", "columns", "notes"), DIALECTS.values(), ids=DIALECTS.keys()
)
def test_a_file_in_a_dialect(tmp_path, content, columns, notes):
    path = tmp_path / "a.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    frame = read_table(path)
    for name, cells in columns.items():
        read = [None if pd.isna(cell) else cell for cell in frame[name]]
        assert [c.strip() if isinstance(c, str) else c for c in read] == cells
    assert frame.attrs["jaxclip_notes"] == notes


def test_rows_are_counted_as_in_the_file(tmp_path):
    path = tmp_path / "a.csv"
    for content, first in (
        ("a,b\n1,2\n3,4\n", 2),
        ("1.5,2\n3,4\n5,6\n", 1),
        ("# x\n# y\na,b\n1,2\n3,4\n", 4),
    ):
        path.write_text(content)
        assert read_table(path).index[0] == first


@pytest.mark.parametrize("cell", [".", "x", "1;2", "2.5"])
def test_a_column_that_changes_far_down(tmp_path, cell):
    """Beyond what a sniffer looks at: neither an error nor a lost cell."""
    rows = ["1,2"] * 30_000 + [f"{cell},3"]
    (tmp_path / "long.csv").write_text("\n".join(["a,y", *rows]))
    frame = read_table(tmp_path / "long.csv")
    assert frame.shape == (30_001, 2)
    assert str(frame["a"].iloc[-1]) == cell
    assert float(frame["a"].iloc[0]) == 1


def test_letters_of_another_encoding_far_down(tmp_path):
    rows = [b"abc,2"] * 30_000 + ["ü,3".encode("latin-1")]
    (tmp_path / "long.csv").write_bytes(b"\n".join([b"a,y", *rows]))
    assert read_table(tmp_path / "long.csv")["a"].iloc[-1] == "ü"


# Sheets


def test_the_first_sheet_that_holds_a_table_is_taken(tmp_path):
    path = tmp_path / "a.xlsx"
    days = pd.to_datetime(["2020-01-02", "2020-02-03", "2020-03-04"])
    table = pd.DataFrame({"day": days, "a": [1.5, None, 2], "y": [1, 2, 4]})
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"Read me": ["This is a book."]}).to_excel(book, sheet_name="text")
        table.to_excel(book, sheet_name="homes", index=False, startrow=2)
    frame = read_table(path)
    assert list(frame.columns) == ["day", "a", "y"]
    assert [str(day)[:10] for day in frame["day"]] == [str(day)[:10] for day in days]
    assert frame["y"].tolist() == [1, 2, 4]
    assert frame.index.tolist() == [4, 5, 6]
    assert frame.attrs["jaxclip_notes"][0] == "took the sheet 'homes' of 2"


# What is no table


def _archive(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def _zip(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "<x/>")

    return write


def _vector(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, Z)


def _bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


JUNK = np.random.default_rng(1).integers(128, 256, 4096, np.uint8).tobytes()
PAIRS = np.zeros(3, [("a", float), ("b", int)])
LONG = b"a,b,y\n" + b"1,2,3\n" * 30_000

# What is written, under what name, and what the refusal says beside that name.
NO_TABLES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "absent": ("a.csv", lambda path: None, "There is no file"),
    "a directory": ("a.csv", lambda path: path.mkdir(), "There is no file"),
    "unsupported": ("a.doc", _bytes(b"a,b\n1,2\n3,4\n"), r"Got the ending '\.doc'"),
    "no ending": ("table", _bytes(b"a,b\n1,2\n3,4\n"), "Got the ending ''"),
    "junk csv": ("a.csv", _bytes(JUNK), "is not a table: "),
    "zeros": ("a.csv", _bytes(b"a,b\n\0,\1\n"), "it is no text"),
    "a short row": (
        "a.csv",
        _bytes(b"a,b,y\n1,2,3\n1,2\n4,5,6\n"),
        "row 3 has 2 cells where 3 are wanted: '1,2'. Mend the row",
    ),
    "a long row": (
        "a.csv",
        _bytes(b"a,b\n1,2\n1,2,3\n4,5\n"),
        "row 3 has 3 cells where 2 are wanted: '1,2,3'",
    ),
    "a short row far down": (
        "a.csv",
        _bytes(LONG + b"4,5\n6,7,8\n"),
        "row 30002 has 2 cells where 3 are wanted: '4,5'",
    ),
    "an open quote": (
        "a.csv",
        _bytes(LONG + b'"x\n4,5\n6,7,8\n'),
        "row 30002 has 1 cell wh",
    ),
    "empty csv": ("a.csv", _bytes(b""), "is not a table: it is empty"),
    "empty gz": ("a.csv.gz", _bytes(gzip.compress(b"")), "it is empty"),
    "junk gz": ("a.csv.gz", _bytes(JUNK), "is not a table: Not a gzipped file"),
    "two in a zip": ("a.zip", _zip("a.csv", "b.csv"), "holds 2 files.*a.csv, b.csv"),
    "no rows": ("a.csv", _bytes(b"a,b\n"), "Got 0 rows and 2 columns"),
    "one row": ("a.csv", _bytes(b"a,b\n1,2\n"), "Got 1 rows and 2 columns"),
    "one column": ("a.csv", _bytes(b"a\n1\n2\n3\n"), "no delimiter"),
    "prose": ("a.txt", _bytes(b"It was a day.\nIt rained on.\n"), "is not a table"),
    "junk json": ("a.json", _bytes(b'{"a": 1,'), "is not a table: Malformed JSON"),
    "junk xlsx": ("a.xlsx", _bytes(JUNK), "is not a table: "),
    "junk parquet": ("a.parquet", _bytes(JUNK), "is not a table: .*corrupted"),
    "empty parquet": ("a.parquet", _bytes(b""), "is not a table: .*0 bytes"),
    "junk npz": ("a.npz", _bytes(JUNK), "is not a table: it is no archive of arrays"),
    "a vector": ("a.npz", _vector, "is not a table: it is no archive of arrays"),
    "another zip": ("a.npz", _zip("sheet.xml"), r"'sheet\.xml' must be a vector or a"),
    "no arrays": ("a.npz", _archive(), "Got 0 rows and 0 columns"),
    "objects": (
        "a.npz",
        _archive(X=np.array([1, None, "u"], object), y=Y[:3]),
        "the array 'X' cannot be read: Object arrays",
    ),
    "records": ("a.npz", _archive(X=PAIRS, y=Y[:3]), "'X' must be a vector or a matr"),
    "three axes": ("a.npz", _archive(X=np.ones((3, 2, 2))), r"Got shape \(3, 2, 2\)"),
    "a number": ("a.npz", _archive(X=Z, y=np.float64(3)), r"'y' must .* shape \(\)"),
    "two lengths": ("a.npz", _archive(X=Z, y=Y[:4]), "lengths: {'X': 6, 'y': 4}"),
    "two of a name": ("a.npz", _archive(X=Z[:, None], X0=Z, y=Y), "two .* named 'X0'"),
}


@pytest.mark.parametrize(
    ("name", "write", "message"), NO_TABLES.values(), ids=NO_TABLES.keys()
)
def test_what_is_no_table_is_refused_by_name(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"(?s){message}") as refusal:
        read_table(tmp_path / name)
    assert repr(str(tmp_path / name)) in str(refusal.value)
    # Advice of the reader to programmers is none to users.
    assert "strict_mode" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_objects_in_lines_may_lack_some_names(tmp_path):
    rows = [{"a": 1, "y": 2.5}, {"y": 3, "c": "u"}, {"a": 2, "y": 1, "c": {"d": 1}}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    frame = read_table(path)
    assert list(frame.columns) == ["a", "y", "c"]
    np.testing.assert_array_equal(frame["a"].to_numpy(float, na_value=-1), [1, -1, 2])
