r"""The mean of the logistic function under a normal law, without a quadrature over it.

The logistic law is a scale mixture of normal laws: a logistic variable is $2 K Z$ with
$Z \sim N(0, 1)$ and $K$ of Kolmogorov's law (Andrews and Mallows 1974). So

$$\sigma(u) = E\, \Phi(u / 2K), \qquad
E\, \sigma(m + \sqrt v Z) = E\, \Phi\Big(\frac{m}{\sqrt{4K^2 + v}}\Big),$$

at any variance $v$. The density of $\log K$ falls faster than exponentially on both
sides, so that the trapezoid rule in it needs few nodes: 22 give the logistic function
to 5e-13 everywhere.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from ..._types import RealScalar

_LOW, _HIGH, _STEP = np.log(0.15), np.log(5.0), 0.15


def logistic_normal(mean: RealScalar, variance: RealScalar) -> RealScalar:
    """The mean of the logistic function of a normal variable."""
    variances, weights = _mixture()
    # Of the variable's dtype, which is float32 where JAX's is.
    variances = jnp.asarray(variances, mean.dtype)
    weights = jnp.asarray(weights, mean.dtype)
    return jnp.dot(weights, ndtr(mean / jnp.sqrt(variances + variance)))


@lru_cache
def _mixture() -> tuple[np.ndarray, np.ndarray]:
    """Variances and weights of the mixture."""
    points = np.exp(np.arange(_LOW, _HIGH, _STEP))
    weights = _STEP * points * _kolmogorov(points)
    kept = weights > 1e-17
    points, weights = points[kept], weights[kept]
    return (2 * points) ** 2, weights / weights.sum()


def _kolmogorov(x: np.ndarray) -> np.ndarray:
    """The density of Kolmogorov's law, by the series that converges there."""
    k = np.arange(1, 40)[:, None]
    signs = (-1.0) ** (k - 1)
    large = 8 * x * np.sum(signs * k**2 * np.exp(-2 * (k * x) ** 2), axis=0)
    a = (2 * k - 1) ** 2 * np.pi**2 / 8
    terms = np.exp(-a / x**2) * (2 * a / x**4 - 1 / x**2)
    return np.where(x < 0.8, np.sqrt(2 * np.pi) * np.sum(terms, axis=0), large)
