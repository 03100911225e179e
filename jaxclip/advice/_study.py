"""What settings of SGD are judged on, and what they are judged by."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._types import Key
from ._predict import Prediction
from ._reference import Reference, Split
from ._runs import Settings, SomeRows, final_params

# Runs with a key each in one call, and the steps at which they are recorded.
KEYS, RECORDS = 4, 20
# The calls are many and small: two at a time keep the cores busy.
_THREADS = 2
# In larger tables the rows are many enough to be split less often.
_MANY_ROWS = 20_000


@dataclass(frozen=True)
class Study:
    """The rows as the runs need them, and how long a run is.

    - `X`, `y`: shapes `(n, d)` and `(n,)`, centred and scaled.
    - `reference`: what excess risks are measured from.
    - `prediction`: what the ODE says of them.
    - `profile`: shape `(m,)`, of the best predicted threshold over a run.
    - `steps`: the length of a run.
    - `largest_lr`: the largest rate that is stable on the rows without a clip.
    """

    X: np.ndarray
    y: np.ndarray
    reference: Reference
    prediction: Prediction
    profile: np.ndarray
    steps: int
    largest_lr: float = np.inf

    @property
    def inner(self) -> int:
        """How many parts the rows that settings are chosen on are split into."""
        return 4 if len(self.y) <= _MANY_ROWS else 2

    @property
    def repeats(self) -> int:
        """How often all rows are held out in turn."""
        return 2 if len(self.y) <= _MANY_ROWS else 1

    def folds(self, rows: np.ndarray, count: int) -> list[Split]:
        """`count` ways to hold out a part of the rows, in the order that they come."""
        parts = np.array_split(rows, count)
        return [
            Split.of(
                self.reference,
                self.X,
                self.y,
                np.concatenate([p for j, p in enumerate(parts) if j != i]),
                parts[i],
            )
            for i in range(count)
        ]

    def run(self, split: Split, settings: Settings, keys: Any) -> np.ndarray:
        """Shape `(keys, settings, records, d)`: where runs on the training rows are."""
        order = np.resize(split.train, len(self.y))
        rows = SomeRows(
            *self._arrays, jnp.asarray(order), jnp.asarray(len(split.train))
        )
        parts = [
            final_params(
                rows, settings, self.profile, keys[i : i + KEYS], self.steps, RECORDS
            )
            for i in range(0, len(keys), KEYS)
        ]
        return np.concatenate(parts)

    @property
    def _arrays(self) -> tuple[Any, Any]:
        dtype = jnp.result_type(float)
        return jnp.asarray(self.X, dtype), jnp.asarray(self.y, dtype)

    def score(self, splits: list[Split], settings: Settings, key: Key) -> "Score":
        """What settings reach on held-out rows, in runs with `KEYS` keys a split."""

        def one(pair):
            split, key = pair
            params = self.run(split, settings, jr.split(key, KEYS))[:, :, -1]
            risks = split.excess(self.reference, self.X, params)
            mean = np.mean(np.where(np.isfinite(params), params, 0.0), axis=0)
            return risks, split.by_row(self.X, mean)

        pairs = list(zip(splits, jr.split(key, len(splits)), strict=True))
        risks, rows = zip(*spread(one, pairs), strict=True)
        expected = self.prediction.on_rows(settings, self.profile, len(self.y))
        # The ODE does not know that long rows make such rates unstable.
        unstable = np.isinf(settings.threshold) & (settings.lr > self.largest_lr)
        expected = np.where(unstable, np.inf, expected)
        return Score(np.concatenate(risks), np.concatenate(rows), expected)


@dataclass(frozen=True)
class Score:
    """What settings reach, by the rows and by the ODE.

    - `risks`: shape `(runs, s)`, excess risks; infinite where a run diverged.
    - `rows`: shape `(n, s)`, what every held-out row adds to their mean.
    - `expected`: shape `(s,)`, the excess risk that the ODE expects.
    """

    risks: np.ndarray
    rows: np.ndarray
    expected: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Shape `(s,)`."""
        return self.risks.mean(axis=0)

    def join(self, other: "Score") -> "Score":
        """Those of more settings on the same rows."""
        return Score(
            np.concatenate([self.risks, other.risks], axis=1),
            np.concatenate([self.rows, other.rows], axis=1),
            np.concatenate([self.expected, other.expected]),
        )

    def best(self, kind: np.ndarray) -> int:
        """The best setting of a kind, given as a mask.

        Of those that the rows cannot tell from the one with the smallest risk (within
        one standard error of the difference) the one that the ODE expects to be best:
        where rows are few it guides the choice, where they are many they make it. Only
        the rows' error counts: a setting whose runs scatter widely is near to the edge
        of stability, which the ODE does not know.
        """
        mean = np.where(kind, self.mean, np.inf)
        least = int(np.argmin(mean))
        apart = self.rows - self.rows[:, [least]]
        error = np.sqrt(np.var(apart, axis=0) / len(apart))
        tied = kind & (mean <= mean[least] + error) & np.isfinite(self.expected)
        if not tied.any():
            return least
        return int(np.argmin(np.where(tied, self.expected, np.inf)))


def spread(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """The function of each item, some of them at a time."""
    # The first alone: two threads would each compile the same program.
    first, *rest = items
    found = [function(first)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return found + list(pool.map(function, rest))
