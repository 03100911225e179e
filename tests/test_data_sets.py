"""Advice on real tables, beside a plain loop of numpy tuned on other rows. Minutes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np
import pandas as pd
import pytest

import jaxclip as jc
from helpers import mean_and_error
from jaxclip.advice._verdict import MATERIAL

pytestmark = pytest.mark.slow

Loaded = tuple[Any, Any, dict[str, Any]]


def _statsmodels(name: str, **settings: Any) -> Callable[[], Loaded]:
    def load() -> Loaded:
        import statsmodels.api as sm

        data: Any = getattr(sm.datasets, name).load_pandas()
        return data.exog, data.endog, settings

    return load


def _sklearn(name: str, column: str | None = None) -> Callable[[], Loaded]:
    def load() -> Loaded:
        import sklearn.datasets

        data: Any = getattr(sklearn.datasets, f"load_{name}")(as_frame=True)
        if column is None:
            return data.data, data.target, {}
        return data.data.drop(columns=column), data.data[column], {}

    return load


def _digits() -> Loaded:
    """Odd digits against even ones, by random features of their pixels."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    X = data.data[:, data.data.std(axis=0) > 0]
    return X, np.where(data.target % 2 == 1, 1.0, -1.0), {"features": 100}


def _breast_cancer() -> Loaded:
    from sklearn.datasets import load_breast_cancer

    frame: Any = load_breast_cancer(as_frame=True).frame  # type: ignore[attr-defined]
    means = [name for name in frame.columns if name.startswith("mean ")]
    return frame[means], frame["worst area"], {}


def _californian_houses() -> Loaded:
    # A table that the project does not ship.
    path = Path(__file__).parents[2] / "shared" / "data" / "california_housing.csv"
    if not path.exists():
        pytest.skip("the table is not here")
    frame = pd.read_csv(path)
    return frame.drop(columns="median_house_value"), frame["median_house_value"], {}


DATA: dict[str, Callable[[], Loaded]] = {
    "californian houses": _californian_houses,
    "randhie": _statsmodels("randhie", steps=4000),
    "diabetes": _sklearn("diabetes"),
    "digits": _digits,
    "breast cancer": _breast_cancer,
    "wine": _sklearn("wine", "proline"),
    "iris": _sklearn("iris", "petal width (cm)"),
    "fair": _statsmodels("fair"),
    "anes96": _statsmodels("anes96"),
    "ccard": _statsmodels("ccard"),
}


def _runs(X, y, settings, steps: int, runs: int, rng) -> np.ndarray:
    """Where plain SGD ends, shape `(runs, settings, d)`: settings are rates,
    thresholds and whether the rate falls to 0. All settings see the same rows."""
    lr, cut, falls = settings
    x = np.zeros((runs, len(lr), X.shape[1]))
    for k in range(steps):
        i = rng.integers(len(y), size=runs)
        a = X[i][:, None, :]
        with np.errstate(over="ignore", invalid="ignore"):
            slope = np.sum(x * a, axis=2) - y[i][:, None]
            norm = np.abs(slope) * np.linalg.norm(a, axis=2)
            factor = np.minimum(1.0, cut / np.maximum(norm, 1e-300))
            rate = lr * (1 - falls * k / steps)
            x = x - (rate * factor * slope)[:, :, None] * a
    return x


def _losses(X, y, params) -> np.ndarray:
    """The mean squared loss over the rows, and runs, of each setting."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = (np.einsum("nd,rsd->nrs", X, params) - y[:, None, None]) ** 2 / 2
        mean = square.mean(axis=(0, 1))
    return np.where(np.isfinite(mean), mean, np.inf)


def _plain_gain(X, y, steps: int, seed: int) -> tuple[float, float]:
    """What a clip gains on rows held out, tuned on others, and its error."""
    rng = np.random.default_rng(seed)
    n, d = X.shape
    fit = np.linalg.lstsq(X, y, rcond=None)[0]
    scale = np.median(np.abs(y - X @ fit)) * np.sqrt(d)
    grid = np.meshgrid(
        2.0 ** np.arange(-10, 2) / d,
        np.append(scale * 2.0 ** np.arange(-3, 6), np.inf),
        [0.0, 1.0],
        indexing="ij",
    )
    lr, cut, falls = (axis.ravel() for axis in grid)
    lower, size = [], []
    for _ in range(3):
        for test in np.array_split(rng.permutation(n), 4):
            train = np.setdiff1d(np.arange(n), test)
            rng.shuffle(train)
            tune, held = train[len(train) // 4 :], train[: len(train) // 4]
            loss = _losses(
                X[held],
                y[held],
                _runs(X[tune], y[tune], (lr, cut, falls), steps, 4, rng),
            )
            best = [
                int(np.argmin(np.where(kind, loss, np.inf)))
                for kind in (np.isinf(cut), np.ones_like(cut, bool))
            ]
            chosen = lr[best], cut[best], falls[best]
            params = _runs(X[train], y[train], chosen, steps, 24, rng)
            losses = _losses(X[test], y[test], params)
            fit = np.linalg.lstsq(X[train], y[train], rcond=None)[0]
            own = np.mean((y[train] - X[train] @ fit) ** 2) * d / (2 * len(train))
            least = _losses(X[test], y[test], fit[None, None])[0] - own
            lower.append(losses[0] - losses[1])
            size.append(losses[0] - least)
    scale = np.mean(size)
    gain, error = mean_and_error(np.asarray(lower) / scale)
    return float(gain), float(error)


@pytest.mark.parametrize("load", DATA.values(), ids=DATA.keys())
def test_the_verdict_is_borne_out(load):
    data, target, settings = load()
    advice = jc.advise(data, target, key=jr.key(51), **settings)
    X, y = advice.table.X, advice.table.y
    X = X[:, X.std(axis=0) > 0]
    if "features" in settings:
        keys = jr.split(jr.key(51), 4)
        X = (X - X.mean(axis=0)) / X.std(axis=0)
        X = np.asarray(jc.problem.random_features(X, settings["features"], key=keys[0]))
    X, y = (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
    if len(y) > 5000:
        some = np.random.default_rng(0).permutation(len(y))[:5000]
        X, y = X[some], y[some]
    gain, error = _plain_gain(X, y, min(advice.steps, 4000), seed=1)
    print(f"{advice.verdict.sentence} Plain loop: {gain:.1%} +- {error:.1%}.")
    if advice.verdict.decision == "clip":
        assert gain + 2 * error > 0
    if advice.verdict.decision == "do not clip":
        assert gain - 2 * error < MATERIAL
    low, high = advice.gain.interval
    assert low - 3 * error < gain < high + 3 * error
