"""Which settings SGD is judged at: chosen by their excess risk on held-out rows."""

from dataclasses import dataclass

import jax.random as jr
import numpy as np

from .._types import Key
from ._predict import Guess
from ._progress import Progress
from ._runs import Settings
from ._study import Score, Study

# How often the grid may grow: from a guess that is wrong by a factor of 4^6.
_ROUNDS = 7


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
        settings = Settings.join([settings, more])
        score = score.join(study.score(splits, more, coarse_key))
    fine = _around(settings, score)
    return fine, study.score(splits, fine, fine_key)


def _every(lrs: list[float], clips: list[float]) -> Settings:
    return Settings.join(
        [
            Settings.grid(lrs, clips, [0, 1], [0, 1]),
            Settings.grid(lrs, [np.inf], [0, 1], [0]),
        ]
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
    return Settings.join(parts) if parts else None


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
    return Settings.join(parts)


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
