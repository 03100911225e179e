"""The verb that gives advice on a data set, stage by stage."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._checks import count
from .._types import Key
from ..criterion import stable_lr
from ..noise import Empirical
from ..problem import LinearModel, Regression, Spectrum, random_features
from ._advice import Advice
from ._conclude import Fitted, conclude
from ._predict import Guess, Prediction, guess
from ._prepare import prepare
from ._progress import Progress, as_track, once
from ._reference import Reference
from ._search import explore
from ._study import RECORDS, Study
from ._table import Table
from ._trial import Held, hold_out

# More rows than these add nothing to what the runs can tell, and cost memory.
_MOST_ROWS = 100_000
# Rows that the stability of unclipped SGD is worked out on.
_STABILITY_ROWS = 10_000


def advise(
    X: Any,
    y: Any = None,
    *,
    steps: int | None = None,
    runs: int | None = None,
    features: int | None = None,
    key: Key | None = None,
    progress: bool | Progress | None = None,
) -> Advice:
    r"""Tells whether clipped SGD beats SGD on a data set, and how to run it.

    Rows are held out in turn, several times over. On the rest, the best settings with
    a clip and without are chosen by holding out once more; SGD then runs at them, with
    keys of its own, and its excess risk is measured on the rows that were held out.
    [`jaxclip.Advice`][] says how.

    **Arguments:**

    - `X`: finite numbers of shape `(n, d)`; or a pandas or polars frame as it is, with
        gaps, words, dates and identifiers, which becomes numbers by the rules that
        `advice.table.notes` lists (extra `cli`). Columns are centred and scaled.
    - `y`: shape `(n,)`, what to predict; or the name of a column of the frame, its last
        by default. Centred and scaled.
    - `steps`: the length of a run, one row a step; by default one pass over the rows,
        but from 2,000 to 20,000 steps. Rounded up to a multiple of 20.
    - `runs`: runs of each setting in each split of the rows; by default as many as make
        their part of the error small, at most 128, settled from runs that are not used
        again, so that their number does not bias the verdict.
    - `features`: use so many random features $\tanh(XW)$ in place of the columns.
    - `key`: determines all that is random; `jax.random.key(0)` by default.
    - `progress`: whether to show bars, by default where standard error is a terminal;
        or a function of an iterable and a label that returns the iterable.

    **Returns:**

    A [`jaxclip.Advice`][]: `print` it, or train with `advice.recommended.setting`.

    **Raises:**

    A `ValueError` where the data make no table, a column is constant, there are too few
    rows for the columns, or the columns explain the target without an error.
    """
    keys = _Keys(*jr.split(jr.key(0) if key is None else key, 4))
    track = as_track(progress)
    runs = None if runs is None else count("runs", runs, least=2)
    rows = _read(X, y, steps, features, keys)
    fitted = once(track, "fit the rows", lambda: _fit(rows))
    plan = once(track, "solve the limits", lambda: _predict(fitted, rows))
    held = _measure(plan, runs, keys, track)
    return conclude(held, rows.table, fitted, plan.guess)


class _Keys(NamedTuple):
    """One key for each thing that is random."""

    features: Key
    search: Key
    run: Key
    rows: Key


@dataclass(frozen=True)
class _Rows:
    """What the data are read as.

    - `table`: the rows as numbers, before they were scaled, with what was done to them.
    - `X`, `y`: shapes `(n, d)` and `(n,)`, what SGD runs on.
    - `steps`: the length of a run.
    """

    table: Table
    X: np.ndarray
    y: np.ndarray
    steps: int


@dataclass(frozen=True)
class _Plan:
    """What the risk ODE says of the rows.

    - `study`: what the runs are made from and judged by.
    - `guess`: where the ODE has the best settings.
    """

    study: Study
    guess: Guess


def _read(
    X: Any, y: Any, steps: int | None, features: int | None, keys: _Keys
) -> _Rows:
    """The rows as SGD sees them: scaled, as random features where wanted, and no more
    than the runs can make use of."""
    features = None if features is None else count("features", features)
    table = X if isinstance(X, Table) else prepare(X, y)
    # Before rows are left out: the default is one pass over all of them.
    steps = _length(steps, len(table.y))
    X, y = _standardise(table.X, table.y)
    if features is not None:
        X = np.asarray(random_features(X, features, key=keys.features), float)
    if len(y) > _MOST_ROWS:
        seed = jr.randint(keys.rows, (), 0, 2**31 - 1)
        kept = np.random.default_rng(int(seed)).permutation(len(y))[:_MOST_ROWS]
        X, y = X[kept], y[kept]
    _need_rows(*X.shape)
    return _Rows(table, X, y, steps)


def _fit(rows: _Rows) -> Fitted:
    """What is known of the rows before any run."""
    X, y = rows.X, rows.y
    reference = Reference.of(X, y)
    values = y - X @ reference.solution
    if values.std() < 1e-5:
        raise ValueError(
            f"`X` explains {rows.table.target!r} without an error, so that there is no "
            "noise to clip. Is it, or all that it was computed from, among the columns?"
        )
    problem = _limit_problem(reference, values)
    return Fitted(reference, values, problem, _stable(X, y), float(stable_lr(problem)))


def _predict(fitted: Fitted, rows: _Rows) -> _Plan:
    """What the ODE says of the rows, and where it has the best settings."""
    reference, steps = fitted.reference, rows.steps
    prediction = Prediction.of(reference, fitted.values, steps)
    # At four fifths of the limit the mean square is finite, if barely.
    largest = 0.8 * fitted.stable_rows
    best = guess(prediction, largest)
    study = Study(rows.X, rows.y, reference, prediction, best.profile, steps, largest)
    return _Plan(study, best)


def _measure(plan: _Plan, runs: int | None, keys: _Keys, track: Progress) -> Held:
    """Settings around the best ones, and runs at them on rows that are held out."""
    settings, score = explore(plan.study, plan.guess, keys.search, track)
    beside = plan.guess.clipped
    return hold_out(plan.study, settings, score, beside, keys.run, runs, track)


def _limit_problem(reference: Reference, values: np.ndarray) -> LinearModel:
    """What the limits see of the rows: spectrum, start and residuals."""
    eigenvalues, vectors = np.linalg.eigh(reference.covariance)
    kept = np.flatnonzero(eigenvalues > 1e-10 * eigenvalues[-1])[::-1]
    error = np.abs(reference.solution @ vectors[:, kept])
    dtype = jnp.result_type(float)
    centred = jnp.asarray(values - values.mean(), dtype)
    return LinearModel(
        Spectrum(jnp.asarray(eigenvalues[kept], dtype)),
        Empirical(centred),
        jnp.asarray(error, dtype),
    )


def _stable(X: np.ndarray, y: np.ndarray) -> float:
    """The largest stable rate on some of the rows."""
    return float(stable_lr(Regression(X[:_STABILITY_ROWS], y[:_STABILITY_ROWS])))


def _standardise(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of mean 0 and standard deviation 1."""
    scaled = []
    for name, values in (("X", X), ("y", y)):
        if len(values) < 2:
            raise ValueError(f"`{name}` must have at least two rows.")
        # In units of the largest, whose square might not be a number.
        unit = np.maximum(np.abs(values).max(axis=0), np.finfo(float).tiny)
        centred = values / unit
        centred -= centred.mean(axis=0)
        spread = centred.std(axis=0)
        constant = spread <= 1e-12
        if np.any(constant):
            where = f" columns {np.flatnonzero(constant).tolist()}" * (name == "X")
            raise ValueError(f"`{name}` is constant{where}: leave it out.")
        scaled.append(centred / spread)
    return scaled[0], scaled[1]


def _need_rows(rows: int, features: int) -> None:
    if rows < 10:
        raise ValueError(f"A table must have at least ten rows. Got {rows}.")
    if rows < 2 * features:
        raise ValueError(
            f"`X` has {features} features and only {rows} rows: a part of the rows can "
            "be fitted without error, and says nothing about the noise. There must be "
            "two rows for each feature; leave out columns, or use fewer `features`."
        )


def _length(steps: int | None, rows: int) -> int:
    if steps is None:
        steps = min(max(rows, 2_000), 20_000)
    return -(-count("steps", steps) // RECORDS) * RECORDS
