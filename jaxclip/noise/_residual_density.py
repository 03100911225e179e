r"""The densities of noise that is convolved with a normal law.

Each is written so that no two large terms cancel, whichever of the signal and the
noise is the wider, and neither do their derivatives. With $s$ the signal's standard
deviation and $M$ Mills' ratio, $\Phi(-t) = \phi(t) M(t)$, in which a tail keeps its
digits. Derived here.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import RealScalarLike
from ._mills import mills, phi

_LOG_ROOT_2_PI = math.log(2 * math.pi) / 2
# Beyond so many standard deviations the normal density is 0 in either precision.
_NOTHING = 40.0
# A rule on [-1, 1] for the mean of a normal density over an interval.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


class LaplaceDensity(eqx.Module):
    r"""$\frac{1}{2b} \phi(z) [M(\rho - z) + M(\rho + z)]$ at $z = |w| / s$ for
    $\rho = s / b$."""

    signal: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, residual: RealScalarLike) -> Float[Array, ""]:
        residual = jnp.asarray(residual)
        size = jnp.where(residual < 0, -residual, residual)
        z, rho = jnp.asarray(size / self.signal), self.signal / self.scale
        inner, t_inner, t_tail = _two_sides(rho - z)
        z = jnp.where(inner, z, 0.0)
        normal = -(z**2) / 2 - _LOG_ROOT_2_PI
        normal += jnp.log(mills(t_inner) + mills(rho + z))
        # Beyond, the exponential tail of the noise, and what the signal takes from it.
        beyond = mills(2 * jnp.where(inner, 0.0, rho) + t_tail) - mills(t_tail)
        tail = jnp.where(inner, 0.0, rho) ** 2 / 2 - size / self.scale
        tail += jnp.log1p(phi(t_tail) * beyond)
        return jnp.where(inner, normal, tail) - jnp.log(2 * self.scale)


class ExponentialDensity(eqx.Module):
    r"""$\frac{1}{b} \phi(z) M(z + \rho)$ at $z = (w - b) / s$ for $\rho = s / b$."""

    signal: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, base: RealScalarLike, offset: RealScalarLike):
        gap = jnp.asarray((base - self.scale) + offset)
        z, rho = gap / self.signal, self.signal / self.scale
        inner, t_inner, t_tail = _two_sides(z + rho)
        z = _bounded(jnp.where(inner, z, 0.0))
        normal = -(z**2) / 2 - _LOG_ROOT_2_PI + jnp.log(mills(t_inner))
        tail = jnp.where(inner, 0.0, rho) ** 2 / 2 + gap / self.scale
        tail += jnp.log1p(-phi(t_tail) * mills(t_tail))
        return jnp.where(inner, normal, tail) - jnp.log(self.scale)


class UniformDensity(eqx.Module):
    r"""$\frac{1}{2h} [\Phi((h - w) / s) - \Phi(-(h + w) / s)]$, $h$ half the width."""

    signal: Float[Array, ""]
    half: Float[Array, ""]

    def __call__(self, base: RealScalarLike, offset: RealScalarLike):
        sign = jnp.where(base + offset < 0, -1.0, 1.0)
        base, offset = sign * base, sign * offset
        z, width = (base + offset) / self.signal, self.half / self.signal
        narrow = width < 0.5
        mean = self._mean(jnp.where(narrow, z, 0.0), jnp.where(narrow, width, 0.0))
        # In place of what is not used, a point at which all is regular.
        gap = jnp.asarray((base - self.half) + offset) / self.signal
        edge = self._edge(jnp.where(narrow, 0.0, gap), jnp.where(narrow, 1.0, width))
        return jnp.where(narrow, mean, edge)

    def _mean(self, z: Array, width: Array) -> Array:
        """Where the signal is wider than the noise: a mean of normal densities."""
        at = z + width * _NODES.astype(z.dtype)
        total = jax.nn.logsumexp(-(at**2) / 2, b=(_WEIGHTS / 2).astype(z.dtype))
        return total - _LOG_ROOT_2_PI - jnp.log(self.signal)

    def _edge(self, gap: Array, width: Array) -> Array:
        """Where it is not: in the tail on whose side of the edge the point is."""
        inner, near, before = _two_sides(gap)
        near = _bounded(near)
        far = gap + 2 * width
        apart = _capped(2 * width)
        ratio = jnp.where(inner, jnp.exp(-apart * (near + apart / 2)), 0.0)
        outside = -(near**2) / 2 - _LOG_ROOT_2_PI
        outside += jnp.log(mills(near) - ratio * mills(jnp.where(inner, far, 0.0)))
        missing = phi(before) * mills(before) + phi(_capped(far)) * mills(far)
        inside = jnp.log1p(-jnp.where(inner, 0.0, missing))
        return jnp.where(inner, outside, inside) - jnp.log(2 * self.half)


class StudentDensity(eqx.Module):
    """A normal law whose precision is gamma distributed, by the trapezoid rule in the
    precision's logarithm: the integrand is analytic in a strip of half width pi / 2 and
    falls exponentially at both ends, so that the error is about 1e-12."""

    log_weights: Float[Array, " m"]
    inverse_stds: Float[Array, " m"]

    @classmethod
    def make(
        cls,
        signal: Float[Array, ""],
        scale: Float[Array, ""],
        df: Float[Array, ""],
        log_precision: Float[Array, " m"],
    ) -> "StudentDensity":
        # Normalised by their sum: the gamma density's own constant is a difference of
        # numbers as large as the degrees of freedom.
        weights = jax.nn.log_softmax(-df / 2 * _excess(log_precision))
        # The root of the precision is taken out, which overflows float32 without.
        root = jnp.exp(log_precision / 2)
        inverse = root / jnp.sqrt((signal * root) ** 2 + scale**2)
        return cls(weights + jnp.log(inverse) - _LOG_ROOT_2_PI, inverse)

    def __call__(self, residual: RealScalarLike) -> Float[Array, ""]:
        z = residual * self.inverse_stds
        # Squares of what does not count must not overflow in a derivative.
        z = jnp.where(jnp.abs(z) < 1e6, z, 1e6)
        exponents = self.log_weights - z**2 / 2
        # Less than the largest, which is found without the derivatives.
        top = jax.lax.stop_gradient(jnp.max(exponents))
        return top + jnp.log(jnp.sum(jnp.exp(exponents - top)))


def _two_sides(t: Array) -> tuple[Array, Array, Array]:
    """Whether `t` is not negative; `t` where it is so, and minus `t` where it is not.
    Where they are not, they are numbers that are safe to work with."""
    inner = t >= 0
    return inner, jnp.where(inner, t, 0.0), jnp.where(inner, 1.0, _capped(-t))


def _capped(t: Array) -> Array:
    # Beyond, the square of a large number would meet a density of 0 in a derivative.
    return jnp.where(t < _NOTHING, t, _NOTHING)


def _bounded(z: Array) -> Array:
    """`z`, where its square and that one's derivative can be represented: beyond, a
    density is 0 in any precision."""
    most = float(jnp.finfo(z.dtype).max) ** 0.25
    return jnp.where(jnp.abs(z) < most, z, jnp.copysign(most, z))


def _excess(x: Array) -> Array:
    """e^x - 1 - x, to all digits at small x too."""
    small = jnp.abs(x) < 0.5
    near = jnp.where(small, x, 0.0)
    series = jnp.zeros_like(x)
    for k in range(14, 1, -1):
        series = (1 + series) * near / k
    return jnp.where(small, series * near, jnp.expm1(x) - x)
