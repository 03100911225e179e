"""Label noise that is drawn from the residuals of a data set."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_float, check, count
from .._types import Key, RealScalarLike
from ._base import AbstractNoise, relative_variance, unit_of
from ._normal_mixture import NormalMixture


class Empirical(AbstractNoise):
    """The residuals of a data set, drawn with replacement.

    As the noise of a label they give a residual the average, over them, of a normal law
    of the signal's width. More than `atoms` of them are binned first: the largest and
    smallest one by one, the rest in bins of equal count, each replaced by a normal law
    of the bin's mean and variance, so that mean and variance are those of the
    residuals. Down to a signal of the width of a bin the law is exact; below, it is
    smoothed on that width.

    **Arguments:**

    - `residuals`: shape `(n,)`, in the unit of the label, concrete (not traced) where
        there are more than `atoms`.
    - `atoms`: how many components the law has at most.

    **Raises:**

    A `ValueError` where `residuals` is no vector of finite numbers with at least one of
    them, or `atoms` no positive integer.
    """

    residuals: Float[Array, " n"]
    weights: Float[Array, " m"]
    means: Float[Array, " m"]
    variances: Float[Array, " m"]

    def __init__(self, residuals: Float[Array, " n"] | np.ndarray, atoms: int = 256):
        values, atoms = as_float("residuals", residuals), count("atoms", atoms)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(
                "`residuals` must be a vector with at least one number. "
                f"Got shape {values.shape}."
            )
        values = check(
            values, lambda x: ~(abs(x) < np.inf), "`residuals` must be finite."
        )
        self.residuals = values
        if values.size <= atoms:
            # As they are, and traced where they are: no sorting is needed.
            self.weights = jnp.full_like(values, 1 / values.size)
            self.means = values
            self.variances = jnp.zeros_like(values)
        else:
            bins = _bin(np.asarray(values), atoms)
            self.weights, self.means, self.variances = (
                jnp.asarray(column, values.dtype) for column in bins
            )

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return jr.choice(key, self.residuals, shape)

    @property
    def variance(self) -> Float[Array, ""]:
        """The mean square: the residuals are taken as they are, not centred."""
        return jnp.mean(self.residuals**2)

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        unit = unit_of(signal_variance, jnp.max(jnp.abs(self.residuals)))
        # Not by `mixture`: the root of a variance of 0 has no derivative.
        total = relative_variance(signal_variance, unit) + self.variances / unit / unit
        # The label's noise enters a residual with a minus sign.
        return NormalMixture(self.weights, -self.means, unit * jnp.sqrt(total))


def _bin(values: np.ndarray, atoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and variances of at most `atoms` groups of sorted values."""
    # By the law of total variance the groups together have the variance of the values.
    values = np.sort(values)
    # A clip acts on the largest, which a bin would average away. The end is counted
    # from the front, since `-0` would be the front itself.
    tail = atoms // 8
    end = values.size - tail
    inner = np.array_split(values[tail:end], atoms - 2 * tail)
    groups = [*values[:tail, None], *inner, *values[end:, None]]
    columns = [(g.size / values.size, g.mean(), g.var()) for g in groups]
    weights, means, variances = np.array(columns).T
    return weights, means, variances
