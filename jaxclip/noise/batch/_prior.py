r"""The norm of the noise of a batch: what the signal is added to.

The residuals of a batch are the vector $s Z - \epsilon$ with a standard normal $Z$ in
$B$ dimensions. No rotation changes the law of $Z$, so that the norm of that vector
depends on the noise through $\|\epsilon\|$ alone, whose law does not depend on the
risk.
"""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._numerics import safe_sqrt
from .._base import AbstractNoise
from .._mixture import Contaminated, Gaussian, Mask, Rademacher, SparseSign
from .._normal_mixture import NormalMixture
from ._radial import Radial
from ._sums import norm_of_noise

# Nodes of the law of a sum of many different squares, two in each bin; and of a normal
# law that is replaced by points.
_BINS, _POINTS = 192, 3


class Atoms(eqx.Module):
    """A radius that takes few values.

    - `radius`, `weight`: shape `(n,)`, the values and their probabilities.
    """

    radius: Float[Array, " n"]
    weight: Float[Array, " n"]


class Prior(eqx.Module):
    """The noise of a batch: a normal part, and the norm of the rest.

    - `variance`: of the normal part of each sample's noise.
    - `norm`: the law of the norm of what else there is.
    """

    variance: Float[Array, ""]
    norm: Radial | Atoms


@eqx.filter_jit
def prior_of(noise: AbstractNoise, batch_size: int) -> Prior:
    """The noise of a batch, from that of a sample."""
    zero = 0.0 * noise.residual(1.0).size
    if isinstance(noise, Gaussian):
        return Prior(noise.std**2, Atoms(zero[None], zero[None] + 1))
    if isinstance(noise, Rademacher):
        size = noise.std * math.sqrt(batch_size)
        return Prior(zero, Atoms(size[None], zero[None] + 1))
    if isinstance(noise, SparseSign):
        of = noise.prob, noise.size**2, 0 * noise.size
        return Prior(zero, _binomial(batch_size, *of))
    if isinstance(noise, Mask):
        kept = (1 / noise.keep - 1) ** 2
        of = noise.keep, kept, jnp.ones_like(noise.keep)
        return Prior(zero, _binomial(batch_size, *of))
    law = noise.residual(0.0)
    if isinstance(law, NormalMixture) and not isinstance(noise, Contaminated):
        least = jnp.min(law.stds) ** 2
        return Prior(least, _sum_of_points(law, least, batch_size))
    return Prior(zero, norm_of_noise(law, batch_size))


def _binomial(count: int, prob, high, low) -> Atoms:
    """The norm of numbers whose squares are `high` with this probability, or `low`."""
    # As many as nine standard deviations of the count, wherever its mean is.
    kept = min(count + 1, 2 * math.ceil(4.5 * math.sqrt(count)) + 24)
    middle = jnp.round(jax.lax.stop_gradient(prob) * count) - kept // 2
    first = jnp.clip(middle, 0, count + 1 - kept)
    k = first + np.arange(kept, dtype=prob.dtype)
    # 0 log 0 is 0, with the derivative of a polynomial.
    log = jax.scipy.special.gammaln(count + 1.0) - jax.scipy.special.gammaln(k + 1)
    log = log - jax.scipy.special.gammaln(count - k + 1)
    weight = jnp.exp(log) * prob**k * (1 - prob) ** (count - k)
    if count > 60:
        tiny = jnp.finfo(prob.dtype).tiny
        log += k * jnp.log(prob) + (count - k) * jnp.log(jnp.maximum(1 - prob, tiny))
        weight = jnp.exp(log)
    square = k * high + (count - k) * low
    return Atoms(safe_sqrt(square), weight)


def _sum_of_points(law: NormalMixture, least, count: int) -> Atoms:
    """The norm of draws from a mixture, each of whose components, less the variance
    that all of them have, is replaced by a few points."""
    at, mass = np.polynomial.hermite_e.hermegauss(_POINTS)
    excess = jnp.maximum(law.stds**2 - least, 0.0)
    std = safe_sqrt(excess)
    values = law.means[:, None] + std[:, None] * at.astype(std.dtype)[None, :]
    weights = law.weights[:, None] * (mass / mass.sum()).astype(std.dtype)[None, :]
    one = (values.ravel() ** 2, weights.ravel())
    square, weight = one
    for bit in f"{count:b}"[1:]:
        square, weight = _merged(square, weight, square, weight)
        if bit == "1":
            square, weight = _merged(square, weight, *one)
    return Atoms(safe_sqrt(square), weight)


def _merged(square, weight, other_square, other_weight) -> tuple[Array, Array]:
    """The sum of two independent points, in bins of two points that share the weight
    and the first three moments of what is in them."""
    total = (square[:, None] + other_square[None, :]).ravel()
    mass = (weight[:, None] * other_weight[None, :]).ravel()
    if len(total) <= 2 * _BINS:
        return total, mass
    mean = jnp.sum(mass * total)
    std = jnp.sqrt(jnp.sum(mass * (total - mean) ** 2))
    place = jax.lax.stop_gradient(jnp.arcsinh(2 * (total - mean) / std))
    low, high = jnp.min(place), jnp.max(place)
    index = ((place - low) / (high - low) * _BINS).astype(int)
    index = jnp.clip(index, 0, _BINS - 1)
    sums = partial(jax.ops.segment_sum, segment_ids=index, num_segments=_BINS)
    share = sums(mass)
    safe = jnp.where(share > 0, share, 1.0)
    centre = sums(mass * total) / safe
    gap = total - centre[index]
    variance = sums(mass * gap**2) / safe
    some = variance > 1e-24 * std**2
    variance = jnp.where(some, variance, 1.0)
    # At the mean plus each root of x^2 - skew x - variance.
    skew = jnp.where(some, sums(mass * gap**3) / safe / variance, 0.0)
    root = jnp.sqrt(skew**2 / 4 + variance)
    up, down = skew / 2 + root, skew / 2 - root
    part = jnp.where(some, -down / (up - down), 0.5)
    up, down = jnp.where(some, up, 0.0), jnp.where(some, down, 0.0)
    points = jnp.concatenate([centre + up, centre + down])
    return jnp.maximum(points, 0.0), jnp.concatenate([share * part, share * (1 - part)])
