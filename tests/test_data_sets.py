"""Advice on real data sets: a verdict that other runs bear out. Minutes each."""

import json
from collections.abc import Callable
from typing import Any

import jax.random as jr
import numpy as np
import pytest

import jaxclip as jc
from helpers import assert_within, mean_and_error
from jaxclip.advise._rows import final_risk
from jaxclip.advise._verdict import MATERIAL

pytestmark = pytest.mark.slow


def _randhie() -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Visits to a doctor: counts, skewed, most of them small."""
    import statsmodels.api as sm

    data: Any = sm.datasets.randhie.load_pandas()
    X, y = data.exog.to_numpy(float), data.endog.to_numpy(float)
    # On tails as heavy as these, an excess kurtosis of 43, 32 runs have no power.
    return X, y, {"steps": 4000, "runs": 80}


def _diabetes() -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    from sklearn.datasets import load_diabetes

    data: Any = load_diabetes()
    return data.data, data.target, {}


def _digits() -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Odd digits against even ones, by random features of their pixels."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    X = data.data[:, data.data.std(axis=0) > 0]
    return X, np.where(data.target % 2 == 1, 1.0, -1.0), {"features": 300}


DATA: dict[str, Callable[[], tuple[np.ndarray, np.ndarray, dict[str, Any]]]] = {
    "randhie": _randhie,
    "diabetes": _diabetes,
    "digits": _digits,
}


@pytest.mark.parametrize("load", DATA.values(), ids=DATA.keys())
def test_the_verdict_is_borne_out(load):
    X, y, settings = load()
    advice = jc.advise(X, y, key=jr.key(51), **{"runs": 32, **settings})
    found = advice.search
    gain, error = found.difference, found.error
    if gain - 2 * error > 0 and gain >= MATERIAL:
        decision = "clip"
    elif gain + 2 * error < MATERIAL:
        decision = "do not clip"
    else:
        decision = "cannot tell"
    assert advice.verdict.decision == decision

    # The runs are of keys that the search has not seen, and paired like its own.
    clipped, unclipped = (
        np.asarray(final_risk(curve))
        for curve in (advice.clipped_runs, advice.unclipped_runs)
    )
    again, again_error = mean_and_error((unclipped - clipped) / unclipped.mean())
    assert_within(again, np.hypot(again_error, error), gain, power=0.5)

    numbers = advice.to_dict()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    # Whatever the threshold, the grid holds a rate that is stable.
    assert np.isfinite(found.risk).any(axis=0).all()
    assert numbers["features"] == settings.get("features", X.shape[1])
