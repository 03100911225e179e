"""Whether to clip on a data set, at what threshold, and what training will then do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from .._checks import count
from .._curve import Curve
from .._schedule import Constant
from .._stability import stable_lr
from .._types import Key
from ..clip import HardClip
from ..limit import RiskODE, solve
from ..problem import Empirical, LeastSquares, Regression, random_features
from ._figure import advice_figure
from ._predict import Prediction, Setting, predict
from ._report import report, to_dict
from ._residuals import ResidualLaw
from ._rows import Progress, RowsSearch, final_risk, run, search, settles_at
from ._verdict import Verdict, judge

# Components of the residuals' law in the search for the best settings: enough for a
# percent, which is what a learning rate is worth knowing to.
_ATOMS = 64
_RECORDS = 100


@dataclass(frozen=True)
class Advice:
    """What [`jaxclip.advise`][] found out. `print` it for the report.

    Features and target are scaled to mean 0 and standard deviation 1, and every
    number is for SGD on them, one row a step: learning rates are per step, thresholds
    are on the gradient's norm, and risks are in units of the target's variance.

    - `regression`: the rows; `problem`: what the limits see of them.
    - `residuals`: the law of the least-squares residuals.
    - `stable_rows`, `stable_gaussian`: the largest stable learning rate without
        clipping, by the rows' fourth moments and for Gaussian features.
    - `prediction`: the best settings by the risk ODE.
    - `search`: the best constants on the rows.
    - `recommended`: the constants to use, with clipping; `baseline`: without.
    - `clipped_runs`, `unclipped_runs`: SGD on the rows at those two, paired by key.
    - `settles`: the excess risk of the point where the recommended clip comes to rest.
    - `verdict`: whether to clip, and why.
    """

    regression: Regression
    problem: LeastSquares
    residuals: ResidualLaw
    stable_rows: float
    stable_gaussian: float
    prediction: Prediction
    search: RowsSearch
    recommended: Setting
    baseline: Setting
    clipped_runs: Curve
    unclipped_runs: Curve
    settles: float
    verdict: Verdict

    def __str__(self) -> str:
        return report(self)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as a dictionary that JSON can hold."""
        return to_dict(self)

    def figure(self, title: str = "") -> Any:
        """A matplotlib figure of four panels: risk against the step, the criterion
        against the threshold, the law of the residuals, and the schedule. Needs the
        extra `cli`.

        **Arguments:**

        - `title`: the name of the data set.
        """
        return advice_figure(self, title)


def advise(
    X: Any,
    y: Any,
    *,
    steps: int | None = None,
    runs: int = 32,
    features: int | None = None,
    key: Key | None = None,
    progress: Progress | None = None,
) -> Advice:
    r"""Tells whether clipped SGD beats SGD on a data set, and how to run it.

    The rows give the spectrum and the law of the residuals; the risk ODE gives the best
    settings with and without clipping, and what they reach. SGD is then run on the rows
    themselves, where nothing is assumed: constants are searched around the predicted
    ones, and the verdict rests on the paired difference between the best with and
    without clipping, on keys that the search has not seen. Where prediction and rows
    differ, the verdict says how far and why.

    **Arguments:**

    - `X`: shape `(n, d)`, finite numbers. Columns are centred and scaled.
    - `y`: shape `(n,)`, finite numbers. Centred and scaled.
    - `steps`: the length of a run, one row a step; one pass over the rows by default,
        but at least 2,000 and at most 20,000 steps. Rounded to a multiple of 100.
    - `runs`: how many runs to draw the band from.
    - `features`: use so many random features $\tanh(XW)$ in place of the columns.
    - `key`: determines all that is random; `jax.random.key(0)` by default.
    - `progress`: a function of an iterable and a label that returns the iterable, such
        as one that wraps it in a progress bar.

    **Returns:**

    A [`jaxclip.Advice`][].

    **Raises:**

    A `ValueError` where the arrays do not make a table, a column is constant, or the
    columns explain the target without an error.
    """
    key = jr.key(0) if key is None else key
    features_key, search_key, run_key = jr.split(key, 3)
    progress = _silent if progress is None else progress
    runs = count("runs", runs)
    X, y = _standardise(X, y)
    if features is not None:
        X = random_features(X, count("features", features), key=features_key)
    regression = Regression(X, y)
    if float(jnp.std(regression.residuals)) < 1e-5:
        raise ValueError(
            "`X` explains `y` without an error, so that there is no noise to clip. Is "
            "`y`, or all that it was computed from, among the columns?"
        )
    problem = LeastSquares.from_regression(regression)
    small = LeastSquares(
        problem.spectrum, Empirical(regression.residuals, _ATOMS), problem.error0
    )
    steps, every = _length(steps, len(y))
    at = jnp.arange(0.0, steps + 1, every)

    stable = float(stable_lr(regression)), float(stable_lr(problem))
    # At four fifths of the limit the mean square is finite, if barely.
    (prediction,) = (
        predict(small, at, 0.8 * stable[0]) for _ in progress([0], "solve the limits")
    )
    found = search(
        regression,
        [float(s.lr(0)) for s in (prediction.unclipped, prediction.clipped)],
        _thresholds(regression, prediction),
        steps=steps,
        every=every,
        key=search_key,
        progress=progress,
    )
    recommended = _constants(small, found.lr, found.threshold, at)
    baseline = _constants(small, found.lr_unclipped, np.inf, at)
    settings = {"steps": steps, "every": every, "keys": jr.split(run_key, runs)}
    clipped, unclipped = (
        run(regression, s.clip, s.lr, progress=progress, label=label, **settings)
        for s, label in ((recommended, "run clipped"), (baseline, "run unclipped"))
    )
    residuals = ResidualLaw.of(np.asarray(regression.residuals))
    settles = settles_at(regression, found.threshold)
    facts = {
        "intrinsic_dimension": float(problem.spectrum.intrinsic_dimension),
        "leverage": stable[1] / stable[0],
        "predicted": _gain(prediction),
        "settles": settles / float(jnp.mean(final_risk(unclipped))),
        "ratio": float(jnp.mean(final_risk(clipped)))
        / float(final_risk(recommended.predicted)),
        "wander": float(jnp.std(final_risk(clipped)) / jnp.mean(final_risk(clipped))),
    }
    return Advice(
        regression=regression,
        problem=problem,
        residuals=residuals,
        stable_rows=stable[0],
        stable_gaussian=stable[1],
        prediction=prediction,
        search=found,
        recommended=recommended,
        baseline=baseline,
        clipped_runs=clipped,
        unclipped_runs=unclipped,
        settles=settles,
        verdict=judge(found, **facts),
    )


def _thresholds(regression: Regression, prediction: Prediction) -> list[float]:
    """What the search covers: from the predicted best, or one and a half standard
    deviations of the residuals where none is predicted to help, to as many of the
    start's errors. The largest hardly act, so that the best is within."""
    norm = jnp.sqrt(jnp.trace(regression.covariance))
    least, most = (
        float(1.5 * jnp.std(values) * norm)
        for values in (regression.residuals, regression.y)
    )
    clip = prediction.clipped.clip
    return [float(clip.threshold(0)) if isinstance(clip, HardClip) else least, most]


def _constants(
    problem: LeastSquares, lr: float, threshold: float, steps: Array
) -> Setting:
    """Constants, with the risk that the ODE predicts for them."""
    clip = HardClip(threshold)
    curve = solve(RiskODE(rtol=1e-6), problem, clip, lr, steps=steps, throw=False)
    return Setting(clip, Constant(jnp.asarray(lr)), curve)


def _gain(prediction: Prediction) -> float:
    """By how much the best clipped constants are predicted to beat the best without."""
    risks = [
        float(final_risk(s.predicted))
        for s in (prediction.unclipped, prediction.clipped)
    ]
    return 1 - risks[1] / risks[0]


def _standardise(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = np.asarray(X, float), np.asarray(y, float)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(
            "`X` must be a matrix of rows and `y` a vector with a number for each row. "
            f"Got shapes {X.shape} and {y.shape}."
        )
    scaled = []
    for name, values in (("X", X), ("y", y)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"`{name}` must be finite; {(~np.isfinite(values)).sum()} of its "
                "numbers are NaN or infinite. Fill them in or leave their rows out."
            )
        if len(values) < 2:
            raise ValueError(f"`{name}` must have at least two rows.")
        centred = values - values.mean(axis=0)
        spread = centred.std(axis=0)
        constant = spread <= 1e-12 * np.abs(values).max(axis=0)
        if np.any(constant):
            where = f" columns {np.flatnonzero(constant).tolist()}" * (name == "X")
            raise ValueError(f"`{name}` is constant{where}: leave it out.")
        scaled.append(centred / spread)
    return scaled[0], scaled[1]


def _length(steps: int | None, rows: int) -> tuple[int, int]:
    if steps is None:
        steps = min(max(rows, 2_000), 20_000)
    every = -(-count("steps", steps) // _RECORDS)
    return every * _RECORDS, every


def _silent(iterable: Iterable[Any], label: str) -> Iterable[Any]:
    del label
    return iterable
