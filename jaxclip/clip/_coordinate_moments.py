"""The moments of a rule for each coordinate, at one value of the risk."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._numerics import lagrange
from .._types import RealScalarLike
from ..noise import AbstractNoise
from ._coordinates import CELLS, EACH, SmoothedFactors, interpolate
from ._moments import Moments

# Nodes that a coordinate is interpolated from.
_WINDOW = 10


class Scales(eqx.Module):
    r"""The standard deviations $\sqrt{\lambda}$ of features, from nodes that are evenly
    spaced in their logarithm.

    The moments are analytic in $\log \lambda$, in a strip of half width $\pi / 2$,
    whatever rule and law are, since a normal feature smooths them: ten nodes give
    nine digits. Derived here.

    - `least`: the logarithm of the smallest node.
    - `weights`: shape `(m, nodes)`, what each counts for each of the coordinates.
    """

    least: Float[Array, ""]
    weights: Float[Array, "m nodes"]

    @classmethod
    def of(cls, eigenvalues: Float[Array, " m"], nodes: int) -> "Scales":
        """For these eigenvalues; one beyond the nodes has weights that are NaN."""
        x = jnp.log(eigenvalues) / 2
        margin = (_WINDOW - 1) / 2 / EACH
        least = jax.lax.stop_gradient(jnp.min(x)) - margin
        place = (x - least) * EACH
        begin = jnp.clip(jnp.floor(place) - (_WINDOW // 2 - 1), 0, nodes - _WINDOW)
        begin = jax.lax.stop_gradient(begin)
        share = place - begin
        share = jnp.where(share <= _WINDOW, share, jnp.nan)
        near = jax.vmap(lambda place: lagrange(place, _WINDOW))(share)
        column = jnp.arange(nodes)[None, None, :]
        index = begin.astype(int)[:, None] + jnp.arange(_WINDOW)[None, :]
        own = column == index[:, :, None]
        weights = jnp.sum(jnp.where(own, near[:, :, None], 0.0), axis=1)
        return cls(least, weights)


def enough_nodes(ratio: float) -> int:
    """How many nodes there are for a ratio of the largest to the smallest
    eigenvalue."""
    return int(np.ceil(np.log(ratio) / 2 * EACH)) + _WINDOW + 1


def unchecked_coordinate_moments(
    factors: SmoothedFactors,
    noise: AbstractNoise,
    risk: RealScalarLike,
    scales: Scales,
    threshold: RealScalarLike,
) -> Moments:
    r"""The moments of coordinates whose features have these deviations.

    $\mu = E \frac{d}{dw}[w F(t |w|)]$ and $\mathrm{second} = E[w^2 F_2(t |w|)]$ with
    $t = \sqrt\lambda$, so that coordinate $i$ drifts by $\lambda_i \mu z_i$ and has the
    second moment $\lambda_i \mathrm{second}$.

    **Arguments:**

    - `factors`: the table of the rule.
    - `noise`, `risk`: as of [`jaxclip.moments`][].
    - `scales`: of the coordinates.
    - `threshold`: what the norms of the table are in units of.

    The numbers of the [`jaxclip.clip.Moments`][] have shape `(m,)`.
    """
    signal_variance = 2 * jnp.asarray(risk)
    # Without signal and noise the rule is that at norm 0, and the law is not used.
    some = signal_variance + noise.variance > 0
    law = noise.residual(jnp.where(some, signal_variance, 1.0))
    size = jnp.sqrt(jax.lax.stop_gradient(signal_variance + noise.variance))
    # A constant: no result depends on it.
    unit = jax.lax.stop_gradient(jnp.where(size < jnp.inf, size, law.size))
    unit = jnp.where(unit > 0, unit, 1.0)
    kept = factors.kept
    tiny = float(jnp.finfo(unit.dtype).tiny) ** 0.5
    # An infinite threshold is far above every norm, and one of 0 below.
    least = jnp.clip(jnp.asarray(threshold, unit.dtype), tiny, 1 / tiny)
    origin = scales.least - factors.low - jnp.log(least)

    def place(norm):
        return (jnp.log(jnp.maximum(norm, tiny)) + origin) * EACH

    def slope_of(values):
        return law.slope(lambda norm: norm * interpolate(values, place(norm)))

    def square_of(values):
        # Not the square first: that of the largest norms is not representable.
        def square(norm):
            share = norm / unit
            return share * (share * interpolate(values, place(norm)))

        return law.expect(square)

    mu = _applied(scales, factors.first, slope_of)
    rest = _applied(scales, factors.rest, square_of)
    variance = signal_variance / unit / unit + noise.variance / unit / unit
    own = jnp.where(kept == 0, 0.0, kept**2 * jnp.where(kept == 0, 1.0, variance))
    mu = jnp.where(some, mu, factors.at_zero)
    second = jnp.where(some, unit * (unit * (rest + own)), 0.0)
    nu = kept**2 + rest / jnp.where(some, variance, 1.0)
    nu = jnp.where(some, nu, factors.at_zero**2)
    total = jnp.broadcast_to(signal_variance + noise.variance, mu.shape)
    return Moments(mu, second, total, nu)


def _applied(scales: Scales, table: Any, function: Any) -> Float[Array, " m"]:
    """What a function that is linear in the table makes of it for each coordinate: what
    it is made of are its weights."""
    nodes = jnp.zeros((CELLS + 1, 3), scales.weights.dtype)
    weights = jax.grad(function)(nodes)
    return scales.weights @ (table @ weights.ravel())
