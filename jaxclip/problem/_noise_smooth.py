"""Noise whose residuals have a density in closed form: no mixture of normal laws."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.lax import rsqrt
from jax.scipy.special import gammaln, log_ndtr
from jaxtyping import Array, Float

from .._checks import is_traced, positive
from .._types import Key, RealScalarLike
from ._law import SmoothLaw, normal_edges
from ._noise import AbstractNoise, unresolved

# The panels of Student's t, in its scale, up to where its power law begins.
_CENTRE_EDGES = np.array([0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 13.0])

# The terms that are kept of the tail series of the normal distribution function.
_ORDER = 10

# Panel edges of an exponential tail, in its scale: beyond the last, 4e-18 of the mass.
_TAIL_EDGES = np.array([0.5, 1.0, 2.0, 4.0, 7.0, 10.0, 14.0, 19.0, 25.0, 32.0, 40.0])


class Laplace(AbstractNoise):
    """Laplace (double exponential) noise.

    **Arguments:**

    - `std`: the standard deviation: sqrt(2) times the scale.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std / np.sqrt(2) * jr.laplace(key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> SmoothLaw:
        scale, signal = self.std / np.sqrt(2), _signal(signal_variance, self.std)
        edges = [normal_edges(signal), scale * _TAIL_EDGES]
        density = _LaplaceDensity(signal, scale)
        return SmoothLaw(density, _with_top(edges, signal), symmetric=True)


class Exponential(AbstractNoise):
    """Centred exponential noise: `std` times (E - 1), skewed to the right.

    **Arguments:**

    - `std`: the standard deviation, which is the scale.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std * (jr.exponential(key, shape, self.std.dtype) - 1)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> SmoothLaw:
        signal = _signal(signal_variance, self.std)
        beside = normal_edges(signal)
        edges = [self.std + beside, self.std - beside, self.std * _TAIL_EDGES, beside]
        return SmoothLaw(
            _ExponentialDensity(signal, self.std), _with_top(edges, signal)
        )


class StudentT(AbstractNoise):
    """Student's t noise: `scale` times a standard t variable.

    **Arguments:**

    - `df`: degrees of freedom; the variance is infinite at 2 and below.
    - `scale`: the scale, not the standard deviation.
    """

    df: Float[Array, ""] = eqx.field(converter=partial(positive, "df"))
    scale: Float[Array, ""] = eqx.field(converter=partial(positive, "scale"))
    # Nodes of the mixture below: fewer where the degrees of freedom are known when the
    # noise is made, and enough for one degree where they are traced.
    nodes: int = eqx.field(static=True)

    def __init__(self, df: RealScalarLike, scale: RealScalarLike):
        self.df, self.scale = positive("df", df), positive("scale", scale)
        known = 1.0 if is_traced(df) else float(df)
        low, high = _precisions(known, self.df.dtype, np)
        # The step that the strip of analyticity allows, and the width of the peak.
        step = min(0.3, 0.75 / known**0.5)
        self.nodes = int((high - low) / step) + 2

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.scale * jr.t(key, self.df, shape)

    @property
    def variance(self) -> Float[Array, ""]:
        finite = self.df > 2
        return jnp.where(
            finite,
            self.scale**2 * self.df / jnp.where(finite, self.df - 2, 1.0),
            jnp.inf,
        )

    def residual(self, signal_variance: RealScalarLike) -> SmoothLaw:
        signal = _signal(signal_variance, self.scale)
        # Beyond the last edge, as much of the mass as the precision does not see.
        far = 16 * jnp.exp(_reach(self.df.dtype) / self.df * np.linspace(0, 1, 49))
        edges = [normal_edges(signal), self.scale * _CENTRE_EDGES, self.scale * far]
        density = _StudentDensity.make(signal, self.scale, self.df, self.nodes)
        return SmoothLaw(density, _with_top(edges, signal), symmetric=True)


class Cauchy(AbstractNoise):
    """Cauchy noise: Student's t with one degree of freedom. Its variance is infinite.

    **Arguments:**

    - `scale`: half the width at half the maximum.
    """

    scale: Float[Array, ""] = eqx.field(converter=partial(positive, "scale"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.scale * jr.cauchy(key, shape, self.scale.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return jnp.full_like(self.scale, jnp.inf)

    def residual(self, signal_variance: RealScalarLike) -> SmoothLaw:
        return StudentT(1.0, self.scale).residual(signal_variance)


class Uniform(AbstractNoise):
    """Noise that is uniform on a symmetric interval.

    **Arguments:**

    - `std`: the standard deviation: half the interval's length over sqrt(3).
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        half = np.sqrt(3) * self.std
        return half * jr.uniform(key, shape, self.std.dtype, -1.0, 1.0)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> SmoothLaw:
        half, signal = np.sqrt(3) * self.std, _signal(signal_variance, self.std)
        beside = normal_edges(signal)
        edges = jnp.concatenate([half + beside, jnp.maximum(half - beside, 0.0)])
        return SmoothLaw(_UniformDensity(signal, half), edges, symmetric=True)


class _LaplaceDensity(eqx.Module):
    signal: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, w):
        # Each half of the noise gives an exponential tail smoothed by the signal. The
        # two large terms of each exponent cancel, so they are added as logarithms.
        ratio = self.signal / self.scale
        right = _log_ndtr(w / self.signal - ratio) - w / self.scale
        left = _log_ndtr(-w / self.signal - ratio) + w / self.scale
        return ratio**2 / 2 + jnp.logaddexp(right, left) - jnp.log(2 * self.scale)


class _ExponentialDensity(eqx.Module):
    signal: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, w):
        shifted, ratio = w - self.scale, self.signal / self.scale
        tail = _log_ndtr(-shifted / self.signal - ratio) + shifted / self.scale
        return ratio**2 / 2 + tail - jnp.log(self.scale)


class _UniformDensity(eqx.Module):
    signal: Float[Array, ""]
    half: Float[Array, ""]

    def __call__(self, w):
        # By symmetry on the side where both tails are left tails, so that their
        # difference keeps its digits.
        norm = jnp.abs(w)
        near = _log_ndtr((self.half - norm) / self.signal)
        far = _log_ndtr(-(self.half + norm) / self.signal)
        return near + jnp.log1p(-jnp.exp(far - near)) - jnp.log(2 * self.half)


class _StudentDensity(eqx.Module):
    """A normal law whose precision is gamma distributed, by the trapezoid rule in the
    precision's logarithm: the integrand is analytic in a strip of half width pi / 2 and
    falls exponentially at both ends, so that the error is about 1e-13."""

    log_weights: Float[Array, " m"]
    inverse_stds: Float[Array, " m"]

    @classmethod
    def make(cls, signal, scale, df, nodes: int):
        half, (low, high) = df / 2, _precisions(df, df.dtype)
        log_precision = jnp.linspace(low, high, nodes)
        log_gamma = half * (log_precision - jnp.exp(log_precision))
        log_step = jnp.log((high - low) / (nodes - 1))
        variances = signal**2 + scale**2 * jnp.exp(-log_precision)
        log_weights = log_gamma + log_step + half * jnp.log(half) - gammaln(half)
        # Not the variances themselves, whose powers in a derivative overflow float32.
        return cls(log_weights - jnp.log(2 * np.pi * variances) / 2, rsqrt(variances))

    def __call__(self, w):
        # Heavy tails do not underflow, so the terms are summed as they are.
        exponents = self.log_weights - (w * self.inverse_stds) ** 2 / 2
        return jnp.log(jnp.sum(jnp.exp(exponents)))


def _reach(dtype) -> float:
    """Minus the logarithm of what this precision does not see: 37 in float64."""
    return 1 - math.log(jnp.finfo(dtype).eps)


def _precisions(df, dtype, numpy=jnp):
    """Logarithms of the smallest and largest precision of a t variable that count.

    Beyond them the gamma density is below e^-37 of its peak (in float64): at the low
    end it falls as a power, which is what few degrees of freedom have, and near the
    peak as a normal law of variance 2 / df, which is all that many have.
    """
    reach = _reach(dtype)
    peak = numpy.sqrt(4 * reach / df)
    high = numpy.log(2 + 2 * (reach + 3) / df)
    return -2 * reach / df - peak, numpy.minimum(high, peak)


@jax.custom_jvp
def _log_ndtr(x: Array) -> Array:
    """log Phi(x). By default its tail series is cut where the error is 4e-9."""
    return log_ndtr(x, series_order=_ORDER)


@_log_ndtr.defjvp
def _log_ndtr_jvp(primals, tangents):
    # The derivative is phi / Phi. By default it is exp(-x^2 / 2 - log Phi), which far
    # in the tail is the exponential of two rounding errors, and infinite.
    (x,), (tangent,) = primals, tangents
    value = _log_ndtr(x)
    tail = x < (-20 if x.dtype == jnp.float64 else -10)
    near, far = jnp.where(tail, 0.0, x), jnp.where(tail, x, -100.0)
    hazard = jnp.exp(-(near**2) / 2 - jnp.where(tail, 0.0, value)) / np.sqrt(2 * np.pi)
    series = jnp.ones_like(x)
    for k in range(_ORDER, 0, -1):
        series = 1 - (2 * k - 1) / far**2 * series
    return value, tangent * jnp.where(tail, -far / series, hazard)


def _signal(signal_variance: RealScalarLike, std: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.sqrt(signal_variance + unresolved(std))


def _with_top(groups: list[Array], signal: Float[Array, ""]) -> Float[Array, " m"]:
    """The edges, and one beyond which neither the tail nor the signal reaches."""
    edges = jnp.concatenate(groups)
    return jnp.append(jnp.abs(edges), jnp.max(edges) + normal_edges(signal)[-1])
