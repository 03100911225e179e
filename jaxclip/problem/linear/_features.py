"""Features made of features."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ..._checks import count as check_count, known
from ..._types import Key


def random_features(X: Any, count: int, *, key: Key) -> Float[Array, "n count"]:
    r"""Random features $\tanh(X W)$ of a table, centred and scaled.

    $W$ has independent normal entries of variance one over the number of columns, so
    that standardised columns give arguments of order one. (The authors of
    arXiv:2406.11733 use variance one on image pixels, which are smaller.) The features
    are scaled so that their covariance has largest eigenvalue 1.

    **Arguments:**

    - `X`: shape `(n, d)`, standardised columns.
    - `count`: how many features.
    - `key`: draws $W$.

    **Returns:**

    Shape `(n, count)`, dimensionless, in JAX's precision.

    **Raises:**

    A `ValueError` where `X` is no finite matrix with a column that varies, or where `X`
    or `key` is traced.
    """
    known(X=X, key=key)
    X, count = np.asarray(X, float), check_count("count", count)
    if X.ndim != 2 or X.size == 0 or not np.all(np.isfinite(X)):
        raise ValueError(f"`X` must be a finite matrix. Got shape {X.shape}.")
    if not np.ptp(X, axis=0).any():
        raise ValueError("`X` must have a column that varies.")
    W = np.asarray(jr.normal(key, (X.shape[1], count))) / np.sqrt(X.shape[1])
    values = np.tanh(X @ W)
    values -= values.mean(axis=0)
    top = np.linalg.eigvalsh(values.T @ values / len(values))[-1]
    return jnp.asarray(values / np.sqrt(top))
