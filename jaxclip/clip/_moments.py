"""What the limits see of a rule and a noise: two numbers for each value of the risk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import RealScalarLike, Step
from ..noise import AbstractNoise
from ._base import AbstractClip


class Moments(NamedTuple):
    r"""The reduction factors of a clipping rule, at one value of the excess risk.

    With the residual $w$ and the rule's scalar form $\psi$:

    - `mu`: $E\,\psi'(w)$, how much of the descent is left. Dimensionless.
    - `second`: $E\,\psi(w)^2$, the variance that is left, in the label's squared unit.
    - `variance`: $E\,w^2$, without a clip; infinite where the noise's is.
    - `nu`: `second / variance`, the paper's variance reduction factor, dimensionless.
        If the variance is infinite, it is the limit $f(\infty)^2$: the square of the
        fraction that the rule keeps of the largest gradients.
    """

    mu: Float[Array, "..."]
    second: Float[Array, "..."]
    variance: Float[Array, "..."]
    nu: Float[Array, "..."]

    @property
    def csc(self) -> Float[Array, "..."]:
        """`mu / nu`. Above 1, clipping widens the range of stable learning rates: the
        clipped-stability criterion of arXiv:2406.11733."""
        return criteria(self.mu, self.nu)[0]

    @property
    def ccc(self) -> Float[Array, "..."]:
        """`mu^2 / nu`. Above 1, clipped SGD at its best learning rate beats unclipped
        SGD now: the clipping-comparison criterion of arXiv:2406.11733."""
        return criteria(self.mu, self.nu)[1]


def criteria(
    mu: Float[Array, "..."], nu: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The clipped-stability and the clipping-comparison criterion of arXiv:2406.11733,
    from the fraction of the descent and of the second moment that clipping leaves."""
    return mu / nu, mu**2 / nu


def unchecked_moments(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
) -> Moments:
    """The moments of one sample's gradient, without the checks at the door, for use
    inside a solver's loop: what [`jaxclip.moments`][] says of them holds."""
    unit, m = moments_in_units(clip, noise, risk, feature_norm, step)
    second, variance = unit * (unit * m.second), 2 * jnp.asarray(risk)
    return Moments(m.mu, second, variance + noise.variance, m.nu)


def moments_in_units(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
) -> tuple[Float[Array, ""], Moments]:
    """A unit of the residual's own size, and the moments in it: `second` and `variance`
    in its square, in which the squares of small thresholds are representable."""
    signal_variance = 2 * jnp.asarray(risk)
    # Without signal and noise every residual is 0, and the rule is that at norm 0; the
    # law is then one of which nothing is used.
    some = signal_variance + noise.variance > 0
    law = noise.residual(jnp.where(some, signal_variance, 1.0))
    size = jnp.sqrt(jax.lax.stop_gradient(signal_variance + noise.variance))
    # A constant to derivatives, since no result depends on it.
    unit = jax.lax.stop_gradient(jnp.where(size < jnp.inf, size, law.size))
    unit = jnp.where(unit > 0, unit, 1.0)

    def psi(norm):
        return norm * factor_at(clip, norm * feature_norm, step)

    # A rule that keeps a fraction of the largest gradients has a second moment of its
    # own part E w^2, which is known exactly and may be infinite; only the rest, whose
    # integrand falls off, is left to the quadrature.
    kept = factor_at_infinity(clip, step)

    def rest_at(norm):
        # As a product: the squares of the largest norms are not representable.
        own, whole = kept * (norm / unit), psi(norm) / unit
        return (whole - own) * (whole + own)

    variance = signal_variance / unit / unit + noise.variance / unit / unit
    kinks = [kink / feature_norm for kink in clip.kinks(step)]
    rest = law.expect(rest_at, kinks)
    own = jnp.where(kept == 0, 0.0, kept**2 * jnp.where(kept == 0, 1.0, variance))
    nu = kept**2 + rest / jnp.where(some, variance, 1.0)
    at_zero = jnp.asarray(clip.factor(0.0, step))
    # Not times the variance, which is 0 there, and elsewhere perhaps infinite.
    small = at_zero, jnp.zeros_like(variance), at_zero**2
    mu, second, nu = (
        jnp.where(some, usual, limit)
        for usual, limit in zip(
            (law.slope(psi, kinks), rest + own, nu), small, strict=True
        )
    )
    return unit, Moments(mu, second, variance, nu)


def factor_at(
    clip: AbstractClip, norm: Float[Array, "..."], step: Step
) -> Float[Array, "..."]:
    """The rule's factor, and 0 where it has fallen to nothing: there a rule may have
    taken a square that is not representable, whose derivative is no number."""
    least = float(jnp.finfo(norm.dtype).tiny) ** 0.5
    value = jax.lax.stop_gradient(clip.factor(norm, step))
    nothing = jnp.abs(value) < least
    # Taken where any factor is finite and differentiable in its place.
    return jnp.where(nothing, 0.0, clip.factor(jnp.where(nothing, 1.0, norm), step))


def factor_at_infinity(clip: AbstractClip, step: Step) -> Float[Array, ""]:
    """What the rule keeps of the largest gradients, 0 where that falls to nothing."""
    most = float(jnp.finfo(jnp.result_type(float)).max)
    # Beyond any threshold; and nearer, where the squares that a rule may take of it are
    # representable, so that its derivative is.
    far, near = most**0.9, most**0.45

    def at(norm):
        return jnp.asarray(clip.factor(norm, step))

    limit = jax.lax.stop_gradient(at(far))
    # What is below this fraction is a factor that falls to zero.
    falls = jnp.abs(limit) < 1e-9
    settled = jnp.abs(jax.lax.stop_gradient(at(near)) - limit) <= 1e-6 * jnp.abs(limit)
    # Where it is not used, it is taken where any factor is finite and differentiable.
    return jnp.where(
        falls, 0.0, at(jnp.where(falls, 1.0, jnp.where(settled, near, far)))
    )


def mean_factor(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
) -> Float[Array, ""]:
    r"""$E f(|w| \cdot$ `feature_norm`$)$, the mean factor of a rule: what is left of a
    term that is added to the gradient and does not count in its norm. Arguments as of
    [`jaxclip.moments`][], unchecked."""
    signal_variance = 2 * jnp.asarray(risk)
    some = signal_variance + noise.variance > 0
    law = noise.residual(jnp.where(some, signal_variance, 1.0))
    kept = factor_at_infinity(clip, step)
    # What is kept of the largest gradients is no integral that falls off.
    rest = law.expect(
        lambda norm: factor_at(clip, norm * feature_norm, step) - kept,
        [kink / feature_norm for kink in clip.kinks(step)],
    )
    return jnp.where(some, kept + rest, jnp.asarray(clip.factor(0.0, step)))
