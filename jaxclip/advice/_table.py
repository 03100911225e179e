"""A table of numbers, and what was done to get it."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Table:
    """Features and target as finite numbers, and what was done to get them.

    - `X`: shape `(n, d)`.
    - `y`: shape `(n,)`.
    - `columns`: the names of the features.
    - `target`: the name of the target.
    - `notes`: a sentence for each kind of thing that was done to the raw table.
    - `classes`: the words that were taken as 0 and 1, where the target is of two words.
    """

    X: np.ndarray
    y: np.ndarray
    columns: tuple[str, ...]
    target: str
    notes: tuple[str, ...] = ()
    classes: tuple[str, str] | None = None


@dataclass(frozen=True)
class Notes:
    """What was done, as it is done: a sentence for each kind of thing, not for each
    column, of which there may be hundreds."""

    _said: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def say(self, sentence: str) -> None:
        """Notes what does not concern columns."""
        self._said[sentence].extend(())

    def of_column(self, kind: str, column: str) -> None:
        """Notes what was done to a column: `kind` has a place for `{columns}`."""
        self._said[kind].append(column)

    def sentences(self) -> tuple[str, ...]:
        """The sentences, in the order in which each kind of thing was first done."""
        return tuple(_sentence(kind, names) for kind, names in self._said.items())


def _sentence(kind: str, names: list[str]) -> str:
    if not names:
        return kind
    plural = "" if len(names) == 1 else "s"
    return f"{kind.format(columns=f'{len(names)} column{plural}')}: {some(names)}"


def some(names: list[Any], most: int = 3) -> str:
    """A few of many names, and how many more there are."""
    names = [str(name) for name in names]
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
