r"""What clipping gains on rows that SGD has not seen, and how sure that is.

The rows are held out in turn, a fold at a time and several times over. In each split
the settings are chosen by splitting the *training* rows once more; the runs at them,
with keys of their own, are measured on the held-out rows. The gain is

$$g = 1 - \bar R_{\text{clip}} / \bar R_{\text{plain}},$$

and its error has three parts, which are independent: the held-out rows are a sample, as
are the keys, and so are the rows that the user will train on, whose own run ends
somewhere around the mean over all such tables. Derived here.
"""

from dataclasses import dataclass

import numpy as np

from ._reference import Split
from ._study import Study

# Of a normal law, 95% of which lie within so many standard deviations.
NORMAL = 1.96


@dataclass(frozen=True)
class Gain:
    """What the second of two kinds of runs gains over the first.

    - `gain`: by which fraction of the first's excess risk the second's is lower.
    - `error`: its standard error; `rows_error`, `runs_error`: the parts of it that more
        rows and more runs would make smaller.
    - `risks`: the two mean excess risks, in units of the target's variance.
    """

    gain: float
    error: float
    rows_error: float
    runs_error: float
    risks: tuple[float, float]

    @property
    def interval(self) -> tuple[float, float]:
        """The two ends of the interval that holds the gain of a run on all rows with a
        confidence of 95%."""
        return self.gain - NORMAL * self.error, self.gain + NORMAL * self.error


@dataclass(frozen=True)
class Ends:
    """Where the runs of one kind end, in every split.

    - `params`: a list over splits, shape `(keys, d)` each.
    - `risks`: a list over splits, shape `(keys,)` each: the excess risk.
    """

    params: list[np.ndarray]
    risks: list[np.ndarray]

    @classmethod
    def of(cls, study: Study, splits: list[Split], params: list[np.ndarray]) -> "Ends":
        risks = [
            split.excess(study.reference, study.X, x)
            for split, x in zip(splits, params, strict=True)
        ]
        return cls(params, risks)

    @property
    def mean(self) -> float:
        return float(np.mean(self.risks))


def compare(
    study: Study,
    splits: list[Split],
    folds: int,
    kinds: tuple[Ends, Ends],
    settings: tuple[Ends, Ends],
) -> Gain:
    """What runs with a clip gain over those without.

    **Arguments:**

    - `kinds`: the two kinds of runs, each at the settings chosen for its split.
    - `settings`: the two at the same settings in every split.
    """
    plain, clipped = kinds
    first, second = plain.mean, clipped.mean
    risks = (first, second)
    if not np.isfinite(first) or not np.isfinite(second):
        gain = 0.0 if first == second else float(np.sign(first - second))
        return Gain(gain, 0.0, 0.0, 0.0, risks)
    # To first order the gain's error is that of second - ratio * first, over first: the
    # delta method for a ratio. All three parts below are variances of that difference.
    ratio = second / first
    reference = study.reference
    root = _root(reference.covariance)
    # First, the rows held out: what each adds to the difference, averaged over the
    # repetitions that have held it out.
    rows, seen = np.zeros(len(study.y)), np.zeros(len(study.y))
    for split, a, b in zip(splits, plain.params, clipped.params, strict=True):
        a, b = a.mean(axis=0), b.mean(axis=0)
        added = split.by_row(study.X, b) - ratio * split.by_row(study.X, a)
        rows[split.test] += added
        seen[split.test] += 1
    each = rows[seen > 0] / seen[seen > 0]
    # Rows are independent samples, so that their mean has this variance.
    sampled = float(np.var(each, ddof=1) / len(each))
    # Second, the rows trained on. At the same settings in every split, since a choice
    # that jumps from one fold to the next is no error that the jackknife could see.
    whitened = [
        [e.params[i].mean(axis=0) @ root for e in settings] for i in range(len(splits))
    ]
    ratio_fixed = settings[1].mean / settings[0].mean
    table_variance = _of_the_table(np.asarray(whitened), folds, ratio_fixed)
    # Third, the keys: paired, since a key gives both kinds the same data, and within a
    # split, whose mean differs from the next one's for reasons that are counted above.
    runs = np.concatenate(clipped.risks) - ratio * np.concatenate(plain.risks)
    by_key = [b - ratio * a for a, b in zip(plain.risks, clipped.risks, strict=True)]
    keys = float(np.mean([np.var(values, ddof=1) for values in by_key]) / len(runs))
    parts = np.sqrt([sampled + table_variance, keys]) / abs(first)
    rows_error, runs_error = map(float, parts)
    error = float(np.hypot(rows_error, runs_error))
    return Gain(1 - ratio, error, rows_error, runs_error, risks)


def _of_the_table(whitened: np.ndarray, folds: int, ratio: float) -> float:
    """The variance of what runs on one table's rows end at, over such tables.

    By the jackknife over folds: the mean ends have the covariance C, and the quadratic
    form M of the difference of risks the variance tr (MC)^2 / 2 in normal ends. The
    estimate of C has few degrees of freedom, whose own part is taken off.

    **Arguments:**

    - `whitened`: shape `(splits, 2, d)`, the mean ends where the covariance of the
        features is the identity; the folds of each repetition together.
    """
    # A split trains without one fold, so that its mean end is an estimate with that one
    # left out: the jackknife's variance is (folds - 1) / folds times a sum of squares.
    parts = whitened.reshape(-1, folds, *whitened.shape[1:])
    moved = (parts - parts.mean(axis=1, keepdims=True)) * np.sqrt((folds - 1) / folds)
    moved = moved.reshape(whitened.shape) / np.sqrt(len(parts))
    # The products of the folds' moves with each other stand for M C: both have the same
    # trace of the square, and these have as few rows as there are splits.
    form = moved[:, 1] @ moved[:, 1].T - ratio * moved[:, 0] @ moved[:, 0].T
    freedom = len(parts) * (folds - 1)
    # E tr(W^2) of an estimate W with so many degrees of freedom is too large by about
    # (tr W)^2 over them.
    square = np.sum(form**2) - np.trace(form) ** 2 / freedom
    return max(0.0, float(square)) / 2


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0.0))
