"""What is to be predicted: a number, or one of two words."""

import difflib
from typing import Any, TypeAlias

import numpy as np

from ._columns import as_text, one_spelling
from ._number_text import is_missing, read_numbers
from ._table import Notes, some

# pandas is an extra and not imported here; its own annotations are too loose to help.
Series: TypeAlias = Any
# Classes that an error names; text of more is no choice among classes.
_MOST_CLASSES = 20


def find_target(names: list[str], target: str) -> str:
    """The name of a column, which must be there."""
    if target in names:
        return target
    near = difflib.get_close_matches(target, names, n=1, cutoff=0.0)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"There is no column {target!r}.{hint} The columns are: {some(names, 30)}."
    )


def read_target(
    column: Series, name: str, notes: Notes
) -> tuple[np.ndarray, tuple[str, str] | None]:
    """The target's values, NaN where a row has none, and the two words that were taken
    as 0 and 1.

    **Raises:**

    A `ValueError` where the target is neither numbers nor one of two words, which
    names the cells and their rows.
    """
    kind = column.dtype.kind
    if kind in "iuf":
        values = column.to_numpy(float, na_value=np.nan)
        return np.where(np.isfinite(values), values, np.nan), None
    text = None if kind in "cmM" else as_text(column)
    if text is None:
        raise ValueError(
            f"The target {name!r} must be numeric. It holds "
            f"{str(column.dropna().iloc[0])!r}, for example."
        )
    numbers = read_numbers(text)
    if not numbers.wrong.any() and np.isfinite(numbers.values).any():
        if numbers.example:
            notes.say(f"read the target {name!r} as numbers: {numbers.example}")
        return numbers.values, None
    # A minus stands for a missing number; but "+" and "-" are two classes, and so are
    # "none" and "some".
    given = set(text.str.casefold().dropna().unique()) - {""}
    both = len(given) == 2 and bool(given & {"-", "none"})
    missing = (text == "").to_numpy(bool) if both else is_missing(text)
    words = one_spelling(text.mask(missing))
    classes = sorted(words.dropna().unique(), key=str.casefold)
    if len(classes) == 2:
        notes.say(f"took {classes[0]!r} as 0 and {classes[1]!r} as 1 of {name!r}")
        values = (words == classes[1]).to_numpy(float)
        return np.where(words.isna(), np.nan, values), (classes[0], classes[1])
    if not classes:
        raise ValueError(f"The target {name!r} is empty.")
    raise ValueError(_not_a_target(words, numbers.wrong, classes, name))


def _not_a_target(
    words: Series, wrong: np.ndarray, classes: list[str], name: str
) -> str:
    """What is wrong with a target that is neither numbers nor one of two words."""
    where = np.flatnonzero(wrong)
    known = int(words.notna().sum())
    if len(where) <= known / 2:
        cells = [f"{words.iloc[j]!r} in row {words.index[j]}" for j in where]
        return (
            f"The target {name!r} must be a number in each row. It is {some(cells)}. "
            "Mend these cells, or empty them to leave their rows out."
        )
    first = int(where[0])
    if 2 < len(classes) <= _MOST_CLASSES:
        listed = [repr(word) for word in classes]
        return (
            f"The target {name!r} must be numeric or one of two words. It has "
            f"{len(classes)} classes: {some(listed, 6)}. Make a column of one of them "
            f"against the rest, such as `{name} == {words.iloc[first]!r}`."
        )
    return (
        f"The target {name!r} must be numeric or one of two words. It holds "
        f"{words.iloc[first]!r}, for example, in row {words.index[first]}, and "
        f"{len(classes)} different {'word' if len(classes) == 1 else 'words'} in all."
    )
