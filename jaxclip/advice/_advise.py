"""The verb that gives advice on a data set, stage by stage."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

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
from ._reference import Reference
from ._search import Progress, explore
from ._study import RECORDS, Study
from ._table import Table
from ._trial import hold_out

# More rows than these add nothing to what the runs can tell, and cost memory.
_MOST_ROWS = 100_000
# Rows that the stability of unclipped SGD is worked out on.
_STABILITY_ROWS = 10_000

Stage = TypeVar("Stage")


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

    What is measured is the excess risk on rows that SGD was not trained on, after a run
    of the length that you will train for. Rows are held out in turn, several times
    over. On the rest, the best settings are chosen by holding out once more, without a
    clip and with one, constant and with a learning rate that falls to 0; then SGD runs
    at them, with keys of its own, and is measured on the rows held out. The verdict is
    on the paired difference, and its interval covers the rows, the keys and the rows
    that you train on. The risk ODE only says where to search, and what it predicts is
    printed beside what the rows say.

    The excess risk is the distance to the best linear prediction in the norm of the
    features' covariance, worked out from the rows held out: as the difference of their
    squared losses, or, where outliers make that too noisy and no bias is seen, from
    residuals that are cut at a threshold (a Huber fit). Where clipped SGD settles
    beside least squares, as on skewed residuals, that is part of the difference.

    **Arguments:**

    - `X`: an array of shape `(n, d)` of finite numbers; or a pandas or polars frame as
        it is, with gaps, words, dates and identifiers in it, which becomes numbers by
        the rules that `advice.notes` then lists (needs the extra `cli`). Columns are
        centred and scaled.
    - `y`: shape `(n,)`, what to predict; or the name of a column of the frame, its last
        by default. Centred and scaled.
    - `steps`: the length of a run, one row a step; one pass over the rows by default,
        but at least 2,000 and at most 20,000 steps. Rounded up to a multiple of 20.
    - `runs`: how many runs of each setting in each split of the rows; by default as
        many as make their part of the error small, at most 128. The number is settled
        from runs that are not used again, so that it does not bias the verdict.
    - `features`: use so many random features $\tanh(XW)$ in place of the columns.
    - `key`: determines all that is random; `jax.random.key(0)` by default.
    - `progress`: whether to show bars, by default where standard error is a terminal;
        or a function of an iterable and a label that returns the iterable, such as one
        that wraps it in a bar of your own.

    **Returns:**

    A [`jaxclip.Advice`][].

    **Raises:**

    A `ValueError` where the data do not make a table, a column is constant, there are
    too few rows for the columns, or the columns explain the target without an error.

    !!! example

        ```python
        import jaxclip as jc
        import pandas as pd

        advice = jc.advise(pd.read_csv("houses.csv"), "price")
        print(advice)
        clip, lr = advice.recommended.setting
        ```
    """
    key = jr.key(0) if key is None else key
    features_key, search_key, run_key, row_key = jr.split(key, 4)
    track = _track(progress)
    runs = None if runs is None else count("runs", runs, least=2)
    features = None if features is None else count("features", features)
    table = X if isinstance(X, Table) else prepare(X, y)
    steps = _length(steps, len(table.y))
    X, y = _scaled(table, features, features_key, row_key)
    fitted = _once(track, "fit the rows", lambda: _fit(table, X, y))
    study, plan = _once(
        track, "solve the limits", lambda: _predict(fitted, X, y, steps)
    )
    settings, score = explore(study, plan, search_key, track)
    done = hold_out(study, settings, score, plan.clipped, run_key, runs, track)
    return conclude(done, table, fitted, plan)


def _once(track: Progress, label: str, stage: Callable[[], Stage]) -> Stage:
    """A stage that is one step of the progress."""
    (result,) = (stage() for _ in track([0], label))
    return result


def _scaled(
    table: Table, features: int | None, features_key: Key, row_key: Key
) -> tuple[np.ndarray, np.ndarray]:
    """The rows as SGD sees them: scaled, as random features where wanted, and no more
    than the runs can make use of."""
    X, y = _standardise(table.X, table.y)
    if features is not None:
        X = np.asarray(random_features(X, features, key=features_key), float)
    if len(y) > _MOST_ROWS:
        seed = jr.randint(row_key, (), 0, 2**31 - 1)
        kept = np.random.default_rng(int(seed)).permutation(len(y))[:_MOST_ROWS]
        X, y = X[kept], y[kept]
    _need_rows(*X.shape)
    return X, y


def _fit(table: Table, X: np.ndarray, y: np.ndarray) -> Fitted:
    """What is known of the rows before any run."""
    reference = Reference.of(X, y)
    values = y - X @ reference.solution
    if values.std() < 1e-5:
        raise ValueError(
            f"`X` explains {table.target!r} without an error, so that there is no "
            "noise to clip. Is it, or all that it was computed from, among the columns?"
        )
    problem = _limit_problem(reference, values)
    return Fitted(reference, values, problem, _stable(X, y), float(stable_lr(problem)))


def _predict(
    fitted: Fitted, X: np.ndarray, y: np.ndarray, steps: int
) -> tuple[Study, Guess]:
    """What the ODE says of the rows, and where it has the best settings."""
    prediction = Prediction.of(fitted.reference, fitted.values, steps)
    # At four fifths of the limit the mean square is finite, if barely.
    largest = 0.8 * fitted.stable_rows
    plan = guess(prediction, largest)
    reference = fitted.reference
    return Study(X, y, reference, prediction, plan.profile, steps, largest), plan


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


def _track(progress: bool | Progress | None) -> Progress:
    """A function that shows how far an iterable is, or does not."""
    if callable(progress):
        return progress
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        return _silent
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _silent
    return lambda iterable, label: tqdm(iterable, desc=f"{label:>20}", leave=False)


def _silent(iterable: Iterable[Any], label: str) -> Iterable[Any]:
    del label
    return iterable
