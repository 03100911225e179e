r"""Functions of a positive number on an even grid of its logarithm.

An average over the past with weights $\beta^s$ looks at a function at
$\tau \beta^s$: on a logarithmic grid a shift by $s \log(1 / \beta)$. A sum over all
lags of a geometric memory is then found by doubling, since what holds of $k$ lags,
shifted by $k$ of them, holds of the next $k$. Integrals are trapezoid rules, which for
functions that are analytic in the logarithm and fall off at both ends converge
exponentially.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._numerics import lagrange
from ..._types import RealScalar, RealScalarLike

# Between the two ends the functions here go from the first order of their argument to
# nothing, whatever the memory: e^-30 is far below one over the longest, and at e^60
# the slowest, those of no memory at all, have fallen to e^-30.
_LOW, _HIGH, STEP = -30.0, 60.0, 0.3
COUNT = round((_HIGH - _LOW) / STEP) + 1
# Doublings of the number of lags: the longest memory is of some 10^6 steps.
DOUBLINGS = 24
# The points of an interpolation, and those of them that are left of the interval.
_POINTS, _BEFORE = 12, 5

Values = Float[Array, " grid"]


def log_grid(dtype: jnp.dtype) -> Values:
    """The logarithms at which the functions are known."""
    return _LOW + STEP * jnp.arange(COUNT, dtype=dtype)


def left_rate(values: Values) -> RealScalar:
    """The power by which positive values continue below the grid."""
    first, second = values[0], values[1]
    some = (first > 0) & (second > 0)
    ratio = jnp.where(some, second, 1.0) / jnp.where(some, first, 1.0)
    return jax.lax.stop_gradient(jnp.log(ratio) / STEP)


def shifted(values: Values, by: RealScalarLike, rate: RealScalarLike = 0.0) -> Values:
    """The function of $t$ that is `values` at $t - $ `by`, for `by` >= 0; below the
    grid a power of that `rate`."""
    # Farther than the whole grid all shifts are alike but for the power.
    places = jnp.minimum(by / STEP, 2.0 * COUNT)
    whole = jnp.ceil(places)
    weights = lagrange(whole - places + _BEFORE, _POINTS)
    first = jnp.arange(COUNT)[:, None] - whole.astype(int)
    index = first + jnp.arange(-_BEFORE, _POINTS - _BEFORE)[None, :]
    return _at(values, index, rate) @ weights


def half_integral(values: Values) -> RealScalar:
    r"""$\int_0^\infty \tau^{-1/2} f(\tau)\,d\tau$ for an $f$ that is constant at 0."""
    # Below the grid the integrand is a geometric series.
    first = STEP / (1 - math.exp(-STEP / 2))
    weights = jnp.full(COUNT, STEP, values.dtype).at[0].set(first)
    return jnp.sum(weights * jnp.exp(log_grid(values.dtype) / 2) * values)


def abel(values: Values, rate: RealScalarLike = 0.0) -> Values:
    r"""The Abel transform over its scale, $\sqrt{y}^{\,-1} \int_0^\infty \sigma^{-1/2}
    f(\sigma + y)\,d\sigma$ at each $y$ of the grid, which is a convolution."""
    kernel = jnp.asarray(_abel_kernel(), values.dtype)
    index = jnp.arange(COUNT)[:, None] + jnp.arange(len(kernel))[None, :] - _BEFORE
    return _at(values, index, rate) @ kernel


def interpolate(table: Float[Array, "n ..."], place: RealScalar) -> Float[Array, "..."]:
    """A table of rows at 0, 1, ..., n - 1, between them; the end values beyond."""
    count = len(table)
    place = jnp.clip(place, 0.0, count - 1.0)
    # Near the ends the points are those that there are.
    start = jnp.clip(jnp.floor(place) - _BEFORE, 0, count - _POINTS)
    start = jax.lax.stop_gradient(start)
    weights = lagrange(place - start, _POINTS)
    rows = jax.lax.dynamic_slice_in_dim(table, start.astype(int), _POINTS)
    return jnp.tensordot(weights, rows, axes=1)


def _at(values: Values, index: Array, rate: RealScalarLike) -> Array:
    """The values at places of the grid: beyond its end nothing, below it a power."""
    inside = values[jnp.clip(index, 0, COUNT - 1)]
    below = jnp.exp(STEP * rate * jnp.minimum(index, 0).astype(values.dtype))
    return jnp.where(index < COUNT, inside * below, 0.0)


@functools.cache
def _abel_kernel() -> np.ndarray:
    """The weights of `abel` at the places from `_BEFORE` below on."""
    kernel = np.zeros(COUNT + _POINTS)
    nodes = np.arange(_POINTS) - _BEFORE
    # sigma = y e^(m h), at which the function is taken at log(sigma + y); far enough
    # below for the rest of the geometric series to be below rounding.
    for m in range(round(-80 / STEP), COUNT):
        place = np.logaddexp(0.0, m * STEP) / STEP
        whole = int(place)
        for node in nodes:
            others = nodes[nodes != node]
            weight = np.prod((place - whole - others) / (node - others))
            at = whole + node + _BEFORE
            if at < len(kernel):
                kernel[at] += STEP * np.exp(m * STEP / 2) * weight
    return kernel
