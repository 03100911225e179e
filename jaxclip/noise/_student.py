"""Label noise with heavy tails: Student's t, and Cauchy's law."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._checks import is_traced, positive
from .._types import Key, RealScalarLike
from ._base import AbstractNoise
from ._residual_density import StudentDensity
from ._smooth import REACH, in_units
from ._smooth_law import SmoothLaw, normal_edges

# The same of Student's t, in its scale, up to where its power law begins.
_CENTRE_EDGES = np.array([0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 13.0])
# The steps of the trapezoid rule in the logarithm of its precision, minus the logarithm
# of the part that is not seen, and that of the largest norm that can be squared twice.
_STEPS = {"float64": 0.3, "float32": 0.6}
_SEEN = {"float64": (25.0, 300.0), "float32": (14.0, 80.0)}


class StudentT(AbstractNoise):
    """Student's t noise: `scale` times a standard t variable.

    **Arguments:**

    - `df`: the degrees of freedom, positive; the variance is infinite at 2 and below.
    - `scale`: the scale, in the unit of the label; not the standard deviation.
    """

    df: Float[Array, ""] = eqx.field(converter=partial(positive, "df"))
    scale: Float[Array, ""] = eqx.field(converter=partial(positive, "scale"))
    # Nodes of the mixture that the density is, and of panels in its tail: as many as
    # the degrees of freedom need where they are known when the noise is made, and as
    # one degree does where they are traced.
    nodes: int = eqx.field(static=True)
    tail: int = eqx.field(static=True)

    def __init__(self, df: RealScalarLike, scale: RealScalarLike):
        self.df, self.scale = positive("df", df), positive("scale", scale)
        with jax.ensure_compile_time_eval():
            known = jnp.asarray(1.0 if is_traced(df) else df, self.df.dtype)
            low, high = _log_precisions(known)
            # The step that the strip of analyticity allows, and the peak's width.
            step = min(_STEPS[str(known.dtype)], 0.6 / float(known) ** 0.5)
            self.nodes = int(float(high - low) / step) + 2
            self.tail = int(float(_log_reach(known)) / math.log(3)) + 2

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
        unit, signal, scale = in_units(signal_variance, self.scale)
        # Where the nodes lie is no part of the result, but for rounding.
        df = jax.lax.stop_gradient(self.df)
        # A threshold is as large beside a signal that is wider than the noise.
        wide = jax.lax.stop_gradient(-jnp.log(scale))
        nodes = jnp.linspace(*_log_precisions(df, wide), self.nodes)
        density = StudentDensity.make(signal, scale, self.df, nodes)
        # Denser towards the centre, where functions of the norm still vary.
        far = jnp.exp(_log_reach(df) * jnp.linspace(0.0, 1.0, self.tail) ** 1.25)
        centre = scale * _CENTRE_EDGES
        edges = [normal_edges(signal), centre, (centre[-1] + REACH * signal) * far]
        return SmoothLaw(density, jnp.concatenate(edges), symmetric=True, unit=unit)


class Cauchy(AbstractNoise):
    """Cauchy noise: Student's t with one degree of freedom. Its variance is infinite.

    **Arguments:**

    - `scale`: half the width at half the maximum, in the unit of the label.
    """

    scale: Float[Array, ""] = eqx.field(converter=partial(positive, "scale"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.scale * jr.cauchy(key, shape, self.scale.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return jnp.full_like(self.scale, jnp.inf)

    def residual(self, signal_variance: RealScalarLike) -> SmoothLaw:
        return StudentT(1.0, self.scale).residual(signal_variance)


def _log_reach(df: Float[Array, ""], wide: RealScalarLike = 0.0) -> Float[Array, ""]:
    """The logarithm of the norm, in the scale, beyond which nothing of a t variable is
    seen: neither in an expected square nor under a threshold of 1e12 scales, or of 1e12
    signals where the logarithm of the signal in the scale is `wide`."""
    seen, largest = _SEEN[str(df.dtype)]
    threshold = math.log(1e12)
    # More than x has the probability x^-df, and counts with the threshold's square, or
    # where the variance is finite with the square of x.
    light = df > 2
    clipped = jnp.where(
        light, (2 * threshold + seen) / df, threshold + seen / df + wide
    )
    whole = jnp.where(light, seen / jnp.where(light, df - 2, 1.0), jnp.inf)
    return jnp.minimum(jnp.minimum(clipped, whole), largest)


def _log_precisions(
    df: Float[Array, ""], wide: RealScalarLike = 0.0
) -> tuple[Array, Array]:
    """Logarithms of the smallest and largest precision of a t variable that count.

    Beyond the high end and, for many degrees, beyond the low one, the gamma density is
    below e^-37 of its peak (in float64); for few degrees the low end is where the tail
    is no longer seen.
    """
    reach = 1 - math.log(jnp.finfo(df.dtype).eps)
    high = jnp.log(2 + 2 * (reach + 3) / df)
    # The exponent at distance x below the peak is at least df / 2 times x^2 / (2 + x).
    part = reach / df
    low = part + jnp.sqrt(part**2 + 4 * part)
    low = -jnp.maximum(low, 2 * _log_reach(df, wide))
    return low, jnp.minimum(high, jnp.sqrt(4 * reach / df))
