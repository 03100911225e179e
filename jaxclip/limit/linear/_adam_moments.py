r"""What the limit sees of Adam: two numbers for each value of the risk.

The gradient of a coordinate of variance $\lambda$ is $g = \psi(w)\sqrt\lambda\,r$ with
the residual $w$, the scalar form $\psi$ of the rule that clips the gradient, and
$r \sim N(0, 1)$. Adam's update $u = m / \sqrt v$ does not change where all gradients
are multiplied by one number, so that $\lambda$ drops out. All expectations follow from

$$v^{-1/2} = \pi^{-1/2} \int_0^\infty \tau^{-1/2} e^{-\tau v}\,d\tau,$$

under which the past factorises into one factor for each lag. Derived here.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import RealScalar, RealScalarLike, Step
from ...clip import AbstractClip
from ...noise import AbstractNoise
from ._log_grid import (
    DOUBLINGS,
    Values,
    abel,
    half_integral,
    left_rate,
    log_grid,
    shifted,
)


class UpdateMoments(NamedTuple):
    r"""The mean and the fluctuations of an optimiser's update, at one risk.

    For a coordinate of variance $\lambda$ with the error $z$:

    - `drift`: the mean of the update over $\sqrt\lambda z$, one over the label's unit.
    - `diffusion`: the sum over all lags, of either sign, of the update's
        autocovariance. Dimensionless.
    """

    drift: Float[Array, ""]
    diffusion: Float[Array, ""]


class PerLag(NamedTuple):
    """The expectations over one lag's gradient $g$, at each $x$ of the grid.

    - `log`: the logarithm of $E e^{-x g^2}$.
    - `slope`: $E[r \\, \\partial_w (g e^{-x g^2})]$.
    - `square`: $E[g^2 e^{-x g^2}]$.
    """

    log: Values
    slope: Values
    square: Values


class _OverLags(NamedTuple):
    """Products over the first lags, and sums over them of such products in which the
    factor of one lag is replaced.

    - `log`: the logarithm of the product of the first factors.
    - `slope`, `square`: with the replaced factor of that name, weighed by $b_1^s$ and
        by $b_1^{2 s}$.
    """

    log: Values
    slope: Values
    square: Values


def adam_moments(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    decays: tuple[RealScalarLike, RealScalarLike],
    step: Step = 0,
) -> UpdateMoments:
    r"""The moments of Adam's update on gradients that a rule has clipped.

    With the weights $c_s = (1 - b_1) b_1^s$ and $p_s = (1 - b_2) b_2^s$ of the lags in
    $m$ and in $v$, and $\phi(x) = E e^{-x g^2}$, odd powers of a gradient vanish and

    $$\mathrm{drift} = \pi^{-1/2} \int \tau^{-1/2} \sum_s c_s\,
    E[r\,\partial_w(g e^{-\tau p_s g^2})] \prod_{j \neq s} \phi(\tau p_j)\,d\tau.$$

    The autocovariance at lag $l$ is a double integral, of $v^{-1/2}$ now and then. What
    is older than both sees only $\rho = \tau b_2^l + \sigma$, with the function

    $$F(\rho) = \sum_s c_s^2\, E[g^2 e^{-\rho p_s g^2}] \prod_{j \neq s} \phi(\rho p_j),
    \qquad C_l = \frac{b_1^l}{\pi} \int \tau^{-1/2} \prod_{j < l} \phi(\tau p_j)
    \int \sigma^{-1/2} F(\sigma + \tau b_2^l)\,d\sigma\,d\tau.$$

    Each sum over lags is one over shifts of a logarithmic grid, and is found by
    doubling. `diffusion` is $C_0 + 2 \sum_{l > 0} C_l$. Derived here.

    **Arguments:**

    - `clip`, `noise`, `risk`, `feature_norm`, `step`: as of [`jaxclip.moments`][].
    - `decays`: the decays $b_1$ and $b_2$ of the two averages.
    """
    return over_the_past(per_lag(clip, noise, risk, feature_norm, step), decays)


def over_the_past(
    lag: PerLag, decays: tuple[RealScalarLike, RealScalarLike]
) -> UpdateMoments:
    """The moments, from the expectations over one lag's gradient."""
    b1, b2 = (jnp.asarray(decay, lag.log.dtype) for decay in decays)
    apart = -jnp.log(jnp.maximum(b2, 1e-30))
    over, logs = _double(lag, b1, apart)
    # The grid is that of tau p_0 in place of tau.
    scale = (1 - b1) / jnp.sqrt(1 - b2)
    drift = scale * half_integral(over.slope) / math.sqrt(math.pi)

    grid = log_grid(lag.log.dtype)
    newest = jnp.exp(grid / 2) * abel(over.square, left_rate(over.square))
    lags = _over_both(newest, logs, b1, apart)
    diffusion = scale**2 * half_integral(2 * lags - newest) / math.pi
    return UpdateMoments(drift, diffusion)


def per_lag(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
) -> PerLag:
    """The expectations over one gradient, in a unit of its own size."""
    law = noise.residual(2 * jnp.asarray(risk))

    def psi(norm):
        return norm * clip.factor(norm * feature_norm, step)

    kinks = [kink / feature_norm for kink in clip.kinks(step)]
    # Finite for the heaviest tails too; the update does not depend on it.
    unit = law.expect(lambda norm: jnp.sqrt(jnp.abs(psi(norm))), kinks) ** 2
    unit = jax.lax.stop_gradient(jnp.where(unit > 0, unit, 1.0))
    x = jnp.exp(log_grid(unit.dtype))
    most = float(jnp.finfo(x.dtype).max) ** 0.5

    def even(norm):
        # Over r, of sqrt(2 x) psi = q: E e^(-x g^2) = (1 + q^2)^(-1/2).
        q = jnp.minimum(jnp.abs(jnp.sqrt(2 * x) * (psi(norm) / unit)), most)
        kept = 1 / jnp.sqrt(1 + q**2)
        lost = (q * kept) ** 2
        return kept, lost / (1 + kept), lost * kept / (2 * x)

    def odd(norm, root):
        value = psi(norm) / unit
        kept = 1 / jnp.sqrt(1 + jnp.minimum(jnp.abs(root * value), most) ** 2)
        return value * kept**3

    kept, lost, square = law.expect(even, kinks)
    # Each where it has its digits: 1 - kept is too small at one end, kept at the other.
    near = lost < 0.5
    log = jnp.where(near, jnp.log1p(-jnp.where(near, lost, 0.0)), jnp.log(kept))
    slope = jax.vmap(lambda root: law.slope(lambda norm: odd(norm, root), kinks))
    return PerLag(log, slope(jnp.sqrt(2 * x)), square)


def _double(
    lag: PerLag, b1: RealScalar, apart: RealScalar
) -> tuple[_OverLags, Float[Array, "doublings grid"]]:
    """The products over all lags; and the logarithms of those over the first 1, 2, 4,
    and so on."""
    log_rate, square_rate = left_rate(-lag.log), left_rate(lag.square)

    def twice(carry, _):
        over, weight, by = carry
        # Of the lags after those that there are.
        log = shifted(over.log, by, log_rate)
        slope = shifted(over.slope, by)
        square = shifted(over.square, by, square_rate)
        before, after = jnp.exp(over.log), jnp.exp(log)
        doubled = _OverLags(
            over.log + log,
            over.slope * after + weight * before * slope,
            over.square * after + weight**2 * before * square,
        )
        return (doubled, weight**2, 2 * by), over.log

    start = _OverLags(*lag), b1, apart
    (over, _, _), logs = jax.lax.scan(twice, start, None, length=DOUBLINGS)
    return over, logs


def _over_both(newest: Values, logs: Array, b1: RealScalar, apart: RealScalar):
    """The sum over lags between two updates: of `newest` at the later one's argument,
    weighed by the products over the lags between them."""

    def twice(carry, log):
        total, weight, by = carry
        total = total + weight * jnp.exp(log) * shifted(total, by)
        return (total, weight**2, 2 * by), None

    (total, _, _), _ = jax.lax.scan(twice, (newest, b1, apart), logs)
    return total
