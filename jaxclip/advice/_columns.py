"""What a column of a table holds: words, dates, identifiers."""

import re
from typing import Any, TypeAlias

import numpy as np

from ._number_text import Numbers

# pandas is an extra and not imported here; its own annotations are too loose to help.
Series: TypeAlias = Any
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


def is_mostly(text: Series, numbers: Numbers, known: int) -> bool:
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
