"""Numbers as people write them: `$16,884.92`, `1.234,56`, `12 kg`, `45%`, `(3.5)`."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# pandas is an extra and not imported here; its own annotations are too loose to help.
Series: TypeAlias = Any
# What stands for a missing value, with the case folded.
_MARKS = frozenset(
    (
        *("", ".", "..", "...", "-", "--", "---", "–", "—", "?", "??"),
        *("na", "n/a", "n.a.", "n.a", "<na>", "nan", "-nan", "nil", "null", "none"),
        *("(null)", "[null]", "missing", "not available", "no data"),
        # What spreadsheets write where a formula fails.
        *("#n/a", "#n/a!", "#n/a n/a", "#nv", "#null!", "#div/0!", "#value!", "#ref!"),
        *("#name?", "#num!"),
    )
)
# Numbers, but none that SGD can run on.
_INFINITE = frozenset(
    sign + word for sign in ("", "+", "-") for word in ("inf", "infinity", "∞")
)
# Space, no-break space, thin no-break space, thin space, apostrophes, underscore.
_BLANKS = "  \u202f\u2009'’_"
# Not any three letters: AB-7 and SKU7 are names.
_CODES = (
    "USD|EUR|GBP|CHF|JPY|CNY|INR|BRL|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|TRY|ZAR|KRW|"
    "MXN|SGD|HKD|RUB"
)
_NUMBER = re.compile(
    rf"""
    (?P<open>\()? \s* (?P<sign>[-+−–])? \s*
    (?P<prefix>[$€£¥₹₩₽฿₪₺₫]|(?:US|R|A|C|NZ|HK)\$|{_CODES}|Rs\.?|kr\.?)? \s*
    (?P<later>[-+−–])? \s*
    (?P<body>\d[\d.,{_BLANKS}]*?|[.,]\d+) (?P<power>[eE][-+]?\d+)? \s*
    (?P<unit>[^\d\s.,()+-][^\d()]{{0,15}})?
    (?(open)\)|)
    """,
    re.VERBOSE,
)


def _body(decimal: str, grouping: str) -> re.Pattern[str]:
    """Digits in groups of three, or of two above a thousand, or not in groups."""
    grouped = rf"[1-9]\d{{0,2}}(?P<mark>[{grouping}])(?:\d{{2,3}}(?P=mark))*\d{{3}}"
    return re.compile(rf"(?:\d+|{grouped})?(?:{re.escape(decimal)}\d*)?")


_BODIES = {".": _body(".", "," + _BLANKS), ",": _body(",", "." + _BLANKS)}
# Numbers as programs write them, and whole ones that might also be such.
_PLAIN = r"[+-]?(?:\d+{mark}?\d*|{mark}\d+)(?:[eE][+-]?\d+)?"
_THOUSANDS = r"[+-]?(?:\d+|[1-9]\d{0,2}(?:,\d{3})+)"
# What a letter after a number multiplies it by, where numbers differ in it.
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "mn": 1e6, "b": 1e9, "bn": 1e9}


@dataclass(frozen=True)
class Numbers:
    """A column of text, read as numbers.

    - `values`: shape `(n,)`, NaN where a cell is no finite number.
    - `wrong`: shape `(n,)`, whether a cell is neither a number nor missing.
    - `decimal`: the decimal mark that the column cannot do without, if any.
    - `example`: how a cell was read, where it is not written as a program would.
    """

    values: np.ndarray
    wrong: np.ndarray
    decimal: str | None
    example: str | None


def is_missing(text: Series) -> np.ndarray:
    """Which cells of a column of text stand for a missing value."""
    marked = text.str.casefold().isin(_MARKS)
    return np.logical_or(text.isna().to_numpy(bool), marked.to_numpy(bool))


def read_numbers(text: Series, decimal: str = ".") -> Numbers:
    """Reads a column of text as numbers.

    Cells may have a currency before them or a unit behind them, but the same one, and
    digits in groups; parentheses stand for a minus sign. What marks the decimals is
    told from all cells.

    **Arguments:**

    - `text`: a column of stripped strings.
    - `decimal`: the decimal mark to assume where both a comma and a point may be it, as
        in a column of 1.234 and 5.678.
    """
    import pandas as pd

    codes, distinct = pd.factorize(text)
    cells: Any = pd.Series(distinct, dtype=text.dtype)
    none = _MARKS | _INFINITE
    known = np.array([cell.casefold() not in none for cell in distinct], bool)
    values = np.full(len(cells), np.nan)
    values[known], needed, is_plain = _read(cells[known], decimal)
    example = None if is_plain else _example(cells, values)
    wrong = known & np.isnan(values)
    # What is missing to pandas has the code -1, the last of these.
    values, wrong = np.append(values, np.nan), np.append(wrong, False)
    return Numbers(values[codes], wrong[codes], needed, example)


def _example(cells: Series, values: np.ndarray) -> str | None:
    """How the first of the cells was read that a program would not write."""
    for cell, value in zip(cells, values, strict=True):
        if np.isfinite(value):
            try:
                float(cell)
            except ValueError:
                return f"{cell!r} as {value:.12g}"
    return None


def _read(cells: Series, decimal: str) -> tuple[np.ndarray, str | None, bool]:
    """The numbers, NaN where a cell is none; the decimal mark that they need; and
    whether they are as programs write them."""
    # What most columns are, at the speed of pandas: of a million cells, a second.
    if cells.str.fullmatch(_PLAIN.format(mark=r"\.")).all() and (
        decimal == "." or not cells.str.contains(".", regex=False).any()
    ):
        return cells.astype(float).to_numpy(float), None, True
    if cells.str.fullmatch(_PLAIN.format(mark=",")).all() and (
        decimal == "," or not cells.str.fullmatch(_THOUSANDS).all()
    ):
        points = cells.str.replace(",", ".", regex=False)
        return points.astype(float).to_numpy(float), ",", False
    return *_parse(list(cells), decimal), False


def _parse(cells: list[str], decimal: str) -> tuple[np.ndarray, str | None]:
    """The numbers, NaN where a cell is none; and the decimal mark if that was plain."""
    found = [_NUMBER.fullmatch(cell) for cell in cells]
    bodies = [match["body"].strip() if match else "" for match in found]
    fits = {
        mark: np.array([bool(body and form.fullmatch(body)) for body in bodies])
        for mark, form in _BODIES.items()
    }
    other = "," if decimal == "." else "."
    counts = {mark: int(fit.sum()) for mark, fit in fits.items()}
    mark = other if counts[other] > counts[decimal] else decimal
    needed = mark if counts[mark] > counts["," if mark == "." else "."] else None
    units = [
        (match["unit"] or "").strip().casefold() if match else "" for match in found
    ]
    prefixes = [match["prefix"] or "" if match else "" for match in found]
    scaled = len(set(units)) > 1 and set(units) <= set(_SCALES)
    unit, prefix = _most(units), _most(prefixes)
    values = np.full(len(cells), np.nan)
    for j in np.flatnonzero(fits[mark]):
        match = found[j]
        assert match is not None
        alike = scaled or units[j] in ("", unit)
        signs = [sign for sign in match.group("sign", "later", "open") if sign]
        if alike and prefixes[j] in ("", prefix) and len(signs) <= 1:
            kept = [c for c in bodies[j] if c.isdecimal() or c == mark]
            digits = "".join(kept).replace(mark, ".")
            size = float(digits + (match["power"] or ""))
            size *= _SCALES[units[j]] if scaled else 1.0
            values[j] = size if signs in ([], ["+"]) else -size
    return values, needed


def _most(words: list[str]) -> str:
    """The word that occurs most, apart from none."""
    counts = Counter(word for word in words if word)
    return counts.most_common(1)[0][0] if counts else ""
