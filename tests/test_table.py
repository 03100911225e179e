"""From raw files to numbers: what is read, what is done to it, and what is refused."""

import csv
import datetime
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jaxclip.cli._table import clean, read_table

# A real table that nobody prepared, beside the repository or absent.
HOUSING = Path(__file__).parents[2] / "shared" / "data" / "california_housing.csv"

Y = np.array([3.0, 1.0, 4.0, 1.5, 5.0, 9.0])
Z = np.array([2.0, 7.0, 1.0, 8.0, 2.5, 8.0])
DAYS = [f"2020-01-0{day}" for day in range(1, 7)]


# Files


def _frame() -> pd.DataFrame:
    """Numbers that a decimal fraction holds exactly, whole ones, truth and text."""
    return pd.DataFrame(
        {
            "size": [0.5, -1.25, 3e10, 4.0],
            "rooms": [1, 2, 3, 2**40],
            "new": [True, False, True, True],
            "town": ["Ys", "Thule", "Ys", "Łódź"],
            "price": [10.0, 20.5, 30.0, 7.0],
        }
    )


def _write_npz(frame: pd.DataFrame, path: Path) -> None:
    arrays: dict[str, Any] = {str(name): frame[name].to_numpy() for name in frame}
    del arrays["town"]
    np.savez(path, **arrays)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".CSV": lambda frame, path: frame.to_csv(path, index=False),
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
        frame = frame.drop(columns="town")
    assert list(read.columns) == list(frame.columns)
    for name in frame.columns:
        assert read[name].tolist() == frame[name].tolist()


def test_a_file_and_its_frame_are_cleaned_alike(tmp_path):
    frame = _frame()
    expected = clean(frame)
    names = ("size", "rooms", "new=False", "town=Thule", "town=Łódź")
    assert expected.columns == names
    for ending in (".csv", ".parquet"):
        WRITERS[ending](frame, tmp_path / f"homes{ending}")
        table = clean(read_table(tmp_path / f"homes{ending}"))
        assert table.columns == names
        assert table.notes == expected.notes
        np.testing.assert_array_equal(table.X, expected.X)
        np.testing.assert_array_equal(table.y, frame["price"])


def test_the_matrices_of_an_archive_become_columns(tmp_path):
    X = np.arange(12.0).reshape(4, 3) ** 2
    # As another machine would write it.
    np.savez(tmp_path / "a.npz", X=X, flags=X[:, :1] > 36, y=Y[:4].astype(">f8"))
    table = clean(read_table(tmp_path / "a.npz"))
    assert table.columns == ("X0", "X1", "X2", "flags0=True")
    assert table.target == "y"
    np.testing.assert_array_equal(table.X, np.column_stack([X, [0.0, 0.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(table.y, Y[:4])


def test_a_long_column_has_one_type(tmp_path):
    # Of a file this long pandas looks at a part at a time.
    rows = ["1,2"] * 300_000 + ["x,3"] * 300_000
    (tmp_path / "long.csv").write_text("\n".join(["a,y", *rows]))
    table = clean(read_table(tmp_path / "long.csv"))
    assert table.columns == ("a=x",)
    assert table.X.sum() == 300_000


def _archive(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sheet.xml", "<x/>")


def _vector(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, Z)


def _bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


JUNK = np.random.default_rng(1).integers(128, 256, 4096, np.uint8).tobytes()
PAIRS = np.zeros(3, [("a", float), ("b", int)])

# What is written, under what name, and what the refusal says beside that name.
NO_TABLES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "absent": ("a.csv", lambda path: None, "There is no file"),
    "a directory": ("a.csv", lambda path: path.mkdir(), "There is no file"),
    "unsupported": ("a.xlsx", _bytes(b"a,b\n1,2\n3,4\n"), r"Got the ending '\.xlsx'"),
    "no ending": ("table", _bytes(b"a,b\n1,2\n3,4\n"), "Got the ending ''"),
    "junk csv": ("a.csv", _bytes(JUNK), "is not a table: .*codec can't decode"),
    "ragged csv": ("a.csv", _bytes(b"a,b\n1,2\n1,2,3\n"), "is not a table: .*line 3"),
    "empty csv": ("a.csv", _bytes(b""), "is not a table: No columns to parse"),
    "no rows": ("a.csv", _bytes(b"a,b\n"), "Got 0 rows and 2 columns"),
    "one row": ("a.csv", _bytes(b"a,b\n1,2\n"), "Got 1 rows and 2 columns"),
    "one column": ("a.csv", _bytes(b"a\n1\n2\n3\n"), "Got 3 rows and 1 columns"),
    "semicolons": ("a.csv", _bytes(b"a;b\n1;2\n3;4\n"), "commas go between them"),
    "junk parquet": ("a.parquet", _bytes(JUNK), "is not a table: .*corrupted"),
    "empty parquet": ("a.parquet", _bytes(b""), "is not a table: .*0 bytes"),
    "junk npz": ("a.npz", _bytes(JUNK), "is not a table: it is no archive of arrays"),
    "a vector": ("a.npz", _vector, "is not a table: it is no archive of arrays"),
    "another zip": ("a.npz", _zip, r"'sheet\.xml' must be a vector or a matrix"),
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


# Columns

# A raw column, the columns that it becomes, and what is said of it.
COLUMNS: dict[str, tuple[Any, dict[str, Any], str | None]] = {
    "numbers": ([1.0, 2, 4, 8, 3, 0], {"x": [1, 2, 4, 8, 3, 0]}, None),
    "whole numbers": ([1, 2, 4, 8, 3, 0], {"x": [1, 2, 4, 8, 3, 0]}, None),
    "decimals": (
        [Decimal("0.5"), None, *map(Decimal, "2345")],
        {"x": [0.5, 3, 2, 3, 4, 5]},
        "filled 1 missing values of 'x' with its median",
    ),
    "gaps": (
        [1.0, np.nan, 4, 8, np.nan, 0],
        {"x": [1, 2.5, 4, 8, 2.5, 0]},
        "filled 2 missing values of 'x' with its median",
    ),
    "gaps between whole numbers": (
        pd.array([1, None, 4, 8, 3, 0], "Int64"),
        {"x": [1, 3, 4, 8, 3, 0]},
        "filled 1 missing values of 'x' with its median",
    ),
    "infinity": (
        [1.0, np.inf, 4, -np.inf, 2, 0],
        {"x": [1, 1.5, 4, 1.5, 2, 0]},
        "filled 2 missing values of 'x' with its median",
    ),
    "truth": (
        [True, False, True, True, False, True],
        {"x=False": [0, 1, 0, 0, 1, 0]},
        "encoded 'x' as 1 indicators, against 'True'",
    ),
    "truth with gaps": (
        pd.array([True, None, True, True, False, None], "boolean"),
        {"x=False": [0, 0, 0, 0, 1, 0], "x=missing": [0, 1, 0, 0, 0, 1]},
        "encoded 'x' as 2 indicators, against 'True'",
    ),
    "text": (
        ["u", "v", "v", "w", "v", "u"],
        {"x=u": [1, 0, 0, 0, 0, 1], "x=w": [0, 0, 0, 1, 0, 0]},
        "encoded 'x' as 2 indicators, against 'v'",
    ),
    "text with gaps": (
        ["u", None, "u", "u", np.nan, "u"],
        {"x=missing": [0, 1, 0, 0, 1, 0]},
        "encoded 'x' as 1 indicators, against 'u'",
    ),
    "categories": (
        pd.Categorical(["u", "v", "v"] * 2, categories=["w", "v", "u"]),
        {"x=u": [1, 0, 0, 1, 0, 0]},
        "encoded 'x' as 1 indicators, against 'v'",
    ),
    "constant": ([2.0] * 6, {}, "dropped 'x': it is constant"),
    "constant text": (["u"] * 6, {}, "dropped 'x': it is constant"),
    "constant truth": ([True] * 6, {}, "dropped 'x': it is constant"),
    "empty": ([np.nan] * 6, {}, "dropped 'x': it is empty"),
    "empty text": ([None] * 6, {}, "dropped 'x': it is empty"),
    "no finite number": (
        [np.inf, -np.inf, np.nan] * 2,
        {},
        "dropped 'x': it has no finite value",
    ),
    "dates": (
        pd.to_datetime(DAYS),
        {},
        r"dropped 'x': datetime64\[.s\] is not supported",
    ),
    "dates with a zone": (
        pd.to_datetime(DAYS).tz_localize("UTC"),
        {},
        r"dropped 'x': datetime64\[.s, UTC\] is not supported",
    ),
    "times": (
        pd.to_timedelta(Y, "s"),
        {},
        r"dropped 'x': timedelta64\[.s\] is not supported",
    ),
    "complex": (Y + 1j * Z, {}, "dropped 'x': complex128 is not supported"),
    "lists": ([[1, 2], [3]] * 3, {}, "dropped 'x': its cells are no single values"),
    "dictionaries": ([{"a": 1}] * 6, {}, "dropped 'x': its cells are no single values"),
}


@pytest.mark.parametrize(
    ("raw", "expected", "note"), COLUMNS.values(), ids=COLUMNS.keys()
)
def test_a_raw_column_becomes_numbers(raw, expected, note):
    table = clean(pd.DataFrame({"x": raw, "z": Z, "y": Y}), "y")
    assert table.columns == (*expected, "z")
    np.testing.assert_array_equal(table.X, np.column_stack([*expected.values(), Z]))
    np.testing.assert_array_equal(table.y, Y)
    assert len(table.notes) == (note is not None)
    if note is not None:
        text = table.notes[0]
        assert text == note or pd.Series([text]).str.fullmatch(note).all(), text


def test_a_constant_with_gaps_is_filled_and_dropped():
    frame = pd.DataFrame({"x": [1.0, np.nan, 1, 1, 1, 1], "z": Z, "y": Y})
    table = clean(frame, "y")
    assert table.columns == ("z",)
    assert table.notes == (
        "filled 1 missing values of 'x' with its median",
        "dropped 'x': it is constant",
    )


@pytest.mark.parametrize("values", [30, 31])
def test_text_with_too_many_values_is_a_name(values):
    text = [f"n{i % values:02}" for i in range(values + 1)]
    y = np.arange(values + 1.0)
    table = clean(pd.DataFrame({"x": text, "z": y**2, "y": y}), "y")
    if values == 30:
        # The one that occurs twice is the one to compare with.
        assert table.columns == (*(f"x=n{i:02}" for i in range(1, 30)), "z")
        assert table.notes == ("encoded 'x' as 29 indicators, against 'n00'",)
        assert np.all(table.X[:, :-1].sum(axis=0) == 1)
    else:
        assert table.columns == ("z",)
        assert table.notes == ("dropped 'x': text with 31 distinct values",)


def test_dates_of_a_file_are_text(tmp_path):
    rows = [f"{day},{z},{y}" for day, z, y in zip(DAYS, Z, Y, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["day,z,y", *rows]))
    table = clean(read_table(tmp_path / "a.csv"))
    assert table.columns == (*(f"day={day}" for day in DAYS[1:]), "z")
    days = [datetime.date.fromisoformat(day) for day in DAYS]
    frame = pd.DataFrame({"day": days, "z": Z, "y": Y})
    frame.to_parquet(tmp_path / "a.parquet")
    again = clean(read_table(tmp_path / "a.parquet"))
    assert again.columns == table.columns
    np.testing.assert_array_equal(again.X, table.X)


# Rows and the target


@pytest.mark.parametrize("index", [range(6), [0] * 6], ids=["counted", "repeated"])
def test_rows_without_a_target_are_left_out(index):
    y = np.array([3.0, np.nan, 4.0, np.inf, 5.0, 9.0])
    text = ["u", "v", "w", "u", "w", "w"]
    frame = pd.DataFrame({"y": y, "x": Z, "t": text}, index=index)
    table = clean(frame, "y")
    kept = [0, 2, 4, 5]
    np.testing.assert_array_equal(table.y, y[kept])
    np.testing.assert_array_equal(table.X, [[2, 1], [1, 0], [2.5, 0], [8, 0]])
    # "v" was only in a row that is gone.
    assert table.columns == ("x", "t=u")
    assert table.notes == (
        "left out 2 rows without a target",
        "encoded 't' as 1 indicators, against 'w'",
    )


def test_a_column_constant_on_the_rows_left_is_dropped():
    frame = pd.DataFrame({"x": [1.0, 2, 1, 1, 1, 1], "z": Z, "y": Y})
    assert clean(frame).columns == ("x", "z")
    frame.loc[1, "y"] = np.nan
    assert clean(frame).columns == ("z",)


def test_the_target_is_the_last_column_by_default():
    frame = pd.DataFrame({"x": Z, "y": Y})
    table = clean(frame)
    assert table.target == "y"
    assert table.notes == ("took the last column, 'y', as the target",)
    other = clean(frame, "x")
    assert (other.target, other.columns, other.notes) == ("x", ("y",), ())
    np.testing.assert_array_equal(other.y, Z)


@pytest.mark.parametrize(
    ("raw", "y"),
    [
        ([True, False] * 3, [1, 0] * 3),
        (pd.array([1, 2, 1, 2, 1, 7], "Int64"), [1, 2, 1, 2, 1, 7]),
        ([Decimal(i) / 2 for i in range(6)], np.arange(6) / 2),
    ],
    ids=["truth", "whole", "decimals"],
)
def test_a_target_of_another_kind_of_number(raw, y):
    table = clean(pd.DataFrame({"x": Z, "y": raw}))
    np.testing.assert_array_equal(table.y, y)


TEXT = ["a", "b", "c"] * 2

# The raw table, the target asked for, and the refusal.
NO_TARGETS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "missing": (
        {"price": Y, "rooms": Z},
        "prce",
        r"^There is no column 'prce'\. Did you mean 'price'\? "
        r"The columns are: price, rooms\.$",
    ),
    "missing, nothing near": (
        {"price": Y, "rooms": Z},
        "qqq",
        r"There is no column 'qqq'\. Did you mean '(price|rooms)'\?",
    ),
    "text": (
        {"size": Z, "price": Y, "prize": TEXT},
        "prize",
        r"^The target 'prize' must be numeric\. It holds 'a', for example\. "
        r"The nearest numeric column is 'price'\.$",
    ),
    "text by default": ({"size": Z, "prize": TEXT}, None, "'prize' must be numeric"),
    "text beside text": (
        {"town": TEXT, "prize": TEXT},
        "prize",
        r"'prize' must be numeric\. It holds 'a', for example\.$",
    ),
    "dates": ({"x": Z, "day": pd.to_datetime(DAYS)}, None, "It holds '2020-01-01"),
    "times": (
        {"x": Z, "y": pd.to_timedelta(Y, "s")},
        None,
        "must be numeric.*nearest numeric column is 'x'",
    ),
    "complex": (
        {"x": Z, "y": Y * 1j},
        None,
        "must be numeric.*nearest numeric column is 'x'",
    ),
    "constant": ({"x": Z, "y": [2.5] * 6}, None, r"^The target 'y' is constant \(2\.5"),
    "constant where known": (
        {"x": Z, "y": [2.5, np.nan] * 3},
        None,
        r"^The target 'y' is constant \(2\.5",
    ),
    "empty": ({"x": Z, "y": [np.nan] * 6}, None, "'y' has 0 rows with a value"),
    "empty text": (
        {"x": Z, "y": [None] * 6},
        None,
        r"^The target 'y' is empty\. The nearest numeric column is 'x'\.$",
    ),
    "one value": ({"x": Z, "y": [1] + [np.nan] * 5}, None, "'y' has 1 rows with a val"),
    "alone": ({"y": Y}, None, "^No column is left to predict 'y' from"),
    "nothing usable": (
        {"x": [1.0] * 6, "e": [None] * 6, "y": Y},
        "y",
        r"^No column is left to predict 'y' from: "
        r"dropped 'x': it is constant; dropped 'e': it is empty\.$",
    ),
}


@pytest.mark.parametrize(
    ("columns", "target", "message"), NO_TARGETS.values(), ids=NO_TARGETS.keys()
)
def test_what_cannot_be_predicted_is_refused(columns, target, message):
    with pytest.raises(ValueError, match=message):
        clean(pd.DataFrame(columns), target)


# A raw table of the real world


@pytest.mark.skipif(not HOUSING.is_file(), reason="the table is not here")
def test_a_real_raw_table():
    table = clean(read_table(HOUSING), "median_house_value")
    # Read again by other means.
    with HOUSING.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert table.X.shape == (len(rows), 12) == (20_640, 12)
    assert np.isfinite(table.X).all()
    assert table.notes == (
        "filled 207 missing values of 'total_bedrooms' with its median",
        "encoded 'ocean_proximity' as 4 indicators, against '<1H OCEAN'",
    )
    np.testing.assert_array_equal(
        table.y, [float(row["median_house_value"]) for row in rows]
    )
    for name, column in zip(table.columns, table.X.T, strict=True):
        if "=" in name:
            raw, value = name.split("=")
            expected = [float(row[raw] == value) for row in rows]
        else:
            known = [float(row[name]) for row in rows if row[name]]
            expected = [float(row[name] or np.median(known)) for row in rows]
        np.testing.assert_array_equal(column, expected)


@pytest.mark.skipif(not HOUSING.is_file(), reason="the table is not here")
def test_the_target_of_a_real_table_is_asked_for():
    message = "'ocean_proximity' must be numeric. It holds 'NEAR BAY'"
    with pytest.raises(ValueError, match=message):
        clean(read_table(HOUSING))
