"""Linear models on the rows of a table."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ..._checks import known
from ..._numerics import exact_dot
from ..._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike
from ._base import AbstractLinear
from ._loss import AbstractLoss, SquaredLoss
from ._minimiser import minimiser


class Regression(AbstractLinear):
    r"""A linear model on real rows, streamed one sample at a time.

    The loss on row $i$ is $\ell(\langle a_i, x \rangle, y_i)$, by default half the
    squared residual. The excess risk is measured on the rows, the mean loss at $x$ less
    that at its minimiser $x^*$. For least squares it is
    $R(x) = (x - x^*)^T K (x - x^*) / 2$ with $K = A^T A / n$ and $x^*$ the solution of
    smallest norm.

    **Arguments:**

    - `X`: shape `(n, d)`, the features, used as they are: no intercept is added.
    - `y`: shape `(n,)`, the targets.
    - `start`: shape `(d,)`, where SGD starts; zero by default.
    - `replacement`: draw rows with replacement for as long as wanted (the default), or
        make one pass over them, shuffled by the run's key.
    - `loss`: `SquaredLoss()`, `HuberLoss(threshold)`, `PinballLoss(level)` or
        `LogisticLoss()`, or a convex loss of your own.

    **Raises:**

    A `ValueError` where the shapes do not match, a number is not finite, there are
    fewer than two rows, the features are all zero, or there are more features than
    rows: the residuals would then all be zero and say nothing about the noise; where
    the loss does not take such targets, or has no minimiser on the rows.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    start: Float[Array, " d"]
    optimum: Float[Array, " d"]
    covariance: Float[Array, "d d"]
    loss: AbstractLoss
    replacement: bool = eqx.field(static=True)

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        start: Any = None,
        replacement: bool = True,
        loss: AbstractLoss = SquaredLoss(),
    ):
        X, y = as_table(X, y)
        if not isinstance(loss, AbstractLoss):
            raise ValueError(
                "`loss` must be one such as `SquaredLoss()` or `HuberLoss(1.0)`. "
                f"Got {loss!r}."
            )
        loss.check_targets(y)
        start = np.zeros(X.shape[1]) if start is None else np.asarray(start, float)
        if start.shape != X.shape[1:] or not np.all(np.isfinite(start)):
            raise ValueError(
                "`start` must be a finite vector with one number for each of the "
                f"{X.shape[1]} features. Got shape {start.shape}."
            )
        # In float64 whatever JAX's precision is: done once, and the optimum is what
        # every risk is measured from.
        optimum = minimiser(loss, X, y)
        dtype = jnp.result_type(float)
        self.X, self.y = jnp.asarray(X, dtype), jnp.asarray(y, dtype)
        self.start = jnp.asarray(start, dtype)
        self.optimum = jnp.asarray(optimum, dtype)
        self.covariance = jnp.asarray(X.T @ X / len(X), dtype)
        self.loss = loss
        self.replacement = replacement

    @property
    def residuals(self) -> Float[Array, " n"]:
        r"""$y - A x^*$, what the minimiser leaves."""
        return self.y - exact_dot(self.X, self.optimum)

    def init(self) -> Float[Array, " d"]:
        """The start."""
        return self.start

    def stream(self, key: Key) -> PyTree[Array]:
        return key if self.replacement else jr.permutation(key, len(self.y))

    def check_length(self, samples: int) -> None:
        if not self.replacement and samples > len(self.y):
            raise ValueError(
                f"One pass over {len(self.y)} rows has no {samples} samples: take "
                "fewer `steps`, a smaller `batch_size`, or `replacement=True`."
            )

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        if self.replacement:
            row = jr.randint(jr.fold_in(stream, index), (), 0, len(self.y))
        else:
            row = stream[index]
        return self.X[row], self.y[row]

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return self.loss.slope(prediction, target)

    def risk(self, params: Params) -> RealScalar:
        if isinstance(self.loss, SquaredLoss):
            # Neither as slow as the mean over the rows nor as rounded as a difference.
            error = params - self.optimum
            return exact_dot(error, exact_dot(self.covariance, error)) / 2
        value = jax.vmap(self.loss.value)
        best = value(exact_dot(self.X, self.optimum), self.y)
        return jnp.mean(value(exact_dot(self.X, params), self.y) - best)


def principal_axes(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of the rows' covariance, those of 0 left out, and the
    eigenvectors, one a row.

    From the singular values of the rows, in float64 whatever JAX's precision is: those
    of the covariance, their squares, have lost half of the digits, and with them the
    directions of columns that are small beside the largest.
    """
    # Of a tall table the triangular factor has the same, and is small.
    rows = np.linalg.qr(X, mode="r") if len(X) > X.shape[1] else X
    _, sizes, vectors = np.linalg.svd(rows, full_matrices=False)
    # The rounding of the table itself, as least squares counts the rank.
    kept = sizes > sizes[0] * max(X.shape) * np.finfo(float).eps
    # And what JAX's precision can hold.
    kept &= sizes**2 / len(X) > jnp.finfo(jnp.result_type(float)).tiny
    return sizes[kept] ** 2 / len(X), vectors[kept]


def as_table(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    known(X=X, y=y)
    try:
        X, y = np.asarray(X, float), np.asarray(y, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`X` and `y` must be arrays of numbers: {error}.") from error
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(
            "`X` must be a matrix of rows and `y` a vector with a number for each row. "
            f"Got shapes {X.shape} and {y.shape}."
        )
    if len(X) < 2:
        raise ValueError(f"`X` must have at least two rows. Got {len(X)}.")
    if X.shape[1] == 0:
        raise ValueError("`X` must have at least one column.")
    for name, values in (("X", X), ("y", y)):
        bad = ~np.isfinite(values)
        if bad.any():
            raise ValueError(
                f"`{name}` must be finite: {bad.sum()} of its numbers are NaN or "
                "infinite. Fill them in or leave their rows out."
            )
    if not X.any():
        raise ValueError("`X` must have a column that is not zero.")
    if X.shape[1] >= len(X):
        raise ValueError(
            f"`X` has {X.shape[1]} features and only {len(X)} rows, so that the rows "
            "can be fitted without error and say nothing about the noise. Leave out "
            "columns, or project them on fewer directions."
        )
    return X, y
