"""The kinds of settings, each at its best, run and measured on rows held out."""

from dataclasses import dataclass

import jax.random as jr
import numpy as np

from .._types import Key
from ._measure import Ends, compare
from ._progress import Progress
from ._reference import Split
from ._runs import Settings
from ._search import Choice, finalists
from ._study import KEYS, Score, Study, spread

# Rows are held out a fifth at a time.
_FOLDS = 5
# Settings that every split chooses among.
_FINALISTS = 64
# Runs a split: to settle their number, at least, and at most.
_PILOT, _FEWEST_RUNS, _MOST_RUNS = 8, 16, 128
# An error of the gain below which more runs tell nothing that matters.
_PRECISE = 0.01
# The best of each kind: without a clip at a constant rate, at one that falls to 0, and
# the better of the two; then a constant rate and threshold, and any.
KINDS: tuple[str, ...] = ("constant", "decaying", "unclipped", "clipped", "scheduled")


@dataclass(frozen=True)
class Trial:
    """Runs of every kind on the training rows of every split.

    - `splits`: `folds` of them for each repetition.
    - `params`: a list over splits, shape `(keys, s, records, d)` each: first the kinds,
        each at what was chosen for the split, then the settings that all splits share.
    - `folds`: how many splits hold out every row once.
    """

    study: Study
    splits: list[Split]
    params: list[np.ndarray]
    folds: int

    def ends(self, position: int) -> Ends:
        """Where the runs of one kind, or of one of the fixed settings, end."""
        last = [params[:, position, -1] for params in self.params]
        return Ends.of(self.study, self.splits, last)

    def curves(self, position: int) -> np.ndarray:
        """Shape `(runs, records)`: the excess risk of runs.

        Their mean is measured on the rows held out. How they lie around it is how their
        distances to the training rows' fit do: what one run measures on a few rows has
        a noise of its own, which no run has.
        """
        study = self.study
        pairs = list(zip(self.splits, self.params, strict=True))
        risks = [s.excess(study.reference, study.X, x[:, position]) for s, x in pairs]
        spread = [s.distance(study.reference, x[:, position]) for s, x in pairs]
        with np.errstate(invalid="ignore"):
            ratio = np.concatenate([d / d.mean(axis=0) for d in spread])
            runs = np.mean(risks, axis=(0, 1)) * ratio
        return np.where(np.isfinite(runs), runs, np.inf)


@dataclass(frozen=True)
class Held:
    """The runs that the verdict rests on, and the settings that all splits share: the
    best of each kind on all rows, and what the ODE would choose."""

    study: Study
    trial: Trial
    fixed: Settings


def hold_out(
    study: Study,
    settings: Settings,
    score: Score,
    plan: Settings,
    key: Key,
    runs: int | None,
    track: Progress,
) -> Held:
    """Holds the rows out in turn: chooses settings on the others, runs and measures.

    **Arguments:**

    - `settings`, `score`: what to choose among, and the scores on all rows.
    - `plan`: one setting that is run beside them.
    - `runs`: how many runs of each setting in each split; None for as many as needed.
    """
    order_key, choice_key, pilot_key, run_key = jr.split(key, 4)
    splits = []
    for repeat in range(study.repeats):
        order = jr.permutation(jr.fold_in(order_key, repeat), len(study.y))
        splits += study.folds(np.asarray(order), _FOLDS)
    candidates = settings[finalists(settings, score, _FINALISTS)]
    chosen = choose(study, splits, candidates, choice_key, track)
    best = settings[np.asarray(_positions(settings, score))]
    fixed = Settings.join([best, plan])

    def run(splits, key, runs, label):
        settings = [
            Settings.join([candidates[np.asarray(positions)], fixed])
            for positions in chosen[: len(splits)]
        ]
        keys = jr.split(key, len(splits))
        params = spread(
            lambda item: study.run(item[0], item[1], jr.split(item[2], runs)),
            track(list(zip(splits, settings, keys, strict=True)), label),
        )
        return Trial(study, splits, params, _FOLDS)

    if runs is None:
        runs = _enough(run(splits[:_FOLDS], pilot_key, _PILOT, "count the runs"))
    return Held(study, run(splits, run_key, runs, "run"), fixed)


def choose(
    study: Study, splits: list[Split], candidates: Settings, key: Key, track: Progress
) -> list[list[int]]:
    """The positions of the best candidate of each kind, for each split, by holding out
    parts of its training rows."""
    keys = jr.split(key, len(splits))
    chosen = []
    for split, key in track(list(zip(splits, keys, strict=True)), "choose"):
        score = study.score(study.folds(split.train, study.inner), candidates, key)
        chosen.append(_positions(candidates, score))
    return chosen


def _positions(settings: Settings, score: Score) -> list[int]:
    """The best of each of `KINDS`."""
    best = Choice.of(settings, score)
    return [getattr(best, kind) for kind in KINDS]


def _enough(pilot: Trial) -> int:
    """How many runs a split make their part of the error small beside the rows'.

    From runs that are not used again: a number that hung on the runs which are counted
    would favour those that happen to agree.
    """
    plain, clipped = (
        pilot.ends(KINDS.index(kind)) for kind in ("unclipped", "scheduled")
    )
    gain = compare(
        pilot.study, pilot.splits, pilot.folds, (plain, clipped), (plain, clipped)
    )
    if not np.isfinite(gain.runs_error):
        return _MOST_RUNS
    allowed = max(gain.rows_error / 4, _PRECISE)
    splits = pilot.study.repeats * _FOLDS
    wanted = _PILOT * len(pilot.splits) / splits * (gain.runs_error / allowed) ** 2
    return int(np.clip(-(-wanted // KEYS) * KEYS, _FEWEST_RUNS, _MOST_RUNS))
