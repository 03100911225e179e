"""From raw tables to numbers: what is done, how it is said, and what is refused."""

import csv
import datetime
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxclip.advice._number_text import read_numbers
from jaxclip.advice._prepare import prepare
from jaxclip.cli._read import read_table

# Tables that lie beside the repository, or do not.
SHARED = Path(__file__).parents[2] / "shared"
HOUSING = SHARED / "data" / "california_housing.csv"
CASES = SHARED / "cases" / "tables"

Y = np.array([3.0, 1.0, 4.0, 1.5, 5.0, 9.0])
Z = np.array([2.0, 7.0, 1.0, 8.0, 2.5, 8.0])
DAYS = [f"2020-01-0{day}" for day in range(1, 7)]

READ = "read 1 column of text as numbers: "
FILLED = "filled missing values with the median of 1 column: "
WORDS = "took 1 column of words as an indicator of each but the most frequent: "
DATES = "took 1 column of dates as days since the first, month and weekday: "
ODD = "took cells of another kind as missing in 1 column: "
OTHER = "dropped 1 column whose cells are no single values: x"
SINGLE = "dropped 1 column of a single value: x"
IDENTIFIER = "left out 1 column of identifiers: x"


# Numbers as text: the cells, the numbers, and the decimal mark that they need

NAN = np.nan
NUMBERS: dict[str, tuple[list[str], list[float], str | None]] = {
    "plain": (["1.5", "-2", "+3e2", ".5", "7."], [1.5, -2, 300, 0.5, 7], None),
    "currency": (["$16,884.92", "-$4.50", "$ 7"], [16884.92, -4.5, 7], "."),
    "euro behind": (["1.234,56 €", "7,50 €"], [1234.56, 7.5], ","),
    "code": (["USD 3", "USD 4,000"], [3, 4000], None),
    "decimal comma": (["0,0012", "-3,25", "4"], [0.0012, -3.25, 4], ","),
    "decimal comma, power": (["1,5e-3", "2,25E4"], [0.0015, 22500], ","),
    "points in thousands": (["1.234.567", "2"], [1234567, 2], ","),
    "commas in thousands": (["1,234", "12,345,678"], [1234, 12345678], "."),
    "one comma": (["0,123", "0,456"], [0.123, 0.456], ","),
    "three digits": (["1.234", "5.678"], [1.234, 5.678], None),
    "Indian": (["1,23,456", "2"], [123456, 2], "."),
    "Swiss": (["1'234.5", "12’345"], [1234.5, 12345], "."),
    "blanks": (["1 234,5", "12\u202f345\u202f678"], [1234.5, 12345678], ","),
    "units": (["12 kg", "13.5 KG", ".5kg", "4"], [12, 13.5, 0.5, 4], "."),
    "percent": (["45%", "4.5 %"], [45, 4.5], "."),
    "scales": (["19M", "8.7k", "200"], [19e6, 8700, 200], "."),
    "one scale": (["19M", "8.7M"], [19, 8.7], "."),
    "parentheses": (["(3.5)", "4", "(1,200)"], [-3.5, 4, -1200], "."),
    "minus of a typesetter": (["−3", "–4.5"], [-3, -4.5], "."),
    "missing": (["1", ".", "?", "n/a", "-", "", "NULL", "#N/A"], [1] + 7 * [NAN], None),
    "infinite": (["1", "inf", "-Infinity", "∞"], [1, NAN, NAN, NAN], None),
}


@pytest.mark.parametrize(
    ("cells", "values", "decimal"), NUMBERS.values(), ids=NUMBERS.keys()
)
def test_numbers_as_people_write_them(cells, values, decimal):
    numbers = read_numbers(pd.Series(cells))
    np.testing.assert_array_equal(numbers.values, values)
    assert not numbers.wrong.any()
    assert numbers.decimal == decimal


@pytest.mark.parametrize(
    "cell",
    [
        *("abc", "C100", "SKU7", "2020-01-02", "12:30", "10-20", "1/2", "1,2;3"),
        *("3 lb", "--5", "(-5)", "1.2.3", "12,34.5", "1,,2", "€5", "$", "kg", "e5"),
        "5 kg 3",
    ],
)
def test_what_is_no_number(cell):
    numbers = read_numbers(pd.Series(["$1.50", "$2", cell, "1.25 kg", "3kg"]))
    assert numbers.wrong.tolist() == [False, False, True, False, False]
    np.testing.assert_array_equal(numbers.values, [1.5, 2, np.nan, 1.25, 3])


@pytest.mark.parametrize("mark", [".", ","])
def test_many_numbers_are_read_to_the_last_digit(mark):
    rng = np.random.default_rng(5)
    values = rng.normal(size=300) * 10.0 ** rng.integers(-300, 300, 300)
    cells = [repr(value).replace(".", mark) for value in values.tolist()]
    cells = [cell if mark in cell else cell + mark for cell in cells]
    assert read_numbers(pd.Series(cells)).values.tolist() == values.tolist()
    groups = np.round(values[np.abs(values) < 1e15], 2)
    cells = [f"{v:,.2f}".translate({44: 46, 46: 44}) for v in groups.tolist()]
    read = read_numbers(pd.Series([*cells, "0,5"])).values
    assert read.tolist() == [*groups.tolist(), 0.5]


def test_a_table_has_one_decimal_mark():
    """What 1.234 is, is told from other columns; and from this one alone elsewhere."""
    frame = pd.DataFrame({"x": ["1.234", "5.678"] * 3, "z": Z, "y": Y})
    assert prepare(frame).X[0, 0] == 1.234
    frame["z"] = [f"{z:.1f}".replace(".", ",") for z in Z]
    table = prepare(frame)
    assert table.X[0].tolist() == [1234, 2]
    assert "x ('1.234'" not in str(table.notes)
    assert prepare(frame.assign(z=["0.5", "1.5"] * 3)).X[0, 0] == 1.234


# Columns

# A raw column, the columns that it becomes, and what is said of it.
COLUMNS: dict[str, tuple[Any, dict[str, Any], str | None]] = {
    "numbers": ([1.0, 2, 4, 8, 3, 0], {"x": [1, 2, 4, 8, 3, 0]}, None),
    "whole numbers": ([1, 2, 4, 8, 3, 0], {"x": [1, 2, 4, 8, 3, 0]}, None),
    "decimals": (
        [Decimal("0.5"), None, *map(Decimal, "2345")],
        {"x": [0.5, 3, 2, 3, 4, 5]},
        FILLED + "x (1)",
    ),
    "currency": (
        ["$1,250.50", "$2", "$3", "$4", "$0", "-$1"],
        {"x": [1250.5, 2, 3, 4, 0, -1]},
        READ + "x ('$1,250.50' as 1250.5)",
    ),
    "numbers and text": ([1, "2", 4.5, "8", 3, 0], {"x": [1, 2, 4.5, 8, 3, 0]}, None),
    "gaps": (
        [1.0, np.nan, 4, 8, np.nan, 0],
        {"x": [1, 2.5, 4, 8, 2.5, 0]},
        FILLED + "x (2)",
    ),
    "gaps between whole numbers": (
        pd.array([1, None, 4, 8, 3, 0], "Int64"),
        {"x": [1, 3, 4, 8, 3, 0]},
        FILLED + "x (1)",
    ),
    "marks of gaps": (
        ["1", ".", "4", "8", "n/a", "0"],
        {"x": [1, 2.5, 4, 8, 2.5, 0]},
        FILLED + "x (2)",
    ),
    "infinity": (
        [1.0, np.inf, 4, -np.inf, 2, 0],
        {"x": [1, 1.5, 4, 1.5, 2, 0]},
        FILLED + "x (2)",
    ),
    "truth": (
        [True, False, True, True, False, True],
        {"x=False": [0, 1, 0, 0, 1, 0]},
        WORDS + "x (2 values, against 'True')",
    ),
    "truth with gaps": (
        pd.array([True, None, True, True, False, None], "boolean"),
        {"x=False": [0, 0, 0, 0, 1, 0], "x=missing": [0, 1, 0, 0, 0, 1]},
        WORDS + "x (3 values, against 'True')",
    ),
    "yes and no": (
        ["yes", "No", "YES ", "yes", "no", "no"],
        {"x=no": [0, 1, 0, 0, 1, 1]},
        WORDS + "x (2 values, against 'yes')",
    ),
    "text": (
        ["u", "v", "v", "w", "v", "u"],
        {"x=u": [1, 0, 0, 0, 0, 1], "x=w": [0, 0, 0, 1, 0, 0]},
        WORDS + "x (3 values, against 'v')",
    ),
    "text with gaps": (
        ["u", None, "u", "u", "?", "u"],
        {"x=missing": [0, 1, 0, 0, 1, 0]},
        WORDS + "x (2 values, against 'u')",
    ),
    "categories": (
        pd.Categorical(["u", "v", "v"] * 2, categories=["w", "v", "u"]),
        {"x=u": [1, 0, 0, 1, 0, 0]},
        WORDS + "x (2 values, against 'v')",
    ),
    "categories of numbers": (
        pd.Categorical([3, 1, 2, 3, 1, 2]),
        {"x": [3, 1, 2, 3, 1, 2]},
        None,
    ),
    "other units": (
        ["1 kg", "2 lb", "1 kg", "2 lb", "1 kg", "1 kg"],
        {"x=2 lb": [0, 1, 0, 1, 0, 0]},
        WORDS + "x (2 values, against '1 kg')",
    ),
    "constant": ([2.0] * 6, {}, SINGLE),
    "nearly constant": (1e9 + 1e-7 * Z, {}, SINGLE),
    "constant text": (["u"] * 6, {}, SINGLE),
    "constant truth": ([True] * 6, {}, SINGLE),
    "empty": ([np.nan] * 6, {}, "dropped 1 column without a value: x"),
    "empty text": (
        [None, "", "NA", "-", "?", " "],
        {},
        "dropped 1 .* without a value: x",
    ),
    "no finite number": (
        [np.inf, -np.inf, np.nan] * 2,
        {},
        "dropped 1 column without a finite value: x",
    ),
    "names": (["Ann", "Bob", "Cid", "Dan", "Eve", "Fay"], {}, IDENTIFIER),
    "remarks": (
        ["fine", None, "so so", "bad", None, "new"],
        {},
        "dropped 1 column of text, of too many different values: x",
    ),
    "dates": (
        pd.to_datetime(DAYS),
        {"x days": range(6), "x weekday": [3, 4, 5, 6, 7, 1]},
        DATES + "x",
    ),
    "dates as text": (
        DAYS,
        {"x days": range(6), "x weekday": [3, 4, 5, 6, 7, 1]},
        DATES + r"x \(%Y-%m-%d\)",
    ),
    "dates of Python": (
        [datetime.date.fromisoformat(day) for day in DAYS],
        {"x days": range(6), "x weekday": [3, 4, 5, 6, 7, 1]},
        DATES + r"x \(%Y-%m-%d\)",
    ),
    "days first": (
        ["31.12.2019", "01.02.2020", "?", "01.02.2020", "03.02.2020", "01.02.2020"],
        {
            "x days": [0, 32, 32, 32, 34, 32],
            "x month": [12, 2, 2, 2, 2, 2],
            "x weekday": [2, 6, 6, 6, 1, 6],
        },
        None,
    ),
    "dates with zones": (
        ["2020-01-01T23:00:00-02:00", *(f"{day}T01:00:00+00:00" for day in DAYS[1:])],
        {
            "x days": [0, 0, 1, 2, 3, 4],
            "x weekday": [4, 4, 5, 6, 7, 1],
        },
        DATES + ".*",
    ),
    "hours": (
        pd.to_datetime([f"2020-01-01 0{hour}:30" for hour in range(6)]),
        {"x days": np.arange(6) / 24, "x hour": range(6)},
        DATES + "x",
    ),
    "durations": (
        pd.to_timedelta(Y**2, "s"),
        {"x": Y**2},
        "took 1 column of durations in seconds: x",
    ),
    "complex": (Y + 1j * Z, {}, OTHER),
    "lists": ([[1, 2], [3]] * 3, {}, OTHER),
    "dictionaries": ([{"a": 1}] * 6, {}, OTHER),
    "bytes": ([b"u", b"v"] * 3, {}, OTHER),
}


@pytest.mark.parametrize(
    ("raw", "expected", "note"), COLUMNS.values(), ids=COLUMNS.keys()
)
def test_a_raw_column_becomes_numbers(raw, expected, note):
    table = prepare(pd.DataFrame({"x": raw, "z": Z, "y": Y}), "y")
    assert table.columns == (*expected, "z")
    X = np.column_stack([*map(np.asarray, expected.values()), Z])
    np.testing.assert_allclose(table.X, X, rtol=1e-13)
    np.testing.assert_array_equal(table.y, Y)
    if note is not None:
        text = " / ".join(table.notes)
        assert text == note or pd.Series([text]).str.fullmatch(note).all(), text


def _long(column: Any, n: int = 60) -> Any:
    """A table of a column among others, and its target."""
    rng = np.random.default_rng(8)
    z = rng.normal(size=n)
    return pd.DataFrame({"x": column, "z": z, "y": z + rng.normal(size=n)})


@pytest.mark.parametrize(
    ("name", "column", "kept"),
    [
        ("x", np.arange(60), False),
        ("x", np.arange(60.0) + 17, False),
        ("x", 1000 + np.cumsum(1 + np.arange(60) % 3), False),
        ("Unnamed: 0", np.arange(60), False),
        ("customer_id", np.random.default_rng(1).permutation(60), False),
        ("customerId", [f"{i:05}" for i in reversed(range(60))], False),
        ("x", [f"C{i}" for i in range(60)], False),
        ("x", [f"{i} %" for i in range(60)], True),
        ("year", np.arange(60) + 1950, True),
        ("x", np.cumsum(1 + np.arange(60) ** 2), True),
        ("x", np.random.default_rng(1).permutation(60), True),
        ("x", np.arange(60) + 0.5, True),
        ("shop_id", np.arange(60) % 7, True),
        ("humid", np.random.default_rng(1).permutation(60), True),
    ],
)
def test_identifiers_are_left_out(name, column, kept):
    table = prepare(_long(column).rename(columns={"x": name}), "y")
    assert (name in table.columns) == kept
    assert (f"left out 1 column of identifiers: {name}" in table.notes) != kept


def test_a_few_odd_cells_leave_a_column_one_of_numbers():
    numbers = np.random.default_rng(2).normal(size=60).round(4)
    cells = [str(number) for number in numbers]
    cells[7] = "see page 3"
    table = prepare(_long(cells))
    assert table.notes[1] == ODD + "x ('see page 3' in row 7)"
    expected = numbers.copy()
    expected[7] = np.median(np.delete(numbers, 7))
    np.testing.assert_array_equal(table.X[:, 0], expected)
    # One word again and again stands for a missing value.
    cells = ["varies" if j % 3 == 0 else str(numbers[j]) for j in range(60)]
    table = prepare(_long(cells))
    assert table.notes[1] == ODD + "x ('varies' in row 0 and 19 more)"
    dates = [str(day)[:10] for day in pd.date_range("2020", periods=60)]
    table = prepare(_long(["soon", *dates[1:]]))
    assert table.notes[1] == ODD + "x ('soon' in row 0)"
    assert table.columns[0] == "x days"


def test_dates_of_either_order_are_told_apart():
    days = pd.date_range("2020-01-01", periods=60, freq="9D")
    for form in ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%b-%Y"):
        table = prepare(_long(days.strftime(form)))
        np.testing.assert_allclose(table.X[:, 0], 9 * np.arange(60), atol=1e-9)
        assert f"x ({form})" in table.notes[1]


def test_rare_words_share_an_indicator():
    words = [f"w{i:02}" for i in range(40)]
    # The first is the most frequent; each other occurs less often than the one before.
    text = [word for i, word in enumerate(words) for _ in range(60 - i)]
    table = prepare(_long(text, len(text)), "y")
    names = [name for name in table.columns if name != "z"]
    assert names == [*(f"x={word}" for word in words[1:29]), "x=(rare)"]
    assert table.X[:, 28].tolist() == [float(word >= "w29") for word in text]
    # Nearly as many as rows: nobody learns from those.
    table = prepare(_long([f"n{i % 40}" for i in range(60)]), "y")
    assert table.columns == ("z",)


def test_hundreds_of_columns_make_one_sentence():
    rng = np.random.default_rng(3)
    raw = {f"c{j}": np.ones(50) for j in range(200)}
    raw |= {f"g{j}": np.where(rng.random(50) < 0.1, np.nan, 1) for j in range(200)}
    raw |= {f"w{j}": rng.choice(["u", "v"], 50) for j in range(20)}
    raw |= {f"$m{j}": [f"${v:.2f}" for v in rng.normal(size=50)] for j in range(20)}
    table = prepare(pd.DataFrame(raw).assign(y=rng.normal(size=50)), "y")
    assert len(table.notes) <= 6
    assert (
        "dropped 400 columns of a single value: c0, c1, c2 and 397 more" in table.notes
    )
    assert all(len(note) < 250 for note in table.notes)


# Rows and the target


@pytest.mark.parametrize("index", [range(6), [0] * 6], ids=["counted", "repeated"])
def test_rows_without_a_target_are_left_out(index):
    y = np.array([3.0, np.nan, 4.0, np.inf, 5.0, 9.0])
    text = ["u", "v", "w", "u", "w", "w"]
    frame = pd.DataFrame({"y": y, "x": Z, "t": text}, index=index)
    table = prepare(frame, "y")
    kept = [0, 2, 4, 5]
    np.testing.assert_array_equal(table.y, y[kept])
    np.testing.assert_array_equal(table.X, [[2, 1], [1, 0], [2.5, 0], [8, 0]])
    # "v" was only in a row that is gone.
    assert table.columns == ("x", "t=u")
    assert table.notes == (
        "left out 2 rows without a target",
        WORDS + "t (2 values, against 'w')",
    )


def test_a_column_constant_on_the_rows_left_is_dropped():
    frame = pd.DataFrame({"x": [1.0, 2, 1, 1, 1, 1], "z": Z, "y": Y})
    assert prepare(frame).columns == ("x", "z")
    frame.loc[1, "y"] = np.nan
    assert prepare(frame).columns == ("z",)


def test_the_target_is_the_last_column_by_default():
    frame = pd.DataFrame({"x": Z, "y": Y})
    table = prepare(frame)
    assert table.target == "y"
    assert table.notes == ("took the last column, 'y', as the target",)
    other = prepare(frame, "x")
    assert (other.target, other.columns, other.notes) == ("x", ("y",), ())
    np.testing.assert_array_equal(other.y, Z)


# What a target holds, the numbers that it becomes, and the words that were taken.
TARGETS: dict[str, tuple[Any, Any, tuple[str, str] | None]] = {
    "truth": ([True, False] * 3, [1, 0] * 3, ("False", "True")),
    "whole": (pd.array([1, 2, 1, 2, 1, 7], "Int64"), [1, 2, 1, 2, 1, 7], None),
    "zero and one": ([0, 1] * 3, [0, 1] * 3, None),
    "decimals": ([Decimal(i * i) / 2 for i in range(6)], np.arange(6) ** 2 / 2, None),
    "currency": ([f"${y:,.2f}" for y in 1000 * Y], 1000 * Y, None),
    "decimal comma": ([str(y).replace(".", ",") for y in Y], Y, None),
    "words": (
        ["no", "Yes", "NO", "yes", "yes", "no"],
        [0, 1, 0, 1, 1, 0],
        ("no", "yes"),
    ),
    "incomes": (["<=50K", ">50K"] * 3, [0, 1] * 3, ("<=50K", ">50K")),
    "signs": (["+", "-"] * 3, [0, 1] * 3, ("+", "-")),
    "none and some": (["None", "some"] * 3, [0, 1] * 3, ("None", "some")),
    "categories": (pd.Categorical(["u", "v"] * 3), [0, 1] * 3, ("u", "v")),
}


@pytest.mark.parametrize(("raw", "y", "classes"), TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("beside", [False, True], ids=["a column", "a vector"])
def test_a_target_of_another_kind(raw, y, classes, beside):
    frame = pd.DataFrame({"x": Z})
    table = prepare(frame, pd.Series(raw)) if beside else prepare(frame.assign(y=raw))
    np.testing.assert_array_equal(table.y, y)
    assert (table.classes, table.target) == (classes, "y")
    said = [note for note in table.notes if " as 0 and " in note]
    assert len(said) == (classes is not None)


def test_missing_classes_are_rows_without_a_target():
    frame = pd.DataFrame({"x": Z, "y": ["no", "yes", "?", "no", None, "yes"]})
    table = prepare(frame, "y")
    assert table.y.tolist() == [0, 1, 0, 1]
    assert table.notes == (
        "took 'no' as 0 and 'yes' as 1 of 'y'",
        "left out 2 rows without a target",
    )


TEXT = ["a", "b", "c"] * 2

# The raw table, the target asked for, and the refusal.
NO_TARGETS: dict[str, tuple[dict[str, Any], Any, str]] = {
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
    "many classes": (
        {"size": Z, "prize": TEXT},
        "prize",
        r"^The target 'prize' must be numeric or one of two words\. It has 3 classes: "
        r"'a', 'b', 'c'\. Make a column of .* such as `prize == 'a'`\.$",
    ),
    "text": (
        {"size": np.arange(30.0) ** 2, "y": [f"n{i}" for i in range(30)]},
        "y",
        r"It holds 'n0', for example, in row 0, and 30 different words in all\.$",
    ),
    "a cell": (
        {"x": Z, "y": ["1", "2", "3", "none yet", "5", "6"]},
        None,
        r"^The target 'y' must be a number in each row\. It is 'none yet' in row 3\. "
        "Mend these cells, or empty them to leave their rows out",
    ),
    "cells": (
        {"x": np.arange(9.0) ** 2, "y": ["a", "b", "3", "4", "5", "6", "c", "d", "9"]},
        None,
        r"It is 'a' in row 0, 'b' in row 1, 'c' in row 6, 'd' in row 7\.",
    ),
    "dates": ({"x": Z, "day": pd.to_datetime(DAYS)}, None, "It holds '2020-01-01"),
    "dates as text": ({"x": Z, "day": DAYS}, None, "6 classes: '2020-01-01', "),
    "times": ({"x": Z, "y": pd.to_timedelta(Y, "s")}, None, "must be numeric"),
    "complex": ({"x": Z, "y": Y * 1j}, None, "must be numeric"),
    "lists": ({"x": Z, "y": [[1], [2]] * 3}, None, r"numeric\. It holds '\[1\]', for"),
    "constant": ({"x": Z, "y": [2.5] * 6}, None, r"^The target 'y' is constant \(2\.5"),
    "constant word": (
        {"x": Z, "y": ["u"] * 6},
        None,
        "It holds 'u'.* 1 different word",
    ),
    "constant where known": (
        {"x": Z, "y": [2.5, np.nan] * 3},
        None,
        r"^The target 'y' is constant \(2\.5",
    ),
    "nearly constant": ({"x": Z, "y": 1e9 + 1e-7 * Y}, None, "'y' is constant"),
    "empty": ({"x": Z, "y": [np.nan] * 6}, None, "'y' has 0 rows with a value"),
    "empty text": ({"x": Z, "y": [None] * 6}, None, r"^The target 'y' is empty\.$"),
    "one value": ({"x": Z, "y": [1] + [np.nan] * 5}, None, "'y' has 1 rows with a val"),
    "alone": ({"y": Y}, None, "^No column is left to predict 'y' from"),
    "no columns": ({}, None, "The table has no columns"),
    "nothing usable": (
        {"x": [1.0] * 6, "e": [None] * 6, "y": Y},
        "y",
        r"^No column is left to predict 'y' from: dropped 1 column of a single value: "
        r"x; dropped 1 column without a value: e\.$",
    ),
    "another length": ({"x": Z}, Y[1:], r"value for each of the 6 rows.* \(5,\)"),
    "a matrix": ({"x": Z}, np.c_[Y, Z], r"value for each of the 6 rows.* \(6, 2\)"),
}


@pytest.mark.parametrize(
    ("columns", "target", "message"), NO_TARGETS.values(), ids=NO_TARGETS.keys()
)
def test_what_cannot_be_predicted_is_refused(columns, target, message):
    with pytest.raises(ValueError, match=message):
        prepare(pd.DataFrame(columns), target)


def test_a_cell_is_named_by_its_row_of_the_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("# by hand\nx,y\n1,2\n2,4\n4,three\n5,8\n7,1\n")
    with pytest.raises(ValueError, match="'three' in row 5"):
        prepare(read_table(path))
    assert path.read_text().split("\n")[5 - 1] == "4,three"


# Columns that give the target away

_RNG = np.random.default_rng(6)
WIDE = _RNG.normal(size=(40, 5))
NOISY = WIDE @ [1.0, 2, -1, 0, 3] + _RNG.normal(size=40)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize(
    ("y", "names"),
    [
        (WIDE[:, 3], r"the column 'x3' alone"),
        (7 - 3e5 * WIDE[:, 3], r"the column 'x3' alone"),
        (np.round(1 + 0.4 * WIDE[:, 3], 5), r"the column 'x3' alone"),
        (WIDE[:, 1] + WIDE[:, 2], r"a weighted sum of the columns 'x1', 'x2'\."),
        (WIDE @ [1.0, 2, 3, 0, 5], r"of the columns 'x0', 'x1', 'x2', 'x4'\."),
    ],
)
def test_columns_that_explain_the_target_are_named(y, names, scale):
    message = "^`X` explains `y` without an error: .*" + names
    with pytest.raises(ValueError, match=message):
        prepare(scale * WIDE, y)
    with pytest.raises(ValueError, match=message):
        prepare(WIDE, scale * y)


def test_more_features_than_rows_and_a_copy():
    X = _RNG.normal(size=(20, 30))
    with pytest.raises(ValueError, match="the column 'x4' alone determines"):
        prepare(X, X[:, 4])
    # Least squares has no error here whatever the columns are: no column is accused.
    assert prepare(X, _RNG.normal(size=20)).notes == ()


def test_words_that_determine_the_target_are_named():
    y = np.where(NOISY > 0, "up", "down")
    frame = pd.DataFrame({"a": WIDE[:, 0], "b": np.where(NOISY > 0, "p", "q"), "y": y})
    with pytest.raises(ValueError, match="the column 'b' alone"):
        prepare(frame)
    bands = pd.DataFrame({"a": WIDE[:, 0], "band": np.array(list("abcd") * 10)})
    y = bands["band"].map({"a": 1.0, "b": 5, "c": 2, "d": 11})
    with pytest.raises(ValueError, match="the column 'band' alone"):
        prepare(bands, y)


def test_columns_that_nearly_give_the_target_away_are_named():
    near = NOISY + 0.1 * _RNG.normal(size=40)
    notes = prepare(np.c_[WIDE, near], NOISY).notes
    share = np.corrcoef(near, NOISY)[0, 1] ** 2
    assert 0.99 < share < 0.9999
    assert notes[0].startswith(
        "of the variance of 'y', a single column explains nearly"
    )
    assert f"'x5' ({100 * share:.3f}%)" in notes[0]
    (note,) = prepare(np.c_[WIDE, np.exp(NOISY)], NOISY).notes
    assert "has the order of 'y', and so gives it away: 'x5'" in note
    (note,) = prepare(np.c_[WIDE, NOISY], 1.0 * (NOISY > 0.5)).notes
    assert "has the order of 'y', and so gives it away: 'x5'" in note
    assert prepare(WIDE, NOISY).notes == ()
    assert prepare(np.c_[WIDE, NOISY + _RNG.normal(size=40)], NOISY).notes == ()


def test_many_words_explain_few_rows_by_chance():
    words = [f"w{j:02}" for j in (*range(29), 0, 1, 2)]
    y = np.linspace(-1, 1, 32)
    y[-3:] = y[:3] + 0.02 * NOISY[:3]
    frame = pd.DataFrame({"a": WIDE[:32, 0], "word": words, "y": y})
    table = prepare(frame)
    groups = frame.groupby("word")["y"].transform("mean")
    share = np.corrcoef(groups, frame["y"])[0, 1] ** 2
    assert 0.99 < share < 1 - 1e-6 and len(table.columns) == 29
    assert not any("explains nearly all" in note for note in table.notes)


def test_small_errors_are_errors():
    """A table may be clean, and its noise be 30 millionths of the target's."""
    noise = np.random.default_rng(11).normal(size=40)
    assert prepare(WIDE, WIDE.sum(axis=1) + 7e-5 * noise).notes == ()
    with pytest.raises(ValueError, match="without an error"):
        prepare(WIDE, WIDE.sum(axis=1) + 7e-6 * noise)


# Frames of other kinds, and arrays


def test_arrays_pass_as_they_are():
    table = prepare(WIDE, NOISY)
    assert np.shares_memory(table.X, WIDE) and np.shares_memory(table.y, NOISY)
    assert table.columns == ("x0", "x1", "x2", "x3", "x4")
    assert (table.target, table.notes, table.classes) == ("y", (), None)
    again = prepare(jnp.asarray(WIDE), NOISY.tolist())
    np.testing.assert_array_equal(again.X, WIDE)
    np.testing.assert_array_equal(again.y, NOISY)
    assert prepare(WIDE.astype(np.float32), NOISY).X.dtype == float


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (WIDE[:, 0], NOISY, r"Got shapes \(40,\) and \(40,\)"),
        (WIDE, NOISY[1:], r"Got shapes \(40, 5\) and \(39,\)"),
        (
            np.where(WIDE > 1, np.nan, WIDE),
            NOISY,
            r"`X` must be finite; \d+ of its",
        ),
        (WIDE, np.where(NOISY > 1, np.inf, NOISY), r"^`y` must be finite; \d+ of its"),
        (pd.Series(NOISY), None, r"must be a table.*Got Series of shape \(40,\)"),
        ({"a": NOISY}, None, "must be a table.*Got dict"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_arrays_that_are_no_table(X, y, message):
    with pytest.raises(ValueError, match=message):
        prepare(X, y)


def test_a_matrix_has_a_target_by_name():
    table = prepare(np.c_[WIDE, NOISY])
    assert (table.target, table.columns) == ("x5", ("x0", "x1", "x2", "x3", "x4"))
    assert prepare(np.c_[WIDE, NOISY], "x0").columns[0] == "x1"
    words = np.c_[WIDE.astype(str)[:, :2], np.where(NOISY > 0, "up", "down")]
    table = prepare(words.astype(object))
    assert table.classes == ("down", "up")
    np.testing.assert_array_equal(table.X, WIDE[:, :2])


def _raw() -> pd.DataFrame:
    rng = np.random.default_rng(9)
    z = rng.normal(size=40)
    return pd.DataFrame(
        {
            "town": rng.choice(["Ys", "Thule", "Łódź"], 40),
            "new": rng.random(40) < 0.5,
            "day": pd.date_range("2020-01-01", periods=40, freq="13D"),
            "size": np.where(rng.random(40) < 0.1, np.nan, z),
            "cost": [f"${v:,.2f}" for v in 1e4 * rng.random(40)],
            "price": z + rng.normal(size=40),
        }
    )


def test_frames_of_other_kinds_and_files_are_prepared_alike(tmp_path):
    frame = _raw()
    expected = prepare(frame, "price")
    assert expected.columns[-2:] == ("size", "cost")
    arrow = pa.Table.from_pandas(frame)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for other in (
        arrow,
        *(read_table(tmp_path / f"a.{e}") for e in ("csv", "parquet")),
    ):
        table = prepare(other, "price")
        assert table.columns == expected.columns
        np.testing.assert_allclose(table.X, expected.X, rtol=1e-12)
        np.testing.assert_array_equal(table.y, expected.y)
    vector = prepare(frame.drop(columns="price"), frame["price"])
    assert vector.target == "price"
    np.testing.assert_array_equal(vector.X, expected.X)


def test_a_polars_frame_is_prepared_alike():
    polars = pytest.importorskip("polars")
    frame = _raw()
    table = prepare(polars.from_pandas(frame), "price")
    assert table.columns == prepare(frame, "price").columns
    np.testing.assert_array_equal(table.X, prepare(frame, "price").X)


def test_the_frame_is_left_as_it_was():
    frame = _raw()
    before = frame.copy()
    prepare(frame, "price")
    pd.testing.assert_frame_equal(frame, before)


def test_names_of_columns():
    frame = pd.DataFrame(np.c_[WIDE, NOISY])
    assert prepare(frame).columns == ("0", "1", "2", "3", "4")
    assert prepare(frame, 0).target == "0"
    frame.columns = ["a", "a", "b", "a_1", "c", "y"]
    table = prepare(frame)
    assert table.columns == ("a", "a_1", "b", "a_1_1", "c")
    assert table.notes[0].startswith(
        "renamed 2 columns of a name that another has: a_1"
    )


@pytest.mark.parametrize("name", ["pandas", "skrub"])
def test_a_missing_package_is_named(monkeypatch, name):
    frame = _raw()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'jaxclip\[cli\]'.*" + name):
        prepare(frame, "price")
    # Arrays need neither.
    assert prepare(WIDE, NOISY).columns[0] == "x0"


# Tables of the real world, and like it


@pytest.mark.skipif(not HOUSING.is_file(), reason="the table is not here")
def test_a_real_raw_table():
    table = prepare(read_table(HOUSING), "median_house_value")
    # Read again by other means.
    with HOUSING.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert table.X.shape == (len(rows), 12) == (20_640, 12)
    assert np.isfinite(table.X).all()
    assert table.notes == (
        FILLED + "total_bedrooms (207)",
        WORDS + "ocean_proximity (5 values, against '<1H OCEAN')",
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
    message = "'ocean_proximity' must be numeric or one of two words. It has 5 classes"
    with pytest.raises(ValueError, match=message):
        prepare(read_table(HOUSING))


FEATURES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


@pytest.mark.skipif(not CASES.is_dir(), reason="the tables are not here")
@pytest.mark.parametrize(
    ("name", "columns", "note"),
    [
        ("semicolon_decimal_comma.csv", FEATURES, "read 6 columns of text as numbers"),
        ("tabs.tsv", FEATURES, "took the last column, 'target', as"),
        ("currency_thousands.csv", FEATURES, "read the target 'price' as numbers: '$"),
        ("bom_crlf.csv", FEATURES, "took the last column, 'target', as"),
        ("missing_marks.csv", FEATURES, "filled missing values with the median of 6"),
        ("headerless.csv", tuple("123456"), "found no header: the columns are named"),
        ("two_class_text_target.csv", FEATURES, "took '<=50K' as 0 and '>50K' as 1"),
        ("constant_columns.csv", FEATURES, "dropped 60 columns of a single value"),
    ],
)
def test_tables_as_people_have_them(name, columns, note):
    table = prepare(read_table(CASES / name))
    assert table.X.shape == (300, 6)
    assert table.columns == columns
    assert any(sentence.startswith(note) for sentence in table.notes)


@pytest.mark.skipif(not CASES.is_dir(), reason="the tables are not here")
def test_dates_identifiers_and_categories():
    table = prepare(read_table(CASES / "dates_ids_categories.csv"))
    assert table.X.shape == (300, 12)
    assert "left out 1 column of identifiers: customer_id" in table.notes
    assert table.columns[:3] == ("day days", "day month", "day weekday")
    np.testing.assert_allclose(table.X[:, 0], np.arange(300), atol=1e-9)
    for word in ("dates", "words"):
        assert any(f"took 1 column of {word} as" in note for note in table.notes)
