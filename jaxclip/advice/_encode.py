"""Columns that hold anything, and the columns of numbers that they become."""

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ._number_text import Numbers, is_missing, read_numbers
from ._table import Notes

# pandas is an extra and not imported here; its own annotations are too loose to help.
Series: TypeAlias = Any


Features: TypeAlias = dict[str, np.ndarray]


# A column of words becomes as many indicators at most; rare words share the last one.
_MOST_WORDS = 30


# The share of numbers from which a column is one of numbers with a few odd cells.
_MOSTLY = 0.95


# From so many rows on, whole numbers that only rise may be said to count the rows.
_COUNTED = 20


_ID = re.compile(
    r"(.*[\W_])?(id|ids|idx|index|key|uuid|guid|row|rownum|nr|no|serial)|unnamed.*|",
    re.IGNORECASE,
)


_CAMEL_ID = re.compile(r".*[a-z](Id|ID|Idx|Index|Key|No|Nr)")


_TIME = re.compile(
    r".*(year|month|week|day|date|hour|minute|second|time|age|period|quarter|step).*",
    re.IGNORECASE,
)


_TRUTH = frozenset(("yes", "no", "y", "n", "true", "false", "t", "f", "on", "off"))


# What skrub's search, which looks at a few rows, may miss.
_DATES = (
    *("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%Y/%m/%d", "%d-%b-%Y"),
    *("%d %b %Y", "%d %B %Y", "%B %d, %Y", "%d/%m/%y", "%m/%d/%y", "%d-%b-%y"),
)


EMPTY = "dropped {columns} without a value"


CONSTANT = "dropped {columns} of a single value"


_IDENTIFIER = "left out {columns} of identifiers"


_FREE = "dropped {columns} of text, of too many different values"


_OTHER = "dropped {columns} whose cells are no single values"


_READ = "read {columns} of text as numbers"


_DURATION = "took {columns} of durations in seconds"


_DATE = "took {columns} of dates as days since the first, month and weekday"


_WORDS = "took {columns} of words as an indicator of each but the most frequent"


_ODD = "took cells of another kind as missing in {columns}"


@dataclass(frozen=True)
class Encoder:
    """Turns raw columns into numbers, NaN where a value is missing, and notes what it
    did.

    - `notes`: where it is noted.
    - `decimal`: the decimal mark of numbers that may be read with either.
    """

    notes: Notes
    decimal: str

    def encode(self, column: Series, name: str) -> Features:
        """The columns of numbers that a raw column becomes; none if it is dropped."""
        kind = column.dtype.kind
        if column.isna().all():
            return self._dropped(EMPTY, name)
        if kind == "c":
            return self._dropped(_OTHER, name)
        if kind == "M":
            return self._dates(column, name, "")
        if kind == "m":
            self.notes.of_column(_DURATION, name)
            return {name: column.dt.total_seconds().to_numpy(float)}
        if kind in "iuf":
            return self._numbers(column.to_numpy(float, na_value=np.nan), name)
        text = as_text(column)
        return self._dropped(_OTHER, name) if text is None else self._text(text, name)

    def _dropped(self, why: str, name: str) -> Features:
        self.notes.of_column(why, name)
        return {}

    def _numbers(self, values: np.ndarray, name: str) -> Features:
        if counts_rows(values, name):
            return self._dropped(_IDENTIFIER, name)
        return {name: values}

    def _text(self, text: Series, name: str) -> Features:
        missing = is_missing(text)
        known = int((~missing).sum())
        if known == 0:
            return self._dropped(EMPTY, name)
        numbers = read_numbers(text, self.decimal)
        if numbers.wrong.any() and _is_mostly(text, numbers, known):
            self._odd(text, numbers.wrong, name)
        elif numbers.wrong.any():
            numbers = None
        if numbers is not None:
            if numbers.example:
                self.notes.of_column(_READ, f"{name} ({numbers.example})")
                # Nobody counts rows in dollars.
                return {name: numbers.values}
            return self._numbers(numbers.values, name)
        text = text.mask(missing)
        dates, form = read_dates(text)
        if dates is None:
            return self._words(text, name)
        wrong = (dates.isna() & text.notna()).to_numpy(bool)
        if wrong.any():
            self._odd(text, wrong, name)
        return self._dates(dates, name, f" ({form})")

    def _odd(self, text: Series, wrong: np.ndarray, name: str) -> None:
        """Notes the first of the cells of another kind, and its row."""
        first, *others = np.flatnonzero(wrong)
        cell = f"{text.iloc[first]!r} in row {text.index[first]}"
        more = f" and {len(others):,} more" if others else ""
        self.notes.of_column(_ODD, f"{name} ({cell}{more})")

    def _dates(self, dates: Series, name: str, form: str) -> Features:
        from skrub import DatetimeEncoder

        self.notes.of_column(_DATE, name + form)
        if dates.dt.tz is not None:
            dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
        # The encoder's own seconds are of single precision: two minutes, by now.
        days = (dates - dates.min()).dt.total_seconds().to_numpy(float) / 86_400
        coder: Any = DatetimeEncoder(
            resolution="hour", add_weekday=True, add_total_seconds=False
        )
        parts = coder.fit_transform(dates.rename("date"))
        features = {f"{name} days": days}
        for part in ("month", "weekday", "hour"):
            # Where no date has a time, there is no hour.
            if f"date_{part}" in parts:
                features[f"{name} {part}"] = parts[f"date_{part}"].to_numpy(float)
        return features

    def _words(self, text: Series, name: str) -> Features:
        """An indicator of each word but the most frequent, "missing" being one."""
        from sklearn.preprocessing import OneHotEncoder

        text = one_spelling(text)
        known = text.dropna()
        distinct = known.nunique()
        # Names: each another, or nearly so.
        if distinct == len(known) > 2:
            return self._dropped(_IDENTIFIER if len(text) == distinct else _FREE, name)
        if distinct > max(_MOST_WORDS, 0.2 * len(known)):
            return self._dropped(_FREE, name)
        text = text.fillna("missing")
        counts = text.value_counts()
        if len(counts) == 1:
            return self._dropped(CONSTANT, name)
        # Of words as frequent as each other the last is the one that is never rare.
        base = str(counts.index[counts == counts.iloc[0]].max())
        coder: Any = OneHotEncoder(
            drop=[base], sparse_output=False, max_categories=_MOST_WORDS
        )
        indicators = coder.fit_transform(text.to_numpy(object)[:, None])
        rare = coder.infrequent_categories_[0]
        rare = set() if rare is None else set(rare)
        words = [w for w in coder.categories_[0] if w not in rare and w != base]
        words += ["(rare)"] * bool(rare)
        said = f"{name} ({len(words) + 1} values, against {base!r})"
        self.notes.of_column(_WORDS, said)
        columns = zip(words, indicators.T, strict=True)
        return {f"{name}={word}": values for word, values in columns}


def _is_mostly(text: Series, numbers: Numbers, known: int) -> bool:
    """Whether a column is one of numbers with a few odd cells: few of all, or one word
    again and again, which then is one for a missing value."""
    odd = int(numbers.wrong.sum())
    if odd <= (1 - _MOSTLY) * known:
        return True
    word = text[numbers.wrong].nunique() == 1
    return word and odd < known / 2 and len(np.unique(numbers.values)) > _MOST_WORDS


def as_text(column: Series) -> Series | None:
    """A column of words, truth values or other single values as stripped text."""
    import pandas as pd

    if column.dtype == object:
        kinds = {type(value) for value in column.dropna()}
        # Which a Parquet file may hold.
        several = (list, dict, tuple, set, bytes, np.ndarray)
        if any(issubclass(kind, several) for kind in kinds):
            return None
        text = column.map(str)
    else:
        text = column
    text = text.astype("str").str.strip().mask(column.isna().to_numpy(bool))
    return text.astype(pd.StringDtype(na_value=np.nan))


def one_spelling(text: Series) -> Series:
    """The same with "Yes", "yes" and "YES" made one, in the most frequent spelling."""
    folded = text.str.casefold()
    if not set(folded.dropna().unique()) <= _TRUTH:
        return text
    spelling = text.groupby(folded).agg(lambda cells: cells.value_counts().index[0])
    return folded.map(spelling).astype(text.dtype)


def read_dates(text: Series) -> tuple[Series | None, str]:
    """A column of text as dates and the format that they have, if they have one."""
    import pandas as pd
    from skrub import ToDatetime
    from skrub.core import RejectColumn

    # Without a digit there is no date, and it is only seen at the end of a search.
    if not text.dropna().head(100).str.contains(r"\d").any():
        return None, ""
    for form in (None, *_DATES):
        reader = ToDatetime(format=form)
        try:
            return reader.fit_transform(text), str(reader.format_)
        except RejectColumn:
            continue
    # No format fits all of the cells: one that fits nearly all will do.
    for form in ("ISO8601", *_DATES):
        dates = pd.to_datetime(text, format=form, errors="coerce", utc=True)
        if dates.notna().sum() >= _MOSTLY * text.notna().sum():
            return dates, form
    return None, ""


def counts_rows(values: np.ndarray, name: str) -> bool:
    """Whether numbers only tell the rows apart: whole, each another, and named so, or
    rising from row to row as numbers do that are given away one by one."""
    named = bool(_ID.fullmatch(name) or _CAMEL_ID.fullmatch(name))
    if not named and (len(values) < _COUNTED or _TIME.fullmatch(name)):
        return False
    # Most columns are found to be none by their first rows.
    if not (_are_whole(values[:1000]) and _are_whole(values)):
        return False
    if named:
        return len(np.unique(values)) == len(values)
    # Sorted measurements, such as populations, have far larger gaps.
    dense = values[-1] - values[0] < 5 * len(values)
    return bool(dense and np.diff(values).min() > 0)


def _are_whole(values: np.ndarray) -> bool:
    return bool((np.isfinite(values) & (np.floor(values) == values)).all())
