"""Columns that hold anything, and the columns of numbers that they become."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ._columns import (
    _MOST_WORDS,
    Series,
    as_text,
    counts_rows,
    is_mostly,
    one_spelling,
    read_dates,
)
from ._number_text import is_missing, read_numbers
from ._table import Notes

Features: TypeAlias = dict[str, np.ndarray]
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
        if numbers.wrong.any() and is_mostly(text, numbers, known):
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
