"""What a table says of the linear model that it comes from."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..._types import Key
from ...noise import Empirical
from ._features import random_features
from ._loss import SquaredLoss
from ._minimiser import minimiser
from ._rows import Regression, as_table


class Table(NamedTuple):
    """The rows, the error of the start, the minimiser, and the residuals that it leaves
    as the noise of labels."""

    X: np.ndarray
    error: np.ndarray
    optimum: np.ndarray
    noise: Empirical


def estimate(
    X: Any, y: Any, start: Any, features: int | None, key: Key | None
) -> Table:
    """What a table says; the arguments are those of
    [`jaxclip.LinearModel.from_data`][]."""
    if features is not None and key is not None:
        X = random_features(X, features, key=key)
    elif features is not None or key is not None:
        raise ValueError("`features` and `key` go together: give both or neither.")
    regression = Regression(X, y, start=start)
    if regression.X.dtype == jnp.float64:
        return rows_of(regression)
    # All of it in float64, and cut to JAX's precision last.
    X, y = as_table(X, y)
    optimum = minimiser(SquaredLoss(), X, y)
    error = (0.0 if start is None else np.asarray(start, float)) - optimum
    return Table(X, error, optimum, Empirical(y - X @ optimum))


def rows_of(regression: Regression) -> Table:
    """The same of a problem that runs on the rows, with the squared loss."""
    if not isinstance(regression.loss, SquaredLoss):
        raise ValueError(
            "`regression` must have the squared loss, which the limits are of. "
            f"Got a {type(regression.loss).__name__}; leave out its `loss`."
        )
    optimum = np.asarray(regression.optimum, float)
    error = np.asarray(regression.start, float) - optimum
    X = np.asarray(regression.X, float)
    return Table(X, error, optimum, Empirical(regression.residuals))
