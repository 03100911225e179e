"""Which settings SGD is judged at: chosen by their excess risk on held-out rows."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._types import Key
from ._predict import Guess, Prediction
from ._reference import Reference, Split
from ._runs import Settings, SomeRows, final_params

# Runs with a key each in one call, and the steps at which they are recorded.
KEYS, RECORDS = 4, 20


# The calls are many and small: two at a time keep the cores busy.
_THREADS = 2


# How often the grid may grow: from a guess that is wrong by a factor of 4^6.
_ROUNDS = 7


# In larger tables the rows are many enough to be split less often.
_MANY_ROWS = 20_000


Progress = Callable[[Iterable[Any], str], Iterable[Any]]


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


@dataclass(frozen=True)
class Choice:
    """The best setting of each kind, as positions among the settings.

    - `constant`, `decaying`, `unclipped`: without a clip, at a constant rate, at one
        that falls, and at any.
    - `clipped`: constant rate and threshold; `scheduled`: any rate and threshold.
    """

    constant: int
    decaying: int
    unclipped: int
    clipped: int
    scheduled: int

    @classmethod
    def of(cls, settings: Settings, score: Score) -> "Choice":
        plain = np.isinf(settings.threshold)
        constant = (settings.decays == 0) & (settings.follows == 0)
        # No clip is the clip with the largest of thresholds: where it is better than
        # all that were tried, clipping gains nothing, and loses nothing either.
        return cls(
            score.best(plain & constant),
            score.best(plain & ~constant),
            score.best(plain),
            score.best(constant),
            score.best(np.ones_like(plain)),
        )


def explore(
    study: Study, plan: Guess, key: Key, track: Progress
) -> tuple[Settings, Score]:
    """Settings around the best of each kind on the rows, and their scores.

    A coarse grid grows until the best of every kind lies inside of it, or where the
    threshold is too large to act; a fine one is then laid around each.

    **Arguments:**

    - `plan`: where the ODE has the best, to begin with.
    """
    coarse_key, fine_key, order_key = jr.split(key, 3)
    rows = np.asarray(jr.permutation(order_key, len(study.y)))
    splits = study.folds(rows, study.inner)
    # No gradient of a run that does not diverge is as long as four times the start's.
    largest = 4 * np.max(np.abs(study.y) * np.linalg.norm(study.X, axis=1))
    lrs = list(float(plan.clipped.lr[0]) * 4.0 ** np.arange(-3, 4))
    low = min(float(plan.clipped.threshold[0]), largest) / 64
    reach = int(np.ceil(np.log(largest / low) / np.log(4))) + 1
    clips = list(low * 4.0 ** np.arange(reach))
    settings = _every(lrs, clips)
    score = study.score(splits, settings, coarse_key)
    for _ in track(range(_ROUNDS), "search on the rows"):
        more = _beyond(settings, score.mean, lrs, clips)
        if more is None:
            continue
        settings = Settings.join(settings, more)
        score = score.join(study.score(splits, more, coarse_key))
    fine = _around(settings, score)
    return fine, study.score(splits, fine, fine_key)


def _every(lrs: list[float], clips: list[float]) -> Settings:
    return Settings.join(
        Settings.grid(lrs, clips, [0, 1], [0, 1]),
        Settings.grid(lrs, [np.inf], [0, 1], [0]),
    )


def _kinds(settings: Settings) -> list[np.ndarray]:
    """The settings of each kind: clipped or not, decaying or not, following or not."""
    plain = np.isinf(settings.threshold)
    kinds = [plain & (settings.decays == d) for d in (0, 1)]
    for d in (0, 1):
        for f in (0, 1):
            kinds.append(~plain & (settings.decays == d) & (settings.follows == f))
    return kinds


def _beyond(
    settings: Settings, score: np.ndarray, lrs: list[float], clips: list[float]
) -> Settings | None:
    """What to add to the grid where the best of a kind lies on its edge; the lists of
    its values grow with it."""
    best = [np.argmin(np.where(kind, score, np.inf)) for kind in _kinds(settings)]
    rates, cuts = settings.lr[best], settings.threshold[best]
    parts = []
    for edge, factor in ((min(lrs), 1 / 4), (max(lrs), 4)):
        if np.any(np.isclose(rates, edge)):
            lrs.append(edge * factor)
            parts.append(_every([edge * factor], clips))
    if np.any(np.isclose(cuts, min(clips))):
        new = min(clips) / 4
        clips.append(new)
        parts.append(Settings.grid(lrs, [new], [0, 1], [0, 1]))
    return Settings.join(*parts) if parts else None


def _around(settings: Settings, score: Score) -> Settings:
    """Factors of 2 around the best of each kind."""
    parts = []
    for kind in _kinds(settings):
        best = score.best(kind)
        lr, cut = settings.lr[best], settings.threshold[best]
        flags = [settings.decays[best]], [settings.follows[best]]
        near = lr * 2.0 ** np.arange(-2, 3)
        cuts = [cut] if np.isinf(cut) else list(cut * 2.0 ** np.arange(-2, 3))
        parts.append(Settings.grid(near, cuts, *flags))
    return Settings.join(*parts)


def finalists(settings: Settings, score: Score, count: int) -> np.ndarray:
    """The positions of the best settings, some of each kind, `count` in all."""
    order = np.argsort(score.mean, kind="stable")
    kinds = _kinds(settings)
    each = count // 10
    first = np.concatenate(
        [order[np.isin(order, np.flatnonzero(k))][:each] for k in kinds]
    )
    rest = order[~np.isin(order, first)]
    return np.concatenate([first, rest])[:count]
